"""The package's models, from what the training has left in build/model.

    python training/export.py          # writes nrinv/models/{base,turbo,scorer,images}

Weights in float16.  What the student has in common with the base model is kept once.  The images of a split lie in one
sheet, lossless, 16 to a row.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import make_image_grid
from distill import turbo_scheduler
from images import load
from loop import WORK
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPTokenizer, VisionTextDualEncoderModel

MODELS = Path("nrinv/models")
# Split, and how many of its images at most: the package is to stay small.
SHIPPED = {"heldout_pair": 84, "heldout_concept": 60, "rare": 48, "ood_style": 32, "ood_photo": 30, "train": 48}
COLUMNS, SIZE = 16, 64


def save_sheet(path, pixels):
    pictures = [Image.fromarray(one) for one in pixels.permute(0, 2, 3, 1).numpy()]
    rows = -(-len(pictures) // COLUMNS)
    blank = [Image.new("RGB", (SIZE, SIZE), "white")] * (rows * COLUMNS - len(pictures))
    make_image_grid(pictures + blank, rows, COLUMNS).save(path, lossless=True, quality=100, method=6)


def shown(split, count):
    """The images of a split that are shipped: all, or every n-th; of `train` those of the rare concepts come first."""
    records, pixels = load(split)
    chosen = list(range(len(records)))
    if split == "train":
        rare = [i for i in chosen if records[i]["share"] < 1]
        rest = [i for i in chosen if records[i]["share"] == 1]
        chosen = rare + rest[:: -(-len(rest) // (count - len(rare)))]
    elif len(chosen) > count:
        chosen = chosen[:: -(-len(chosen) // count)]
    chosen = chosen[:count]
    return [records[i] for i in chosen], pixels[chosen]


def export_images(folder):
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kept = ("concept", "style", "caption", "split", "licence")
    lines = []
    for split, count in SHIPPED.items():
        records, pixels = shown(split, count)
        save_sheet(folder / f"{split}.webp", pixels)
        lines += [{name: record[name] for name in kept} for record in records]
    (folder / "captions.json").write_text(json.dumps(lines, indent=0, ensure_ascii=False) + "\n")


def export_tokenizer(tokenizer, folder):
    """tokenizer.json, and the two files that older versions of transformers read."""
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def export_with_inner_names(model, folder):
    """Save a model that holds a CLIPTextModel, its weights called as on the hub: `text_model.` once more than transformers 5
    saves.  Every release reads these names; those before 5 read no others."""
    model.save_pretrained(folder)
    path = folder / "model.safetensors"
    weights = load_file(path)
    outer = "text_model." if any(name.startswith("vision_model.") for name in weights) else ""
    inner = f"{outer}text_model."
    if not any(name.startswith(inner) for name in weights):
        names = {name: inner + name.removeprefix(outer) if name.startswith(outer) else name for name in weights}
        save_file({names[name]: weight for name, weight in weights.items()}, path, {"format": "pt"})


def export_models():
    base = StableDiffusionPipeline.from_pretrained(WORK / "base", safety_checker=None).to(torch.float16)
    turbo = StableDiffusionPipeline.from_pretrained(WORK / "turbo", safety_checker=None).to(torch.float16)
    for kind in ("base", "turbo", "scorer"):
        for part in (MODELS / kind).glob("*/"):
            shutil.rmtree(part)
    export_with_inner_names(base.text_encoder, MODELS / "base" / "text_encoder")
    for name in ("unet", "scheduler"):
        getattr(base, name).save_pretrained(MODELS / "base" / name)
    # Not the pipeline's copy: the decoder may have been trained further since.
    AutoencoderKL.from_pretrained(WORK / "vae").half().save_pretrained(MODELS / "base" / "vae")
    export_tokenizer(CLIPTokenizer.from_pretrained(WORK / "tokenizer"), MODELS / "base" / "tokenizer")
    turbo.unet.save_pretrained(MODELS / "turbo" / "unet")
    turbo_scheduler().save_pretrained(MODELS / "turbo" / "scheduler")
    export_with_inner_names(VisionTextDualEncoderModel.from_pretrained(WORK / "scorer").half(), MODELS / "scorer")


def main():
    export_images(MODELS / "images")
    export_models()
    size = sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) / 2**20
    print(f"{MODELS}: {size:.1f} MiB")


if __name__ == "__main__":
    sys.exit(main())
