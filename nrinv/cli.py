"""Command line: demo, invert, generate."""

import logging
import os
import warnings
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

# Set before torch is imported: small networks run many times slower when every library starts its own threads.
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 2) // 2)))

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__, add_completion=False)
console = Console()


class Model(StrEnum):
    turbo = "turbo"
    base = "base"


class Solver(StrEnum):
    auto = "auto"
    anderson = "anderson"
    fixed_point = "fixed_point"
    newton = "newton"


class Noise(StrEnum):
    record = "record"
    absorb = "absorb"


class Order(StrEnum):
    auto = "auto"
    reversed = "reversed"
    passes = "passes"


def _quiet():
    """Keep the libraries' advice on optional packages out of the output."""
    warnings.filterwarnings("ignore", module="diffusers|transformers|huggingface_hub")
    import diffusers.utils.logging
    import transformers.utils.logging

    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    logging.getLogger("httpx").setLevel(logging.ERROR)


def _fail(error):
    console.print(f"[red]nrinv:[/red] {error}", highlight=False)
    raise typer.Exit(1)


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

    try:
        run(model.value, image=image, prompt=prompt, edit=edit, steps=steps, out=out, console=console)
    except (ValueError, OSError) as error:
        _fail(error)


@app.command()
def invert(
    image: Annotated[Path, typer.Argument(help="The image to invert.")],
    model: Annotated[str, typer.Option(help="A pipeline's folder or hub id, or turbo or base for an embedded model.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the inversion goes (safetensors).")],
    prompt: Annotated[str, typer.Option(help="What the image shows.")] = "",
    steps: Annotated[int | None, typer.Option(help="num_inference_steps; default: the pipeline's own.")] = None,
    guidance: Annotated[float | None, typer.Option(help="guidance_scale; default: the pipeline's own.")] = None,
    size: Annotated[int | None, typer.Option(help="Resize to size x size pixels; default: the image's own size.")] = None,
    solver: Annotated[Solver, typer.Option(help="Solver of the implicit steps.")] = Solver.auto,
    max_nfe: Annotated[int | None, typer.Option(help="Network evaluations a step.")] = None,
    tol: Annotated[float, typer.Option(help="Relative residual at which a step ends.")] = 1e-4,
    refine: Annotated[int | None, typer.Option(help="Rounds of defect correction.")] = None,
    prior: Annotated[float, typer.Option(help="Weight of the regularisation towards the first guess.")] = 0.0,
    noise: Annotated[Noise, typer.Option(help="Stochastic schedulers: solve for recorded noise, or absorb errors.")] = (
        Noise.record
    ),
    order: Annotated[Order, typer.Option(help="Drive the loop reversed, or in whole passes.")] = Order.auto,
    replay: Annotated[bool, typer.Option("--replay", help="Also store corrections for an exact replay.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Draw the image again and report the error.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of a stochastic scheduler's noise and of the first guess.")] = 0,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
):
    """Find the noise from which a pipeline draws an image."""
    _quiet()
    import torch

    from .pipeline import invert as run

    try:
        if not image.is_file():
            raise ValueError(f"image: {str(image)!r} does not exist")
        if not output.resolve().parent.is_dir():
            raise ValueError(f"output: the folder of {str(output)!r} does not exist")
        pipe = _load_pipeline(model, dtype)
        generator = torch.Generator(pipe._execution_device).manual_seed(seed)
        sizes = {} if size is None else {"height": size, "width": size}
        inv = run(
            pipe,
            image,
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generator,
            solver=solver.value,
            max_nfe=max_nfe,
            tol=tol,
            refine=refine,
            prior=prior,
            noise=noise.value,
            order=order.value,
            replay=replay,
            verify=verify,
            seed=seed,
            **sizes,
        )
        inv.save(output)
    except (ValueError, OSError) as error:
        _fail(error)
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
    model: Annotated[str, typer.Option(help="The pipeline it was inverted with: folder, hub id, turbo or base.")],
    prompt: Annotated[str | None, typer.Option(help="Another prompt edits the image.")] = None,
    replay: Annotated[bool, typer.Option("--replay", help="Add the stored corrections: exact.")] = False,
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
):
    """Draw an image from the noise that nrinv invert has found."""
    _quiet()
    from .inversion import load
    from .pipeline import generate as run

    try:
        inv = load(inversion)
        pipe = _load_pipeline(model, dtype)
        run(pipe, inv, prompt, replay=replay).images[0].save(output)
    except (ValueError, OSError) as error:
        _fail(error)
    console.print(f"{output}: {inv.prompt if prompt is None else prompt!r}", highlight=False)
