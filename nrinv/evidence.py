"""What may make a stock run another map than the one an inversion has seen, and in which order it was found to be the same.

An inversion evaluates the network in an order of its own, or more often than a stock run does.  Whatever counts the
evaluations, or changes the call on its way, is then another map in each.  What is not part of the libraries may do so.
"""

import types
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch

from .call import is_prompt
from .known import HARMLESS_HOOKS, LIBRARIES, SCHEDULER_METHODS, modules
from .loops import reads_index

# What was found is forgotten beyond so many calls.
_REMEMBERED = 256
_followed: dict[Any, str] = {}


class Doubt(NamedTuple):
    """what: for a message.  source: the object that is not stock, or the class whose loop reads its index."""

    what: str
    source: Any


def doubts(pipe, call) -> list[Doubt]:
    """All that may make a stock run of the call another map."""
    found = [Doubt("its loop, which reads its own index", type(pipe))] if reads_index(type(pipe)) else []
    for name, value in call.items():
        if "callback" in name and callable(value):
            found.append(Doubt(f"{name}={_name(value)}", value))
    found += [Doubt(f"its own {name}", value) for name, value in vars(pipe).items() if _is_method(pipe, name, value)]
    scheduler = pipe.scheduler
    methods = [(name, getattr(type(scheduler), name, None)) for name in SCHEDULER_METHODS]
    found += [Doubt(f"its scheduler's {name}", method) for name, method in methods if method and not _is_stock(method)]
    for network in modules(pipe):
        for module in network.modules():
            found += _doubts_of_module(module)
    return list({id(one.source): one for one in found}.values())


def _is_method(owner, name, value):
    return (
        callable(value)
        and not isinstance(value, torch.nn.Module)
        and isinstance(getattr(type(owner), name, None), types.FunctionType)
        and _library(value) != "nrinv"  # the progress bar of the command line
    )


def _library(thing):
    """The library that an object's class, or a function, is part of."""
    while hasattr(thing, "func"):  # functools.partial
        thing = thing.func
    module = thing.__module__ if isinstance(thing, (type, types.FunctionType, types.MethodType)) else type(thing).__module__
    return (module or "").split(".")[0]


def _is_stock(thing):
    """Whether an object's class, or a function, is part of the libraries that pipelines are made of."""
    return _library(thing) in LIBRARIES


def _name(thing):
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


def _doubts_of_module(module):
    own, cls = module.__dict__, type(module)
    if not _is_stock(cls) or not _is_stock(cls.forward):
        yield Doubt(f"the module {cls.__name__}", cls)
    if "forward" in own and not _is_stock(own["forward"]):
        yield Doubt(f"{cls.__name__}.forward", own["forward"])
    processor = own.get("processor")
    if processor is not None and not _is_stock(processor):
        yield Doubt(f"the processor {_name(processor)}", processor)
    for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values()):
        if not _is_stock(hook):
            yield Doubt(f"the hook {_name(hook)} of {cls.__name__}", hook)
    registry = own.get("_diffusers_hook")
    for name, hook in registry.hooks.items() if registry is not None else ():
        if not name.startswith(HARMLESS_HOOKS):
            yield Doubt(f"the hook {name}", hook)


# ---------------------------------------------------------------------------------------------------------------- counters


class Counters:
    """Numbers that the sources of doubts keep on themselves, such as how often they were called.

    They are put back after each call of the pipeline: the next one, and a stock call, finds them as they were.
    """

    def __init__(self, doubts):
        owners = [one.source for one in doubts if not isinstance(one.source, (type, types.FunctionType, types.MethodType))]
        owners = [vars(one) for one in owners if hasattr(one, "__dict__")]
        inner = [vars(one) for own in owners for one in own.values() if _is_plain_object(one)]
        self._own = [(own, {k: v for k, v in own.items() if isinstance(v, (int, float))}) for own in (*owners, *inner)]

    def restore(self):
        for own, numbers in self._own:
            own.update(numbers)


def _is_plain_object(thing):
    return hasattr(thing, "__dict__") and not callable(thing) and not isinstance(thing, (torch.Tensor, types.ModuleType))


# ------------------------------------------------------------------------------------------------------------ what was found


def key(pipe, call, doubts, *more):
    """What a call is told by: its class, the values of its numbers, the shapes of all else, and the sources of doubts."""
    shape = tuple(sorted((name, _shape(name, value)) for name, value in call.items()))
    return type(pipe), type(pipe.scheduler), shape, tuple(_reference(one.source) for one in doubts), *more


def _reference(source):
    if isinstance(source, types.MethodType):
        return _reference(source.__self__), source.__func__
    try:
        return weakref.ref(source)
    except TypeError:
        return id(source)


def _shape(name, value):
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return repr((tuple(value.shape), value.dtype))
    if isinstance(value, (list, tuple)):
        return repr([_shape(name, one) for one in value])
    if isinstance(value, (bool, int, float, type(None))) or (isinstance(value, str) and not is_prompt(name)):
        return repr(value)
    return type(value).__name__


def followed(key) -> str | None:
    """The order in which a stock run of such a call was found to be the map that was inverted; None if none was."""
    return _followed.get(key)


def remember(key, order) -> None:
    while len(_followed) >= _REMEMBERED:
        _followed.pop(next(iter(_followed)), None)
    _followed[key] = order
