"""What tells the networks of two pipelines apart: their classes, configurations, and a few of their weights."""

import math
import zlib

import numpy as np
import torch

from .known import NETWORKS, drawing_networks

# How many parameters of a network are looked at, and how many elements of each.
_PARAMETERS, _ELEMENTS = 12, 4
# bfloat16 rounds by 2^-9, float16 below 2^-14 by 2^-25: weights that agree as far are the same, rounded twice.
_RELATIVE, _ABSOLUTE = 2**-7, 2**-24


def fingerprint(pipe):
    """{name: {"class", "config", "weights"}} of the networks that decide what `pipe` draws, as JSON has it.

    These are the denoisers with their ControlNets, and the text encoders.  It takes milliseconds, and one copy from the
    device for each network.  Parameters that have no plain numbers in memory (quantised, offloaded to nowhere) are left out.
    """
    return {name: _of(module) for name, module in drawing_networks(pipe).items()}


def _of(module):
    module = getattr(module, "_orig_mod", module)  # of torch.compile
    config = getattr(module, "config", None)
    config = dict(config) if isinstance(config, dict) else {}  # those of transformers change with its version
    plain = {key: _plain(value) for key, value in config.items() if not key.startswith("_")}
    return {
        "class": type(module).__name__,
        "config": {key: value for key, value in plain.items() if value is not None},
        "weights": _weights(module),
    }


def _plain(value):
    """A value as it looks after a trip through JSON; None for what is no number, text or list of these."""
    if isinstance(value, (list, tuple)):
        found = [_plain(one) for one in value]
        return None if None in found else found
    return value if isinstance(value, (bool, int, str)) or (isinstance(value, float) and math.isfinite(value)) else None


def _weights(module):
    """{name: a few elements} of the parameters whose names have the smallest checksums: others that come or go hardly
    change which these are."""
    named = {
        name.replace(".base_layer", "").replace("_orig_mod.", ""): one
        for name, one in module.named_parameters()
        if "lora_" not in name
    }
    chosen = sorted(named, key=lambda name: (zlib.crc32(name.encode()), name))[:_PARAMETERS]
    picked = {name: _picked(named[name]) for name in chosen}
    picked = {name: one for name, one in picked.items() if one is not None}
    found = {}
    for device in {one.device for one in picked.values()}:
        names = [name for name, one in picked.items() if one.device == device]
        rows = torch.stack([picked[name].float() for name in names]).cpu()
        found.update({name: row.tolist() for name, row in zip(names, rows, strict=True) if row.isfinite().all()})
    return found


def _picked(parameter):
    one = parameter.detach()
    usable = type(parameter) is torch.nn.Parameter and one.is_floating_point() and one.layout is torch.strided
    if not usable or one.is_meta or one.numel() == 0 or one.element_size() < 2:
        return None
    places = np.linspace(0, one.numel() - 1, _ELEMENTS).astype(np.int64)
    index = np.unravel_index(places, tuple(one.shape)) if one.ndim else ()
    return one[tuple(torch.from_numpy(axis).to(one.device) for axis in index)].expand(_ELEMENTS)


def difference(made, present):
    """What names both networks where two fingerprints are not those of the same; None where they are."""
    for name in sorted(made.keys() & present.keys()):  # another kind of pipeline has networks beside them
        one, other = made[name], present[name]
        unlike = [key for key in one["config"].keys() & other["config"].keys() if one["config"][key] != other["config"][key]]
        if one["class"] != other["class"] or unlike:
            return _named(name, one, min(unlike, default=None)), _named(name, other, min(unlike, default=None))
        weights = one["weights"], other["weights"]
        if not all(_close(weights[0][key], weights[1][key]) for key in weights[0].keys() & weights[1].keys()):
            return _named(name, one), _named(name, other)
    loops = [[name for name in each if name.startswith(NETWORKS)] for each in (made, present)]
    if all(loops) and not set(loops[0]) & set(loops[1]):
        return _named(loops[0][0], made[loops[0][0]]), _named(loops[1][0], present[loops[1][0]])
    return None


def _named(name, network, key=None):
    if key is not None:
        return f"{name} {network['class']} with {key}={network['config'].get(key)!r}"
    return f"{name} {network['class']} with weights {zlib.crc32(repr(sorted(network['weights'].items())).encode()):08x}"


def _close(one, other):
    return len(one) == len(other) and np.allclose(one, other, rtol=_RELATIVE, atol=_ABSOLUTE)
