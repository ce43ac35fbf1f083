"""What the training scripts read and write: images and captions of a split, pictures, parts of pipelines."""

import json

import numpy as np
import torch
from loop import WORK
from PIL import Image

NOISE_SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


def load(*splits):
    """(records, pixels uint8 [N, 3, 64, 64]) of some splits."""
    records = [r for r in json.loads((WORK / "manifest.json").read_text()) if r["split"] in splits]
    with np.load(WORK / "images.npz") as file:
        images = file["images"][[r["index"] for r in records]]
    return records, torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()


def unit(pixels):
    """uint8 to floats in -1..1."""
    return pixels.float().div(127.5).sub(1)


def psnr(a, b):
    """dB of each pair of images in -1..1, [B]."""
    return 10 * torch.log10(4 / (a.clamp(-1, 1) - b.clamp(-1, 1)).pow(2).flatten(1).mean(1))


def save_sheet(path, rows, zoom=2):
    """Rows of images in -1..1, each [N, 3, H, W], one below the other."""
    sheet = torch.cat([torch.cat(list(row.cpu().clamp(-1, 1)), 2) for row in rows], 1)
    sheet = sheet.add(1).mul(127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(sheet)
    picture.resize((zoom * picture.width, zoom * picture.height), Image.NEAREST).save(path)
