"""Published inversion methods, each written from its paper's equations, on the same interface as nrinv's own solver.

A method is a generator that solves one implicit step z = f(z): it yields the point to be evaluated, is sent f there, and
returns its answer.  `nfe` is how often it may ask.  What it may know of the step is a `Step`.

`PeerInversion` runs a method over all steps of a sampler, with the `next`, `feed`, `result` of `nrinv.Inversion`, so that
the stock pipeline, or any loop, evaluates the network for it as it does for nrinv.
"""

from dataclasses import dataclass

import torch


@dataclass
class Step:
    """s_{j+1} = A s_j + b m(s_j) + noise, to be solved for s_j:  f(z) = (s_{j+1} - noise - b m(z)) / A.

    state [B, ...]: s_{j+1}, where methods without a better guess start.  A, b: floats.  index: j; last: E - 1.
    """

    state: torch.Tensor
    A: float
    b: float
    index: int
    last: int


def fixed_point(step, nfe):
    """z <- f(z).  With nfe = 1: naive (DDIM) inversion."""
    z = step.state
    for _ in range(nfe):
        z = yield z
    return z
