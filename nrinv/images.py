"""Between images and the latents a pipeline samples in."""

import inspect
import math
import re
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import PIL_INTERPOLATION
from PIL import Image, ImageColor, ImageOps

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
# What is not yet out of a range: rounding, and the overshoot of filters.
_TOLERANCE = 1e-3
# The ranges that numbers may be meant in, by what holds them: the first that holds them all.  Pillow's "I" and "F" are in
# 0..255 where it makes them of 8 bits, in 0..65535 where it makes them of 16.
_FLOATS = ((0, 1), (-1, 1))
_RANGES = {
    "bool": ((0, 1),),
    "uint8": ((0, 255),),
    "uint16": ((0, 65535),),
    "float": _FLOATS,
    "mode I": ((0, 255), (0, 65535)),
    "mode F": (*_FLOATS, (0, 255), (0, 65535)),
}


# ------------------------------------------------------------------------------------------------------------------ reading


@dataclass(frozen=True)
class Source:
    """What is to be inverted, B of them: pixels [B, 3, H, W] in -1..1, or latents if they are `encoded`."""

    tensor: torch.Tensor
    encoded: bool = False

    def __len__(self):
        return len(self.tensor)

    def __getitem__(self, samples):
        return replace(self, tensor=self.tensor[samples])

    @property
    def size(self):
        """Height and width in pixels, None where latents do not tell."""
        return (None, None) if self.encoded else tuple(self.tensor.shape[-2:])

    @property
    def image(self):
        """What pipelines take as `image`: pixels in 0..1, or the latents."""
        return self.tensor if self.encoded else self.tensor / 2 + 0.5


@dataclass(frozen=True)
class _Numbers:
    """Numbers [B, C, H, W] of one argument, C 1 for grey, 3 for colours, and one more for alpha; kind: one of `_RANGES`.

    smooth: whether they are resized as Pillow's images are.
    """

    values: torch.Tensor
    kind: str
    smooth: bool = False

    @property
    def has_alpha(self):
        return self.values.shape[1] in (2, 4)


def _opened(image, name="image"):
    """A path or a PIL image as a PIL image, upright; what else there is, as it is."""
    if not isinstance(image, (str, Path, Image.Image)):
        return image
    try:
        if isinstance(image, Image.Image):
            return ImageOps.exif_transpose(image)
        with Image.open(image) as opened:
            return ImageOps.exif_transpose(opened)
    except OSError as error:
        raise ValueError(f"{name}: {str(image)!r} cannot be read as an image: {error}") from error


def _tensor(image):
    """An array or a tensor as a tensor; None if it holds no numbers."""
    if isinstance(image, torch.Tensor):
        return None if image.is_complex() else image
    if image.dtype.kind == "f":
        return torch.from_numpy(np.ascontiguousarray(image, np.float32))
    if image.dtype.kind not in "biu":
        return None
    return torch.from_numpy(np.array(image, image.dtype.newbyteorder("=")))


def _kind(image):
    kind = str(image.dtype).removeprefix("torch.")
    return "float" if "float" in kind else kind


def _grey_of_pil(image):
    """Pixels [H, W] of an image with more than 8 bits, or [H, W, 2] if it has a transparent colour; None for all others."""
    if not image.mode.startswith(("I", "F")):
        return None
    pixels, transparent = np.asarray(image), image.info.get("transparency")
    if not isinstance(transparent, int):
        return pixels
    return np.stack([pixels, np.where(pixels == transparent, 0, 65535)], -1)


def _from_pil(image, background):
    """A PIL image in RGB, without alpha; or `_Numbers` where it has more than 8 bits."""
    grey = _grey_of_pil(image)
    if grey is not None:
        kind = f"mode {image.mode}" if image.mode in ("I", "F") else "uint16"
        return replace(_from_array(grey), kind=kind, smooth=True)
    if not image.has_transparency_data:
        return image.convert("RGB")
    image = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA")).convert("RGB")


def _from_array(array):
    """[H, W], [H, W, C] or [B, H, W, C]"""
    values = _tensor(array)
    if values is None:
        raise ValueError(_not_numbers(array.dtype))
    values = values[..., None] if values.ndim == 2 else values
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[-1] not in (1, 2, 3, 4):
        raise ValueError(f"image must be an array [H, W, 3] or [B, H, W, 3], got shape {array.shape}")
    return _Numbers(values.permute(0, 3, 1, 2), _kind(values))


def _from_tensor(pipe, image):
    """[C, H, W] or [B, C, H, W]"""
    shape = tuple(image.shape)
    if image.ndim > 4:
        raise ValueError(f"image: latents of {type(pipe).__name__} cannot have shape {shape}, and a video cannot be encoded")
    if image.ndim < 3:
        raise ValueError(f"image must be a tensor [3, H, W] or [B, 3, H, W], got shape {shape}")
    image = image if image.ndim == 4 else image[None]
    if image.shape[1] not in (1, 2, 3, 4):
        others = " or ".join(map(str, sorted(channels(pipe) - {3})))
        raise ValueError(f"image must have 3 channels, or {others} if it is latents, got shape {tuple(image.shape)}")
    return _Numbers(image, _kind(image))


def _not_numbers(kind):
    return f"image must hold uint8 or floating-point numbers, bool or uint16, got {kind}"


def _picture(pipe, image, background):
    """One image argument as a PIL image in RGB or as `_Numbers`."""
    image = _opened(image)
    if isinstance(image, Image.Image):
        return _from_pil(image, background)
    if isinstance(image, np.ndarray):
        return _from_array(image)
    if isinstance(image, torch.Tensor):
        return _from_tensor(pipe, image)
    raise ValueError(f"image must be {IMAGE_TYPES}, got {type(image).__name__}")


def _bounds(tensors):
    """(least, greatest) of all numbers.  Raises ValueError for NaN and infinity."""
    if not all(torch.isfinite(one).all() for one in tensors if one.is_floating_point()):
        raise ValueError("image must be finite, got NaN or infinity")
    bounds = [[float(x) for x in one.to(torch.float64).aminmax()] for one in tensors]
    return min(low for low, _ in bounds), max(high for _, high in bounds)


def _within(bounds, low, high, tolerance=_TOLERANCE):
    slack = tolerance * max(abs(low), abs(high))
    return low - slack <= bounds[0] and bounds[1] <= high + slack


def _judged(numbers, value_range):
    """(low, high) for each kind of numbers: what the numbers of all images of that kind are in."""
    ranges = {}
    for kind in {one.kind for one in numbers}:
        same = [one for one in numbers if one.kind == kind]
        if value_range is None and kind not in _RANGES:
            raise ValueError(f"{_not_numbers(kind)}; nrinv.encode takes others with value_range=(low, high)")
        allowed = (value_range,) if value_range is not None else _RANGES[kind]
        if value_range is None and kind == "float" and any(one.has_alpha for one in same):
            allowed = ((0, 1),)
        bounds = _bounds([one.values for one in same if one.values.numel()] or [torch.zeros(1)])
        tolerance = _TOLERANCE if any(one.values.is_floating_point() for one in same) else 0
        ranges[kind] = next((one for one in allowed if _within(bounds, *one, tolerance)), None)
        if ranges[kind] is None:
            told = " or ".join(f"{low:g}..{high:g}" for low, high in allowed)
            what = {"float": "floats" if len(allowed) > 1 else "floats with alpha"}.get(kind, f"numbers of {kind}")
            condition = "as value_range says" if value_range is not None else f"if it holds {what}"
            hint = "" if value_range is not None else "; nrinv.encode takes others with value_range=(low, high)"
            raise ValueError(f"image must be in {told} {condition}, got {bounds[0]:g}..{bounds[1]:g}{hint}")
    return ranges


def _scaled(numbers, low, high, background):
    """Pixels [B, 3, H, W] in 0..1."""
    values = numbers.values
    values = values.to(torch.promote_types(values.dtype, torch.float32) if values.is_floating_point() else torch.float32)
    values = ((values - low) / (high - low)).clamp(0, 1)
    if numbers.has_alpha:
        alpha = values[:, -1:]
        behind = torch.tensor(background, dtype=values.dtype, device=values.device).reshape(1, 3, 1, 1) / 255
        values = values[:, :-1] * alpha + behind * (1 - alpha)
    return values.expand(-1, 3, -1, -1)


def _resized(pixels, height, width, resample):
    """Pixels in 0..1 as Pillow resizes them; the processor takes the nearest of a tensor."""
    if tuple(pixels.shape[-2:]) == (height, width):
        return pixels
    planes = [Image.fromarray(plane).resize((width, height), resample) for plane in pixels.flatten(0, 1).numpy()]
    return torch.from_numpy(np.stack([np.asarray(plane) for plane in planes])).reshape(-1, 3, height, width).clamp(0, 1)


def _color(background):
    if isinstance(background, str):
        try:
            return ImageColor.getrgb(background)[:3]
        except ValueError as error:
            raise ValueError(
                f"background must be a colour, by name, as '#rrggbb' or (r, g, b), got {background!r}"
            ) from error
    color = tuple(background) if isinstance(background, (list, tuple)) else ()
    if len(color) != 3 or not all(isinstance(n, int) and 0 <= n <= 255 for n in color):
        raise ValueError(f"background must be a colour, by name, as '#rrggbb' or (r, g, b) in 0..255, got {background!r}")
    return color


def _check_range(value_range):
    fine = isinstance(value_range, (list, tuple)) and len(value_range) == 2
    if not fine or not all(isinstance(n, (int, float)) and math.isfinite(n) for n in value_range):
        raise ValueError(f"value_range must be two numbers (low, high), got {value_range!r}")
    if not value_range[0] < value_range[1]:
        raise ValueError(f"value_range must be (low, high) with low below high, got {value_range!r}")
    return tuple(value_range)


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


def _vae(pipe):
    vae = autoencoder(pipe)
    if vae is None:
        raise ValueError(f"image: {type(pipe).__name__} has no autoencoder; give latents")
    return vae


def _check_dense(name, given):
    """Most operations are not there for sparse and nested tensors, a meta tensor holds nothing, an empty one no range."""
    for one in given if isinstance(given, (list, tuple)) else [given]:
        if isinstance(one, torch.Tensor) and (one.layout is not torch.strided or one.is_meta or one.is_quantized):
            layout = "quantized" if one.is_quantized else one.layout
            raise ValueError(f"{name} must be a dense tensor, got layout {layout} on {one.device}")
        if isinstance(one, (torch.Tensor, np.ndarray)) and 0 in one.shape:
            raise ValueError(f"{name} must not be empty, got shape {tuple(one.shape)}")


def _draws_pixels(pipe):
    """Whether the pipeline has no autoencoder: its latents are the image."""
    return autoencoder(pipe) is None and 3 in channels(pipe)


def _as_latents(pipe, given):
    """A tensor as latents [B, ...] if it may be that by its shape, of one image or of several; None if not."""
    possible, shape = channels(pipe), given.shape
    if given.ndim == 3 and shape[0] in possible - {3} and not packs(pipe):
        return given[None]
    if given.ndim > 4:  # [B, C, F, h, w], or [B, F, C, h, w]
        return given if shape[1] != 3 or shape[2] in possible else None
    if given.ndim == 4:
        fits = _draws_pixels(pipe) if shape[1] == 3 else shape[1] in possible or not possible
    elif packs(pipe):
        fits = given.ndim == 3 and shape[-1] in possible
    else:  # rows of patches, or sound
        fits = given.ndim == 3 and shape[0] != 3 and bool({shape[1], shape[-1]} & possible or not possible)
    return given if fits else None


def _guessed_latents(pipe, given):
    """A tensor as latents if it is that by its shape, and by its values where an image may have the shape too."""
    if not isinstance(given, torch.Tensor) or not given.is_floating_point():
        return None
    latents, shape = _as_latents(pipe, given), tuple(given.shape)
    count = shape[1] if given.ndim > 3 else shape[0] if given.ndim == 3 else 0
    if latents is None or not 1 <= count <= 4 or (given.ndim > 4 and count != 3) or not torch.isfinite(given).all():
        return latents
    low = -1 if count == 3 and not _draws_pixels(pipe) else 0
    if not _within(_bounds([given]), low, 1):
        return latents
    if _draws_pixels(pipe) and count == 3:
        return None
    raise ValueError(
        f"image must hold either images or latents, and a tensor of shape {shape} in {low}..1 may be both for "
        f"{type(pipe).__name__}; give latents as latents=, and an image to nrinv.encode with value_range=({low}, 1)"
    )


def _batch_of(latents, name):
    if len({tuple(one.shape[1:]) for one in latents}) > 1:
        raise ValueError(f"{name} must hold latents of one shape, got {sorted({tuple(one.shape[1:]) for one in latents})}")
    if not all(torch.isfinite(one).all() for one in latents):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return Source(torch.cat(latents), encoded=True)


def _given_latents(pipe, given):
    """What `latents=` holds, which is said to be latents."""
    each = list(given) if isinstance(given, (list, tuple)) else [given]
    if not each or not all(isinstance(one, torch.Tensor) and one.is_floating_point() for one in each):
        kinds = sorted({type(one).__name__ for one in each})
        raise ValueError(f"latents must be a tensor of floating-point numbers, or a list of these, got {kinds or given!r}")
    # three channels are an image's where it may be one, and here it is none
    latents = [one if one.ndim == 4 and one.shape[1] in channels(pipe) else _as_latents(pipe, one) for one in each]
    wrong = next((one for one, batch in zip(each, latents, strict=True) if batch is None), None)
    if wrong is not None:
        possible = " or ".join(map(str, sorted(channels(pipe)))) or "as many as the network takes"
        raise ValueError(
            f"latents must be [B, C, h, w], [B, C, F, h, w] or packed [B, N, C] as {type(pipe).__name__} takes them, with "
            f"{possible} channels, got shape {tuple(wrong.shape)}"
        )
    return _batch_of(latents, "latents")


def _multiple(pipe, factor, checked):
    """What height and width have to be multiples of: for the image processor, the network's patches, and the pipeline.

    checked: whether the pipeline's call is going to check them too.
    """
    scale, patch = scale_factor(pipe), getattr(network(pipe), "config", {}).get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    squared = scale if getattr(pipe, "movq", None) is not None else 1  # Kandinsky's: pixels // scale**2 * scale latents
    demanded = []
    if checked and hasattr(type(pipe), "check_inputs"):
        demanded = re.findall(r"height % (\d+) != 0", inspect.getsource(type(pipe).check_inputs))
    return math.lcm(factor, scale * patch, scale * squared, *map(int, demanded))


def _warn_of_size(pipe, height, width):
    own = getattr(network(pipe), "config", {}).get("sample_size") or getattr(pipe, "default_sample_size", None)
    if own is None:
        return
    own = (max(own) if isinstance(own, (list, tuple)) else own) * (
        scale_factor(pipe) if autoencoder(pipe) is not None else 1
    )
    if max(height, width) > 2 * own:
        warnings.warn(
            f"image: {width}x{height} pixels are much more than the {own}x{own} that {type(pipe).__name__} is made for; "
            "give height and width to resize it",
            stacklevel=2,
        )


def _preprocess(processor, multiple, picture, height, width):
    """Pixels [B, 3, H, W] in -1..1 of a PIL image, or of a tensor in 0..1, at the size that the pipeline takes."""
    own = (picture.height, picture.width) if isinstance(picture, Image.Image) else tuple(picture.shape[-2:])
    size = tuple(n - n % multiple for n in (height or own[0], width or own[1]))
    if 0 in size:
        raise ValueError(f"image must have at least {multiple} pixels a side, got {own[1]}x{own[0]}")
    if multiple != processor.config.get("vae_scale_factor"):
        height, width = size
    return processor.preprocess(picture, height=height, width=width)


def read_source(
    pipe, image, *, latents=None, height=None, width=None, value_range=None, background="white", checked=False
) -> Source:
    """`image` or `latents`, as in `encode`; checked: at a size that passes the checks of the pipeline's call."""
    _check_dense("image", image)
    _check_dense("latents", latents)
    if latents is not None:
        if image is not None:
            raise ValueError("latents: give either image or latents, got both")
        return _given_latents(pipe, latents)
    images = list(image) if isinstance(image, (list, tuple)) else [image]
    if not images:
        raise ValueError("image must hold at least one image, got an empty list")
    background, value_range = _color(background), None if value_range is None else _check_range(value_range)
    encoded = [None if value_range else _guessed_latents(pipe, one) for one in images]
    if any(one is not None for one in encoded):
        if any(one is None for one in encoded) or len({tuple(one.shape[1:]) for one in encoded}) > 1:
            raise ValueError("image must hold either images or latents of one shape, got a mixture")
        return _batch_of(encoded, "image")
    return Source(_pixels(pipe, images, height, width, value_range, background, checked), encoded=_draws_pixels(pipe))


def _pixels(pipe, images, height, width, value_range, background, checked):
    pictures = [_picture(pipe, one, background) for one in images]
    ranges = _judged([one for one in pictures if isinstance(one, _Numbers)], value_range)
    processor = getattr(pipe, "image_processor", None)
    if not isinstance(processor, VaeImageProcessor):  # some call CLIP's by that name
        processor = VaeImageProcessor(vae_scale_factor=scale_factor(pipe))
    multiple = _multiple(pipe, processor.config.get("vae_scale_factor") or 1, checked)
    pixels = []
    for one in pictures:
        picture = one
        if isinstance(one, _Numbers):
            picture = _scaled(one, *ranges[one.kind], background)
            if one.smooth:
                size = [given or n for given, n in zip((height, width), picture.shape[-2:], strict=True)]
                resample = PIL_INTERPOLATION[processor.config.get("resample", "lanczos")]
                picture = _resized(picture, *(max(n - n % multiple, 1) for n in size), resample)
        pixels.append(_preprocess(processor, multiple, picture, height, width))
    sizes = {tuple(p.shape[-2:]) for p in pixels}
    if len(sizes) > 1:
        raise ValueError(f"image: all images must have one size, got {sorted(sizes)}; give height and width to resize them")
    if height is None and width is None:
        _warn_of_size(pipe, *pixels[0].shape[-2:])
    # another layout takes other kernels, which round differently
    return torch.cat([one.to(pixels[0].device) for one in pixels]).contiguous()


def read_images(pipe, image, *, height=None, width=None):
    """`image`, as in `encode`, as one tensor: pixels [B, 3, H, W] in -1..1, or latents if that is what it holds."""
    return read_source(pipe, image, height=height, width=width).tensor


def image_size(pipe, latents, *, height=None, width=None):
    """{"height": ..., "width": ...} of the image that `latents` stand for, as far as that can be known."""
    if height is None and width is None and latents.ndim > 3:
        height, width = (n * scale_factor(pipe) * (2 if takes_patches(pipe) else 1) for n in latents.shape[-2:])
    known = parameters(pipe)
    return {name: n for name, n in (("height", height), ("width", width)) if n is not None and name in known}


@without_gradients
def encode(
    pipe: Any,
    image: Any = None,
    *,
    latents: Any = None,
    height: int | None = None,
    width: int | None = None,
    value_range: tuple[float, float] | None = None,
    background: Any = "white",
) -> torch.Tensor:
    """The latents [B, ...] that `pipe` would draw `image` from, as its `latents=` takes them, in its dtype, on its device.

    image: PIL image, path, NumPy array [H, W, C] or [B, H, W, C], tensor [C, H, W] or [B, C, H, W], or a list of these.
    C is 3 for colours, 1 for grey (arrays [H, W] too), and one more with alpha.

    - bool, uint8 and uint16 are scaled by their range; PIL images of 8 bits and of mode I;16 too.
    - Floats are in 0..1, or in -1..1 if any of them, in any image of the list, is below -0.001; with alpha, in 0..1.
    - PIL images of mode I are in 0..255, or in 0..65535 if any number is greater; those of mode F are in the first of 0..1,
      -1..1, 0..255 and 0..65535 that holds them all.
    - value_range=(low, high) says what arrays, tensors and the modes I, I;16 and F are in, and ends the guessing: no tensor
      is taken for latents then.
    - Alpha is composed on `background`: a colour's name, "#rrggbb" or (r, g, b) in 0..255.
    - A PIL image, or a file, whose EXIF data say which side is up is turned that way.

    Latents pass unchanged: [B, C, h, w], [B, C, F, h, w] for videos, or packed [B, N, C] where the pipeline packs them
    (Flux, Qwen-Image, LTX).  `latents=` says that they are that.  As `image`, a tensor of floats is latents if it has their
    channels.  If an image may have its shape too, it is refused where its numbers may be an image's: 4 channels, or 1, in
    0..1 (latents of SD have 4), 3 in -1..1.  Give it as `latents=` then, or with its `value_range`.
    height, width: pixels to resize to; by default the image's own size.  Both are rounded down to what the pipeline takes, a
    multiple of its image processor's factor and of its patches.  Without them, more than twice the model's own size is a
    UserWarning.

    The mode of the VAE's posterior is taken, not a sample: inversion wants the same latents every time.
    Raises ValueError for anything else, for an empty list, for images of different sizes, for NaN, and for images where the
    pipeline has no autoencoder.
    """
    given = {"value_range": value_range, "background": background}
    return encode_source(pipe, read_source(pipe, image, latents=latents, height=height, width=width, **given))


def encode_source(pipe, source, rounds=0):
    """`encode` for what `read_source` returns; rounds: of z + encode(x) - encode(decode(z)), as the autoencoder allows."""
    if source.encoded:
        return source.tensor.to(device=pipe._execution_device, dtype=network(pipe).dtype)
    pixels = source.tensor
    encoded = z = encode_pixels(pipe, pixels)
    for _ in range(rounds):
        again = decode(pipe, z, height=pixels.shape[-2], width=pixels.shape[-1]) * 2 - 1
        z = (z.float() + encoded.float() - encode_pixels(pipe, again).float()).to(z.dtype)
    return z


def encode_pixels(pipe, pixels):
    """`encode` for pixels [B, 3, H, W] in -1..1."""
    device, dtype = pipe._execution_device, network(pipe).dtype
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


_MASKS = (
    "mask_image must be an image: PIL's or a path, drawn in grey or in alpha, or an array or a tensor [H, W], [H, W, 1] or "
    "[1, H, W], white where the image may change: bool, whole numbers in 0..1, 0..255 or 0..65535, or floats in 0..1"
)


def read_mask(mask_image):
    """A mask float32, 1 where the image may change, from one in pixels, as a tensor [1, 1, H, W].

    mask_image: PIL image or path, drawn in grey, or in alpha if that is not the same everywhere; or an array or a tensor
    [H, W], [H, W, 1] or [1, H, W].  Whole numbers are in the first of 0..1, 0..255 (not uint16) and 0..65535 that holds them
    all, other numbers in 0..1.
    Raises ValueError if it is no such image.
    """
    _check_dense("mask_image", mask_image)
    image = _opened(mask_image, "mask_image")
    pixels = _drawn(image) if isinstance(image, Image.Image) else image
    if isinstance(pixels, (list, tuple)):
        pixels = np.asarray(pixels)
    if not isinstance(pixels, (np.ndarray, torch.Tensor)) or (mask := _tensor(pixels)) is None:
        raise ValueError(f"{_MASKS}; got {type(mask_image).__name__} of {getattr(pixels, 'dtype', 'no numbers')}")
    kind, mask = _kind(mask), mask.detach().to("cpu", torch.float64)
    mask = mask.squeeze() if mask.ndim > 2 else mask
    if mask.ndim != 2 or not mask.numel():
        raise ValueError(f"{_MASKS}; got shape {tuple(pixels.shape)}")
    if not torch.isfinite(mask).all():
        raise ValueError(f"{_MASKS}; got NaN or infinity")
    bounds, whole = _bounds([mask]), bool((mask == mask.round()).all())
    ranges = {"uint16": ((0, 1), (0, 65535))}.get(kind, ((0, 1), (0, 255), (0, 65535)) if whole else ((0, 1),))
    high = next((high for low, high in ranges if _within(bounds, low, high, 0 if whole else _TOLERANCE)), None)
    if high is None:
        raise ValueError(f"{_MASKS}; got {bounds[0]:g}..{bounds[1]:g}")
    return (mask.float() / high).clamp(0, 1)[None, None]


def _drawn(image):
    """What a mask is drawn in: alpha if that differs from place to place, else grey."""
    grey = _grey_of_pil(image)
    if grey is not None:
        return grey[..., -1] if grey.ndim == 3 else grey
    if not image.has_transparency_data:
        return np.asarray(image.convert("L"))
    image = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    grey, alpha = np.asarray(image.convert("L")), np.asarray(image.getchannel("A"))
    if alpha.min() == alpha.max():
        return grey
    seen = grey[alpha > 0]
    if seen.min() != seen.max():
        raise ValueError(f"{_MASKS}; got an image in which both grey and alpha differ from place to place")
    return alpha


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
