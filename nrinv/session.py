"""What is changed while a stock pipeline runs for us, and put back afterwards, whatever happens."""

import functools
import inspect
import threading
from collections.abc import Callable
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import torch

from .known import modules

F = TypeVar("F", bound=Callable[..., Any])


def without_gradients(function: F) -> F:
    """torch.no_grad() for type checkers that are not shown torch: the function keeps its type."""
    return torch.no_grad()(function)


_IN_USE: set[int] = set()
_LOCK = threading.Lock()


@contextmanager
def exclusive(pipe):
    """Nobody else of ours uses the pipeline meanwhile: its scheduler is another one, and so are its hooks.

    Raises RuntimeError, before anything is touched, if somebody does.
    """
    with _LOCK:
        if id(pipe) in _IN_USE:
            raise RuntimeError(
                f"pipe: this {type(pipe).__name__} is in use by nrinv already, in another thread or around this callback; "
                "give each its own pipeline, made of the same parts: type(pipe)(**pipe.components)"
            )
        _IN_USE.add(id(pipe))
    try:
        yield
    finally:
        with _LOCK:
            _IN_USE.discard(id(pipe))


def exclusively(function: F) -> F:
    """The function with its first argument, a pipeline, to itself."""

    @functools.wraps(function)
    def alone(pipe: Any, *args: Any, **kwargs: Any):
        with exclusive(pipe):
            return function(pipe, *args, **kwargs)

    return alone  # type: ignore[return-value]


@contextmanager
def kept_processors(pipe):
    """Attention processors a pipeline exchanges for the time of its loop (PAG, SAG) come back when the loop is left."""
    own = [(module, module.attn_processors) for module in modules(pipe) if hasattr(module, "attn_processors")]
    try:
        yield
    finally:
        for module, processors in own:
            now = module.attn_processors
            if any(now.get(name) is not processor for name, processor in processors.items()):
                module.set_attn_processor(dict(processors))


@contextmanager
def gradients(pipe, wanted):
    """What to call the pipeline by; where gradients are wanted, those of the latents alone.

    Pipelines switch gradients off by a decorator.  Parameters are frozen meanwhile: their gradients would only cost memory.
    """
    if not wanted:
        yield pipe
        return
    trained = [p for module in modules(pipe) for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield partial(inspect.unwrap(type(pipe).__call__), pipe)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class RandomState:
    """The state of the caller's generators and of the global ones: a call that is repeated must draw the same again."""

    def __init__(self, generator):
        self._single = not isinstance(generator, (list, tuple))
        one = [generator] if isinstance(generator, torch.Generator) else list(generator or [])
        self._own = [(each, each.get_state()) for each in one]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def restore(self):
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)

    def drawn(self, device):
        """The generators as they were before something was drawn since, new ones; None if nothing was.

        Where the caller has given none it is one like the global one that pipelines on `device` draw from.
        """
        before = self._own
        if not before:
            cuda = torch.device(device).type == "cuda" and self._cuda is not None
            own = torch.cuda.default_generators[torch.device(device).index or 0] if cuda else torch.default_generator
            before = [(own, self._cuda[own.device.index] if cuda else self._cpu)]
        if all(torch.equal(one.get_state(), state) for one, state in before):
            return None
        found = [torch.Generator(one.device).set_state(state) for one, state in before]
        return found[0] if self._single else found


@contextmanager
def replaced(owner, **values):
    """Attributes of an instance, for a time; whatever happens, it has its own back afterwards.

    Goes around DiffusionPipeline.__setattr__, which would record another scheduler's class in the configuration.
    """
    own = {name: vars(owner)[name] for name in values if name in vars(owner)}
    vars(owner).update(values)
    try:
        yield
    finally:
        vars(owner).update(own)
        for name in values.keys() - own.keys():
            vars(owner).pop(name, None)
