"""Networks evaluate only the samples that still run."""

import threading
from contextlib import ExitStack, contextmanager

import torch

from .known import POSITIONS, modules


def _select(value, rows, mask, lists):
    """The running samples' rows of an argument of a network; lists: whether samples come as lists of tensors."""
    if isinstance(value, torch.Tensor):
        return value[mask.to(value.device)] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {name: _select(one, rows, mask, lists) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        if lists and len(value) == rows:
            return type(value)(one for one, runs in zip(value, mask.tolist(), strict=True) if runs)
        return type(value)(_select(one, rows, mask, lists) for one in value)
    return value


def _scatter(value, mask, lists):
    """A network's output for all samples, zero where it has not been evaluated."""
    if isinstance(value, torch.Tensor):
        if not value.ndim or value.shape[0] != int(mask.sum()):
            return value
        whole = value.new_zeros((len(mask), *value.shape[1:]))
        whole[mask.to(value.device)] = value
        return whole
    if isinstance(value, dict):  # BaseOutput among them
        for name in list(value):
            value[name] = _scatter(value[name], mask, lists)
        return value
    if isinstance(value, (list, tuple)):
        if lists and len(value) == int(mask.sum()):
            running = iter(value)
            return type(value)(next(running) if runs else torch.zeros_like(value[0]) for runs in mask.tolist())
        return type(value)(_scatter(one, mask, lists) for one in value)
    return value


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
        fixed = {name: one for name, one in kwargs.items() if name in POSITIONS}
        args, kwargs = _select((args, kwargs), rows, self._mask, self._lists)
        return args, {**kwargs, **fixed}

    def after(self, module, args, kwargs, output):
        return (
            None
            if self._mask is None or threading.get_ident() != self._thread
            else _scatter(output, self._mask, self._lists)
        )


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
