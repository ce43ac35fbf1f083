"""Commands that show what nrinv is, and what it can do on this machine: demo, samples, info."""

import json
import os
import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from .options import Model, check_text, check_whole, free_memory, quieten
from .paths import read_image, save_image
from .shell import command, say

# ---------------------------------------------------------------------------------------------------------- demo and samples


@command
def demo(
    screen,
    model: Annotated[Model, typer.Option(help="turbo: 4 Euler steps; base: 20 steps of DPM++ 2M.")] = Model.turbo,
    image: Annotated[Path | None, typer.Option(help="An image of yours; default: one the model has never seen.")] = None,
    prompt: Annotated[str | None, typer.Option(help="What the image shows.")] = None,
    edit: Annotated[str | None, typer.Option(help="What the edited image shall show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Steps of the sampler.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("demo"),
):
    """Invert an image with the embedded model, draw it again, edit it; show errors and costs."""
    check_whole("steps", steps, 1, 1000)  # levels of the embedded models
    check_text("prompt", prompt)
    check_text("edit", edit)
    if image is not None and prompt is None:
        raise ValueError("prompt: say what your image shows, for example --prompt 'owl, noto style'")
    picture = None if image is None else read_image("image", image)
    from ..demo import run

    quieten()
    _make_folder(out)
    tables, pictures = run(model.value, image=picture, prompt=prompt, edit=edit, steps=steps, screen=screen)
    for table in tables:
        if not screen.quiet:
            Console().print(table, markup=False)
    for name, one in pictures.items():
        save_image(one, out / name)
    screen.say(f"pictures: {', '.join(str(out / name) for name in pictures)}")


def _make_folder(folder):
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"output: {str(folder)!r} is no folder")
    folder.mkdir(parents=True, exist_ok=True)


@command
def samples(
    folder: Annotated[Path, typer.Argument(help="Folder for the images; it is made if it does not exist.", metavar="DIR")],
    screen,
    split: Annotated[
        str, typer.Option(help="heldout_pair, heldout_concept, rare, ood_style, ood_photo, train, or all of them: all.")
    ] = "heldout_pair",
):
    """Write images to try the other commands with, and captions.json, which tells what they show."""
    from ..files import replace_file
    from ..models import demo_images

    found = demo_images(None if split == "all" else split)
    _make_folder(folder)
    captions = {}
    for one in found:
        name = stem = re.sub(r"\W+", "-", one.caption.lower()).strip("-")
        copies = 1
        while f"{name}.png" in captions:
            copies += 1
            name = f"{stem}-{copies}"
        captions[f"{name}.png"] = one.caption
        save_image(one.image, folder / f"{name}.png")
    replace_file(folder / "captions.json", [json.dumps(captions, indent=2, ensure_ascii=False).encode(), b"\n"])
    screen.say(f"{folder}: {len(found)} images and captions.json")


# --------------------------------------------------------------------------------------------------------------------- info


@command
def info(
    screen,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
):
    """Show versions, devices, and what works here."""
    found = {
        "versions": {name: _version(name) for name in ("nrinv", "torch", "diffusers", "transformers", "numpy")},
        "python": platform.python_version(),
        "platform": platform.platform(),
        "devices": _devices(),
        "extras": _extras(),
        "works": {name: _works(check) for name, check in _CHECKS.items()},
    }
    found["versions"]["nrinv"] = found["versions"]["nrinv"] or _own_version()
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    versions = ", ".join(f"{name} {number or 'missing'}" for name, number in found["versions"].items())
    say(f"versions: {versions}, python {found['python']}")
    say(f"platform: {found['platform']}")
    for one in found["devices"]:
        free = "" if one["free_gb"] is None else f", {one['free_gb']} GB free"
        say(f"device {one['device']}: {one['name']}{free}")
    for name, missing in found["extras"].items():
        say(f"extra {name}: {'installed' if not missing else 'missing ' + ', '.join(missing)}")
    for name, reason in found["works"].items():
        say(f"{name}: {'works' if reason is None else reason}")


def _version(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _own_version():
    from .. import __version__

    return __version__


def _devices():
    import torch

    found = [("cpu", f"{platform.machine()}, {os.cpu_count()} cores")]
    found += [(f"cuda:{i}", torch.cuda.get_device_name(i)) for i in range(torch.cuda.device_count())]
    found += [("mps", "Apple")] if torch.backends.mps.is_available() else []
    return [{"device": one, "name": name, "free_gb": _gigabytes(free_memory(torch.device(one)))} for one, name in found]


def _gigabytes(count):
    return None if count == float("inf") else round(count / 1e9, 1)


def _extras():
    """{extra: the packages of it that are missing}; nothing where nrinv is not installed."""
    try:
        wanted = [re.match(r"([\w.-]+).*extra == [\"'](\w+)", line) for line in requires("nrinv") or []]
    except PackageNotFoundError:
        return {}
    found = {}
    for one in filter(None, wanted):
        missing = found.setdefault(one[2], [])
        if one[1] != "nrinv" and _version(one[1]) is None:
            missing.append(one[1])
    return found


def _works(check):
    """None, or why it does not."""
    try:
        return check()
    except Exception as error:  # that is what is to be found out
        return f"{type(error).__name__}: {error}"


def _tensors():
    import diffusers
    import torch

    from .. import Inversion, read_sampler

    machine = Inversion(read_sampler(diffusers.DDIMScheduler(clip_sample=False), 2), torch.ones(1, 4))
    while (request := machine.next()) is not None:
        if not isinstance(request.sample, torch.Tensor):
            return "the C core gives no tensors back"
        machine.feed(torch.zeros(1, 4))
    return None


def _embedded():
    from ..models import demo_images, demo_pipeline

    quieten()
    demo_pipeline("turbo"), demo_pipeline("base"), demo_images()


def _half(dtype):
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.ones(1, 4, 8, 8, device=device, dtype=getattr(torch, dtype))
    y = torch.nn.functional.conv2d(x, torch.ones(4, 4, 3, 3, device=device, dtype=x.dtype))
    return None if y.isfinite().all() else f"a convolution on {device} is not finite"


_CHECKS = {
    "torch tensors in the C core": _tensors,
    "embedded models": _embedded,
    "float16": lambda: _half("float16"),
    "bfloat16": lambda: _half("bfloat16"),
}
