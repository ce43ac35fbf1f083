from collections.abc import Iterable
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from _typeshed import structseq

_Floats = npt.NDArray[np.float64]
_Integers = npt.NDArray[np.int64]
_Booleans = npt.NDArray[np.bool_]

SOLVERS: Final[tuple[str, ...]]
ORDERS: Final[tuple[str, ...]]
NOISES: Final[tuple[str, ...]]
PATHS: Final[tuple[str, ...]]
SPACINGS: Final[tuple[str, ...]]

@final
class Sampler:
    def __new__(
        cls, timesteps: npt.ArrayLike, steps: npt.ArrayLike, inputs: npt.ArrayLike, levels: npt.ArrayLike | None = None
    ) -> Sampler: ...
    def __len__(self) -> int: ...
    timesteps: Final[_Floats]
    inputs: Final[_Floats]
    steps: Final[_Floats]
    states: Final[_Floats]
    levels: Final[_Floats | None]
    num_noises: Final[int]
    first_order: Final[bool]
    singular: Final[tuple[int, ...]]

@final
class Request(structseq[Any], tuple[Any, ...]):
    __match_args__: Final[tuple[str, ...]]  # type: ignore[misc]
    index: Final[int]  # type: ignore[assignment]
    timestep: Final[float]
    sample: Final[Any]
    scale: Final[float]
    wants_gradient: Final[bool]
    cotangent: Final[Any | None]
    active: Final[_Booleans]
    correcting: Final[bool]

@final
class Result(structseq[Any], tuple[Any, ...]):
    __match_args__: Final[tuple[str, ...]]  # type: ignore[misc]
    latents: Final[Any]
    residuals: Final[_Floats]
    step_nfe: Final[_Integers]
    nfe: Final[_Integers]
    reasons: Final[list[str]]
    error: Final[_Floats]
    evaluations: Final[int]
    trajectory: Final[list[Any] | None]
    noises: Final[list[Any] | None]
    restarts: Final[_Integers]
    rejected: Final[_Integers]
    failed: Final[_Integers]
    corrected: Final[Any | None]
    moved: Final[_Floats | None]
    held: Final[_Booleans | None]
    measured: Final[_Booleans]
    growth: Final[_Floats]

@final
class Inversion:
    def __new__(
        cls,
        sampler: Sampler,
        target: Any,
        *,
        noises: Iterable[Any] | None = None,
        guess: Any | None = None,
        solver: str = "auto",
        noise: str = "record",
        max_nfe: int = 3,
        depth: int = 5,
        tol: float = 0.0001,
        atol: float = 0.0,
        rounds: int = 0,
        lam: float = 0.1,
        floor: float = 0.5,
        extrapolation: float = 1.0,
        predictor: bool = True,
        verify: bool = False,
        trajectory: bool = False,
        order: str = "reversed",
        correct_from: Sampler | None = None,
        correct_rounds: int = 2,
        correct_only: bool = False,
        radius: npt.ArrayLike | None = None,
        draws: Iterable[Any] | None = None,
        correct_noises: Iterable[Any] | None = None,
    ) -> Inversion: ...
    max_evaluations: Final[int]
    def next(self, /) -> Request | None: ...
    def feed(self, model_output: Any, /) -> None: ...
    def result(self, /) -> Result: ...

def interpolate(
    a: Any, b: Any, fractions: npt.ArrayLike, direction: Any, *, method: str = "geodesic", spacing: str = "metric"
) -> tuple[list[Any], _Floats]: ...
def centroid(latents: Iterable[Any], shares: npt.ArrayLike) -> Any: ...
def reasons() -> dict[str, str]: ...
