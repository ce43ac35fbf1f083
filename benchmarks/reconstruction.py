"""Reconstruction of real images the embedded models have never seen: error, naturalness and cost of an inversion.

PSNR in dB of the stock pipeline's output from the noise that was found, against the VAE's own round trip (what the sampler
is answerable for) and against the image (where the VAE's round trip is the ceiling).  NFE are network evaluations per image
in all.  Norm is |z_T| over sqrt(D), 1 for natural noise.

    python benchmarks/reconstruction.py            # prints the table, writes results/reconstruction.json
"""

import argparse
import json
import logging
import os
import platform
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import nrinv
from nrinv.latents import psnr

RESULTS = Path(__file__).parent / "results"
NAIVE = {"solver": "fixed_point", "max_nfe": 1, "predictor": False, "refine": 0}
FIXED_POINT = {"solver": "fixed_point", "predictor": False, "refine": 0}
# model, scheduler, steps, guidance scale, images, {method: options}
CASES = [
    (
        "turbo",
        "EulerDiscreteScheduler",
        4,
        1.0,
        30,
        {
            "naive": NAIVE,
            "fixed point x2": {**FIXED_POINT, "max_nfe": 2},
            "fixed point x4": {**FIXED_POINT, "max_nfe": 4},
            "nrinv x2": {"max_nfe": 2},
            "nrinv (default)": {},
        },
    ),
    *(("base", "DDIMScheduler", 20, guidance, 12, {"naive": NAIVE, "nrinv (default)": {}}) for guidance in (1.0, 3.0)),
    *(
        ("base", "DPMSolverMultistepScheduler", 20, guidance, 12, {"naive": NAIVE, "nrinv (default)": {}})
        for guidance in (1.0, 3.0)
    ),
]


def measure(pipe, latents, captions, pixels, round_trip, call, options):
    inv = nrinv.invert(pipe, latents, captions, **call, **options)
    drawn = nrinv.generate(pipe, inv, output_type="pt").images.float()
    against_vae = psnr(drawn, round_trip)
    return {
        "nfe": float(inv.nfe.mean()),
        "psnr_vae": float(np.mean(against_vae)),
        "psnr_vae_worst": float(np.min(against_vae)),
        "psnr_image": float(np.mean(psnr(drawn, pixels))),
        "ceiling": float(np.mean(psnr(round_trip, pixels))),
        "norm": float(inv.latents[0].numel() ** -0.5 * inv.latents.flatten(1).norm(dim=1).mean()),
    }


def run(cases):
    records = nrinv.demo_images("heldout_pair")
    arrays = np.stack([np.asarray(one.image) for one in records]).astype(np.float32) / 255
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2)
    rows = []
    for model, scheduler, steps, guidance, count, methods in cases:
        pipe = nrinv.demo_pipeline(model)
        pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
        images, captions = [one.image for one in records[:count]], [one.caption for one in records[:count]]
        latents = nrinv.encode(pipe, images)
        round_trip = nrinv.decode(pipe, latents)
        call = {"num_inference_steps": steps, "guidance_scale": guidance}
        for method, options in methods.items():
            figures = measure(pipe, latents, captions, pixels[:count], round_trip, call, options)
            rows.append({"model": model, "scheduler": scheduler, **call, "images": count, "method": method, **figures})
    return rows


def show(rows):
    table = Table(
        "model",
        "scheduler",
        "steps",
        "guidance",
        "method",
        "NFE",
        "PSNR vs VAE",
        "worst",
        "vs image",
        "ceiling",
        "norm",
    )
    for row in rows:
        table.add_row(
            row["model"],
            row["scheduler"].removesuffix("Scheduler"),
            str(row["num_inference_steps"]),
            f"{row['guidance_scale']:g}",
            row["method"],
            f"{row['nfe']:.1f}",
            *(f"{row[name]:.2f}" for name in ("psnr_vae", "psnr_vae_worst", "psnr_image", "ceiling", "norm")),
        )
    Console(width=140).print(table)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS / "reconstruction.json")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows = run(CASES)
    show(rows)
    machine = {"python": platform.python_version(), "torch": torch.__version__, "diffusers": diffusers.__version__}
    report = {
        "command": "python benchmarks/reconstruction.py",
        "machine": {**machine, "cpu": platform.machine()},
        "rows": rows,
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
