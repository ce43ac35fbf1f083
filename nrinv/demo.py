"""The demo: one image, inverted, drawn again and edited by the embedded model, with its errors and costs."""

import io
import time
from contextlib import contextmanager

from diffusers import DPMSolverMultistepScheduler
from PIL import Image
from rich.table import Table

from .autoencoder import decode, encode
from .images import psnr, read_images
from .models import CALLS, SIZE, demo_images, demo_pipeline
from .pipeline import generate, invert
from .plots import sheet
from .session import replaced
from .solver import Solver

IMAGE, EDIT = "owl_noto", "dog face, noto style"
NAIVE = {"solver": Solver("fixed_point", predictor=False, rounds=0), "max_nfe": 1}


@contextmanager
def network_time(pipe):
    """A list to which each call of the UNet adds the seconds it takes."""
    seconds, forward = [], pipe.unet.forward

    def timed(*args, **kwargs):
        begin = time.perf_counter()
        output = forward(*args, **kwargs)
        seconds.append(time.perf_counter() - begin)
        return output

    with replaced(pipe.unet, forward=timed):
        yield seconds


def _choose(image, prompt):
    if image is not None:
        return image, prompt
    chosen = next(one for one in demo_images(None) if one.name == IMAGE)
    return chosen.image, prompt or chosen.caption


def run(model, *, image, prompt, edit, steps, screen):
    """Run the demo: (lines and tables to be printed, {file name: picture}).

    image: None, or with its prompt.  screen: shows what is going on, see `nrinv.cli.shell.Screen`.
    """
    image, prompt = _choose(image, prompt)
    edit = edit or EDIT
    sampler = dict(CALLS[model])
    if steps is not None:
        sampler["num_inference_steps"] = steps
    steps, guidance = sampler["num_inference_steps"], sampler["guidance_scale"]

    screen.phase("load")
    pipe = demo_pipeline(model)
    if model == "base":
        pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    size = {"height": SIZE, "width": SIZE}
    target = read_images(pipe, image, **size) / 2 + 0.5  # as the pipeline sees it, [1, 3, H, W] in 0..1
    round_trip = decode(pipe, encode(pipe, image, **size))

    def inverted(what, **options):
        screen.phase(what)
        started = time.perf_counter()
        with network_time(pipe) as calls:
            inv = invert(pipe, image, prompt, verify=False, **size, **sampler, **options)  # it is drawn again below
        inside, whole = sum(calls), time.perf_counter() - started
        screen.phase("draw")
        return inv, generate(pipe, inv, output_type="pt").images.float().cpu(), inside, whole - inside

    with screen.watched(pipe):
        runs = {"naive": inverted("naive inversion", **NAIVE), "nrinv": inverted("inversion")}
        inv = runs["nrinv"][0]
        screen.phase("edit")
        edited = generate(pipe, inv, edit, output_type="pt").images.float().cpu()

    title = f"{model}, {steps} steps of {inv.scheduler}, guidance {guidance:g}: {prompt!r}, edited to {edit!r}"
    pictures = {
        "image": target,
        "VAE round trip": round_trip,
        "naive inversion": runs["naive"][1],
        "nrinv": runs["nrinv"][1],
        f"edit: {edit}": edited,
    }
    drawn = {"sheet.png": sheet(pictures, size=2.2), "residuals.png": _residuals(runs)}
    return [title, _step_table(inv), _summary_table(runs, target, round_trip)], drawn


def _residuals(runs):
    axes, buffer = None, io.BytesIO()
    for name, one in runs.items():
        axes = one[0].plot_residuals(axes, f"{name}, {one[0].nfe[0]} NFE")
    axes.figure.savefig(buffer, dpi=150)
    with Image.open(buffer) as picture:
        return picture.convert("RGB")


def _step_table(inv):
    table = Table(title="inversion, step by step (from the image to the noise)")
    for name in ("timestep", "NFE", "residual"):
        table.add_column(name, justify="right")
    for j in reversed(range(len(inv.timesteps))):
        table.add_row(f"{inv.timesteps[j]:g}", str(inv.step_nfe[j, 0]), f"{inv.residuals[j, 0]:.1e}")
    return table


def _summary_table(runs, target, round_trip):
    table = Table(
        title="drawn again by the stock pipeline",
        caption="PSNR in dB, against the VAE's round trip and the image; norm of the noise, 1 is natural",
    )
    table.add_column("", no_wrap=True)
    for name in ("NFE", "vs VAE", "vs image", "norm", "network s", "other s"):
        table.add_column(name, justify="right")
    table.add_row("VAE round trip", "", "", f"{psnr(round_trip, target)[0]:.2f}", "", "", "")
    for name, (inv, drawn, inside, outside) in runs.items():
        norm = inv.latents.float().norm() / inv.latents.numel() ** 0.5
        figures = psnr(drawn, round_trip)[0], psnr(drawn, target)[0], norm, inside, outside
        table.add_row(name, str(inv.nfe[0]), *(f"{one:.2f}" for one in figures))
    return table
