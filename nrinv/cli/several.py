"""Commands that draw new images from those of several."""

import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from .draw import drawn_size, pictures
from .options import (
    Drawing,
    MaxNfeOption,
    Method,
    SeedOption,
    check_finite,
    check_memory,
    check_text,
    check_whole,
    generators,
)
from .paths import IMAGE_KINDS, READ_KINDS, check_file, check_image, check_output, check_sides, read_image, save_image
from .shell import command

# Pixels of an image on a sheet, see `nrinv.sheet`.
_ON_SHEET = 160


def _height_and_width(call, images):
    sizes = {drawn_size(call, one) for one in images}
    if len(sizes) > 1:
        raise ValueError(f"size must be given for images of several sizes, got {sorted(sizes)}")
    return sizes.pop()


@command
def interpolate(
    first: Annotated[Path, typer.Argument(help="The image to begin with.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="The image to end with.", metavar="B")],
    drawing: Drawing,
    screen,
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
    drawing.check(seed, max_nfe)
    check_text("prompt", prompt)
    check_text("to", to)
    check_whole("num", num, 2)
    check_image("A", first)
    check_image("B", second)
    check_output(output, (*IMAGE_KINDS, ".gif", ".mp4"))
    film, ending = output.suffix.lower() in (".gif", ".mp4"), output.suffix.lower()
    if ending == ".mp4" and find_spec("imageio_ffmpeg") is None:
        raise ValueError("output: films as .mp4 need imageio-ffmpeg (pip install imageio imageio-ffmpeg); use .gif")
    from diffusers.utils import make_image_grid

    from .. import path, pipeline

    ends = [read_image("A", first), read_image("B", second)]
    pipe, call = drawing.load(screen)
    height, width = _height_and_width(call, ends)
    check_memory(pipe, "num", num, height, width)
    if not film:
        check_sides(output, num * width)
    prompts = [prompt, prompt if to is None else to]
    screen.phase("invert")
    with screen.watched(pipe):
        given = {"generator": generators(pipe, seed, 2), "seed": seed, "max_nfe": max_nfe}
        inv = pipeline.invert(pipe, ends, prompts, **given, **call)
        points = path.interpolate(*inv.split(), num, method=method.value, seed=seed, pipe=pipe)
        screen.phase("draw")
        images = pictures(pipeline.generate(pipe, points, output_type="np"))
    there_and_back = [*images, *images[-2:0:-1]]
    if ending == ".gif":
        save_image(there_and_back, output, duration=120, loop=0)
    elif ending == ".mp4":
        _save_film(there_and_back, output)
    else:
        save_image(make_image_grid(images, 1, num), output)
    screen.say(f"{output}: {num} images, {inv.nfe.sum()} network evaluations to invert two")


def _save_film(images, path):
    from diffusers.utils import export_to_video

    from ..files import replace_file

    with tempfile.TemporaryDirectory() as folder:
        made = export_to_video(images, str(Path(folder) / "film.mp4"), fps=8)
        replace_file(path, [Path(made).read_bytes()])


@command
def rare(
    images: Annotated[Path, typer.Option(help="A folder of images of the concept, at least two.")],
    prompt: Annotated[str, typer.Option(help="What is to be drawn.")],
    drawing: Drawing,
    screen,
    output: Annotated[Path, typer.Option("--output", "-o", help="Where the sheet of drawings goes.")] = Path("rare.png"),
    num: Annotated[int, typer.Option("--num", "-n", help="How many drawings.")] = 8,
    spread: Annotated[float, typer.Option(help="0 stays between the images' noises, 1 is fresh noise.")] = 0.5,
    refine_seeds: Annotated[int, typer.Option(help="Gradient steps through the sampler for each drawing.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything that is drawn at random.")] = 0,
):
    """Draw more of what a few images show, where the model hardly knows it."""
    drawing.check(seed)
    check_text("prompt", prompt)
    check_whole("num", num, 1)
    check_whole("refine_seeds", refine_seeds, 0)
    check_finite("spread", spread)
    if not images.is_dir():
        raise ValueError(f"images: the folder {str(images)!r} does not exist")
    check_output(output)
    paths = sorted(path for path in images.iterdir() if path.suffix.lower() in READ_KINDS)
    if len(paths) < 2:
        raise ValueError(f"images: the folder {str(images)!r} must hold at least 2 images, got {len(paths)}")
    for path in paths:
        check_file("images", path)
    from ..plots import sheet
    from ..rare import rare as run

    references = [read_image("images", path) for path in paths]
    pipe, call = drawing.load(screen)
    height, width = _height_and_width(call, references)
    check_memory(pipe, "num", max(num, len(paths)), height, width)
    check_sides(output, _ON_SHEET * max(8, -(-num // 8)))
    screen.phase("draw")
    with screen.watched(pipe):
        out = run(pipe, references, prompt, num, spread=spread, refine_seeds=refine_seeds, seed=seed, **call)
    save_image(sheet(out.images, columns=min(num, 8)), output)
    screen.say(
        f"{output}: {num} drawings from {len(paths)} images; similarity {out.similarity.mean():.2f}, novelty "
        f"{out.novelty.mean():.2f}, diversity {out.diversity:.2f} by the embedded scorer, which knows icons"
    )
