"""What stand-ins for a scheduler share: how their classes are made, and the outcomes with which they leave a loop."""

import copy
import functools
import inspect
import threading
import types
from dataclasses import dataclass
from typing import Any

from .known import OPTIONAL_METHODS, check_methods

# ----------------------------------------------------------------------------------------------------------------- outcomes


@dataclass(frozen=True)
class Done:
    """The loop is not needed any more.  result: what a machine found, where there is one."""

    result: Any = None


@dataclass(frozen=True)
class Repeat:
    """The next call of the pipeline goes on from the latents as they are now."""


@dataclass(frozen=True)
class Relayout:
    """The scheduler steps something else than the latents: find out what, and begin again."""


@dataclass(frozen=True)
class Slice:
    """The loop takes the evaluations start..stop only: begin again with these."""

    start: int
    stop: int


@dataclass(frozen=True)
class Unfollowed:
    """The pipeline does not do what it is asked to do in this order."""

    why: str


@dataclass(frozen=True)
class Returned:
    """The pipeline's call has come to its end.  output: what it has returned."""

    output: Any = None


class Left(BaseException):
    """Leaves a pipeline's loop with an outcome.  Not an Exception, so that no handler in between takes it."""

    def __init__(self, outcome=None):
        super().__init__()
        self.outcome = outcome


# ------------------------------------------------------------------------------------------------------------------ classes


def rebind(function, **names):
    """`function` with other values for some of its global names: patching its module would reach every other caller."""
    rebound = types.FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__, function.__closure__
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__annotations__ = function.__annotations__
    return rebound


def _absent(name):
    def lookup(self):
        raise AttributeError(name)

    return property(lookup)


@functools.cache
def _derive(cls, scheduler_class, **methods):
    """`cls` on top of scheduler_class, with the signatures of the latter's methods: pipelines look at them to decide what to
    pass.
    """
    members = {name: rebind(getattr(cls, name)) for name in methods}
    for name, method in members.items():
        method.__signature__ = inspect.signature(methods[name])
    # Pipelines also look at which methods there are.
    members.update({name: _absent(name) for name in OPTIONAL_METHODS if not hasattr(scheduler_class, name)})
    return type(cls.__name__, (cls, scheduler_class), {**members, "__module__": cls.__module__})


class Derived:
    """A copy of a scheduler with some of its methods replaced, of a class derived from its class: configuration, signatures
    and `isinstance` are what the pipeline expects.

    stepped: how often the pipeline has stepped it, which is how often the network was evaluated.  `_start_state()` of a
    subclass: where an img2img pipeline's loop starts, in place of its image with noise; None: with that image.

    It serves one call of the pipeline at a time, `entered` by the thread that made it: a stock call in another thread, or
    inside a callback, finds it in the pipeline too.
    """

    def __new__(cls, scheduler=None, *args, **kwargs):
        if scheduler is None:
            return object.__new__(cls)
        own = type(scheduler)
        return object.__new__(_derive(cls, own, step=own.step, set_timesteps=own.set_timesteps))

    def __init__(self, inner):
        check_methods(inner)
        self._inner = inner
        self.__dict__.update(vars(copy.deepcopy(inner)))
        self.stepped, self.entered, self._disturbed, self._thread = 0, False, False, threading.get_ident()

    def set_timesteps(self, *args, **kwargs):
        if threading.get_ident() != self._thread or (self.entered and self.stepped):
            self._disturbed = True  # it has changed what the pipeline's call keeps on the pipeline, such as the guidance
        self.check_alone()
        self.entered = True
        self._inner.set_timesteps(*args, **kwargs)
        self.__dict__.update(vars(copy.deepcopy(self._inner)))

    def add_noise(self, original_samples, *args, **kwargs):
        return self._noisy("add_noise", original_samples, *args, **kwargs)

    def scale_noise(self, sample, *args, **kwargs):
        return self._noisy("scale_noise", sample, *args, **kwargs)

    def _noisy(self, name, sample, *args, **kwargs):
        state = self._start_state()
        if state is None:
            return getattr(self._inner, name)(sample, *args, **kwargs)
        return state.detach().reshape(sample.shape).to(sample)

    def check_alone(self):
        if self._disturbed:
            raise RuntimeError(
                "pipe: the pipeline is called while nrinv uses it, in another thread or by a callback; give each its own "
                "pipeline, made of the same parts: type(pipe)(**pipe.components)"
            )
