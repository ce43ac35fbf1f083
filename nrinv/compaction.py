"""Networks evaluate only the samples that still run."""

import copy
import itertools
import threading
from contextlib import ExitStack, contextmanager
from functools import partial

import torch

from .known import POSITIONS, modules


def _mapped(function, value, rows, lists):
    """`value` with a function of the tensors in it that have so many rows; lists: whether samples come as lists of tensors.

    What holds them is copied: dictionaries, BaseOutput among them, lists and tuples.
    """
    if isinstance(value, torch.Tensor):
        return function(value) if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        found = copy.copy(value)
        for name, one in value.items():
            found[name] = _mapped(function, one, rows, lists)
        return found
    if isinstance(value, (list, tuple)):
        whole = lists and len(value) == rows
        return type(value)(function(value) if whole else (_mapped(function, one, rows, lists) for one in value))
    return value


def _select(value, mask):
    """The rows, or list entries, of the samples that run."""
    if isinstance(value, torch.Tensor):
        return value[mask.to(value.device)]
    return itertools.compress(value, mask.tolist())


def _scatter(value, mask):
    """Rows, or list entries, for all samples, zero where the network has not been evaluated."""
    if isinstance(value, torch.Tensor):
        whole = value.new_zeros((len(mask), *value.shape[1:]))
        whole[mask.to(value.device)] = value
        return whole
    running = iter(value)
    return (next(running) if runs else torch.zeros_like(value[0]) for runs in mask.tolist())


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


class _Compaction:
    """Hooks of one module: evaluate the rows of the samples that still run, and no others."""

    def __init__(self, active):
        self._active, self._thread = active, threading.get_ident()
        self._mask = None

    def before(self, module, args, kwargs):
        if threading.get_ident() != self._thread:  # another pipeline that shares the module
            return None
        self._mask, active = None, self._active()
        if active is None or active.all():
            return None
        first = next(iter([*args, *kwargs.values()]), None)
        self._lists = isinstance(first, (list, tuple))
        rows = len(first) if self._lists or (isinstance(first, torch.Tensor) and first.ndim > 1) else 0
        # Guidance stacks copies of the whole batch.  Rows of another count, as one per frame, cannot be told apart.
        if rows == 0 or rows % len(active):
            return None
        if any(x.ndim > 2 and x.shape[0] != rows and x.shape[0] % rows == 0 for x in _tensors([args, kwargs])):
            return None
        self._mask = torch.from_numpy(active).repeat(rows // len(active))
        select = partial(_mapped, partial(_select, mask=self._mask), rows=rows, lists=self._lists)
        kwargs = {name: one if name in POSITIONS else select(one) for name, one in kwargs.items()}
        return tuple(map(select, args)), kwargs

    def after(self, module, args, kwargs, output):
        if self._mask is None or threading.get_ident() != self._thread:
            return None
        scatter = partial(_mapped, partial(_scatter, mask=self._mask), rows=int(self._mask.sum()), lists=self._lists)
        return tuple(map(scatter, output)) if isinstance(output, tuple) else scatter(output)


@contextmanager
def compaction(pipe, active):
    """Networks evaluate only the samples that still run: active() is a bool array [B], or None for all.

    Compiled networks are left alone: each count of samples would be compiled anew.
    """
    with ExitStack() as hooks:
        for module in modules(pipe):
            compiled = isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
            if not compiled:
                hook = _Compaction(active)
                hooks.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(hook.after, with_kwargs=True).remove)
        yield
