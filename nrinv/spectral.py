"""The way between noises that goes through white noise: each octave of spatial frequencies along its own arc.

What an image has that the sampler would not draw by itself is in its noise, and most of it in the low frequencies: few-step
models leave there several times the norm of white noise.  A way that knows the whole norm only shortens or keeps all
frequencies alike; what it draws is then washed out, or follows the ends' leftovers more than the prompt.
"""

import math
from itertools import pairwise

import torch

from . import _C

# Norms within an octave, in those of white noise, between which an end counts as noise.
LEAST, MOST = 1e-4, 1e2


def octaves(shape):
    """Masks, float32, of the spatial frequencies of latents [B, C, ...]: the mean, 1..2 cycles across the image, 2..4, ....

    Spatial are the last two axes, or what follows the channels; vectors [B, N] have one mask of no axes.  The last takes all
    from a quarter of the sampling rate on, most of the noise.
    """
    sizes = shape[max(2, len(shape) - 2) :]
    squares = torch.zeros(())
    for n in sizes:
        squares = squares[..., None] + torch.fft.fftfreq(n, 1 / n).square()
    frequency, edges = squares.sqrt(), [0.0, 1.0]
    while edges[-1] * 2 <= min(sizes, default=0) / 2:
        edges.append(edges[-1] * 2)
    edges[-1] = math.inf
    return [((frequency >= low) & (frequency < high)).float() for low, high in pairwise(edges)]


def spectral_points(a, b, fractions, direction):
    """Points [n, B, ...] on the way from a to b, float32 tensors [B, ...] both, at fractions [n]; `direction` like them.

    In octave k, whose norms over those of white noise are p_k in a and q_k in b, the point at t has the direction of slerp
    and the norm

        log r_k(t) = (1 - 2 t)_+ log p_k + (2 t - 1)_+ log q_k + (1 - |1 - 2 t|) ((1 - t) log |a| + t log |b|) / 2

    |a| and |b| being whole norms in those of noise.  So the ends' colour fades until the middle, which is white; its norm is
    midway, geometrically, between that of noise and theirs.

    Raises ValueError where an octave of an end is no noise, below LEAST or above MOST.
    """
    t = torch.as_tensor(fractions, dtype=torch.float64)[:, None]
    shares = (1 - 2 * t).clamp(min=0), (2 * t - 1).clamp(min=0)
    whole = [_norms(x, 1.0).log() for x in (a, b)]
    middle = ((1 - t) * whole[0] + t * whole[1]) / 2
    points = 0
    for (x, p), (y, q), (round_by, _) in zip(*map(_split, (a, b, direction)), strict=True):
        for norm in (p, q):
            if not ((norm >= LEAST) & (norm <= MOST)).all():
                i = int(((norm < LEAST) | (norm > MOST)).nonzero()[0])
                raise ValueError(
                    f"a and b: sample {i} must have {LEAST:g}..{MOST:g} times the norm of noise in every octave of spatial "
                    f"frequencies for a spectral way, got {float(norm[i]):.3g}; the other methods ask for less"
                )
        arc = torch.stack(_C.interpolate(x, y, fractions, round_by, method="slerp")[0])
        norm = shares[0] * p.log() + shares[1] * q.log() + (1 - shares[0] - shares[1]) * middle
        factor = norm.exp() / ((1 - t) * p + t * q)  # slerp's own norm is linear
        points = points + arc * factor.float().to(arc.device).view(*factor.shape, *(1,) * (a.ndim - 1))
    for i, fraction in enumerate(fractions):  # exactly
        if fraction in (0, 1):
            points[i] = b if fraction else a
    return points


def octave_norms(x):
    """The norms [octaves, B] of latents x [B, ...] in each octave, over those of white noise; float64 on the CPU."""
    return torch.stack([norm for _, norm in _split(x.float())])


def _split(x):
    """(the part of x [B, ...] in an octave, its norms [B]), octave by octave."""
    masks = octaves(x.shape)
    axes = tuple(range(x.ndim - masks[0].ndim, x.ndim))
    spectrum = torch.fft.fftn(x, dim=axes) if axes else None
    for mask in masks:
        part = torch.fft.ifftn(spectrum * mask.to(x.device), dim=axes).real.contiguous() if axes else x
        yield part, _norms(part, float(mask.mean()))


def _norms(x, share):
    """The norms [B] of x [B, ...] over those of white noise in `share` of all frequencies, float64 on the CPU."""
    return x.flatten(1).norm(dim=1).cpu().double() / math.sqrt(share * x[0].numel())
