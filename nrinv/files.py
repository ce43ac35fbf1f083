"""The file of a saved inversion: a safetensors file whose metadata is JSON, with a digest over all its bytes.

docs/files.md describes it.  What the fields mean, and which values they may have, inversion.py knows.
"""

import hashlib
import json
import os
import re
import secrets
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors

FORMAT, FIRST_FORMAT = "nrinv-inversion-2", "nrinv-inversion-1"
# The digest is that of the file with this in its place.
_NO_DIGEST = "0" * 64
_DIGEST = '"sha256":"{}"'
# Lists and dictionaries in each other, in the metadata.
DEPTH = 64

# -------------------------------------------------------------------------------------------------------------------- bytes


def _unique(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in it")
    return found


def parsed(text):
    """JSON that nobody's recursion runs away with; raises ValueError for other text."""
    try:
        value = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError(f"it is nested deeper than {DEPTH} levels") from error
    level = [[value]]
    for _ in range(DEPTH + 1):
        parts = [part for one in level for part in (one.values() if isinstance(one, dict) else one)]
        level = [part for part in parts if isinstance(part, (dict, list))]
    if level:
        raise ValueError(f"it is nested deeper than {DEPTH} levels")
    return value


def read(path: Any) -> tuple[str, dict[str, torch.Tensor], Any]:
    """(format, tensors, metadata) of a file.

    Raises ValueError for what is not such a file, or not as it was written; OSError where the file cannot be read.
    """
    if not Path(path).is_file():
        raise ValueError("there is no such file")
    data = Path(path).read_bytes()
    size = int.from_bytes(data[:8], "little")
    if len(data) < 8 or size > len(data) - 8:
        raise ValueError("its header is cut off")
    header = parsed(data[8 : 8 + size].decode())
    texts = header.get("__metadata__") if isinstance(header, dict) else None
    if not isinstance(texts, dict) or texts.get("format") not in (FORMAT, FIRST_FORMAT):
        raise ValueError("nrinv has not written it")
    if texts["format"] == FORMAT or "sha256" in texts:
        _check_digest(data, 8 + size, texts.get("sha256"))
    if not isinstance(texts.get("nrinv"), str):
        raise ValueError("its metadata is no text")
    try:
        tensors = read_tensors(data)
    except (SafetensorError, KeyError, TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"its tensors: {error}") from error
    return texts["format"], tensors, parsed(texts["nrinv"])


def _check_digest(data, end, digest):
    if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError("it has no digest")
    at = data.find(_DIGEST.format(digest).encode(), 8, end)
    if at < 0 or "".join(signed(data, at)[1::2]) != digest:
        raise ValueError("it is not as it was written, its digest is another")


def signed(data, at):
    """What stands before the digest, the digest that the file ought to have, and what stands behind."""
    at += len(_DIGEST.format("")) - 1
    before, after = memoryview(data)[:at], memoryview(data)[at + len(_NO_DIGEST) :]
    digest = hashlib.sha256(before)
    digest.update(_NO_DIGEST.encode())
    digest.update(after)
    return before, digest.hexdigest(), after


def write(path: Any, tensors: dict[str, torch.Tensor], text: str) -> None:
    """Write a file with these tensors and this text of the metadata, or leave what was there.

    Raises OSError where the file system does not take it.
    """
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    data = write_tensors(tensors, {"format": FORMAT, "nrinv": text, "sha256": _NO_DIGEST})
    before, digest, after = signed(data, data.index(_DIGEST.format(_NO_DIGEST).encode()))
    replace_file(path, (before, digest.encode(), after))


def replace_file(path: Any, parts: Any) -> None:
    """Write a file of these bytes, one after another; it is written beside `path` and renamed when it is complete.

    Raises OSError where the file system does not take it, and leaves what was there.
    """
    target = Path(os.path.realpath(path))  # what a symbolic link points to
    if target.exists() and not target.is_file():  # a device is written to; a folder is refused
        with open(target, "wb") as file:
            file.writelines(parts)
        return
    beside = target.with_name(f".nrinv-{secrets.token_hex(8)}")
    try:
        with open(beside, "xb") as file:
            if target.exists():
                os.fchmod(file.fileno(), target.stat().st_mode & 0o777)
            file.writelines(parts)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    with suppress(OSError):  # the new name too, where folders can be synchronised
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


# ---------------------------------------------------------------------------------------------------------------- arguments

# Kinds of images whose pixels say everything; others are kept as RGB.
_MODES = ("L", "RGB", "RGBA", "I", "I;16", "F")
# JSON that stands for an argument of the call: one of these.
ARGUMENT = {
    "type": "object",
    "minProperties": 1,
    "maxProperties": 1,
    "additionalProperties": False,
    "properties": {
        "json": {},
        "list": {"type": "array", "items": {"$ref": "#/$defs/argument"}},
        "dict": {"type": "object", "additionalProperties": {"$ref": "#/$defs/argument"}},
        "tensor": {"$ref": "#/$defs/name"},
        "array": {"$ref": "#/$defs/name"},
        "image": {"$ref": "#/$defs/name"},
        "generator": {
            "type": "object",
            "required": ["device", "state"],
            "additionalProperties": False,
            "properties": {"device": {"enum": ["cpu", "cuda", "mps", "xpu"]}, "state": {"$ref": "#/$defs/name"}},
        },
    },
}
# The name of a tensor of the file that an argument is.
NAME = {"type": "string", "pattern": "^call\\."}


def check_arguments(arguments: dict[str, Any]) -> None:
    """Raises ValueError that names the first argument of a pipeline's call which a file cannot keep.

    Callbacks are not kept, and any will do.  It takes no time: it can be asked before anything is inverted.
    """
    pack({name: value for name, value in arguments.items() if "callback" not in name}, {})


def pack(arguments, tensors):
    """JSON that stands for the arguments of a call; the numbers they hold go to `tensors`."""
    packed = {}
    for name, value in arguments.items():
        try:
            packed[name] = _packed(name, value, tensors)
            parsed(json.dumps(packed[name], default=plain))
        except RecursionError as error:
            raise ValueError(f"call: argument {name!r} cannot be saved: it is nested too deeply, or in itself") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"call: argument {name!r} cannot be saved: {error}") from error
    return packed


def _packed(name, value, tensors):
    if isinstance(value, dict):
        strange = [key for key in value if not isinstance(key, str)]
        if strange:
            raise ValueError(f"the key {strange[0]!r} is no string")
        return {"dict": {key: _packed(f"{name}.{key}", one, tensors) for key, one in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_packed(f"{name}.{i}", one, tensors) for i, one in enumerate(value)]}
    if isinstance(value, Image.Image):
        value = value if value.mode in _MODES else value.convert("RGB")
        return {"image": _kept(name, torch.from_numpy(np.array(value)), tensors)}
    if isinstance(value, torch.Generator):
        return {"generator": {"device": value.device.type, "state": _kept(name, value.get_state(), tensors)}}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        kind = "tensor" if isinstance(value, torch.Tensor) else "array"
        return {kind: _kept(name, torch.as_tensor(value), tensors)}
    return {"json": value}


def _kept(name, tensor, tensors):
    name = f"call.{name}"
    name.encode()  # ValueError for half a character
    if name in tensors:
        raise ValueError(f"two of its entries are called {name!r}")
    if tensor.layout is not torch.strided or tensor.is_meta:
        raise ValueError("a tensor must have its numbers in memory, one for each element")
    try:
        write_tensors({name: torch.empty(0, dtype=tensor.dtype)})
    except KeyError as error:
        raise ValueError(f"safetensors files have no {tensor.dtype}") from error
    tensors[name] = tensor
    return name


def unpack(packed, take, device):
    """The argument that `pack` has made into JSON; take(name) is a tensor of the file."""
    ((kind, value),) = packed.items()
    if kind == "dict":
        return {key: unpack(one, take, device) for key, one in value.items()}
    if kind == "list":
        return [unpack(one, take, device) for one in value]
    if kind == "json":
        return value
    if kind == "tensor":
        return take(value).to(device)
    if kind == "generator":
        return _generator(value["device"], take(value["state"]))
    try:
        array = take(value).numpy()
        return Image.fromarray(array) if kind == "image" else array
    except (TypeError, KeyError) as error:
        raise ValueError(f"{value} is no {kind}: {error}") from error


def _generator(device, state):
    """A generator in that state; None, with a warning, on a machine without such a device."""
    if device != "cpu" and not (hasattr(torch, device) and getattr(torch, device).is_available()):
        warnings.warn(f"what the pipeline drew from a generator on {device} cannot be drawn again without one", stacklevel=2)
        return None
    try:
        return torch.Generator(device).set_state(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"a generator on {device}: {error}") from error


def plain(value):
    """Numbers and arrays of NumPy as JSON has them."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a tensor, an image nor JSON")
