"""What the training scripts read and write: images and captions of a split, pictures, parts of pipelines."""

import json

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import make_image_grid
from loop import WORK
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio

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
    pairs = zip(*(x.clamp(-1, 1).cpu().numpy() for x in (a, b)), strict=True)
    return torch.tensor([peak_signal_noise_ratio(*pair, data_range=2) for pair in pairs])


def save_sheet(path, rows, zoom=2):
    """Rows of images in -1..1, each [N, 3, H, W], one below the other."""
    pictures = VaeImageProcessor().postprocess(torch.cat(list(rows)), output_type="pil")
    sheet = make_image_grid(pictures, len(rows), len(rows[0]))
    sheet.resize((zoom * sheet.width, zoom * sheet.height), Image.NEAREST).save(path)
