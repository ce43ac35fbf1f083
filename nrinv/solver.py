"""How the implicit steps of a sampler are solved: one value, with the defaults that depend on the sampler."""

from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np

from ._C import SOLVERS, Inversion, Sampler

# A sampler this short takes long steps: they need more evaluations, and it can afford them.
FEW_STEPS = 8
FEW_STEPS_MAX_NFE, MAX_NFE = 4, 3
# A sampler that remembers older network outputs: cheap sweeps, corrected; 8 evaluations per step in all.  A larger budget
# makes more of them: better sweeps are no better a start for a correction (Heun, 10 steps, 270 evaluations: error 2e-2, and
# 4e-5 to 2e-2 with more rounds).
MULTISTEP_MAX_NFE, MULTISTEP_ROUNDS = 1, 3
# Whole passes move all states at once, and what one step learns takes a pass to reach the next.
PASSES_MAX_NFE = 20
# The simplest sampler there is: options are checked on it.
_PLAIN = Sampler([0.0], [[1.0, 1.0]], [1.0])


class Method(Protocol):
    """What `invert` takes as its `solver`: a method of one's own has these two."""

    @property
    def predictor(self) -> bool:
        """Whether the first evaluation may be a natural noisy image in place of the image itself."""

    def open(self, sampler: Sampler, target: Any, **given: Any) -> Any:
        """A machine with `next`, `feed`, `result` and `max_evaluations` as `Inversion` has them; given: its options."""


@dataclass(frozen=True)
class Solver:
    """A solver of the implicit steps z = f(z), and its options.

    name: "auto", Anderson acceleration with the evaluations dealt out to the steps by what the scheduler's linear form
    tells; "anderson", the same number for every step; "fixed_point"; "newton", the scalar Newton-Raphson of arXiv 2312.12540
    (equations 9 and 10), which differentiates the network: memory of a training step without weight gradients, each product
    with the Jacobian counted as an evaluation.
    depth: vectors that Anderson acceleration remembers, 0..15.
    rounds: of defect correction; default 0, or 3 for schedulers that remember older network outputs (DPM++ 2M, UniPC, PNDM,
    Heun ...).  Whole passes know what is remembered, and make further passes of the rounds.
    atol: a step ends at a root mean square residual of atol too.
    predictor: start each step from the step before, the first one from a natural noisy image; False: from the state itself.
    extrapolation: how far a sweep extrapolates what such a scheduler remembers, 0..1.
    lam, floor: of "newton", the weight of its prior, at least 0, and the floor of its gradient, above 0.

    Raises ValueError for an unknown name, and for an option out of range.
    """

    name: str = "auto"
    depth: int = 5
    rounds: int | None = None
    atol: float = 0.0
    predictor: bool = True
    extrapolation: float = 1.0
    lam: float = 0.1
    floor: float = 0.5

    def __post_init__(self) -> None:
        self.open(_PLAIN, np.zeros((1, 1), np.float32))

    @property
    def needs_gradients(self) -> bool:
        return self.name == "newton"

    def open(
        self, sampler: Sampler, target: Any, *, max_nfe: int | None = None, order: str = "reversed", **given: Any
    ) -> Inversion:
        """The machine that inverts `target` [B, ...]; max_nfe=None depends on the sampler and on the order."""
        options = asdict(self)
        solver, rounds, passes = options.pop("name"), options.pop("rounds"), order == "passes"
        if rounds is None:
            rounds = 0 if sampler.first_order or passes else MULTISTEP_ROUNDS
            if rounds and isinstance(max_nfe, int) and max_nfe > MULTISTEP_MAX_NFE:
                rounds, max_nfe = (rounds + 1) * (max_nfe + 1) // (MULTISTEP_MAX_NFE + 1) - 1, MULTISTEP_MAX_NFE
        if passes and rounds:  # passes know all of a sampler's memory and need no rounds: these are as many passes
            max_nfe, rounds = (rounds + 1) * ((max_nfe or MULTISTEP_MAX_NFE) + 1), 0
        if max_nfe is None:
            few = FEW_STEPS_MAX_NFE if len(sampler) <= FEW_STEPS else MAX_NFE
            max_nfe = PASSES_MAX_NFE if passes else few if sampler.first_order else MULTISTEP_MAX_NFE
        return Inversion(sampler, target, solver=solver, rounds=rounds, max_nfe=max_nfe, order=order, **options, **given)


def natural_guess(sampler: Sampler, target: Any, seed: int = 0) -> Any:
    """Where the inversion of `target` [B, ...] best starts: a noisy image of the last step's level, S z_0 + sigma n.

    target: a NumPy array or a torch tensor of floating-point numbers; the guess is like it.  seed: of the noise n.
    Its solution inherits the noise's nature; started from the clean image itself, a step without contraction ends in noise
    that is none.  The noise is the same for every image of a batch, so that each is inverted as it would be alone, and on
    every machine and device.  Returns None if the sampler does not tell its levels.
    """
    if sampler.levels is None:
        return None
    signal, sigma = (float(level) for level in sampler.levels[-2])
    noise = np.random.default_rng(seed).standard_normal(tuple(target.shape[1:]), dtype=np.float32)
    if isinstance(target, np.ndarray):
        return (signal * target + sigma * noise).astype(target.dtype)
    import torch

    return signal * target + sigma * torch.from_numpy(noise).to(target)


def as_solver(solver: str | Method) -> Method:
    """A `Solver` by its name, or what was given if it can be one."""
    if isinstance(solver, str):
        return Solver(solver)
    if not callable(getattr(solver, "open", None)) or not hasattr(solver, "predictor"):
        raise ValueError(f"solver must be one of {', '.join(SOLVERS)}, or a nrinv.Solver, got {solver!r}")
    return solver
