"""What several test modules share: small problems with known answers, and what a pipeline must be left with."""

import copy

import diffusers
import numpy as np
import torch
import zoo.schedulers

from nrinv import Sampler

# The schedulers most pipelines have.
COMMON = (
    "ddim, leading",
    "ddim, trailing",
    "ddpm, fixed_small",
    "euler",
    "euler, karras",
    "euler ancestral, trailing",
    "heun",
    "pndm",
    "dpmsolver++ 2",
    "sde-dpmsolver++ 2",
    "unipc 2 bh2",
    "deis 2",
    "kdpm2",
    "lcm",
    "tcd",
    "flow euler",
    "flow heun",
)
SCHEDULERS = {name: zoo.schedulers.SCHEDULERS[name] for name in COMMON}
E = 4
SHAPE = (3, 4, 6, 5)


def small_sampler(noises=0):
    steps = np.zeros((E, 2 * E + noises))
    for j in range(E):
        steps[j, j], steps[j, E + j] = 1.05, -0.4
        steps[j, 2 * E : 2 * E + noises] = 0.1 * (j + 1)
    return Sampler(np.arange(E)[::-1] * 100.0, steps, np.full(E, 0.9))


def tanh_network(x):
    return np.tanh(x + 0.3 * np.roll(x, 1, -1))


def drive(inversion, answer):
    while (request := inversion.next()) is not None:
        inversion.feed(answer(request))
    return inversion.result()


def numpy_answer(request):
    return tanh_network(request.scale * request.sample)


def torch_answer(request):
    return torch.from_numpy(tanh_network(request.scale * request.sample.float().numpy()))


def with_scheduler(pipe, name, **config):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    return pipe


def distance(a, b):
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


def fingerprint(pipe):
    return {
        "scheduler": pipe.scheduler,
        "scheduler state": {k: copy.deepcopy(v) for k, v in vars(pipe.scheduler).items()},
        "config": dict(pipe.config),
        "hooks": [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()],
        "processors": {k: type(v) for k, v in pipe.unet.attn_processors.items()},
        "dtype": (pipe.unet.dtype, pipe.vae.dtype),
    }


def assert_same(before, after):
    assert before["scheduler"] is after["scheduler"]
    for key, value in before["scheduler state"].items():
        now = after["scheduler state"][key]
        assert torch.equal(value, now) if isinstance(value, torch.Tensor) else np.array_equal(value, now), key
    for key in ("config", "hooks", "processors", "dtype"):
        assert before[key] == after[key], key
