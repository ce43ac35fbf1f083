"""Between images and the latents a pipeline samples in."""

import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

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
        if image.shape[1] == 3:
            return [_in_range(image)]
        if not torch.isfinite(image).all():
            raise ValueError("image must be finite, got NaN or infinity")
        return [image]
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
    mean, std = config.get("latents_mean"), config.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, 1.0 / scaling
    shape = (1, -1) + (1,) * (like.ndim - 2)
    mean, std = (torch.tensor(x, dtype=torch.float32, device=like.device).reshape(shape) for x in (mean, std))
    return mean, std / scaling


def _unit(batch):
    """Pixels in 0..1, as the image processor expects them; tensors may come in -1..1."""
    return (batch + 1) / 2 if isinstance(batch, torch.Tensor) and batch.min() < 0 else batch


def _latent_channels(pipe):
    return pipe.vae.config.get("latent_channels") or pipe.vae.config.get("z_dim")


def _network_dtype(pipe):
    return (getattr(pipe, "unet", None) or pipe.transformer).dtype


def _is_latents(pipe, batch):
    return isinstance(batch, torch.Tensor) and batch.shape[1] != 3 and batch.shape[1] == _latent_channels(pipe)


def read_images(pipe, image, *, height=None, width=None):
    """`image`, as in `encode`, as one tensor: pixels [B, 3, H, W] in -1..1, or latents if that is what it holds."""
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("image must hold at least one image, got an empty list")
    batches = [batch for one in images for batch in _to_batches(one)]
    latents = [_is_latents(pipe, batch) for batch in batches]
    if any(latents):
        if not all(latents) or len({tuple(batch.shape[1:]) for batch in batches}) > 1:
            raise ValueError("image must hold either images or latents of one shape, got a mixture")
        return torch.cat(batches)
    for batch in batches:
        if isinstance(batch, torch.Tensor) and batch.shape[1] != 3:
            channels = _latent_channels(pipe)
            raise ValueError(f"image must have 3 channels, or {channels} if it is latents, got shape {tuple(batch.shape)}")
    pixels = [pipe.image_processor.preprocess(_unit(batch), height=height, width=width) for batch in batches]
    sizes = {tuple(p.shape[-2:]) for p in pixels}
    if len(sizes) > 1:
        raise ValueError(f"image: all images must have one size, got {sorted(sizes)}; give height and width to resize them")
    return torch.cat(pixels).contiguous()  # another layout takes other kernels, which round differently


@torch.no_grad()
def encode(pipe, image, *, height=None, width=None):
    """The latents [B, C, h, w] that `pipe` would draw `image` from, in the pipeline's dtype, on its device.

    image: PIL image, NumPy array [H, W, 3] or [B, H, W, 3], tensor [3, H, W] or [B, 3, H, W] (both uint8, floats in 0..1, or
    in -1..1 if any is negative), path, a list of these, or latents [B, C, h, w], which pass unchanged.
    height, width: pixels to resize to; by default the image's own size, down to a multiple of the VAE's factor.

    The mode of the VAE's posterior is taken, not a sample: inversion wants the same latents every time.
    Raises ValueError for anything else, for an empty list, for images of different sizes, and for NaN.
    """
    vae, device, dtype = pipe.vae, pipe._execution_device, _network_dtype(pipe)
    pixels = read_images(pipe, image, height=height, width=width)
    if _is_latents(pipe, pixels):
        return pixels.to(device=device, dtype=dtype)
    with _vae_precision(vae) as vae_dtype:
        z = vae.encode(pixels.to(device=device, dtype=vae_dtype)).latent_dist.mode().float()
    mean, std = _statistics(vae, z)
    return ((z - mean) / std).to(dtype)


@torch.no_grad()
def decode(pipe, latents):
    """The images [B, 3, H, W] in 0..1, float32, that the VAE of `pipe` makes of `latents` [B, C, h, w]."""
    vae = pipe.vae
    mean, std = _statistics(vae, latents)
    with _vae_precision(vae) as dtype:
        z = latents.float() * std + mean
        pixels = vae.decode(z.to(device=pipe._execution_device, dtype=dtype), return_dict=False)[0].float()
    return (pixels / 2 + 0.5).clamp(0, 1)


def psnr(a, b):
    """Peak signal-to-noise ratio in dB of each pair of images [B, 3, H, W] in 0..1; infinite for equal ones."""
    error = (a.float() - b.float()).pow(2).flatten(1).mean(1)
    return [math.inf if e == 0 else -10 * math.log10(e) for e in error.tolist()]
