"""Paths between noises, and their centroids; what is drawn from them changes step by step."""

from dataclasses import fields
from typing import Any, TypeVar, overload

import numpy as np
import torch

from . import _C
from .call import known_names
from .inversion import InversionOutput
from .layout import in_space
from .prompts import prompt_embeddings
from .spectral import spectral_points

METHODS = ("spectral", *_C.PATHS)

Noise = TypeVar("Noise", torch.Tensor, np.ndarray)


@overload
def interpolate(
    a: InversionOutput,
    b: InversionOutput,
    num: Any = 9,
    *,
    method: str = "spectral",
    spacing: str = "euclidean",
    seed: int = 0,
    pipe: Any = None,
) -> InversionOutput: ...
@overload
def interpolate(a: Noise, b: Noise, num: Any = 9, *, method: str = ..., spacing: str = ..., seed: int = 0) -> Noise: ...
@known_names
def interpolate(
    a: Any, b: Any, num: Any = 9, *, method: str = "spectral", spacing: str = "euclidean", seed: int = 0, pipe: Any = None
) -> Any:
    """Points on the way from noise `a` to noise `b`, both ends included: [num, B, ...], in their dtype and on their device.

    a, b: latents [B, ...], torch tensors or NumPy arrays; B ways side by side.  Or two inversions of one image each, made
    with the same sampler: the result is then one `InversionOutput` of `num` samples, which `generate` draws.  Its prompts
    change along with the noise: where they differ, `pipe` is needed, whose embeddings of them are mixed linearly.  It is
    needed as well to find the places of packed latents [1, N, C] in the image, for "spectral".
    num: at least 2; or the fractions of the way themselves, a list of numbers in 0..1.
    method: "spectral", each octave of spatial frequencies by slerp, while the ends' colour fades to white noise
    (docs/mathematics.md); latents are [B, C, H, W], [B, C, F, H, W], [B, C, L], or vectors [B, N], which are one octave.
    "geodesic", the shortest way in the metric -log chi_D(|z|) |dz| of NAO (arXiv 2306.08687), exactly; it stays where noise
    is likely.  "slerp", "lerp", and "variance_preserving", (1 - t) a + t b divided by sqrt((1 - t)^2 + t^2).
    What is drawn on each: docs/applications.md.  Of what the model does not know, "slerp" may keep more.
    spacing: what is equal between the points of a geodesic: "euclidean" length, "angle", or length in the "metric".
    seed: where the ends are opposite, which of all ways round is taken.

    Raises TypeError for an unknown name, ValueError naming the argument for fewer than 2 points, for shapes or devices that
    differ, for vectors that are zero or not finite, for ends that are no noise (of a geodesic, a norm below a quarter of
    natural or 100 times as large; of a spectral way, one below 1e-4 or above 100 times natural in any octave), and for
    inversions that do not go together.
    """
    if isinstance(a, InversionOutput) or isinstance(b, InversionOutput):
        return _between_inversions(a, b, num, pipe, method=method, spacing=spacing, seed=seed)
    return _points(a, b, _fractions(num), method=method, spacing=spacing, seed=seed)[0]


def path_length(a: Any, b: Any, *, seed: int = 0) -> np.ndarray:
    """The length [B] float64 of the geodesic between noises a and b [B, ...], in the metric of `interpolate`."""
    return _points(a, b, np.array([0.0]), method="geodesic", spacing="euclidean", seed=seed)[1]


def centroid(latents: Any, *, shares: Any = None) -> Any:
    """The centroid of noises: in their span, where noise is likeliest, with the least sum of squared angles to them.

    How far a noise is off the shell where noise lies, its own fault, does not count.

    latents: K noises, a tensor or array [K, ...], and the result is [1, ...]; a list of K tensors [B, ...], and it is
    [B, ...]; or an `InversionOutput` of K images.  shares [K]: how much each counts, at least 0, by default alike.

    Raises ValueError for noises that are zero, not finite, of different shapes, or that cancel each other.
    """
    if isinstance(latents, InversionOutput):
        latents = latents.latents
    parts = list(latents) if isinstance(latents, (list, tuple)) else [one[None] for one in latents]
    if not parts:
        raise ValueError("latents must hold at least one noise")
    shares = np.ones(len(parts)) if shares is None else np.asarray(shares, np.float64)
    if shares.shape != (len(parts),) or not np.isfinite(shares).all() or (shares < 0).any() or not shares.any():
        raise ValueError(f"shares must be {len(parts)} numbers of at least 0, one for each of the latents, and not all 0")
    return _C.centroid([_detached(one) for one in parts], shares)


def _fractions(num):
    if isinstance(num, (list, tuple, np.ndarray)):
        fractions = np.asarray(num, np.float64)
        if fractions.ndim != 1 or not len(fractions) or not ((fractions >= 0) & (fractions <= 1)).all():
            raise ValueError(f"num: fractions must be a list of numbers in 0..1, got {num!r}")
        return fractions
    if isinstance(num, bool) or not isinstance(num, int) or num < 2:
        raise ValueError(f"num must be a whole number of at least 2, both ends included, got {num!r}")
    return np.linspace(0, 1, num)


def _detached(x):
    return x.detach() if isinstance(x, torch.Tensor) else x


def _points(a, b, fractions, *, seed, method, spacing):
    a, b = _detached(a), _detached(b)
    if not isinstance(a, (torch.Tensor, np.ndarray)) or a.ndim < 2:
        got = f"shape {tuple(a.shape)}" if hasattr(a, "shape") else type(a).__name__
        raise ValueError(f"a must be a tensor or an array [B, ...], got {got}")
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    direction = np.random.default_rng(seed).standard_normal(tuple(a.shape), dtype=np.float32)
    torch_like = isinstance(a, torch.Tensor)
    direction = torch.from_numpy(direction).to(a) if torch_like else direction.astype(a.dtype)
    if method != "spectral":
        points, lengths = _C.interpolate(a, b, fractions, direction, method=method, spacing=spacing)
        return (torch if torch_like else np).stack(points), lengths
    _C.interpolate(a, b, fractions[:1], direction, method="slerp", spacing=spacing)  # says what is wrong with the ends
    as_float = [torch.as_tensor(x).float() for x in (a, b, direction)]
    points = spectral_points(as_float[0], as_float[1], fractions, as_float[2])
    return points.to(a.dtype) if torch_like else points.numpy().astype(a.dtype), np.full(len(a), np.nan)


# ---------------------------------------------------------------------------------------------------- between inversions


def _between_inversions(a, b, num, pipe, *, method, **options):
    for name, one in (("a", a), ("b", b)):
        if not isinstance(one, InversionOutput):
            raise ValueError(f"{name} must be an inversion like the other, got {type(one).__name__}")
        if len(one.latents) != 1:
            raise ValueError(f"{name} must be the inversion of one image, got {len(one.latents)}: see InversionOutput.split")
    if not np.array_equal(a.timesteps, b.timesteps) or (a.scheduler, a.start) != (b.scheduler, b.start):
        raise ValueError("a and b must be inversions with the same sampler: scheduler, steps and strength")
    fractions = _fractions(num)
    there, back = (lambda z: z), (lambda z: z)
    if method == "spectral":  # the others do without
        there, back = in_space(pipe, a.latents, a.call.get("height"), a.call.get("width"))
    # The sampler's own noises are noise as well.
    latents, *noises = (
        back(_points(there(x), there(y), fractions, method=method, **options)[0][:, 0])
        for x, y in zip([a.latents, *(a.noises or [])], [b.latents, *(b.noises or [])], strict=True)
    )
    prompt, call = _between_calls(a, b, fractions, pipe)
    return like_sampler(a, latents=latents, noises=noises or None, prompt=prompt, call=call)


def like_sampler(inversion, **own):
    """An `InversionOutput` of other noises, with the sampler of this one: what is not a sample's stays."""
    shared = {one.name: getattr(inversion, one.name) for one in fields(inversion) if one.metadata["per"] == "all"}
    return InversionOutput(**shared, **own)


def _same(x, y):
    if isinstance(x, torch.Tensor) or isinstance(y, torch.Tensor):
        return isinstance(x, torch.Tensor) and isinstance(y, torch.Tensor) and torch.equal(x, y)
    return x is y or x == y


def _between_calls(a, b, fractions, pipe):
    """(prompt, call) for all points: prompts that differ become embeddings, everything else has to be the same."""
    first, second = (inversion.whole_call.part(range(1)) for inversion in (a, b))
    if "generator" in first:  # the points are drawn with what the first image's pipeline drew
        second = second.like({**second, "generator": first["generator"]})
    elif "generator" in second:
        second = second.like({name: value for name, value in second.items() if name != "generator"})
    if first.keys() != second.keys():
        raise ValueError(f"a and b must be called alike, got {sorted(first.keys() ^ second.keys())} for one of them only")
    unlike = [name for name in first if not _same(first[name], second[name])]
    others = [name for name in unlike if "prompt" not in name]
    if others:
        raise ValueError(f"a and b must be called alike, got different values of {', '.join(others)}")
    if not unlike:
        return first["prompt"], first.kept()
    if pipe is None:
        raise ValueError(f"pipe must be given to mix the prompts {first['prompt']!r} and {second['prompt']!r}")
    start, end = (prompt_embeddings(pipe, one) for one in (first, second))
    call = first.like({name: value for name, value in first.items() if "prompt" not in name}, batch=len(fractions))
    for name, one in start.items():
        other = end.get(name)
        if other is None or one.shape != other.shape:
            raise ValueError(f"pipe: {name} of the two prompts cannot be mixed, their shapes differ")
        t = torch.as_tensor(fractions, dtype=torch.float32, device=one.device).view(-1, *(1 for _ in one.shape[1:]))
        call[name] = ((1 - t) * one.float() + t * other.float()).to(one.dtype)
    return None, call
