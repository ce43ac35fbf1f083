"""One pipeline under threads and interrupts: python tests/fuzz/threads.py pairs|interrupts COUNT [SEED]

pairs: two threads call it at the same moment; each result is right, or refused by a RuntimeError, and the pipeline is as it
was.  interrupts: an inversion is interrupted at a random moment, as by Ctrl-C; the pipeline is as it was, and the next call
gives the right result.
"""

import random
import signal
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import assert_same, fingerprint
from test_threads import together

import nrinv

CALL = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_nfe": 2}


def prepared():
    """(pipeline, images, captions, what each of two inversions finds alone, what generate draws)"""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    pipe = nrinv.demo_pipeline("turbo")
    pipe.set_progress_bar_config(disable=True)
    records = nrinv.demo_images("heldout_pair")[:2]
    images, captions = [one.image for one in records], [one.caption for one in records]
    found = [nrinv.invert(pipe, image, caption, **CALL) for image, caption in zip(images, captions, strict=True)]
    drawn = nrinv.generate(pipe, found[0], output_type="latent").images
    return pipe, images, captions, found, drawn


def check_result(got, want):
    assert torch.allclose(got, want, atol=1e-5), "a result is wrong"


def pairs(count, seed):
    pipe, images, captions, alone, drawn = prepared()
    works = [lambda i=i: nrinv.invert(pipe, images[i], captions[i], **CALL).latents for i in range(2)]
    works.append(lambda: nrinv.generate(pipe, alone[0], output_type="latent").images)
    wanted = [alone[0].latents, alone[1].latents, drawn]
    before, right, rng = fingerprint(pipe), 0, random.Random(seed)
    for _ in range(count):
        chosen = rng.sample(range(3), 2)
        for i, got in zip(chosen, together(*(works[i] for i in chosen)), strict=True):
            if isinstance(got, BaseException):
                assert type(got) is RuntimeError and "in use by nrinv already" in str(got), got
                continue
            check_result(got, wanted[i])
            right += 1
        assert_same(before, fingerprint(pipe))
    print(f"pairs: {count}, {right} results right, {2 * count - right} refused")


def interrupts(count, seed):
    pipe, images, captions, alone, _ = prepared()
    before, rng, struck = fingerprint(pipe), random.Random(seed), 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    started = time.perf_counter()
    nrinv.invert(pipe, images[0], captions[0], **CALL)
    length = time.perf_counter() - started
    for _ in range(count):
        try:
            signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-4, length))
            nrinv.invert(pipe, images[1], captions[1], **CALL)
            signal.setitimer(signal.ITIMER_REAL, 0)
        except KeyboardInterrupt:
            struck += 1
        assert_same(before, fingerprint(pipe))
        check_result(nrinv.invert(pipe, images[0], captions[0], **CALL).latents, alone[0].latents)
    print(f"interrupts: {count}, {struck} while inverting")


if __name__ == "__main__":
    {"pairs": pairs, "interrupts": interrupts}[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0)
