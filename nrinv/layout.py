"""How a pipeline lays its latents out: from what it is given to what its scheduler steps, and from its autoencoder's latents
to a row of patches, or to a video's."""

import copy
import inspect
import math

import torch

from .derived import Derived, Left, rebind
from .known import (
    FRAMES,
    autoencoder,
    draws_videos,
    has_frames,
    latent_channels,
    network,
    packs,
    parameters,
    scale_factor,
    step_signature,
    takes_patches,
    temporal_patch,
)
from .session import RandomState


def closeness(dtype):
    """How far apart two vectors may be, relative to their norms, that differ by rounding to dtype alone.

    A few roundings of dtype; in float32 at least what a sum of thousands of elements loses.
    """
    return max(4 * torch.finfo(dtype).eps, 1e-5)


def proportion(start, sample):
    """c with sample = c start up to rounding, exactly 1 where it is that; None if there is none."""
    if start.shape != sample.shape:
        return None
    if torch.equal(start, sample.to(start.dtype)):
        return 1.0
    a, b = start.detach().flatten().double(), sample.detach().flatten().double()
    c = float(a @ b / (a @ a)) if float(a @ a) > 0 else 0.0
    limit = closeness(sample.dtype)
    if not c > 0 or float((b - c * a).norm()) > limit * float(b.norm()):
        return None
    return 1.0 if abs(c - 1) <= limit else c


class Layout:
    """How a pipeline turns its `latents=` [B, ...] into the sample [B, ...] its scheduler steps: scale, pick, reorder.

    index: for each element of the sample its place in the latents; None if all are in place.
    """

    def __init__(self, scale=1.0, index=None, shape=None):
        self.scale, self.index, self.shape = scale, index, shape

    def sample(self, latents):
        """The sample that `latents` would be at the end of the loop, where nothing is scaled."""
        if self.index is None:
            return latents
        picked = latents.flatten(1)[:, self.index.to(latents.device)]
        return picked.reshape(latents.shape[0], *self.shape)

    def latents(self, sample, like):
        """`latents=` from which the loop starts at `sample`; what it does not step is that of `like`."""
        sample = sample / self.scale
        if self.index is None:
            return sample.to(like)
        whole = like.detach().clone()
        whole.view(whole.shape[0], -1)[:, self.index.to(whole.device)] = sample.flatten(1).to(whole)
        return whole


class LayoutProbe(Derived):
    """A scheduler that sees what a pipeline makes of its `latents=` and leaves the loop at the first step."""

    def __init__(self, scheduler, latents):
        super().__init__(copy.deepcopy(scheduler))
        self.latents, self.sample = latents, None

    @property
    def init_noise_sigma(self):
        return 1.0

    def scale_model_input(self, sample, timestep=None):
        return sample

    def _start_state(self):
        return self.latents

    def step(self, *args, **kwargs):
        self.stepped += 1
        self.sample = step_signature(type(self._inner)).bind(*args, **kwargs).arguments["sample"].detach()
        raise Left


def learn_layout(scheduler, latents, call):
    """The `Layout` of a pipeline that reorders `latents` [B, ...]; call(scheduler, latents) runs it until it is `Left`.

    Each element is given its own number, in as many digits, and calls, as the dtype can tell apart.
    Raises ValueError if the sample the pipeline steps is not made of these numbers.
    """
    count, batch = latents[0].numel(), latents.shape[0]
    base = int(2 / torch.finfo(latents.dtype).eps)
    index = torch.zeros(1, dtype=torch.int64)
    for digit in range(max(1, math.ceil(math.log(count, base)))):
        codes = (torch.arange(count) // base**digit % base).reshape(1, *latents.shape[1:])
        codes = codes.expand(batch, *latents.shape[1:]).to(latents).contiguous()
        probe = LayoutProbe(scheduler, codes)
        call(probe, codes)
        found = None if probe.sample is None else probe.sample.double().cpu()
        if found is None or found.shape[0] != batch or bool((found != found.round()).any() | (found < 0).any()):
            raise ValueError(
                "pipe: the sample its scheduler steps is not made of the latents it is given alone, which cannot be inverted"
            )
        index = index + found[0].flatten().long() * base**digit
    if int(index.max()) >= count or len(index.unique()) != len(index):
        raise ValueError("pipe: its scheduler does not step each of the latents once, which cannot be inverted")
    return Layout(index=index, shape=tuple(found.shape[1:]))


# ------------------------------------------------------------------------------------------------------------------ packing


def _prepared(pipe, draw, batch, channels, height, width, frames, dtype, device, **more):
    """What the pipeline's own `prepare_latents` makes of what draw(shape) gives it in the place of noise."""
    known = {"height": height, "width": width, "batch_size": batch, "dtype": dtype, "device": device}
    known |= dict.fromkeys(("num_channels_latents", "num_latents_channels"), channels)
    known |= {**dict.fromkeys(FRAMES, frames), "layers": 1, "generator": None, "latents": None, **more}
    prepare = rebind(type(pipe).prepare_latents, randn_tensor=draw)
    try:
        return prepare(pipe, **{name: known[name] for name in inspect.signature(prepare).parameters if name in known})
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"image: {type(pipe).__name__} lays its latents out in a way that cannot be read off it; give latents as its "
            f"`latents=` takes them ({error})"
        ) from error


def pack(pipe, z, height, width, frames=1):
    """Latents [B, C, h, w], of videos [B, C, F, h, w], of the autoencoder as `latents=` takes them.

    The pipeline's own `prepare_latents` packs them: it is handed them where it would draw noise.
    """

    def draw(shape, *args, **kwargs):
        return z.reshape(shape) if math.prod(shape) == z.numel() else z  # a video of other frames

    packed = _prepared(pipe, draw, z.shape[0], z.shape[1], height, width, frames, z.dtype, z.device, image=None)
    return packed[0] if isinstance(packed, tuple) else packed


def unpack(pipe, latents, height, width):
    """The way back of `pack`."""
    if height is None or width is None:
        raise ValueError("height and width must be given to decode packed latents")
    return _moved(latents, *_places(pipe, height, width, latents[0].numel()))


def _moved(latents, places, shape):
    return latents.flatten(1)[:, places.to(latents.device)].reshape(-1, *shape)


def _places(pipe, height, width, count):
    """(where each of the `count` elements of latents [C, (F,) h, w] lies once they are packed, that shape).

    `pack` only moves elements about: pack their numbers and look where they went.
    """
    vae, factor = autoencoder(pipe), scale_factor(pipe)
    frame = (latent_channels(vae), height // factor, width // factor)
    frames = max(1, count // math.prod(frame))
    shape = (frame[0], *((frames,) if has_frames(vae) else ()), *frame[1:])
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(1, *shape)
    return pack(pipe, numbers, height, width).flatten().long().argsort(), shape


def in_space(pipe, latents, height, width):
    """(there, back): between latents laid out as these and such that are neighbours where the image has them so.

    Both leave alone what is not packed.  Raises ValueError where that cannot be known.
    """
    if latents.ndim != 3 or (pipe is not None and not packs(pipe)):
        return (lambda z: z), (lambda z: z)
    if pipe is None or height is None or width is None:
        raise ValueError(
            "pipe must be given, and height and width when inverting, to find the places of packed latents in the image"
        )
    places, shape = _places(pipe, height, width, latents[0].numel())
    if len(places) != latents[0].numel():
        raise ValueError(f"pipe: how {type(pipe).__name__} packs latents {tuple(latents.shape)} is not known")
    back = places.argsort()
    return (lambda z: _moved(z, places, shape)), (lambda z: _moved(z, back, latents.shape[1:]))


def image_size(pipe, latents, *, height=None, width=None):
    """{"height": ..., "width": ...} of the image that `latents` stand for, as far as that can be known."""
    if height is None and width is None and latents.ndim > 3:
        factor = scale_factor(pipe) * (2 if takes_patches(pipe) else 1)
        height, width = (latents.shape[axis] * factor for axis in spatial_axes(pipe, latents))
    known = parameters(pipe)
    return {name: n for name, n in (("height", height), ("width", width)) if n is not None and name in known}


# ------------------------------------------------------------------------------------------------------------------- videos


def _drawn(pipe, frames, height, width):
    """The shape of the latents that the pipeline makes for one video, before it packs them."""
    vae, device, drawn = autoencoder(pipe), pipe._execution_device, []
    dtype, channels = (network(pipe).dtype, 4) if vae is None else (vae.dtype, latent_channels(vae))

    def draw(shape, *args, **kwargs):
        drawn.append(torch.zeros(shape, device=device, dtype=dtype))
        return drawn[-1]

    video = torch.zeros(1, 3, frames, height, width, device=device, dtype=dtype)  # what some go on from
    more = {"image": video[:, :, 0], "video": video if vae is None or has_frames(vae) else video.transpose(1, 2)}
    more["timestep"] = pipe.scheduler.timesteps[:1]
    random = RandomState(None)
    try:
        made = _prepared(pipe, draw, 1, channels, height, width, frames, dtype, device, **more)
    finally:
        random.restore()
    made = made[0] if isinstance(made, tuple) else made
    shape = tuple(drawn[-1].shape if drawn and packs(pipe) else made.shape)
    if len(shape) != 5:
        raise ValueError(f"image: {type(pipe).__name__} makes latents of shape {shape} for a video; give latents")
    return shape


@torch.no_grad()
def axes(pipe):
    """The axes of batch, channels, frames, height and width in latents of videos as the pipeline makes them.

    Each is the one that grows with its size; that of the channels is left.  Raises ValueError if that cannot be seen.
    """
    sizes, found = _least(pipe), []
    first = _drawn(pipe, **sizes)
    for name, n in sizes.items():
        more = _drawn(pipe, **{**sizes, name: 17 if name == "frames" else 2 * n})
        found.append([axis for axis in range(1, 5) if more[axis] != first[axis]])
    channels = set(range(1, 5)).difference(*found)
    if len(channels) != 1 or any(len(one) != 1 for one in found):
        raise ValueError(
            f"image: {type(pipe).__name__} lays its latents out in a way that cannot be read off it; give latents"
        )
    return (0, *channels, *(one[0] for one in found))


def _least(pipe):
    """A small video: some pipelines encode what they go on from before they draw."""
    least = 8 * scale_factor(pipe)
    return {"frames": 1, "height": least, "width": least}


def spatial_axes(pipe, latents):
    """The axes of height and width in latents that are not packed."""
    if latents.ndim < 5 or not draws_videos(pipe):
        return -2, -1
    try:
        return axes(pipe)[-2:]
    except ValueError:  # then they are where they are in all but one family
        return -2, -1


@torch.no_grad()
def latent_frames(pipe, order, frames):
    """How many frames the latents of a video have; order: the `axes`.

    Raises ValueError if the pipeline cannot draw a video of so many frames: the last ones would be lost.
    """
    together = temporal_patch(network(pipe))

    def count(n):
        try:
            return _drawn(pipe, **{**_least(pipe), "frames": n})[order[2]]
        except ValueError:
            return None

    def fits(n):
        latents = count(n)
        return latents and latents % together == 0 and latents != count(n - 1)

    if not fits(frames):
        near = (range(frames - 1, 0, -1), range(frames + 1, frames + 65))
        found = [next((n for n in numbers if fits(n)), None) for numbers in near]
        possible = " or ".join(str(n) for n in found if n is not None)
        raise ValueError(f"image: {type(pipe).__name__} draws videos of {possible} frames, got {frames}")
    return count(frames)
