"""Between images and the latents a pipeline samples in."""

import math
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from .known import (
    autoencoder,
    channels,
    has_frames,
    latent_channels,
    network,
    packs,
    parameters,
    scale_factor,
    takes_patches,
)
from .layout import pack, unpack
from .session import without_gradients

IMAGE_TYPES = "a PIL image, a NumPy array [H, W, 3], a tensor [3, H, W], a path, a list of these, or latents"


def _in_range(image):
    """Pixels as floats in 0..1 or -1..1; uint8 are brought there."""
    kind = str(image.dtype).removeprefix("torch.")
    if kind == "uint8":
        return image / np.float32(255)
    if "float" not in kind:
        raise ValueError(f"image must hold uint8 or floating-point numbers, got {kind}")
    if not math.isfinite(image.sum()):
        raise ValueError("image must be finite, got NaN or infinity")
    if image.min() < -1.001 or image.max() > 1.001:
        low, high = float(image.min()), float(image.max())
        raise ValueError(f"image must be in 0..1 or -1..1 if it holds floats, got {low:g}..{high:g}")
    return image


def _from_array(array):
    """[H, W], [H, W, C] or [B, H, W, C] -> tensor [B, 3, H, W]"""
    array = np.asarray(_in_range(array), np.float32)
    shape = array.shape
    array = array[..., None] if array.ndim == 2 else array
    array = array[None] if array.ndim == 3 else array
    if array.ndim != 4 or array.shape[-1] not in (1, 3):
        raise ValueError(f"image must be an array [H, W, 3] or [B, H, W, 3], got shape {shape}")
    return torch.from_numpy(np.broadcast_to(array, (*array.shape[:3], 3)).transpose(0, 3, 1, 2).copy())


def _to_batches(image):
    """One image argument as a list of what diffusers' image processor takes: PIL images, or tensors [B, 3, H, W]."""
    if isinstance(image, (str, Path)):
        try:
            with Image.open(image) as opened:
                return [ImageOps.exif_transpose(opened).convert("RGB")]
        except OSError as error:
            raise ValueError(f"image: {str(image)!r} cannot be read as an image: {error}") from error
    if isinstance(image, Image.Image):
        return [image.convert("RGB")]
    if isinstance(image, np.ndarray):
        return [_from_array(image)]
    if isinstance(image, torch.Tensor):
        if image.ndim not in (3, 4):
            raise ValueError(f"image must be a tensor [3, H, W] or [B, 3, H, W], got shape {tuple(image.shape)}")
        image = image if image.ndim == 4 else image[None]
        return [_in_range(image) if image.shape[1] == 3 else image]
    raise ValueError(f"image must be {IMAGE_TYPES}, got {type(image).__name__}")


@contextmanager
def _vae_precision(vae):
    """The dtype to run the VAE in: float32 where its configuration says that half precision overflows."""
    dtype = vae.dtype
    upcast = bool(vae.config.get("force_upcast")) and dtype == torch.float16
    try:
        yield vae.to(torch.float32).dtype if upcast else dtype
    finally:
        if upcast:
            vae.to(dtype)


def _statistics(vae, like):
    """(mean, std) with (z - mean) / std the latents the network sees: diffusers' three conventions in one."""
    config = vae.config
    scaling = config.get("scaling_factor") or 1.0
    if hasattr(vae, "bn"):  # Flux.2 keeps the statistics of 2 x 2 patches in a layer of batch normalisation
        mean, variance = (x.float().reshape(1, -1, 1, 1) for x in (vae.bn.running_mean, vae.bn.running_var))
        return mean.to(like.device), (variance + config["batch_norm_eps"]).sqrt().to(like.device)
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, 1.0 / scaling
    shape = (1, -1) + (1,) * (like.ndim - 2)
    mean, std = (torch.tensor(x, dtype=torch.float32, device=like.device).reshape(shape) for x in (mean, std))
    return mean, std / scaling


def _unit(batch):
    """Pixels in 0..1, as the image processor expects them; tensors may come in -1..1."""
    return (batch + 1) / 2 if isinstance(batch, torch.Tensor) and batch.min() < 0 else batch


def _vae(pipe):
    vae = autoencoder(pipe)
    if vae is None:
        raise ValueError(f"image: {type(pipe).__name__} has no autoencoder; give latents")
    return vae


def _draws_pixels(pipe):
    """Whether the pipeline has no autoencoder: its latents are the image."""
    return autoencoder(pipe) is None and 3 in channels(pipe)


def is_latents(pipe, image):
    """Whether a tensor is latents rather than an image; in which layout, the pipeline knows."""
    if not isinstance(image, torch.Tensor) or not torch.is_floating_point(image):
        return False
    if image.ndim > 4:
        return image.shape[1] != 3
    possible = channels(pipe)
    if image.ndim == 4 and image.shape[1] != 3:
        return image.shape[1] in possible or not possible
    if image.ndim == 4:
        return _draws_pixels(pipe)
    if image.ndim != 3 or getattr(pipe, "transformer", None) is None:  # patches in a row, or sound
        return image.ndim == 3 and image.shape[1] in possible and image.shape[0] != 3
    return (packs(pipe) and image.shape[-1] in possible) or (image.shape[0] != 3 and image.shape[0] not in possible)


def read_images(pipe, image, *, height=None, width=None):
    """`image`, as in `encode`, as one tensor: pixels [B, 3, H, W] in -1..1, or latents if that is what it holds."""
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("image must hold at least one image, got an empty list")
    latents = [one if is_latents(pipe, one) else one[None] if _is_one(pipe, one) else None for one in images]
    if any(one is not None for one in latents):
        if any(one is None for one in latents) or len({tuple(one.shape[1:]) for one in latents}) > 1:
            raise ValueError("image must hold either images or latents of one shape, got a mixture")
        if not all(torch.isfinite(one).all() for one in latents):
            raise ValueError("image must be finite, got NaN or infinity")
        return torch.cat(latents)
    batches = [batch for one in images for batch in _to_batches(one)]
    for batch in batches:
        if isinstance(batch, torch.Tensor) and batch.shape[1] != 3:
            others = " or ".join(map(str, sorted(channels(pipe) - {3})))
            raise ValueError(f"image must have 3 channels, or {others} if it is latents, got shape {tuple(batch.shape)}")
    processor = getattr(pipe, "image_processor", None) or VaeImageProcessor(vae_scale_factor=scale_factor(pipe))
    pixels = [processor.preprocess(_unit(batch), height=height, width=width) for batch in batches]
    sizes = {tuple(p.shape[-2:]) for p in pixels}
    if len(sizes) > 1:
        raise ValueError(f"image: all images must have one size, got {sorted(sizes)}; give height and width to resize them")
    return torch.cat(pixels).contiguous()  # another layout takes other kernels, which round differently


def _is_one(pipe, image):
    """Latents of one image, without the dimension of the batch."""
    return isinstance(image, torch.Tensor) and image.ndim == 3 and image.shape[0] != 3 and is_latents(pipe, image[None])


def image_size(pipe, latents, *, height=None, width=None):
    """{"height": ..., "width": ...} of the image that `latents` stand for, as far as that can be known."""
    if height is None and width is None and latents.ndim > 3:
        height, width = (n * scale_factor(pipe) * (2 if takes_patches(pipe) else 1) for n in latents.shape[-2:])
    known = parameters(pipe)
    return {name: n for name, n in (("height", height), ("width", width)) if n is not None and name in known}


@without_gradients
def encode(pipe: Any, image: Any, *, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """The latents [B, ...] that `pipe` would draw `image` from, as its `latents=` takes them, in its dtype, on its device.

    image: PIL image, NumPy array [H, W, 3] or [B, H, W, 3], tensor [3, H, W] or [B, 3, H, W] (both uint8, floats in 0..1, or
    in -1..1 if any is negative), path, a list of these, or latents, which pass unchanged: [B, C, h, w], [B, C, F, h, w] for
    videos, or packed [B, N, C] where the pipeline packs them (Flux, Qwen-Image, LTX).
    height, width: pixels to resize to; by default the image's own size, down to a multiple of the VAE's factor.

    The mode of the VAE's posterior is taken, not a sample: inversion wants the same latents every time.
    Raises ValueError for anything else, for an empty list, for images of different sizes, for NaN, and for images where the
    pipeline has no autoencoder.
    """
    return encode_pixels(pipe, read_images(pipe, image, height=height, width=width))


def encode_pixels(pipe, pixels, rounds=0):
    """`encode` for what `read_images` returns; rounds: of z + encode(x) - encode(decode(z)), as the autoencoder allows."""
    encoded = z = _encode_once(pipe, pixels)
    for _ in range(0 if is_latents(pipe, pixels) or _draws_pixels(pipe) else rounds):
        again = decode(pipe, z, height=pixels.shape[-2], width=pixels.shape[-1]) * 2 - 1
        z = (z.float() + encoded.float() - _encode_once(pipe, again).float()).to(z.dtype)
    return z


def _encode_once(pipe, pixels):
    device, dtype = pipe._execution_device, network(pipe).dtype
    if is_latents(pipe, pixels) or _draws_pixels(pipe):
        return pixels.to(device=device, dtype=dtype)
    vae = _vae(pipe)
    with _vae_precision(vae) as vae_dtype:
        pixels = pixels.to(device=device, dtype=vae_dtype)
        encoded = vae.encode(pixels[:, :, None] if has_frames(vae) else pixels)
    z = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded[0]
    z = _patches(pipe, z.float())
    mean, std = _statistics(vae, z)
    z = ((z - mean) / std).to(dtype)
    return pack(pipe, z, *pixels.shape[-2:]) if packs(pipe) and not takes_patches(pipe) else z


def _patches(pipe, z):
    return pipe._patchify_latents(z) if takes_patches(pipe) else z


@without_gradients
def decode(pipe: Any, latents: torch.Tensor, *, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """The images [B, 3, H, W] in 0..1, float32, that the autoencoder of `pipe` makes of `latents`, laid out as in `encode`.

    height, width: pixels of the image, needed where latents are packed.
    Raises ValueError if they are needed and missing.
    """
    return draw_pixels(pipe, latents, height=height, width=width).clamp(0, 1)


def draw_pixels(pipe, latents, *, height=None, width=None):
    """`decode` with gradients, and beyond 0..1 where the autoencoder goes beyond."""
    vae = _vae(pipe)
    if latents.ndim == 3:
        latents = unpack(pipe, latents, height, width)
    mean, std = _statistics(vae, latents)
    with _vae_precision(vae) as dtype:
        z = latents.float() * std + mean
        z = pipe._unpatchify_latents(z) if takes_patches(pipe) else z
        pixels = vae.decode(z.to(device=pipe._execution_device, dtype=dtype), return_dict=False)[0].float()
    pixels = pixels[:, :, 0] if pixels.ndim == 5 else pixels
    return pixels / 2 + 0.5


def read_mask(mask_image):
    """A mask [H, W] float32, 1 where the image may change, from one in pixels, as a tensor [1, 1, H, W].

    Raises ValueError if it is no such image.
    """
    mask = np.asarray(mask_image.convert("L") if isinstance(mask_image, Image.Image) else mask_image, np.float32)
    if mask.ndim != 2 or not np.isfinite(mask).all():
        raise ValueError(f"mask_image must be an image [H, W], got shape {mask.shape}")
    return torch.from_numpy(mask / (255 if mask.max() > 1 else 1))[None, None]


def mask_like(pipe, mask_image, latents, height, width):
    """A mask laid out as `latents` [B, ...] are, 1 where the image may change, from one [H, W] in pixels.

    height, width: of the image, needed where latents are packed.
    """
    mask, packed = read_mask(mask_image), latents.ndim == 3
    size = [n // scale_factor(pipe) for n in (height, width)] if packed else latents.shape[-2:]
    mask = torch.nn.functional.interpolate(mask, size=tuple(size), mode="area")
    if packed:
        return pack(pipe, mask.expand(1, latent_channels(_vae(pipe)), *size).contiguous(), height, width)
    return mask[:, :, None] if latents.ndim == 5 else mask


def psnr(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each pair of images [B, 3, H, W] in 0..1; infinite for equal ones."""
    error = (a.float() - b.float()).pow(2).flatten(1).mean(1)
    return [math.inf if e == 0 else -10 * math.log10(e) for e in error.tolist()]
