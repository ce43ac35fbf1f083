"""How a pipeline lays its latents out: from what it is given to what its scheduler steps, and from its autoencoder's latents
to a row of patches."""

import copy
import inspect
import math

import torch

from .derived import Derived, Left, rebind
from .known import autoencoder, has_frames, latent_channels, packs, scale_factor, step_signature


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


def pack(pipe, z, height, width):
    """Latents [B, C, h, w] of the autoencoder as `latents=` takes them.

    The pipeline's own `prepare_latents` packs them: it is handed them where it would draw noise.
    """
    drawn = []

    def draw(shape, *args, **kwargs):
        drawn.append(z.reshape(shape))
        return drawn[-1]

    known = {"height": height, "width": width, "batch_size": z.shape[0], "dtype": z.dtype, "device": z.device}
    known |= dict.fromkeys(("num_channels_latents", "num_latents_channels"), z.shape[1])
    known |= {"num_frames": 1, "layers": 1, "generator": None, "latents": None, "image": None}
    prepare = rebind(type(pipe).prepare_latents, randn_tensor=draw)
    try:
        packed = prepare(pipe, **{name: known[name] for name in inspect.signature(prepare).parameters if name in known})
    except (TypeError, RuntimeError, AttributeError) as error:
        raise ValueError(
            f"image: {type(pipe).__name__} lays its latents out in a way that cannot be read off it; give latents as its "
            f"`latents=` takes them ({error})"
        ) from error
    return packed[0] if isinstance(packed, tuple) else packed


def unpack(pipe, latents, height, width):
    """The way back of `pack`."""
    if height is None or width is None:
        raise ValueError("height and width must be given to decode packed latents")
    return _moved(latents, *_places(pipe, height, width))


def _moved(latents, places, shape):
    return latents.flatten(1)[:, places.to(latents.device)].reshape(-1, *shape)


def _places(pipe, height, width):
    """(where each element of latents [C, (1,) h, w] lies once they are packed, that shape).

    `pack` only moves elements about: pack their numbers and look where they went.
    """
    vae, factor = autoencoder(pipe), scale_factor(pipe)
    shape = (latent_channels(vae), *((1,) if has_frames(vae) else ()), height // factor, width // factor)
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
    places, shape = _places(pipe, height, width)
    if len(places) != latents[0].numel():
        raise ValueError(f"pipe: how {type(pipe).__name__} packs latents {tuple(latents.shape)} is not known")
    back = places.argsort()
    return (lambda z: _moved(z, places, shape)), (lambda z: _moved(z, back, latents.shape[1:]))
