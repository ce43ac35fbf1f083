"""Tiny pipelines of diffusers with random weights: one for each way in which a pipeline can drive its scheduler.

    pipe, call, latents = zoo.make("SD3, ControlNet")
    pipe(latents=latents, num_inference_steps=4, generator=..., output_type="latent", **call)

Random networks have little Jacobian and flatter every solver: the zoo proves that the parts fit together, nothing else.
Nothing here needs a hub, a text encoder's weights or a GPU.  Each family has its module; `CASES` holds them all.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module

import torch

FAMILIES = ("sd", "sdxl", "unets", "flow", "qwen", "dit", "video")
CASES = {}
# Root mean square of what a tame network returns.
RMS = 0.1


@dataclass(frozen=True)
class Case:
    """One configuration: `build()` returns (pipe, call, latents), see `make`."""

    name: str
    family: str
    build: Callable


def case(name):
    """Register the decorated function, which takes nothing and returns (pipe, call, latents), under `name`."""

    def register(build):
        if name in CASES:
            raise ValueError(f"two cases are called {name!r}")
        CASES[name] = Case(name, build.__module__.rpartition(".")[2], build)
        return build

    return register


def make(name):
    """(pipe, call, latents): a fresh pipeline, the arguments of its call, and a tensor [1, ...] for its `latents=`.

    call: everything a stock call needs beside latents, num_inference_steps, generator and output_type.
    """
    torch.manual_seed(0)
    pipe, call, latents = CASES[name].build()
    pipe.set_progress_bar_config(disable=True)
    if pipe.scheduler.config.get("prediction_type") == "epsilon" and hasattr(pipe.scheduler, "alphas_cumprod"):
        network = getattr(pipe, "unet", None) or pipe.transformer
        network.register_forward_hook(partial(_predict_noise, pipe.scheduler.alphas_cumprod), with_kwargs=True)
    return pipe, call, latents


def _predict_noise(alphas_cumprod, module, args, kwargs, output):
    """Add the best prediction for white data, sigma x: without it the states of a random network shrink as they get noisier,
    until the network sees nothing but itself."""
    given = [*args, *kwargs.values()]
    sample, timestep = given[0], kwargs.get("timestep", given[1])
    timestep = int(torch.as_tensor(timestep).flatten()[0].round())
    share = (1 - alphas_cumprod[timestep]) ** 0.5
    first = output[0] if isinstance(output, tuple) else output["sample"]
    channels = min(sample.shape[1], first.shape[1])
    first[:, :channels] += share.to(first) * sample[:, :channels].to(first)


def randomize(module, seed=0):
    """Random weights everywhere, zero-initialised layers included; returns the module in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise * parameter[0].numel() ** -0.5)
            else:
                parameter.add_(0.1 * noise)
    return module.eval()


def randn(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def tame(pipe, call, latents, layer):
    """Scale the network's last layer so that the outputs that reach the scheduler have root mean square `RMS`."""
    outputs = []
    pipe.set_progress_bar_config(disable=True)
    run(pipe, call, latents, steps=4, watch=lambda output, timestep, sample, result: outputs.append(output))
    rms = torch.stack([output.float().pow(2).mean().sqrt() for output in outputs]).mean()
    for parameter in layer.parameters():
        parameter.mul_(RMS / rms)
    return pipe, call, latents


def run(pipe, call, latents, *, steps=4, seed=0, watch=None, **more):
    """A stock call; watch(model_output, timestep, sample, result) sees every step.  Returns the pipeline's output."""
    step = type(pipe.scheduler).step

    def watched(self, *args, **kwargs):
        given = inspect.signature(step).bind(self, *args, **kwargs).arguments
        seen = given["model_output"].clone(), float(torch.as_tensor(given["timestep"]).flatten()[0]), given["sample"].clone()
        result = step(self, *args, **kwargs)
        watch(*seen, result[0].clone())
        return result

    if watch:
        watched.__signature__ = inspect.signature(step)
        type(pipe.scheduler).step = watched
    torch.manual_seed(seed)  # some pipelines and schedulers draw without the generator they are given
    try:
        generator = torch.Generator().manual_seed(seed)
        arguments = {"num_inference_steps": steps, "output_type": "latent", **call, **more}
        return pipe(latents=latents.clone(), generator=generator, **arguments)
    finally:
        type(pipe.scheduler).step = step


def check(name):
    """Assert that a case is fit for use: it runs, is deterministic and tame, and its network looks at its sample."""
    pipe, call, latents = make(name)
    seen = []

    def watch(output, timestep, sample, result):
        seen.append((output, sample, result))

    run(pipe, call, latents, watch=watch)
    first, seen = seen, []
    run(pipe, call, latents, watch=watch)
    assert len(first) == len(seen) >= 4, f"{len(first)} and {len(seen)} evaluations"
    for before, after in zip(first, seen, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "two identical calls differ"
        assert all(torch.isfinite(a).all() for a in after), "not finite"
    rms = [float(output.float().pow(2).mean().sqrt()) for output, _, _ in first]
    assert 0.01 < min(rms) and max(rms) < 2, f"outputs have root mean square {rms}"
    seen = []
    run(pipe, call, latents + 0.1 * torch.randn_like(latents), watch=watch)
    moved = float((seen[0][0] - first[0][0]).norm() / first[0][0].norm())
    assert moved > 1e-4, f"the network does not look at its sample: {moved}"
    return type(pipe).__name__, rms, moved


for _family in FAMILIES:
    import_module(f"{__name__}.{_family}")
