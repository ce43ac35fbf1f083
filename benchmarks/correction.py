"""The prompt-aware correction of the encoding: what it gives and what it costs, by guidance.

The embedded base model, 20 steps of DDIM, real images it has never seen and images it has drawn itself. Inverted with and
without the correction, drawn again by the stock pipeline:

    PSNR to image       of the redraw, in dB
    PSNR to target      of the redraw against what was inverted: the decoding of the encoded, or of the corrected latents
    cost                dB that the corrected image has lost against the image before anything is inverted
    norm, kurtosis z    of the noise; kurtosis in standard errors from natural
    edit                drawn with the caption of another style: agreement of the edit with its caption (cosine of the
                        scorer), and SSIM to the source

Half 95 % intervals by bootstrap over images.

    python benchmarks/correction.py            # writes results/correction.json and results/correction.png
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import bootstrap, grouped, parser, write
from matplotlib.figure import Figure
from pipelines import psnr, spread, ssim, to_pixels

import nrinv

GUIDANCES, STEPS, COUNT = (1.0, 2.0, 3.0, 6.0), 20, 10
VARIANTS = {
    "none": None,
    "random, radius 1": {"radius": 1.0},
    "random, radius 2": {"radius": 2.0},
    "random, radius 4": {"radius": 4.0},
    "random, free": {"radius": None},
    "inverted, radius 2": {"radius": 2.0, "noise": "inverted"},
}
OTHER = {"noto": "flat", "flat": "noto", "gradient": "noto"}


def target_caption(caption):
    name, style = caption.rsplit(", ", 1)
    return f"{name}, {OTHER[style.split()[0]]} style"


def run(pipe, scorer, images, captions, guidance, options):
    """One row: `images` [N, 3, 64, 64] in 0..1."""
    call = {"num_inference_steps": STEPS, "guidance_scale": guidance}
    z, moved, cost = nrinv.encode(pipe, images), np.zeros(len(images)), np.zeros(len(images))
    if options is not None:
        found = nrinv.correct(pipe, images, captions, **options, **call)
        before, z, moved = z, found.latents, found.moved
        cost = psnr(nrinv.decode(pipe, before), images) - psnr(nrinv.decode(pipe, z), images)
    inv = nrinv.invert(pipe, z, captions, batch_size=8, **call)
    drawn = nrinv.generate(pipe, inv, output_type="pt").images.float()
    to = [target_caption(caption) for caption in captions]
    edit = nrinv.generate(pipe, inv, to, output_type="pt").images.float()
    agreement = (scorer.image_features(edit) * scorer.text_features(to)).sum(1)
    columns = {
        "psnr_image": psnr(drawn, images),
        "psnr_target": psnr(drawn, nrinv.decode(pipe, z)),
        "cost": cost.tolist(),
        "moved": moved.tolist(),
        "norm": inv.stats["norm"][0].tolist(),
        "kurtosis_z": np.abs(inv.stats["excess_kurtosis"][1]).tolist(),
        "edit_agreement": agreement.tolist(),
        "edit_ssim": ssim(edit, images),
    }
    row = {"nfe": float(inv.nfe.mean())}
    for name, values in columns.items():
        finite = np.minimum(values, 80)
        row[name], row[f"{name}_interval"] = float(np.mean(finite)), bootstrap(finite)
    return row


def sources(pipe, count):
    records = spread(nrinv.demo_images("heldout_pair"), count)
    real = to_pixels([one.image for one in records]), [one.caption for one in records]
    captions = [one.caption for one in nrinv.demo_images("train")[-count:]]
    yield "real images", lambda guidance: real
    for_guidance = {}

    def drawn(guidance):
        if guidance not in for_guidance:
            generators = [torch.Generator().manual_seed(i) for i in range(count)]
            call = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "pt"}
            for_guidance[guidance] = pipe(captions, generator=generators, **call).images.float()
        return for_guidance[guidance], captions

    yield "its own drawings", drawn


def measure(quick):
    pipe, scorer, rows = nrinv.demo_pipeline("base"), nrinv.scorer(), []
    variants = {"none": None, "random, radius 2": VARIANTS["random, radius 2"]} if quick else VARIANTS
    for source, make in sources(pipe, 2 if quick else COUNT):
        for guidance in GUIDANCES[2:3] if quick else GUIDANCES:
            images, captions = make(guidance)
            for name, options in variants.items():
                figures = run(pipe, scorer, images, captions, guidance, options)
                rows.append({"source": source, "guidance": guidance, "correction": name, "images": len(images), **figures})
                print(
                    source, guidance, name, {k: round(v, 3) for k, v in figures.items() if "interval" not in k}, flush=True
                )
    return rows


def plot(rows, path):
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, (source, of_source) in zip(figure.subplots(1, 2), grouped(rows, "source").items(), strict=False):
        for name, own in grouped(of_source, "correction").items():
            x = [row["guidance"] for row in own]
            axes.errorbar(
                x,
                [r["psnr_image"] for r in own],
                [r["psnr_image_interval"] for r in own],
                marker="o",
                markersize=3,
                capsize=2,
                label=name,
            )
        axes.set_title(source)
        axes.set_xlabel("guidance")
        axes.set_ylabel("PSNR to the image, dB")
        axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def main():
    arguments = parser(__doc__, "correction").parse_args()
    torch.set_num_threads(1)
    rows = measure(arguments.quick)
    write(rows, arguments.out)
    plot(rows, arguments.out.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(main())
