"""What an input is: images, videos and masks of every kind, or latents, as pixels in one range and of one size."""

import inspect
import math
import os
import re
import warnings
from dataclasses import dataclass, replace
from numbers import Integral

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import PIL_INTERPOLATION
from PIL import Image, ImageColor, ImageOps, ImageSequence

from .known import (
    FRAMES,
    MASKS,
    autoencoder,
    channels,
    draws_videos,
    network,
    packs,
    parameters,
    scale_factor,
    slices,
    takes_alpha,
    takes_references,
)

IMAGE_TYPES = "a PIL image, a NumPy array [H, W, 3], a tensor [3, H, W], a path, a list of these, or latents"
# Formats of moving pictures; others hold several images for other reasons, such as a preview.
_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
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
    """What is to be inverted, B of them: pixels [B, 3, H, W] in -1..1, of videos [B, F, 3, H, W]; latents if `encoded`."""

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
    def frames(self):
        """Of a video, None for all else."""
        return self.tensor.shape[1] if self.tensor.ndim == 5 and not self.encoded else None

    @property
    def image(self):
        """What pipelines take as `image` or `video`: pixels in 0..1, or the latents."""
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


def _opened(image, name="image", film=False):
    """A path or a PIL image as a PIL image, upright; what else there is, as it is.

    film: whether all frames are wanted of what is animated, as a list.  If not, a PIL image is the frame it is at, and an
    animated file is refused.
    """
    if not isinstance(image, (str, os.PathLike, Image.Image)):
        return image
    try:
        if isinstance(image, Image.Image):
            return _upright(image, film)
        with Image.open(image) as opened:
            if not film and _moves(opened):
                raise ValueError(f"it has {opened.n_frames} frames; open it and seek the one that is meant")
            return _upright(opened, film)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name}: {str(image)!r} cannot be read as an image: {error}") from error


def _moves(image):
    return getattr(image, "is_animated", False) and image.format in _ANIMATED


def _upright(image, film):
    if film and _moves(image):
        return [ImageOps.exif_transpose(frame) for frame in ImageSequence.Iterator(image)]
    turned = ImageOps.exif_transpose(image)
    turned.load()  # while its file is open, and while errors are caught
    return turned


def _tensor(image):
    """An array or a tensor as a tensor; None if it holds no numbers."""
    if isinstance(image, torch.Tensor):
        return None if image.is_complex() or image.is_meta else image.detach()
    if image.dtype.kind == "f":
        return torch.from_numpy(np.array(image, np.float32))  # a copy: torch warns of what is read-only
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
    return _composed(image, background)


def _composed(image, background):
    image = image.convert("LA") if image.mode == "La" else image
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image.convert("RGBA")).convert("RGB")


def _from_array(array):
    """[H, W], [H, W, C] or [B, H, W, C]"""
    values = _tensor(array)
    if values is None:
        raise ValueError(_not_numbers(array.dtype))
    values = values[..., None] if values.ndim == 2 else values
    values = values[None] if values.ndim == 3 else values
    if values.ndim != 4 or values.shape[-1] not in (1, 2, 3, 4) or not len(values):
        hint = "; channels come last in arrays, first in tensors" if 3 in array.shape[:2] else ""
        raise ValueError(f"image must be an array [H, W, 3] or [B, H, W, 3], got shape {array.shape}{hint}")
    return _Numbers(values.permute(0, 3, 1, 2), _kind(values))


def _from_tensor(pipe, image):
    """[C, H, W] or [B, C, H, W]"""
    shape, values = tuple(image.shape), _tensor(image)
    if values is None:
        raise ValueError(_not_numbers("a tensor without values" if image.is_meta else _kind(image)))
    if not 3 <= values.ndim <= 4 or not len(values):
        raise ValueError(f"image must be a tensor [3, H, W] or [B, 3, H, W], got shape {shape}")
    values = values if values.ndim == 4 else values[None]
    if values.shape[1] not in (1, 2, 3, 4):
        others = " or ".join(map(str, sorted(channels(pipe) - {3})))
        hint = "; channels come last in arrays, first in tensors" if shape[-1] == 3 else ""
        raise ValueError(f"image must have 3 channels, or {others} if it is latents, got shape {shape}{hint}")
    return _Numbers(values, _kind(values))


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
            raise ValueError(f"{_not_numbers(kind)}; give others with value_range=(low, high)")
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
            hint = "" if value_range is not None else "; give others with value_range=(low, high)"
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
    planes = torch.from_numpy(np.stack([np.asarray(plane) for plane in planes]))
    return planes.reshape(*pixels.shape[:2], height, width).clamp(0, 1)


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
    """A tensor as latents [B, ...] if it may be that by its shape, of one sample or of several; None if not."""
    possible, shape, film = channels(pipe), given.shape, draws_videos(pipe)
    if given.ndim == 3 and shape[0] in possible - {3} and not packs(pipe) and not film:
        return given[None]
    if given.ndim > 4:  # [B, C, F, h, w], [B, F, C, h, w], [B, F, h, w, C]; JoyImage has an axis of images too
        fits = bool({shape[1], shape[2], shape[-1]} & possible or not possible)
    elif given.ndim == 4:
        fits = not film and (_draws_pixels(pipe) if shape[1] == 3 else shape[1] in possible or not possible)
    elif packs(pipe):
        fits = given.ndim == 3 and shape[-1] in possible
    else:  # rows of patches, or sound
        fits = given.ndim == 3 and not film and shape[0] != 3 and bool({shape[1], shape[-1]} & possible or not possible)
    return given if fits else None


def _pixel_channels(pipe, shape):
    """How many channels pixels of this shape would have; None if it is no shape of pixels."""
    axis = {3: 0, 4: 1, 5: 2 if draws_videos(pipe) else None}.get(len(shape))
    return shape[axis] if axis is not None and 1 <= shape[axis] <= 4 else None


def _guessed_latents(pipe, given):
    """A tensor as latents if it is that by its shape, and by its values where an image may have the shape too."""
    if not isinstance(given, torch.Tensor) or not given.is_floating_point() or given.is_meta:
        return None
    latents, shape = _as_latents(pipe, given), tuple(given.shape)
    count = _pixel_channels(pipe, shape)
    if latents is None or count is None or not torch.isfinite(given).all():
        return latents
    low = -1 if count == 3 and not _draws_pixels(pipe) else 0
    if not _within(_bounds([given]), low, 1):
        return latents
    if _draws_pixels(pipe) and count == 3:
        return None
    raise ValueError(
        f"image must hold either images or latents, and a tensor of shape {shape} in {low}..1 may be both for "
        f"{type(pipe).__name__}; give latents as latents=, and an image with value_range=({low}, 1)"
    )


def _batch_of(latents, name):
    if len({tuple(one.shape[1:]) for one in latents}) > 1:
        raise ValueError(f"{name} must hold latents of one shape, got {sorted({tuple(one.shape[1:]) for one in latents})}")
    if not sum(map(len, latents)):
        raise ValueError(f"{name} must hold latents of at least one sample, got shape {tuple(latents[0].shape)}")
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
    for name, n in (("height", height), ("width", width)):
        if n is not None and (not isinstance(n, Integral) or n < 1):
            raise ValueError(f"{name} must be a whole number of pixels of at least 1, got {n!r}")
    given = list(image) if isinstance(image, (list, tuple)) else [image]
    if not given:
        raise ValueError("image must hold at least one image, got an empty list")
    background, value_range = _color(background), None if value_range is None else _check_range(value_range)
    encoded = [None if value_range else _guessed_latents(pipe, one) for one in given]
    if any(one is not None for one in encoded):
        if any(one is None for one in encoded) or len({tuple(one.shape[1:]) for one in encoded}) > 1:
            raise ValueError("image must hold either images or latents of one shape, got a mixture")
        return _batch_of(encoded, "image")
    videos = _videos(image) if draws_videos(pipe) else None
    images = [_still(pipe, one) for one in given] if videos is None else [frame for video in videos for frame in video]
    each = _pixels(pipe, images, height, width, value_range, background, checked)
    pixels = torch.cat(each)
    if videos is not None:
        rows = iter(each)
        counts = [sum(len(next(rows)) for _ in video) for video in videos]
        if len(set(counts)) > 1 or 0 in counts:
            raise ValueError(f"image: all videos must have one number of frames, at least 1, got {counts}")
        pixels = pixels.unflatten(0, (len(videos), -1))
    # another layout takes other kernels, which round differently
    return Source(pixels.contiguous(), encoded=_draws_pixels(pipe))


def _ndim(image):
    return image.ndim if isinstance(image, (np.ndarray, torch.Tensor)) else None


def _still(pipe, image):
    """What is an image or several, and no video."""
    image = _opened(image)
    if isinstance(image, (list, tuple)) or _ndim(image) == 5:
        what = "a list in a list" if isinstance(image, (list, tuple)) else f"shape {tuple(image.shape)}"
        raise ValueError(f"image: {type(pipe).__name__} draws images, not videos, and its latents are none such; got {what}")
    return image


def _videos(image):
    """Lists of frames, one for each video; an entry may hold several frames."""
    image = _opened(image, film=True)
    if not isinstance(image, (list, tuple)):
        return [[one] for one in image] if _ndim(image) == 5 else [[image]]
    frames = [_opened(one, film=True) for one in image]
    if any(isinstance(one, (list, tuple)) or (_ndim(one) or 0) > 3 for one in frames):
        return [video for one in frames for video in _videos(one)]
    return [frames]


def _pixels(pipe, images, height, width, value_range, background, checked):
    """Pixels [n, 3, H, W] in -1..1 of each of the images, all of one size and judged together."""
    pictures = [_picture(pipe, one, background) for one in images]
    ranges = _judged([one for one in pictures if isinstance(one, _Numbers)], value_range)
    processor = getattr(pipe, "video_processor" if draws_videos(pipe) else "image_processor", None)
    usable = isinstance(processor, VaeImageProcessor) and processor.config.get("do_resize")  # CLIP's has the name too
    if not usable:
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
    return [one.to(pixels[0].device) for one in pixels]


def frames_of(pipe, frames, arguments):
    """{the name that the call has for it: how many frames are drawn}.  Raises ValueError if `arguments` say otherwise."""
    name = next((one for one in FRAMES if one in parameters(pipe)), None)
    given = arguments.get(name)
    if given not in (None, frames):
        raise ValueError(f"{name} must be {frames}, the frames of the video, got {given!r}")
    return {} if name is None else {name: frames}


def read_images(pipe, image, *, height=None, width=None):
    """`image`, as in `encode`, as one tensor: pixels as in `Source`, or latents if that is what it holds."""
    return read_source(pipe, image, height=height, width=width).tensor


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


def read_arguments(pipe, arguments, size=(None, None)):
    """The arguments of a pipeline's call with the user's own images and masks as `encode` and `read_mask` read them.

    The image that an img2img pipeline goes on from becomes a tensor [B, 3, H, W] in 0..1 of the size (height, width) that is
    drawn, its mask one [B, 1, H, W]; other images, such as ControlNet's, PIL images of 8 bits in their own size.  Tensors of
    floating-point numbers are left as they are: they may be the pipeline's latents.
    """
    size = tuple(n or arguments.get(name) for n, name in zip(size, ("height", "width"), strict=True))
    # pipelines crop PIL images only
    goes_on = slices(pipe) and not takes_references(pipe) and arguments.get("padding_mask_crop") is None
    read = {}
    for name, value in arguments.items():
        if name in MASKS or _holds_floats(value):
            continue
        if name == "image" and goes_on and value is not None:
            read[name] = read_source(pipe, value, height=size[0], width=size[1], checked=True).image
            size = tuple(read[name].shape[-2:])
        else:
            read[name] = _shown(pipe, name, value)
    for name in MASKS:
        value = arguments.get(name)
        if value is not None and not (_holds_floats(value) and _ndim(value) != 2):
            read[name] = _masks(value, size) if goes_on else _drawn_masks(value)
    return {**arguments, **read}


def _holds_floats(value):
    if isinstance(value, (list, tuple)):
        return bool(value) and all(_holds_floats(one) for one in value)
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _shown(pipe, name, value):
    """PIL images, and paths of what is called an image, as PIL images of 8 bits, upright and without alpha."""
    if isinstance(value, (list, tuple)):
        shown = [_shown(pipe, name, one) for one in value]
        return value if all(one is own for one, own in zip(shown, value, strict=True)) else shown
    is_path = isinstance(value, (str, os.PathLike)) and "image" in name and "prompt" not in name
    if not is_path and not isinstance(value, Image.Image):
        return value
    image = _opened(value, name)
    if _grey_of_pil(image) is not None:
        grey = _from_pil(image, ())
        pixels = _scaled(grey, *_judged([grey], None)[grey.kind], (255, 255, 255))
        return Image.fromarray((pixels[0] * 255).round().byte().permute(1, 2, 0).numpy())
    return _composed(image, (255, 255, 255)) if image.has_transparency_data and not takes_alpha(pipe) else image


def _each_mask(value):
    several = isinstance(value, (list, tuple)) and not all(isinstance(one, (int, float, list)) for one in value)
    return [read_mask(one) for one in (value if several or (_ndim(value) or 0) == 4 else [value])]


def _masks(value, size):
    """Masks [B, 1, H, W], of the size that is drawn if it is known."""
    masks = _each_mask(value)
    if None not in size:
        masks = [_resized(one, *size, Image.Resampling.LANCZOS) for one in masks]
    if len({one.shape for one in masks}) > 1:
        raise ValueError(f"{_MASKS}; got several of different sizes")
    return torch.cat(masks)


def _drawn_masks(value):
    masks = [Image.fromarray((one[0, 0] * 255).round().byte().numpy()) for one in _each_mask(value)]
    return masks if isinstance(value, (list, tuple)) and len(masks) > 1 else masks[0]


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


def psnr(a: torch.Tensor, b: torch.Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB of each pair of images [B, 3, H, W] in 0..1; infinite for equal ones."""
    error = (a.float() - b.float()).pow(2).flatten(1).mean(1)
    return [math.inf if e == 0 else -10 * math.log10(e) for e in error.tolist()]
