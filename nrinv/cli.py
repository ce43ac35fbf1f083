"""Command line: demo, invert, generate, edit, interpolate, rare."""

import logging
import os
import warnings
from contextlib import contextmanager
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from . import _C

# Set before torch is imported: small networks run many times slower when every library starts its own threads.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, add_completion=False)
console = Console()


def _choice(name, names):
    """Names of the core as a choice of the command line."""
    return StrEnum(name, {one: one for one in names})


Model = _choice("Model", ("turbo", "base"))
SolverName = _choice("SolverName", _C.SOLVERS)
Noise = _choice("Noise", _C.NOISES)
Method = _choice("Method", ("spectral", *_C.PATHS))
Order = _choice("Order", ("auto", *_C.ORDERS))


def _quiet():
    """Keep the libraries' advice on optional packages out of the output."""
    warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.ERROR)


@contextmanager
def _refusals():
    """What was wrong with the input becomes one line and exit code 1."""
    try:
        yield
    except (ValueError, OSError) as error:
        console.print(f"[red]nrinv:[/red] {error}", highlight=False)
        raise typer.Exit(1) from None


def _load_pipeline(model, torch_dtype):
    """An embedded pipeline by name, or any diffusers pipeline by folder or hub id; on a GPU if there is one."""
    import torch
    from diffusers import DiffusionPipeline

    from .models import KINDS, demo_pipeline

    dtype = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}.get(torch_dtype)
    if dtype is None:
        raise ValueError(f"dtype must be float32, float16 or bfloat16, got {torch_dtype!r}")
    if model in KINDS:
        pipe = demo_pipeline(model, torch_dtype=dtype)
    else:
        try:
            pipe = DiffusionPipeline.from_pretrained(model, torch_dtype=dtype)
        except (OSError, ValueError) as error:
            raise ValueError(f"model: {model!r} cannot be loaded: {error}") from error
    return pipe.to("cuda") if torch.cuda.is_available() else pipe


ModelOption = Annotated[str, typer.Option(help="A pipeline's folder or hub id, or an embedded model: turbo, base.")]
StepsOption = Annotated[int | None, typer.Option(help="num_inference_steps; default: the pipeline's own.")]
GuidanceOption = Annotated[float | None, typer.Option(help="guidance_scale; default: the pipeline's own.")]
SizeOption = Annotated[
    int | None, typer.Option(help="Resize to size x size pixels; default: the image's own size, 64 for embedded models.")
]
DtypeOption = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]


def _check_image(name, path):
    if not path.is_file():
        raise ValueError(f"{name}: {str(path)!r} does not exist")


def _check_output(path, kinds=(".png", ".jpg", ".jpeg", ".webp")):
    if not path.resolve().parent.is_dir():
        raise ValueError(f"output: the folder of {str(path)!r} does not exist")
    if kinds and path.suffix.lower() not in kinds:
        raise ValueError(f"output must end with {', '.join(kinds)}, got {str(path)!r}")


def _sampler(model, steps, guidance, size):
    """What all calls of the pipeline are given; embedded models have defaults of their own."""
    from .models import CALLS, SIZE

    own = {**CALLS[model], "height": SIZE, "width": SIZE} if model in CALLS else {}
    given = {"num_inference_steps": steps, "guidance_scale": guidance, "height": size, "width": size}
    return {**own, **{name: value for name, value in given.items() if value is not None}}


@app.command()
def demo(
    model: Annotated[Model, typer.Option(help="turbo: 4 Euler steps; base: 20 steps of DPM++ 2M.")] = Model.turbo,
    image: Annotated[Path | None, typer.Option(help="An image of yours; default: one the model has never seen.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the image shows.")] = None,
    edit: Annotated[str | None, typer.Option(help="What the edited image shall show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
):
    """Invert an image with the embedded model, draw it again, edit it; show errors and costs."""
    _quiet()
    from .demo import run

    with _refusals():
        run(model.value, image=image, prompt=prompt, edit=edit, steps=steps, out=out, console=console)


@app.command()
def invert(
    image: Annotated[Path, typer.Argument(help="The image to invert.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the inversion goes (safetensors).")],
    model: ModelOption = "turbo",
    prompt: Annotated[str, typer.Option(help="What the image shows.")] = "",
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    solver: Annotated[SolverName, typer.Option(help="Solver of the implicit steps.")] = SolverName.auto,
    max_nfe: Annotated[int | None, typer.Option(help="Network evaluations a step.")] = None,
    tol: Annotated[float | None, typer.Option(help="Relative residual that ends a step; default 1e-4.")] = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of defect correction.")] = None,
    noise: Annotated[Noise, typer.Option(help="Stochastic schedulers: solve for recorded noise, or absorb errors.")] = (
        Noise.record
    ),
    correct: Annotated[float, typer.Option(help="Strength of the prompt-aware correction; 0.05 are 2 of 50 steps.")] = 0.0,
    order: Annotated[Order, typer.Option(help="Drive the loop reversed, or in whole passes.")] = Order.auto,
    return_defects: Annotated[bool, typer.Option("--return-defects", help="Also store what an exact replay adds.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Draw the image again and report the error.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")] = 0,
    dtype: DtypeOption = "float32",
):
    """Find the noise from which a pipeline draws an image."""
    _quiet()
    import torch

    from .pipeline import invert as run
    from .solver import Solver

    with _refusals():
        _check_image("image", image)
        _check_output(output, kinds=())
        pipe = _load_pipeline(model, dtype)
        generator = torch.Generator(pipe._execution_device).manual_seed(seed)
        inv = run(
            pipe,
            image,
            prompt,
            generator=generator,
            solver=Solver(solver.value, rounds=rounds),
            max_nfe=max_nfe,
            tol=tol,
            noise=noise.value,
            correct=correct,
            order=order.value,
            return_defects=return_defects,
            verify=verify or None,
            seed=seed,
            **_sampler(model, steps, guidance, size),
        )
        inv.save(output)
    measured = f", error {inv.error[0]:.2e}" if inv.error[0] == inv.error[0] else ""
    console.print(
        f"{output}: {inv.nfe[0]} network evaluations, largest residual {inv.residuals.max():.1e}{measured}, "
        f"ended with {inv.reasons[0]}",
        highlight=False,
    )


@app.command()
def generate(
    inversion: Annotated[Path, typer.Argument(help="A file written by nrinv invert.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the image goes.")],
    model: Annotated[str, typer.Option(help="The pipeline it was inverted with: folder, hub id, turbo or base.")] = "turbo",
    prompt: Annotated[str | None, typer.Option(help="Another prompt edits the image.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Add the stored defects: exact.")] = False,
    dtype: DtypeOption = "float32",
):
    """Draw an image from the noise that nrinv invert has found."""
    _quiet()
    from .inversion import load
    from .pipeline import generate as run

    with _refusals():
        _check_output(output)
        inv = load(inversion)
        pipe = _load_pipeline(model, dtype)
        run(pipe, inv, prompt, replay=replay).images[0].save(output)
    console.print(f"{output}: {inv.prompt if prompt is None else prompt!r}", highlight=False)


@app.command()
def edit(
    image: Annotated[Path, typer.Argument(help="The image to edit.")],
    prompt: Annotated[str, typer.Option(help="What the image shows.")],
    to: Annotated[str, typer.Option(help="What it shall show.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited image goes.")] = Path("edit.png"),
    model: ModelOption = "turbo",
    mask: Annotated[Path | None, typer.Option(help="An image, white where the image may change.")] = None,
    edit_strength: Annotated[float, typer.Option(help="The share of the steps that is drawn anew, above 0.")] = 1.0,
    edit_guidance: Annotated[float | None, typer.Option(help="guidance_scale of the edit; default: the same.")] = None,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    max_nfe: Annotated[int | None, typer.Option(help="Network evaluations a step.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")] = 0,
    dtype: DtypeOption = "float32",
):
    """Invert an image and draw it with another prompt."""
    _quiet()
    import torch
    from PIL import Image

    from .pipeline import generate as draw
    from .pipeline import invert as run

    with _refusals():
        _check_image("image", image)
        _check_output(output)
        if mask is not None:
            _check_image("mask", mask)
        pipe = _load_pipeline(model, dtype)
        generator = torch.Generator(pipe._execution_device).manual_seed(seed)
        keep = mask is not None or edit_strength != 1
        call = _sampler(model, steps, guidance, size)
        inv = run(pipe, image, prompt, generator=generator, seed=seed, max_nfe=max_nfe, return_trajectory=keep, **call)
        options = {"edit_strength": edit_strength}
        if mask is not None:
            with Image.open(mask) as opened:
                options["mask_image"] = opened.convert("L")
        if edit_guidance is not None:
            options["guidance_scale"] = edit_guidance
        generator.manual_seed(seed)
        draw(pipe, inv, to, generator=generator, **options).images[0].save(output)
    console.print(f"{output}: {prompt!r} to {to!r}, {inv.nfe[0]} network evaluations", highlight=False)


@app.command()
def interpolate(
    first: Annotated[Path, typer.Argument(help="The image to begin with.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="The image to end with.", metavar="B")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A strip (.png, .jpg, .webp) or a film (.gif, .mp4).")
    ] = Path("strip.png"),
    model: ModelOption = "turbo",
    prompt: Annotated[str, typer.Option(help="What the first image shows.")] = "",
    to: Annotated[str | None, typer.Option(help="What the second image shows; default: the same.")] = None,
    num: Annotated[int, typer.Option("--num", "-n", help="Images in all, both ends included.")] = 9,
    method: Annotated[Method, typer.Option(help="The way between the noises.")] = Method.spectral,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    max_nfe: Annotated[int | None, typer.Option(help="Network evaluations a step.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")] = 0,
    dtype: DtypeOption = "float32",
):
    """Draw the images between two images."""
    _quiet()
    import torch
    from diffusers.utils import export_to_video, make_image_grid

    from .path import interpolate as between
    from .pipeline import generate as draw
    from .pipeline import invert as run

    with _refusals():
        _check_image("A", first)
        _check_image("B", second)
        _check_output(output, (".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4"))
        if output.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
            raise ValueError("output: films as .mp4 need imageio-ffmpeg (pip install imageio imageio-ffmpeg); use .gif")
        if num < 2:
            raise ValueError(f"num must be a whole number of at least 2, both ends included, got {num}")
        pipe = _load_pipeline(model, dtype)
        generator = torch.Generator(pipe._execution_device).manual_seed(seed)
        prompts = [prompt, prompt if to is None else to]
        call = _sampler(model, steps, guidance, size)
        inv = run(pipe, [first, second], prompts, generator=generator, seed=seed, max_nfe=max_nfe, **call)
        path = between(*inv.split(), num, method=method.value, seed=seed, pipe=pipe)
        images = draw(pipe, path).images
        film = [*images, *images[-2:0:-1]]  # there and back
        if output.suffix.lower() == ".gif":
            film[0].save(output, save_all=True, append_images=film[1:], duration=120, loop=0)
        elif output.suffix.lower() == ".mp4":
            export_to_video(film, str(output), fps=8)
        else:
            make_image_grid(images, 1, num).save(output)
    console.print(f"{output}: {num} images, {inv.nfe.sum()} network evaluations to invert two", highlight=False)


@app.command()
def rare(
    images: Annotated[Path, typer.Option(help="A folder of images of the concept, at least two.")],
    prompt: Annotated[str, typer.Option(help="What is to be drawn.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the sheet of drawings goes.")] = Path("rare.png"),
    model: ModelOption = "turbo",
    num: Annotated[int, typer.Option("--num", "-n", help="How many drawings.")] = 8,
    spread: Annotated[float, typer.Option(help="0 stays between the images' noises, 1 is fresh noise.")] = 0.5,
    refine_seeds: Annotated[int, typer.Option(help="Gradient steps through the sampler for each drawing.")] = 0,
    steps: StepsOption = None,
    guidance: GuidanceOption = None,
    size: SizeOption = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
    dtype: DtypeOption = "float32",
):
    """Draw more of what a few images show, where the model hardly knows it."""
    _quiet()
    from .plots import sheet
    from .rare import rare as run

    with _refusals():
        if not images.is_dir():
            raise ValueError(f"images: the folder {str(images)!r} does not exist")
        _check_output(output)
        kinds = (".png", ".jpg", ".jpeg", ".webp")
        paths = sorted(path for path in images.iterdir() if path.suffix.lower() in kinds)
        if len(paths) < 2:
            raise ValueError(f"images: the folder {str(images)!r} must hold at least 2 images, got {len(paths)}")
        pipe = _load_pipeline(model, dtype)
        out = run(
            pipe,
            paths,
            prompt,
            num,
            spread=spread,
            refine_seeds=refine_seeds,
            seed=seed,
            **_sampler(model, steps, guidance, size),
        )
        sheet(out.images, columns=min(num, 8)).save(output)
    console.print(
        f"{output}: {num} drawings from {len(paths)} images; similarity {out.similarity.mean():.2f}, novelty "
        f"{out.novelty.mean():.2f}, diversity {out.diversity:.2f} by the embedded scorer, which knows icons",
        highlight=False,
    )
