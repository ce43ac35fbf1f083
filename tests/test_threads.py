"""One pipeline, several users at once: each result is right or refused, and the pipeline is as before."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import assert_same, fingerprint

import nrinv

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0, "max_nfe": 2}
REFUSED = r"pipe: .* (is in use by nrinv already|is called while nrinv uses it)"


def together(*works):
    """The results or exceptions of works that start at the same moment, in threads of their own."""
    barrier = threading.Barrier(len(works))

    def run(work):
        barrier.wait()
        try:
            return work()
        except BaseException as error:
            return error

    with ThreadPoolExecutor(len(works)) as pool:
        return list(pool.map(run, works))


def test_two_threads_with_one_pipeline(turbo, held_out):
    images, captions, _ = held_out
    alone = [nrinv.invert(turbo, images[i], captions[i], **CALL) for i in range(2)]
    drawn = nrinv.generate(turbo, alone[0], output_type="latent").images
    before = fingerprint(turbo)  # a plain call leaves its timesteps on the scheduler
    right = refused = 0
    for _ in range(12):
        found = together(
            lambda: nrinv.invert(turbo, images[0], captions[0], **CALL).latents,
            lambda: nrinv.invert(turbo, images[1], captions[1], **CALL).latents,
            lambda: nrinv.generate(turbo, alone[0], output_type="latent").images,
        )
        for got, want in zip(found, (alone[0].latents, alone[1].latents, drawn), strict=True):
            if isinstance(got, BaseException):
                assert type(got) is RuntimeError and "is in use by nrinv already" in str(got), got
                refused += 1
            else:
                assert torch.allclose(got, want, atol=1e-5)
                right += 1
        assert_same(before, fingerprint(turbo))
    assert right >= 12 and refused >= 1


def test_pipelines_that_share_their_networks_run_in_parallel(turbo, held_out):
    images, captions, _ = held_out
    other = type(turbo)(**turbo.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    # tol lets the samples of a batch end at different evaluations: finished ones leave the network's batch.
    call = {**CALL, "max_nfe": 12, "tol": 3e-2}
    works = [(turbo, slice(0, 4)), (other, slice(4, 8))]
    alone = [nrinv.invert(pipe, images[part], captions[part], **call).latents for pipe, part in works]
    for _ in range(4):
        found = together(*(
            lambda pipe=pipe, part=part: nrinv.invert(pipe, images[part], captions[part], **call).latents
            for pipe, part in works
        ))  # fmt: skip
        for got, want in zip(found, alone, strict=True):
            assert torch.is_tensor(got) and torch.allclose(got, want, atol=1e-4), got


@pytest.mark.parametrize("what", ["invert", "generate", "stock"])
def test_a_callback_that_uses_its_own_pipeline(turbo, held_out, what):
    images, captions, _ = held_out
    before = fingerprint(turbo)
    inv = nrinv.invert(turbo, images[0], captions[0], **CALL)

    def callback(pipe, i, t, values):
        if what == "stock":
            pipe(captions[0], num_inference_steps=2)
        elif what == "invert":
            nrinv.invert(pipe, images[0], captions[0], **CALL)
        else:
            nrinv.generate(pipe, inv)
        return values

    with pytest.raises(RuntimeError, match=REFUSED):
        nrinv.invert(turbo, images[0], captions[0], callback_on_step_end=callback, **CALL)
    assert_same(before, fingerprint(turbo))
    assert torch.equal(nrinv.invert(turbo, images[0], captions[0], **CALL).latents, inv.latents)


def test_a_stock_call_in_another_thread_refuses_both(turbo, held_out):
    """The stock call has changed the guidance on the pipeline before anything of ours can see it."""
    images, captions, _ = held_out
    before = fingerprint(turbo)
    running, release = threading.Event(), threading.Event()

    def callback(pipe, i, t, values):
        running.set()
        release.wait(60)
        return values

    def stock():
        running.wait(60)
        try:
            return turbo(captions[1], num_inference_steps=2)
        finally:
            release.set()

    want = nrinv.invert(turbo, images[0], captions[0], **CALL).latents
    found = together(lambda: nrinv.invert(turbo, images[0], captions[0], callback_on_step_end=callback, **CALL), stock)
    for refused in found:
        assert type(refused) is RuntimeError and "is called while nrinv uses it" in str(refused), refused
    assert_same(before, fingerprint(turbo))
    assert torch.equal(nrinv.invert(turbo, images[0], captions[0], **CALL).latents, want)
