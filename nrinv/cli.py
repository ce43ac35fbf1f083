"""Command line: demo, invert, generate, edit, interpolate, rare."""

import functools
import inspect
import logging
import os
import warnings
from dataclasses import dataclass
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
console = Console(highlight=False)
IMAGE_KINDS = (".png", ".jpg", ".jpeg", ".webp")

# The values of a StrEnum are the names of its members.
Model = StrEnum("Model", ("turbo", "base"))
SolverName = StrEnum("SolverName", _C.SOLVERS)
Noise = StrEnum("Noise", _C.NOISES)
Method = StrEnum("Method", ("spectral", *_C.PATHS))
Order = StrEnum("Order", ("auto", *_C.ORDERS))


def _quiet():
    """Keep the libraries' advice on optional packages out of the output."""
    warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.ERROR)


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


DtypeOption = Annotated[str, typer.Option(help="float32, float16 or bfloat16.")]
MaxNfeOption = Annotated[int | None, typer.Option(help="Network evaluations a step.")]
SeedOption = Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")]


@dataclass
class Drawing:
    """What images are inverted and drawn with: options of every command that inverts."""

    model: Annotated[str, typer.Option(help="A pipeline's folder or hub id, or an embedded model: turbo, base.")] = "turbo"
    steps: Annotated[int | None, typer.Option(help="num_inference_steps; default: the pipeline's own.")] = None
    guidance: Annotated[float | None, typer.Option(help="guidance_scale; default: the pipeline's own.")] = None
    size: Annotated[
        int | None, typer.Option(help="Resize to size x size pixels; default: the image's own size, 64 for embedded models.")
    ] = None
    dtype: DtypeOption = "float32"

    def load(self, seed):
        """The pipeline, what all its calls are given, and a generator; embedded models have defaults of their own."""
        import torch

        from .models import CALLS, SIZE

        pipe = _load_pipeline(self.model, self.dtype)
        own = {**CALLS[self.model], "height": SIZE, "width": SIZE} if self.model in CALLS else {}
        given = {"num_inference_steps": self.steps, "guidance_scale": self.guidance, "height": self.size, "width": self.size}
        call = {**own, **{name: value for name, value in given.items() if value is not None}}
        return pipe, call, torch.Generator(pipe._execution_device).manual_seed(seed)


def _command(function):
    """A command; what is wrong with its input becomes one line and exit code 1.  A `drawing` is given by its options."""
    options, shared = dict(inspect.signature(function).parameters), {}
    if options.pop("drawing", None):
        shared = inspect.signature(Drawing).parameters

    @app.command()
    @functools.wraps(function)
    def command(**given):
        _quiet()
        if shared:
            given["drawing"] = Drawing(**{name: given.pop(name) for name in shared})
        try:
            function(**given)
        except (ValueError, OSError) as error:
            console.print(f"[red]nrinv:[/red] {error}")
            raise typer.Exit(1) from None

    command.__signature__ = inspect.Signature([*options.values(), *shared.values()])
    return command


def _check_image(name, path):
    if not path.is_file():
        raise ValueError(f"{name}: {str(path)!r} does not exist")


def _check_output(path, kinds=IMAGE_KINDS):
    if not path.resolve().parent.is_dir():
        raise ValueError(f"output: the folder of {str(path)!r} does not exist")
    if kinds and path.suffix.lower() not in kinds:
        raise ValueError(f"output must end with {', '.join(kinds)}, got {str(path)!r}")


@_command
def demo(
    model: Annotated[Model, typer.Option(help="turbo: 4 Euler steps; base: 20 steps of DPM++ 2M.")] = Model.turbo,
    image: Annotated[Path | None, typer.Option(help="An image of yours; default: one the model has never seen.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the image shows.")] = None,
    edit: Annotated[str | None, typer.Option(help="What the edited image shall show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
):
    """Invert an image with the embedded model, draw it again, edit it; show errors and costs."""
    from .demo import run

    run(model.value, image=image, prompt=prompt, edit=edit, steps=steps, out=out, console=Console())


@_command
def invert(
    image: Annotated[Path, typer.Argument(help="The image to invert.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the inversion goes (safetensors).")],
    drawing: Drawing,
    prompt: Annotated[str, typer.Option(help="What the image shows.")] = "",
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
    verify: Annotated[bool, typer.Option("--verify", help="Draw the image again and report the error.")] = False,
    seed: SeedOption = 0,
):
    """Find the noise from which a pipeline draws an image."""
    from .pipeline import invert as run
    from .solver import Solver

    _check_image("image", image)
    _check_output(output, kinds=())
    pipe, call, generator = drawing.load(seed)
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
        **call,
    )
    inv.save(output)
    measured = f", error {inv.error[0]:.2e}" if inv.error[0] == inv.error[0] else ""
    console.print(
        f"{output}: {inv.nfe[0]} network evaluations, largest residual {inv.residuals.max():.1e}{measured}, "
        f"ended with {inv.reasons[0]}"
    )


@_command
def generate(
    inversion: Annotated[Path, typer.Argument(help="A file written by nrinv invert.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the image goes.")],
    model: Annotated[str, typer.Option(help="The pipeline it was inverted with: folder, hub id, turbo or base.")] = "turbo",
    prompt: Annotated[str | None, typer.Option(help="Another prompt edits the image.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Add the stored defects: exact.")] = False,
    dtype: DtypeOption = "float32",
):
    """Draw an image from the noise that nrinv invert has found."""
    from .inversion import load
    from .pipeline import generate as run

    _check_output(output)
    inv = load(inversion)
    pipe = _load_pipeline(model, dtype)
    run(pipe, inv, prompt, replay=replay).images[0].save(output)
    console.print(f"{output}: {inv.prompt if prompt is None else prompt!r}")


@_command
def edit(
    image: Annotated[Path, typer.Argument(help="The image to edit.")],
    prompt: Annotated[str, typer.Option(help="What the image shows.")],
    to: Annotated[str, typer.Option(help="What it shall show.")],
    drawing: Drawing,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the edited image goes.")] = Path("edit.png"),
    mask: Annotated[Path | None, typer.Option(help="An image, white where the image may change.")] = None,
    edit_strength: Annotated[float, typer.Option(help="The share of the steps that is drawn anew, above 0.")] = 1.0,
    edit_guidance: Annotated[float | None, typer.Option(help="guidance_scale of the edit; default: the same.")] = None,
    max_nfe: MaxNfeOption = None,
    seed: SeedOption = 0,
):
    """Invert an image and draw it with another prompt."""
    from PIL import Image

    from . import pipeline

    _check_image("image", image)
    _check_output(output)
    if mask is not None:
        _check_image("mask", mask)
    pipe, call, generator = drawing.load(seed)
    call["return_trajectory"] = mask is not None or edit_strength != 1
    inv = pipeline.invert(pipe, image, prompt, generator=generator, seed=seed, max_nfe=max_nfe, **call)
    options = {"edit_strength": edit_strength}
    if mask is not None:
        with Image.open(mask) as opened:
            options["mask_image"] = opened.convert("L")
    if edit_guidance is not None:
        options["guidance_scale"] = edit_guidance
    generator.manual_seed(seed)
    pipeline.generate(pipe, inv, to, generator=generator, **options).images[0].save(output)
    console.print(f"{output}: {prompt!r} to {to!r}, {inv.nfe[0]} network evaluations")


@_command
def interpolate(
    first: Annotated[Path, typer.Argument(help="The image to begin with.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="The image to end with.", metavar="B")],
    drawing: Drawing,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A strip (.png, .jpg, .webp) or a film (.gif, .mp4).")
    ] = Path("strip.png"),
    prompt: Annotated[str, typer.Option(help="What the first image shows.")] = "",
    to: Annotated[str | None, typer.Option(help="What the second image shows; default: the same.")] = None,
    num: Annotated[int, typer.Option("--num", "-n", help="Images in all, both ends included.")] = 9,
    method: Annotated[Method, typer.Option(help="The way between the noises.")] = Method.spectral,
    max_nfe: MaxNfeOption = None,
    seed: SeedOption = 0,
):
    """Draw the images between two images."""
    from diffusers.utils import export_to_video, make_image_grid

    from . import path, pipeline

    _check_image("A", first)
    _check_image("B", second)
    _check_output(output, (*IMAGE_KINDS, ".gif", ".mp4"))
    if output.suffix.lower() == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError("output: films as .mp4 need imageio-ffmpeg (pip install imageio imageio-ffmpeg); use .gif")
    if num < 2:
        raise ValueError(f"num must be a whole number of at least 2, both ends included, got {num}")
    pipe, call, generator = drawing.load(seed)
    prompts = [prompt, prompt if to is None else to]
    inv = pipeline.invert(pipe, [first, second], prompts, generator=generator, seed=seed, max_nfe=max_nfe, **call)
    points = path.interpolate(*inv.split(), num, method=method.value, seed=seed, pipe=pipe)
    images = pipeline.generate(pipe, points).images
    film = [*images, *images[-2:0:-1]]  # there and back
    if output.suffix.lower() == ".gif":
        film[0].save(output, save_all=True, append_images=film[1:], duration=120, loop=0)
    elif output.suffix.lower() == ".mp4":
        export_to_video(film, str(output), fps=8)
    else:
        make_image_grid(images, 1, num).save(output)
    console.print(f"{output}: {num} images, {inv.nfe.sum()} network evaluations to invert two")


@_command
def rare(
    images: Annotated[Path, typer.Option(help="A folder of images of the concept, at least two.")],
    prompt: Annotated[str, typer.Option(help="What is to be drawn.")],
    drawing: Drawing,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the sheet of drawings goes.")] = Path("rare.png"),
    num: Annotated[int, typer.Option("--num", "-n", help="How many drawings.")] = 8,
    spread: Annotated[float, typer.Option(help="0 stays between the images' noises, 1 is fresh noise.")] = 0.5,
    refine_seeds: Annotated[int, typer.Option(help="Gradient steps through the sampler for each drawing.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
):
    """Draw more of what a few images show, where the model hardly knows it."""
    from .plots import sheet
    from .rare import rare as run

    if not images.is_dir():
        raise ValueError(f"images: the folder {str(images)!r} does not exist")
    _check_output(output)
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in IMAGE_KINDS)
    if len(paths) < 2:
        raise ValueError(f"images: the folder {str(images)!r} must hold at least 2 images, got {len(paths)}")
    pipe, call, _ = drawing.load(seed)
    out = run(pipe, paths, prompt, num, spread=spread, refine_seeds=refine_seeds, seed=seed, **call)
    sheet(out.images, columns=min(num, 8)).save(output)
    console.print(
        f"{output}: {num} drawings from {len(paths)} images; similarity {out.similarity.mean():.2f}, novelty "
        f"{out.novelty.mean():.2f}, diversity {out.diversity:.2f} by the embedded scorer, which knows icons"
    )
