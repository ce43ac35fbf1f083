"""What the autoencoder does: images and videos to the latents that a pipeline samples in, and back."""

import inspect
import math
from contextlib import contextmanager
from typing import Any

import torch

from .images import read_mask, read_source
from .known import autoencoder, draws_videos, has_frames, latent_channels, network, packs, scale_factor, takes_patches
from .layout import axes, latent_frames, pack, spatial_axes, unpack
from .session import without_gradients


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

    Pipelines that draw videos take a video of F frames as a list of images, an animated file, an array [F, H, W, C] or a
    tensor [F, C, H, W]; several videos as a list of such, an array [B, F, H, W, C] or a tensor [B, F, C, H, W].  So a list
    of images is one video, and [[image], [image]] are two of one frame.  F must be a number of frames that the pipeline can
    draw.  Other pipelines refuse videos.

    Latents pass unchanged: [B, C, h, w], [B, C, F, h, w] for videos, or packed [B, N, C] where the pipeline packs them
    (Flux, Qwen-Image, LTX).  `latents=` says that they are that.  As `image`, a tensor of floats is latents if it has their
    channels.  If an image may have its shape too, it is refused where its numbers may be an image's: 4 channels, or 1, in
    0..1 (latents of SD have 4), 3 in -1..1.  Give it as `latents=` then, or with its `value_range`.
    height, width: pixels to resize to; by default the image's own size.  Both are rounded down to what the pipeline takes, a
    multiple of its image processor's factor and of its patches.  Without them, more than twice the model's own size is a
    UserWarning.

    The mode of the VAE's posterior is taken, not a sample: inversion wants the same latents every time.
    Raises ValueError for anything else, for an empty list, for images of different sizes, for NaN, and for images where the
    pipeline has no autoencoder that can encode them.
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
    """`encode` for pixels [B, 3, H, W], of videos [B, F, 3, H, W], in -1..1."""
    vae, dtype, film = _vae(pipe), network(pipe).dtype, pixels.ndim == 5
    if film:
        order = axes(pipe)
        frames = latent_frames(pipe, order, pixels.shape[1])
    with _precision(vae) as vae_dtype:
        x = pixels.to(device=pipe._execution_device, dtype=vae_dtype)
        z = _encoded_video(vae, x) if film else _encoded(vae, x[:, :, None] if has_frames(vae) else x)
    z = pipe._patchify_latents(z.float()) if takes_patches(pipe) else z.float()
    mean, std = _statistics(vae, z)
    z = ((z - mean) / std).to(dtype)
    size = pixels.shape[-2:]
    if film:
        _check_made(pipe, vae, z, (frames, *(n // scale_factor(pipe) for n in size)))
    if packs(pipe) and not takes_patches(pipe):
        return pack(pipe, z, *size, pixels.shape[1] if film else 1)
    return z.permute([order.index(axis) for axis in range(5)]).contiguous() if film else z


@without_gradients
def decode(pipe: Any, latents: torch.Tensor, *, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """The images [B, 3, H, W] in 0..1, float32, that the autoencoder of `pipe` makes of `latents`, laid out as in `encode`.

    Pipelines that draw videos: [B, F, 3, H, W].
    height, width: pixels of the image, needed where latents are packed.
    Raises ValueError if they are needed and missing.
    """
    return draw_pixels(pipe, latents, height=height, width=width).clamp(0, 1)


def draw_pixels(pipe, latents, *, height=None, width=None):
    """`decode` with gradients, and beyond 0..1 where the autoencoder goes beyond."""
    vae, film = _vae(pipe), draws_videos(pipe)
    if latents.ndim == 3:
        latents = unpack(pipe, latents, height, width)
    elif film:
        if latents.ndim != 5:
            raise ValueError(f"latents of {type(pipe).__name__} must have 5 dimensions, got shape {tuple(latents.shape)}")
        latents = latents.permute(axes(pipe))
    mean, std = _statistics(vae, latents)
    with _precision(vae) as dtype:
        z = latents.float() * std + mean
        z = pipe._unpatchify_latents(z) if takes_patches(pipe) else z
        z = z.to(device=pipe._execution_device, dtype=dtype)
        pixels = (_decoded_video(vae, z) if film else vae.decode(z, return_dict=False)[0]).float()
    if pixels.ndim == 5:
        pixels = pixels.transpose(1, 2) if film else pixels[:, :, 0]
    return pixels / 2 + 0.5


def mask_like(pipe, mask_image, latents, height, width):
    """A mask laid out as `latents` [B, ...] are, 1 where the image may change, from one [H, W] in pixels.

    height, width: of the image, needed where latents are packed.
    """
    mask = read_mask(mask_image)
    if latents.ndim == 3:
        vae, size = _vae(pipe), [n // scale_factor(pipe) for n in (height, width)]
        frame = (latent_channels(vae), *size)
        mask = torch.nn.functional.interpolate(mask, size=size, mode="area")
        frames = latents[0].numel() // math.prod(frame)
        mask = mask[:, :, None].expand(1, frame[0], frames, *size) if has_frames(vae) else mask.expand(1, *frame)
        return pack(pipe, mask.contiguous(), height, width)
    where = [axis % latents.ndim for axis in spatial_axes(pipe, latents)]
    mask = torch.nn.functional.interpolate(mask, size=[latents.shape[axis] for axis in where], mode="area")
    return mask.reshape([n if axis in where else 1 for axis, n in enumerate(latents.shape)])


# -------------------------------------------------------------------------------------------------------------- autoencoder


def _vae(pipe):
    vae = autoencoder(pipe)
    if vae is None:
        raise ValueError(f"image: {type(pipe).__name__} has no autoencoder; give latents")
    return vae


@contextmanager
def _precision(vae):
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
    kept = {**config, **dict(vae.named_buffers(recurse=False))}  # LTX keeps them among its weights
    mean, std = kept.get("latents_mean"), kept.get("latents_std")
    if mean is None or std is None:
        return config.get("shift_factor") or 0.0, 1.0 / scaling
    shape = (1, -1) + (1,) * (like.ndim - 2)
    mean, std = (torch.as_tensor(x, dtype=torch.float32, device=like.device).reshape(shape) for x in (mean, std))
    return mean, std / scaling


def _encoded(vae, x):
    found = vae.encode(x)
    return found.latent_dist.mode() if hasattr(found, "latent_dist") else found[0]


def _encoded_video(vae, x):
    """Latents [B, C, F, h, w] of videos [B, F, 3, H, W]."""
    if not has_frames(vae):  # one frame after the other: together they would take as much memory as a batch of images
        return torch.stack([_encoded(vae, frame) for frame in x.unbind(1)], 2)
    try:
        return _encoded(vae, x.transpose(1, 2))
    except NotImplementedError as error:
        raise ValueError(f"image: {type(vae).__name__} cannot encode a video: {error}; give latents") from error


def _decoded_video(vae, z):
    """Videos [B, 3, F, H, W] of latents [B, C, F, h, w]."""
    taken, more = inspect.signature(vae.decode).parameters, {}
    if not has_frames(vae) and "num_frames" not in taken:
        return torch.stack([vae.decode(frame, return_dict=False)[0] for frame in z.unbind(2)], 2)
    if not has_frames(vae):  # it decodes the frames of one video together
        rows = z.transpose(1, 2).flatten(0, 1)
        pixels = vae.decode(rows, num_frames=z.shape[2], return_dict=False)[0]
        return pixels.unflatten(0, (z.shape[0], z.shape[2])).transpose(1, 2)
    if vae.config.get("timestep_conditioning"):  # LTX: how much noise is still in them
        more["temb"] = torch.zeros(z.shape[0], dtype=z.dtype, device=z.device)
    return vae.decode(z, return_dict=False, **more)[0]


def _check_made(pipe, vae, z, want):
    """Raises ValueError if the autoencoder has made other latents [B, C, F, h, w] of a video than the pipeline draws."""
    if (made := tuple(z.shape[2:])) != want:
        raise ValueError(
            f"image: {type(vae).__name__} makes latents of {made[0]} frames of {made[1]}x{made[2]} of a video for which "
            f"{type(pipe).__name__} draws {want[0]} of {want[1]}x{want[2]}; give latents"
        )
