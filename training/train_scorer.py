"""Scorer: a small contrastive image-text model of the same icons, which judges drawings in place of CLIP.

    python training/train_scorer.py          # needs build/model/tokenizer; writes build/model/scorer

A ConvNeXt for images and a CLIP text encoder, as a VisionTextDualEncoderModel.

Loss: CLIP's (arXiv 2103.00020); images of a batch that have the same caption are all right answers to it.  Images are
moved, turned, mirrored, blurred and given other colours, so that small faults of a drawing do not matter.
"""

import sys

import torch
import torch.nn.functional as F
from images import load, unit
from loop import WORK, Plan, train
from train_base import TOKENS, tokens
from transformers import (
    CLIPTextConfig,
    CLIPTokenizer,
    ConvNextConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
)

PLAN = Plan("scorer", steps=1500, batch=160, muon_rate=0.01, adam_rate=1e-3, average=0.998, warmup=100, evaluate=250)
STYLELESS = 0.25


def build_scorer(vocabulary):
    vision = ConvNextConfig(
        image_size=64,
        patch_size=4,
        num_stages=3,
        depths=[2, 2, 4],
        hidden_sizes=[48, 96, 192],
        hidden_size=192,  # of what the projection takes
        layer_scale_init_value=1.0,
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=128)
    return VisionTextDualEncoderModel(config)


def image_features(model, pixels):
    """Unit vectors [N, 128] of images in -1..1."""
    return F.normalize(model.visual_projection(model.vision_model(pixels).pooler_output), dim=1)


def text_features(model, ids):
    return F.normalize(model.text_projection(model.text_model(ids).pooler_output), dim=1)


def learnt():
    """(records, pixels): what the base model and the autoencoder learn, and two styles of the concepts they do not."""
    records, pixels = load("train", "other", "heldout_concept")
    kept = [i for i, r in enumerate(records) if r["split"] != "heldout_concept" or r["style"] != "noto"]
    return [records[i] for i in kept], pixels[kept]


def disturbed(images, generator):
    """Images in -1..1, moved, turned, scaled, mirrored, blurred, and with other colours."""
    size, device = len(images), images.device

    def uniform(low, high, *shape):
        return low + (high - low) * torch.rand(size, *shape, generator=generator, device=device)

    angle, scale = uniform(-0.15, 0.15), uniform(0.85, 1.15)
    mirror = torch.where(uniform(0, 1) < 0.5, -1.0, 1.0)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    right, down = uniform(-0.12, 0.12), uniform(-0.12, 0.12)
    motion = torch.stack([cos * mirror, -sin, right, sin * mirror, cos, down], 1).view(size, 2, 3)
    grid = F.affine_grid(motion, images.shape, align_corners=False)
    # Beyond its edge an image is white.
    images = F.grid_sample(images - 1, grid, align_corners=False) + 1
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    images = torch.lerp(images, blurred, uniform(0, 1, 1, 1, 1))
    images = 1 - (1 - images) * uniform(0.8, 1.2, 3, 1, 1)
    return images + uniform(0, 0.1, 1, 1, 1) * torch.randn(images.shape, generator=generator, device=device)


def top1(model, images, captions, choices):
    """Share of images [N] whose own caption among `choices` [M], at captions[i], has the highest score."""
    scores = image_features(model, images) @ text_features(model, choices).T
    return (scores.argmax(1) == captions).float().mean()


class Task:
    outer = ("embed", "projection", "dwconv")

    def __init__(self, device):
        tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
        records, pixels = learnt()
        self.pixels = pixels.to(device)
        self.captions = tokens(tokenizer, [r["caption"] for r in records]).to(device)
        self.names = tokens(tokenizer, [r["name"] for r in records]).to(device)
        self.module = build_scorer(len(tokenizer)).to(device)
        heldout, pixels = load("heldout_pair", "heldout_concept")
        kept = [i for i, r in enumerate(heldout) if r["split"] == "heldout_pair" or r["style"] == "noto"]
        self.heldout = unit(pixels[kept]).to(device), tokens(tokenizer, [heldout[i]["caption"] for i in kept]).to(device)

    def loss(self, generator, size):
        device = generator.device
        chosen = torch.randperm(len(self.pixels), generator=generator, device=device)[:size]
        images = disturbed(unit(self.pixels[chosen]), generator)
        styleless = bool(torch.rand((), generator=generator, device=device) < STYLELESS)
        ids = (self.names if styleless else self.captions)[chosen]
        same = (ids[:, None] == ids[None]).all(2).float()
        wanted = same / same.sum(1, keepdim=True)
        scores = image_features(self.module, images) @ text_features(self.module, ids).T
        logits = scores.float() * self.module.logit_scale.exp().clamp(max=100)
        return (F.cross_entropy(logits, wanted) + F.cross_entropy(logits.T, wanted)) / 2

    def evaluate(self, module):
        """Right answers among 104 captions on images never seen, and among as many on seen ones."""
        images, ids = self.heldout
        answers = torch.arange(len(ids), device=ids.device)
        seen = slice(0, len(self.pixels), len(self.pixels) // len(ids))
        pixels = unit(self.pixels[seen][: len(ids)])
        return {
            "held-out top-1": top1(module, images, answers, ids),
            "seen top-1": top1(module, pixels, answers, self.captions[seen][: len(ids)]),
            "scale": module.logit_scale.exp(),
        }


def main():
    tokenizer = CLIPTokenizer.from_pretrained(WORK / "tokenizer")
    scorer = build_scorer(len(tokenizer))
    scorer.load_state_dict(train(PLAN, Task))
    scorer.eval().save_pretrained(WORK / "scorer")


if __name__ == "__main__":
    sys.exit(main())
