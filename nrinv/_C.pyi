from collections.abc import Iterable
from typing import Any, Final, final

import numpy as np
import numpy.typing as npt
from _typeshed import structseq

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

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
    @property
    def timesteps(self) -> Floats: ...
    @property
    def inputs(self) -> Floats: ...
    @property
    def steps(self) -> Floats: ...
    @property
    def states(self) -> Floats: ...
    @property
    def levels(self) -> Floats | None: ...
    @property
    def num_noises(self) -> int: ...
    @property
    def first_order(self) -> bool: ...
    @property
    def singular(self) -> tuple[int, ...]: ...

@final
class Request(structseq[Any], tuple[int, float, Any, float, bool, Any | None, Booleans, bool]):
    @property
    def index(self) -> int: ...  # type: ignore[override]
    @property
    def timestep(self) -> float: ...
    @property
    def sample(self) -> Any: ...
    @property
    def scale(self) -> float: ...
    @property
    def wants_gradient(self) -> bool: ...
    @property
    def cotangent(self) -> Any | None: ...
    @property
    def active(self) -> Booleans: ...
    @property
    def correcting(self) -> bool: ...

@final
class Result(
    structseq[Any],
    tuple[
        Any,
        Floats,
        Integers,
        Integers,
        list[str],
        Floats,
        int,
        list[Any] | None,
        list[Any] | None,
        Integers,
        Integers,
        Integers,
        Any | None,
        Floats | None,
        Booleans | None,
    ],
):
    @property
    def latents(self) -> Any: ...
    @property
    def residuals(self) -> Floats: ...
    @property
    def step_nfe(self) -> Integers: ...
    @property
    def nfe(self) -> Integers: ...
    @property
    def reasons(self) -> list[str]: ...
    @property
    def error(self) -> Floats: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def trajectory(self) -> list[Any] | None: ...
    @property
    def noises(self) -> list[Any] | None: ...
    @property
    def restarts(self) -> Integers: ...
    @property
    def rejected(self) -> Integers: ...
    @property
    def failed(self) -> Integers: ...
    @property
    def corrected(self) -> Any | None: ...
    @property
    def moved(self) -> Floats | None: ...
    @property
    def held(self) -> Booleans | None: ...

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
    @property
    def max_evaluations(self) -> int: ...
    def next(self, /) -> Request | None: ...
    def feed(self, model_output: Any, /) -> None: ...
    def result(self, /) -> Result: ...

def interpolate(
    a: Any, b: Any, fractions: npt.ArrayLike, direction: Any, *, method: str = "geodesic", spacing: str = "metric"
) -> tuple[list[Any], Floats]: ...
def centroid(latents: Iterable[Any], shares: npt.ArrayLike) -> Any: ...
def reasons() -> dict[str, str]: ...
