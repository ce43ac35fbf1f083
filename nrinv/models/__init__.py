"""The embedded models: two small text-to-image latent diffusion models of the project's own, and held-out images.

`base/` is a 64x64 model (epsilon prediction, 20-50 steps, guidance 3), `turbo/` its few-step student (4 trailing steps, no
guidance).  They share all parts but the UNet.  Every test, demo and benchmark figure of the project comes from them.
"""

import json
from pathlib import Path
from typing import NamedTuple

from PIL import Image

HERE = Path(__file__).parent
KINDS = ("turbo", "base")


class DemoImage(NamedTuple):
    """A held-out icon: `image` 64x64 RGB, its `caption`, `split`, `name` and `licence`."""

    image: Image.Image
    caption: str
    split: str
    name: str
    licence: str


def demo_pipeline(kind="turbo", *, torch_dtype=None):
    """The embedded StableDiffusionPipeline `kind`, "turbo" or "base", on the CPU; loads in a second, offline.

    torch_dtype: default float32.  Raises ValueError for another kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    import torch
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        EulerDiscreteScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

    scheduler = {"turbo": EulerDiscreteScheduler, "base": DDIMScheduler}[kind]
    dtype = {"torch_dtype": torch_dtype or torch.float32}
    pipe = StableDiffusionPipeline(
        vae=AutoencoderKL.from_pretrained(HERE / "base" / "vae", **dtype),
        text_encoder=CLIPTextModel.from_pretrained(HERE / "base" / "text_encoder", **dtype),
        tokenizer=CLIPTokenizer.from_pretrained(HERE / "base" / "tokenizer"),
        unet=UNet2DConditionModel.from_pretrained(HERE / kind / "unet", **dtype),
        scheduler=scheduler.from_pretrained(HERE / kind / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def demo_images(split="heldout_pair"):
    """The embedded images of a split, as a list of `DemoImage`; None for all.

    "heldout_pair": the model knows the concept and the style but has not seen this image.  "heldout_concept": it has never
    seen the concept.  "train": it has seen the image.  Raises ValueError for another split.
    """
    records = json.loads((HERE / "images" / "captions.json").read_text())
    splits = sorted({record["split"] for record in records})
    if split is not None and split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, or None for all, got {split!r}")
    found = []
    for record in records:
        if split in (None, record["split"]):
            with Image.open(HERE / "images" / record["file"]) as image:
                found.append(
                    DemoImage(
                        image.convert("RGB"),
                        record["caption"],
                        record["split"],
                        Path(record["file"]).stem,
                        record["licence"],
                    )
                )
    return found
