from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

class Sampler:
    timesteps: np.ndarray
    inputs: np.ndarray
    steps: np.ndarray
    levels: np.ndarray | None
    states: np.ndarray
    num_noises: int
    first_order: bool
    singular: tuple[int, ...]
    def __new__(cls, timesteps: Any, steps: Any, inputs: Any, levels: Any = None) -> Sampler: ...
    def __len__(self) -> int: ...

class Request(NamedTuple):
    index: int
    timestep: float
    sample: Any
    scale: float
    wants_gradient: bool
    cotangent: Any | None
    active: np.ndarray

class Result(NamedTuple):
    latents: Any
    residuals: np.ndarray
    step_nfe: np.ndarray
    nfe: np.ndarray
    reasons: list[str]
    error: np.ndarray
    evaluations: int
    trajectory: list[Any] | None
    noises: list[Any] | None

class Inversion:
    max_evaluations: int
    def __new__(
        cls,
        sampler: Sampler,
        target: Any,
        *,
        noises: Sequence[Any] | None = None,
        guess: Any | None = None,
        solver: str = "auto",
        noise: str = "record",
        max_nfe: int = 3,
        depth: int = 5,
        tol: float = 1e-4,
        atol: float = 0.0,
        refine: int = 0,
        prior: float = 0.0,
        lam: float = 0.1,
        floor: float = 0.5,
        extrapolation: float = 1.0,
        predictor: bool = True,
        verify: bool = False,
        trajectory: bool = False,
        order: str = "reversed",
    ) -> Inversion: ...
    def next(self) -> Request | None: ...
    def feed(self, model_output: Any, /) -> None: ...
    def result(self) -> Result: ...

class Corrected(NamedTuple):
    latents: Any
    moved: np.ndarray
    held: np.ndarray
    failed: np.ndarray
    evaluations: int

class Correction:
    max_evaluations: int
    def __new__(
        cls,
        sampler: Sampler,
        target: Any,
        *,
        draws: Sequence[Any] | None = None,
        noises: Sequence[Any] | None = None,
        rounds: int = 2,
        radius: Any | None = None,
    ) -> Correction: ...
    def next(self) -> Request | None: ...
    def feed(self, model_output: Any, /) -> None: ...
    def result(self) -> Corrected: ...

def interpolate(
    a: Any, b: Any, fractions: Any, direction: Any, *, method: str = "geodesic", spacing: str = "metric"
) -> tuple[list[Any], np.ndarray]: ...
def centroid(latents: Sequence[Any], shares: Any) -> Any: ...
def reasons() -> dict[str, str]: ...
