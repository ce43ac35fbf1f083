"""The embedded models: two small text-to-image latent diffusion models of the project's own, a judge of what they draw, and
images.

`base/` is a 64x64 model (epsilon prediction, 20-50 steps, guidance 3), `turbo/` its few-step student (4 trailing steps, no
guidance).  They share all parts but the UNet.  `scorer/` is a contrastive image-text model.  Every test, demo and benchmark
figure of the project comes from them.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

HERE = Path(__file__).parent
KINDS = ("turbo", "base")
# How each of them is called best.
CALLS = {
    "turbo": {"num_inference_steps": 4, "guidance_scale": 1.0},
    "base": {"num_inference_steps": 20, "guidance_scale": 3.0},
}
SIZE = 64  # pixels of an image's side


def _load(model: Any, folder: Path, dtype: Any) -> Any:
    """The model of class `model` with the weights in `folder`.  Raises RuntimeError unless these are exactly the model's.

    Libraries only warn of a weight that they do not find, and leave it at random.  The dtype is set afterwards: the name of
    that argument differs between releases of transformers.
    """
    loaded, info = model.from_pretrained(folder, output_loading_info=True)
    wrong = [
        f"{kind} {', '.join(sorted(map(str, info[f'{kind}_keys']))[:3])}"
        for kind in ("missing", "unexpected", "mismatched")
        if info[f"{kind}_keys"]
    ]
    if wrong:
        library = model.__module__.split(".")[0]
        raise RuntimeError(
            f"the weights in {folder} are not those of {library}'s {model.__name__} ({'; '.join(wrong)}): "
            f"install a release of {library} that nrinv's metadata allows"
        )
    return loaded.to(dtype)


class DemoImage(NamedTuple):
    """A picture: `image` 64x64 RGB, its `caption`, the `concept` it shows, its `style`, `split` and `licence`."""

    image: Image.Image
    caption: str
    concept: str
    style: str
    split: str
    licence: str

    @property
    def name(self) -> str:
        return f"{self.concept}_{self.style}"


def demo_pipeline(kind: str = "turbo", *, torch_dtype: Any = None) -> Any:
    """The embedded StableDiffusionPipeline `kind`, "turbo" or "base", on the CPU; loads in a second, offline.

    torch_dtype: default float32.  Raises ValueError for another kind, RuntimeError where weights do not fit the models.
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
    dtype = torch_dtype or torch.float32
    pipe = StableDiffusionPipeline(
        vae=_load(AutoencoderKL, HERE / "base" / "vae", dtype),
        text_encoder=_load(CLIPTextModel, HERE / "base" / "text_encoder", dtype),
        tokenizer=CLIPTokenizer.from_pretrained(HERE / "base" / "tokenizer"),
        unet=_load(UNet2DConditionModel, HERE / kind / "unet", dtype),
        scheduler=scheduler.from_pretrained(HERE / kind / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def demo_images(split: str | None = "heldout_pair") -> list[DemoImage]:
    """The embedded images of a split, as a list of `DemoImage`; None for all.

    "heldout_pair": the models know the concept and the style but have not seen this image.  "heldout_concept": they have
    never seen the concept, in any of three styles.  "rare": they have seen the concept seldom, in another style.
    "ood_style": a style they do not know; "ood_photo": photographs.  "train": they have learnt from the image.

    Raises ValueError for another split.
    """
    records = json.loads((HERE / "images" / "captions.json").read_text())
    splits = list(dict.fromkeys(record["split"] for record in records))
    if split is not None and split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}, or None for all, got {split!r}")
    found = []
    for name in splits if split is None else [split]:
        with Image.open(HERE / "images" / f"{name}.webp") as file:
            sheet = file.convert("RGB")
        columns = sheet.width // SIZE
        for i, record in enumerate(record for record in records if record["split"] == name):
            x, y = SIZE * (i % columns), SIZE * (i // columns)
            fields = {field: record[field] for field in DemoImage._fields if field != "image"}
            found.append(DemoImage(sheet.crop((x, y, x + SIZE, y + SIZE)), **fields))
    return found


class Scorer:
    """A small contrastive image-text model, in place of CLIP where the embedded models' icons are judged.

    It was trained on the same icons as they were and knows nothing else.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer

    def image_features(self, images: Any) -> Any:
        """Unit vectors [N, F] float32 of images [N, 3, H, W] in 0..1, of any size; differentiable.

        Raises ValueError for another shape.
        """
        import torch.nn.functional as F

        if getattr(images, "ndim", 0) != 4 or images.shape[1] != 3:
            raise ValueError(f"images must be a tensor [N, 3, H, W], got {getattr(images, 'shape', type(images))}")
        pixels = images.float() * 2 - 1
        if pixels.shape[-2:] != (SIZE, SIZE):
            pixels = F.interpolate(pixels, (SIZE, SIZE), mode="bilinear", antialias=True)
        return F.normalize(self.model.visual_projection(self.model.vision_model(pixels).pooler_output), dim=1)

    def text_features(self, prompts: list[str]) -> Any:
        """Unit vectors [M, F] float32 of a list of prompts."""
        import torch
        import torch.nn.functional as F

        length = self.tokenizer.model_max_length
        ids = self.tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        with torch.no_grad():
            return F.normalize(self.model.text_projection(self.model.text_model(ids.input_ids).pooler_output), dim=1)

    def score(self, images: Any, prompts: list[str]) -> Any:
        """Cosines [N, M] of images [N, 3, H, W] in 0..1 and prompts."""
        import torch

        with torch.no_grad():
            return self.image_features(images) @ self.text_features(prompts).T


def scorer() -> Scorer:
    """The embedded `Scorer`, on the CPU in float32; loads in a second, offline.

    Raises RuntimeError where weights do not fit the model.
    """
    import torch
    from transformers import CLIPTokenizer, VisionTextDualEncoderModel

    model = _load(VisionTextDualEncoderModel, HERE / "scorer", torch.float32)
    model.eval().requires_grad_(False)
    return Scorer(model, CLIPTokenizer.from_pretrained(HERE / "base" / "tokenizer"))
