"""Options that several commands have, what they may be, and the pipeline that they choose."""

import json
import logging
import math
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from .. import _C

# The values of a StrEnum are the names of its members.
Model = StrEnum("Model", ("turbo", "base"))
SolverName = StrEnum("SolverName", _C.SOLVERS)
Noise = StrEnum("Noise", _C.NOISES)
Method = StrEnum("Method", ("spectral", *_C.PATHS))
Order = StrEnum("Order", ("auto", *_C.ORDERS))
Dtype = StrEnum("Dtype", ("float32", "float16", "bfloat16"))

DtypeOption = Annotated[Dtype, typer.Option(help="The precision of the networks.")]
MaxNfeOption = Annotated[int | None, typer.Option(help="Network evaluations a step.")]
SeedOption = Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")]
BatchOption = Annotated[int | None, typer.Option(help="Images inverted together; default: one by one.")]
PromptOption = Annotated[
    str | None, typer.Option(help="What the image shows; of several, what those show that have no caption.")
]
CaptionsOption = Annotated[
    Path | None, typer.Option(help="What each image shows: a JSON file {name: caption}, or CSV lines name,caption.")
]
SkipOption = Annotated[bool, typer.Option("--skip-existing", help="Leave out images whose output exists.")]

# ------------------------------------------------------------------------------------------------------------------- checks


# Evaluations a step, and rounds: the timesteps of all of them are listed before the first.
LONGEST = 10_000


def check_whole(name, value, least, most=2**31 - 1):
    """most: by default what the core takes."""
    if value is not None and not least <= value <= most:
        raise ValueError(f"{name} must be a whole number in {least}..{most}, got {value}")


def check_finite(name, value):
    if value is not None and not math.isfinite(value):
        raise ValueError(f"{name} must be a finite number, got {value}")


def check_text(name, text):
    """Bytes of a command line that are no UTF-8 are half characters in Python, which no tokenizer takes."""
    try:
        (text or "").encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name}: {text!r} is no text in UTF-8") from error


def check_seed(seed):
    check_whole("seed", seed, 0, 2**63 - 1)


# Feature maps of the autoencoder at full size that are in memory at once when an image is inverted and drawn.  Measured on
# the embedded models, networks and solver included: 12.7 to 15.8 of them with 512 pixels a side.
_FEATURE_MAPS = 12


def _memory(pipe, images, height, width):
    """Bytes that drawing some images together takes, about: the autoencoder's layers at full size take the most."""
    import torch

    from ..known import autoencoder

    vae = autoencoder(pipe)
    if vae is None:
        channels, size = 3, 4
    else:
        widths = vae.config.get("block_out_channels") or vae.config.get("decoder_block_out_channels") or [64]
        channels, size = min(widths), 4 if vae.config.get("force_upcast") else torch.finfo(vae.dtype).bits // 8
    return _FEATURE_MAPS * images * height * width * channels * size


def free_memory(device):
    """Bytes that may be allocated on a torch device; infinite where that cannot be known."""
    import torch

    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    limits = [math.inf]
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        limits.append(1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]))
    with suppress(OSError, ValueError):  # of a container
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(limits)


def check_memory(pipe, name, images, height, width):
    """Raises ValueError, before anything is allocated, if so many images of that size cannot be drawn together."""
    need, free = _memory(pipe, images, height, width), free_memory(pipe._execution_device)
    if need > free:
        raise ValueError(
            f"{name}: {images} x {width}x{height} pixels take about {need / 1e9:.1f} GB of memory together, and "
            f"{free / 1e9:.1f} GB are free"
        )


# ----------------------------------------------------------------------------------------------------------------- pipeline


def quieten():
    """Keep the libraries' own messages and bars out of the output."""
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.ERROR)


def load_pipeline(model, dtype):
    """An embedded pipeline by name, or any diffusers pipeline by folder or hub id; on a GPU if there is one.

    Raises ValueError for what cannot be loaded, for whatever reason.
    """
    import torch
    from diffusers import DiffusionPipeline

    from ..models import KINDS, demo_pipeline

    quieten()
    dtype = getattr(torch, dtype)
    if model in KINDS:
        pipe = demo_pipeline(model, torch_dtype=dtype)
    else:
        try:
            pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # a folder or a hub may hold anything, and libraries raise anything
            text = str(error) if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {error}"
            raise ValueError(f"model: {model!r} cannot be loaded: {text}") from error
    return pipe.to("cuda") if torch.cuda.is_available() else pipe


# What pipelines change in the configuration of a scheduler that they are made with.
_CHANGED = ("steps_offset", "clip_sample")


def embedded_model(inv):
    """The embedded model that an inversion was made with, as its scheduler and its latents tell; None if with no such."""
    from .. import models

    def read(*path):
        return json.loads(models.HERE.joinpath(*path).read_text())

    if inv.latents.ndim != 4 or inv.latents.shape[1] != read("base", "vae", "config.json")["latent_channels"]:
        return None
    for kind in models.KINDS:
        own = read(kind, "scheduler", "scheduler_config.json")
        names = [name for name in own if not name.startswith("_") and name not in _CHANGED]
        if own["_class_name"] == inv.scheduler and all(inv.scheduler_config.get(name) == own[name] for name in names):
            return kind
    return None


def check_steps(pipe, steps):
    levels = getattr(pipe.scheduler, "config", {}).get("num_train_timesteps")
    check_whole("steps", steps, 1, levels or 2**31 - 1)


@dataclass
class Drawing:
    """What images are inverted and drawn with: options of every command that inverts."""

    model: Annotated[str, typer.Option(help="A pipeline's folder or hub id, or an embedded model: turbo, base.")] = "turbo"
    steps: Annotated[int | None, typer.Option(help="num_inference_steps; default: the pipeline's own.")] = None
    guidance: Annotated[float | None, typer.Option(help="guidance_scale; default: the pipeline's own.")] = None
    size: Annotated[
        int | None, typer.Option(help="Resize to size x size pixels; default: the image's own size, 64 for embedded models.")
    ] = None
    dtype: DtypeOption = Dtype.float32

    def check(self, seed, max_nfe=None, edit_guidance=None):
        """Raises ValueError for what no pipeline takes."""
        check_whole("steps", self.steps, 1)
        check_whole("size", self.size, 1)
        check_whole("max_nfe", max_nfe, 1, LONGEST)
        check_finite("guidance", self.guidance)
        check_finite("edit_guidance", edit_guidance)
        check_seed(seed)

    def load(self, screen):
        """(the pipeline, what all its calls are given); embedded models have defaults of their own."""
        from ..models import CALLS, SIZE

        screen.phase("load")
        pipe = load_pipeline(self.model, self.dtype)
        check_steps(pipe, self.steps)
        own = {**CALLS[self.model], "height": SIZE, "width": SIZE} if self.model in CALLS else {}
        given = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "height": self.size, "width": self.size}
        return pipe, {**own, **{name: value for name, value in given.items() if value is not None}}


def generators(pipe, seed, count=1):
    """One generator for each of the images, so that each is drawn as it would be alone."""
    import torch

    made = [torch.Generator(pipe._execution_device).manual_seed(seed) for _ in range(count)]
    return made[0] if count == 1 else made
