"""Commands that invert images and draw from inversions: of one image, or of many."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from PIL import Image

from .options import (
    LONGEST,
    BatchOption,
    CaptionsOption,
    Drawing,
    Dtype,
    DtypeOption,
    MaxNfeOption,
    Noise,
    Order,
    PromptOption,
    SeedOption,
    SkipOption,
    SolverName,
    check_memory,
    check_text,
    check_whole,
    embedded_model,
    generators,
    load_pipeline,
)
from .paths import (
    IMAGE_KINDS,
    INVERSION_KINDS,
    READ_KINDS,
    Job,
    caption_of,
    check_file,
    check_image,
    expand,
    outputs,
    read_captions,
    read_image,
    save_image,
)
from .shell import command, each

ImagesArgument = Annotated[list[Path], typer.Argument(help="Images, or folders of them.", metavar="IMAGE...")]


def _jobs(screen, sources, several, targets, skip_existing, prompts=None):
    """What is left to do of the sources."""
    prompts = prompts or [None] * len(sources)
    jobs = [Job(*one) for one in zip(sources, targets, prompts, strict=True)]
    left = [job for job in jobs if not (skip_existing and job.output.exists())]
    if len(left) < len(jobs):
        screen.say(f"{len(jobs) - len(left)} of {len(jobs)} outputs exist already")
    return left


def _image_jobs(screen, images, output, kinds, ending, skip_existing, captions, prompt):
    sources, several = expand(images, READ_KINDS, "image")
    known = read_captions(captions) if captions is not None else {}
    prompts = [caption_of(source, known, prompt) for source in sources]
    for one in prompts:
        check_text("prompt", one)
    if not several:
        check_image("image", sources[0])
    return _jobs(screen, sources, several, outputs(sources, several, output, kinds, ending), skip_existing, prompts)


def drawn_size(call, image):
    """Height and width that an image is drawn with."""
    return call.get("height") or image.height, call.get("width") or image.width


def _alike(call):
    """What is the same for images that can be inverted together."""
    return None if "height" in call else lambda image: image.size


def _of_all(texts):
    return texts if len(texts) > 1 else texts[0]


def _read_image(job):
    return read_image("image", job.source)


_NOT_FINITE = "the network returned NaN or infinity; --dtype float32 has the widest range, --guidance may be too large"


def pictures(drawn):
    """The images that a pipeline has returned for output_type="np", as PIL images.

    Raises ValueError if they are not finite: PIL images would be black.
    """
    arrays = getattr(drawn, "images", None)
    if not isinstance(arrays, np.ndarray) or arrays.ndim != 4:
        raise ValueError("model: its pipeline draws no images; from Python, nrinv.generate returns what it draws")
    if not np.isfinite(arrays).all():
        raise ValueError(_NOT_FINITE)
    return [
        Image.fromarray(one.squeeze(-1) if one.shape[-1] == 1 else one) for one in (arrays * 255).round().astype("uint8")
    ]


def _check_finite_noise(inv):
    if "non_finite" in inv.reasons:
        raise ValueError(_NOT_FINITE)


# ------------------------------------------------------------------------------------------------------------------- invert


@command
def invert(
    images: ImagesArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="The inversion (safetensors); a folder for several.")],
    drawing: Drawing,
    screen,
    prompt: PromptOption = None,
    captions: CaptionsOption = None,
    solver: Annotated[SolverName, typer.Option(help="Solver of the implicit steps.")] = SolverName.auto,
    max_nfe: MaxNfeOption = None,
    tol: Annotated[float | None, typer.Option(help="Relative residual that ends a step; default 1e-4.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of defect correction.")] = None,
    noise: Annotated[Noise, typer.Option(help="Stochastic schedulers: solve for recorded noise, or absorb errors.")] = (
        Noise.record
    ),
    correct: Annotated[float, typer.Option(help="Strength of the prompt-aware correction; 0.05 are 2 of 50 steps.")] = 0.0,
    order: Annotated[Order, typer.Option(help="Drive the loop reversed, or in whole passes.")] = Order.auto,
    return_defects: Annotated[bool, typer.Option("--return-defects", help="Also store what an exact replay adds.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Draw the image again and report its PSNR.")] = False,
    seed: SeedOption = 0,
    batch_size: BatchOption = None,
    skip_existing: SkipOption = False,
):
    """Find the noise from which a pipeline draws an image.

    Of several images, or of folders, each inversion goes to a file of the image's name in the folder --output.  What an
    image shows is read from --captions, from --prompt, or from a .txt file beside it, the first that there is.
    """
    drawing.check(seed, max_nfe)
    check_whole("batch_size", batch_size, 1)
    check_whole("rounds", rounds, 0, LONGEST)
    jobs = _image_jobs(screen, images, output, (), INVERSION_KINDS[0], skip_existing, captions, prompt)
    if not jobs:
        return
    from .. import pipeline
    from ..files import check_arguments
    from ..solver import Solver

    options = {"solver": Solver(solver.value, rounds=rounds), "max_nfe": max_nfe, "tol": tol, "noise": noise.value}
    options |= {"correct": correct, "order": order.value, "return_defects": return_defects, "verify": verify or None}
    pipe, call = drawing.load(screen)
    check_arguments(call)

    def work(batch, names):
        found = [image for _, image in batch]
        check_memory(pipe, "size", len(batch), *drawn_size(call, found[0]))
        prompts = _of_all([job.prompt or "" for job, _ in batch])
        screen.phase(f"invert {names}")
        with screen.watched(pipe):
            inv = pipeline.invert(
                pipe, found, prompts, generator=generators(pipe, seed, len(batch)), seed=seed, **options, **call
            )
            _check_finite_noise(inv)
            told = _quality(screen, pipe, inv, found, call, generators(pipe, seed, len(batch)) if verify else None)
        for (job, _), one, text in zip(batch, inv.split(), told, strict=True):
            one.save(job.output)
            screen.say(f"{job.output}: {one.nfe[0]} network evaluations, {text} ({one.reasons[0]})")

    each(screen, jobs, _read_image, work, batch_size=batch_size or 1, alike=_alike(call))


def _quality(screen, pipe, inv, images, call, generator):
    """For each image in words how well it is reconstructed: measured if there is a generator, else as far as is known."""
    from .. import decode, encode, generate
    from ..images import psnr, read_images

    size = {name: call.get(name) for name in ("height", "width")}
    if generator is not None:
        screen.phase("draw again")
        target = read_images(pipe, images, **size) / 2 + 0.5
        drawn = generate(pipe, inv, output_type="pt", generator=generator).images.float().cpu()
        ceiling = psnr(decode(pipe, encode(pipe, images, **size), **size).cpu(), target.cpu())
        return [
            f"drawn again it has {one:.1f} dB to the image, where the autoencoder alone has {best:.1f} dB"
            for one, best in zip(psnr(drawn, target.cpu()), ceiling, strict=True)
        ]
    known = np.isfinite(inv.error)
    decibels = _estimated(pipe, encode(pipe, images, **size), np.where(known, inv.error, 0), size) if known.any() else known
    return [
        f"reconstructs to about {value:.0f} dB" if finite else f"largest residual {worst:.1e}, --verify measures the image"
        for finite, value, worst in zip(known, decibels, np.nanmax(inv.residuals, axis=0), strict=True)
    ]


def _estimated(pipe, latents, error, size):
    """[B] dB between the decoded latents and what is drawn, from the relative error of latents.

    The autoencoder tells how many: it decodes the latents with white noise of that size added.  Measured on 12 images that
    the embedded models have not seen: 0.5 dB too high (standard deviation 0.8) with 4 steps of turbo, 2.5 dB (2.2) with 20
    steps of base at guidance 3.  A constant between error and dB is off by a standard deviation of 2.2 and 3.6.
    """
    import torch

    from .. import decode
    from ..images import psnr

    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(latents.device)
    axes, z = tuple(range(1, latents.ndim)), latents.float()
    norm = torch.linalg.vector_norm
    scale = norm(z, dim=axes, keepdim=True) / norm(noise, dim=axes, keepdim=True)
    error = torch.as_tensor(error, dtype=torch.float32, device=z.device).reshape(-1, *(1 for _ in axes))
    moved = (z + error * scale * noise).to(latents.dtype)
    return psnr(*(decode(pipe, one, **size) for one in (latents, moved)))


# ----------------------------------------------------------------------------------------------------------------- generate


@command
def generate(
    inversions: Annotated[
        list[Path], typer.Argument(help="Files written by nrinv invert, or folders of them.", metavar="INVERSION...")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the image goes; a folder for several.")],
    screen,
    model: Annotated[
        str | None,
        typer.Option(
            help="The pipeline it was inverted with: folder, hub id, turbo or base; default: turbo or base, if it was."
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Another prompt edits the image.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Add the stored defects: exact.")] = False,
    dtype: DtypeOption = Dtype.float32,
    skip_existing: SkipOption = False,
):
    """Draw an image from the noise that nrinv invert has found.

    Of several inversions, or of folders, each image goes to a .png file of the inversion's name in the folder --output.
    """
    check_text("prompt", prompt)
    sources, several = expand(inversions, INVERSION_KINDS, "inversion")
    if not several:
        check_file("inversion", sources[0])
    targets = outputs(sources, several, output, IMAGE_KINDS, ".png")
    jobs = _jobs(screen, sources, several, targets, skip_existing)
    from .. import pipeline
    from ..inversion import load
    from ..known import scale_factor

    @lru_cache(1)
    def loaded(name):
        screen.phase("load")
        return load_pipeline(name, dtype)

    def work(batch, name):
        ((job, inv),) = batch
        pipe = loaded(_model_of(screen, job.source, inv, model))
        if inv.latents.ndim == 4:
            height, width = (n * scale_factor(pipe) for n in inv.latents.shape[-2:])
            check_memory(pipe, "inversion", len(inv.latents), height, width)
        screen.phase(f"draw {name}")
        with screen.watched(pipe):
            drawn = pictures(pipeline.generate(pipe, inv, prompt, replay=replay, output_type="np"))
        for i, picture in enumerate(drawn):  # Python may have saved several in a file
            path = job.output if len(drawn) == 1 else job.output.with_stem(f"{job.output.stem}-{i + 1}")
            save_image(picture, path)
            screen.say(f"{path}: {inv.prompt if prompt is None else prompt!r}")

    each(screen, jobs, lambda job: load(job.source), work)


def _model_of(screen, path, inv, given):
    """The pipeline that an inversion is drawn with: the given one, or the embedded one that it was made with."""
    from ..models import KINDS

    own = embedded_model(inv)
    if given is None and own is None:
        raise ValueError(
            f"model must be given for {str(path)!r}: it was made with a {inv.pipeline} under {inv.scheduler}, and with none "
            "of the embedded models"
        )
    if given in KINDS and own in KINDS and given != own and not inv.networks:  # else `generate` warns
        screen.complain(
            f"warning: {str(path)!r} was made with {own}, as its scheduler tells; {given} draws another image from it"
        )
    return given or own


# --------------------------------------------------------------------------------------------------------------------- edit


@command
def edit(
    images: ImagesArgument,
    to: Annotated[str, typer.Option(help="What it shall show.")],
    drawing: Drawing,
    screen,
    prompt: PromptOption = None,
    captions: CaptionsOption = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The edited image; a folder for several.")] = Path(
        "edit.png"
    ),
    mask: Annotated[Path | None, typer.Option(help="An image, white where the image may change.")] = None,
    edit_strength: Annotated[float, typer.Option(help="The share of the steps that is drawn anew, above 0.")] = 1.0,
    edit_guidance: Annotated[float | None, typer.Option(help="guidance_scale of the edit; default: the same.")] = None,
    max_nfe: MaxNfeOption = None,
    seed: SeedOption = 0,
    batch_size: BatchOption = None,
    skip_existing: SkipOption = False,
):
    """Invert an image and draw it with another prompt.

    Of several images, or of folders, each edit goes to a .png file of the image's name in the folder --output.
    """
    drawing.check(seed, max_nfe, edit_guidance)
    check_text("to", to)
    if not 0 < edit_strength <= 1:
        raise ValueError(f"edit_strength must be above 0 and at most 1, got {edit_strength}")
    check_whole("batch_size", batch_size, 1)
    jobs = _image_jobs(screen, images, output, IMAGE_KINDS, ".png", skip_existing, captions, prompt)
    nameless = next((job for job in jobs if job.prompt is None), None)
    if nameless is not None:
        raise ValueError(f"prompt: say what {str(nameless.source)!r} shows, by --prompt or --captions")
    options = {"edit_strength": edit_strength}
    if mask is not None:
        options["mask_image"] = read_image("mask", mask)
    if edit_guidance is not None:
        options["guidance_scale"] = edit_guidance
    if not jobs:
        return
    from .. import pipeline

    pipe, call = drawing.load(screen)
    call["return_trajectory"] = mask is not None or edit_strength != 1

    def work(batch, names):
        found, prompts = [image for _, image in batch], _of_all([job.prompt for job, _ in batch])
        check_memory(pipe, "size", len(batch), *drawn_size(call, found[0]))
        screen.phase(f"invert {names}")
        with screen.watched(pipe):
            given = {"generator": generators(pipe, seed, len(batch)), "seed": seed, "max_nfe": max_nfe}
            inv = pipeline.invert(pipe, found, prompts, **given, **call)
            _check_finite_noise(inv)
            screen.phase(f"draw {names}")
            given = {"generator": generators(pipe, seed, len(batch)), "output_type": "np", **options}
            drawn = pictures(pipeline.generate(pipe, inv, _of_all([to] * len(batch)), **given))
        for (job, _), picture, nfe in zip(batch, drawn, inv.nfe, strict=True):
            save_image(picture, job.output)
            screen.say(f"{job.output}: {job.prompt!r} to {to!r}, {nfe} network evaluations")

    each(screen, jobs, _read_image, work, batch_size=batch_size or 1, alike=_alike(call))
