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
    @property
    def timesteps(self) -> _Floats: ...
    @property
    def inputs(self) -> _Floats: ...
    @property
    def steps(self) -> _Floats: ...
    @property
    def states(self) -> _Floats: ...
    @property
    def levels(self) -> _Floats | None: ...
    @property
    def num_noises(self) -> int: ...
    @property
    def first_order(self) -> bool: ...
    @property
    def singular(self) -> tuple[int, ...]: ...

@final
class Request(structseq[Any], tuple[int, float, Any, float, bool, Any | None, _Booleans, bool]):
    __match_args__: Final = (
        "index",
        "timestep",
        "sample",
        "scale",
        "wants_gradient",
        "cotangent",
        "active",
        "correcting",
    )
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
    def active(self) -> _Booleans: ...
    @property
    def correcting(self) -> bool: ...

@final
class Result(
    structseq[Any],
    tuple[
        Any,
        _Floats,
        _Integers,
        _Integers,
        list[str],
        _Floats,
        int,
        list[Any] | None,
        list[Any] | None,
        _Integers,
        _Integers,
        _Integers,
        Any | None,
        _Floats | None,
        _Booleans | None,
    ],
):
    __match_args__: Final = (
        "latents",
        "residuals",
        "step_nfe",
        "nfe",
        "reasons",
        "error",
        "evaluations",
        "trajectory",
        "noises",
        "restarts",
        "rejected",
        "failed",
        "corrected",
        "moved",
        "held",
    )
    @property
    def latents(self) -> Any: ...
    @property
    def residuals(self) -> _Floats: ...
    @property
    def step_nfe(self) -> _Integers: ...
    @property
    def nfe(self) -> _Integers: ...
    @property
    def reasons(self) -> list[str]: ...
    @property
    def error(self) -> _Floats: ...
    @property
    def evaluations(self) -> int: ...
    @property
    def trajectory(self) -> list[Any] | None: ...
    @property
    def noises(self) -> list[Any] | None: ...
    @property
    def restarts(self) -> _Integers: ...
    @property
    def rejected(self) -> _Integers: ...
    @property
    def failed(self) -> _Integers: ...
    @property
    def corrected(self) -> Any | None: ...
    @property
    def moved(self) -> _Floats | None: ...
    @property
    def held(self) -> _Booleans | None: ...

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
) -> tuple[list[Any], _Floats]: ...
def centroid(latents: Iterable[Any], shares: npt.ArrayLike) -> Any: ...
def reasons() -> dict[str, str]: ...
