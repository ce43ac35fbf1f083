from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

class Sampler:
    timesteps: np.ndarray
    inputs: np.ndarray
    steps: np.ndarray
    states: np.ndarray
    num_noises: int
    first_order: bool
    singular: tuple[int, ...]
    def __new__(cls, timesteps: Any, steps: Any, inputs: Any) -> Sampler: ...
    def __len__(self) -> int: ...

class Request(NamedTuple):
    index: int
    timestep: float
    sample: Any
    scale: float

class Result(NamedTuple):
    latents: Any
    residuals: np.ndarray
    step_nfe: np.ndarray
    nfe: np.ndarray
    reasons: list[str]
    error: np.ndarray
    evaluations: int
    trajectory: list[Any] | None

class Inversion:
    max_evaluations: int
    def __new__(
        cls,
        sampler: Sampler,
        target: Any,
        *,
        noises: Sequence[Any] | None = None,
        solver: str = "anderson",
        max_nfe: int = 3,
        depth: int = 3,
        tol: float = 1e-4,
        atol: float = 0.0,
        refine: int = 0,
        prior: float = 0.0,
        extrapolation: float = 1.0,
        predictor: bool = True,
        verify: bool = False,
        trajectory: bool = False,
    ) -> Inversion: ...
    def next(self) -> Request | None: ...
    def feed(self, model_output: Any, /) -> None: ...
    def result(self) -> Result: ...

def reasons() -> dict[str, str]: ...
