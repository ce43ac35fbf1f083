"""What an inversion gives back, and its file format."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils import BaseOutput
from jsonschema import Draft4Validator, Draft202012Validator
from jsonschema.exceptions import best_match
from jsonschema.validators import extend

from . import _C, files
from .call import SCHEDULE, Call

# What fields were called in files of the first format.
_FIRST_FORMAT = {
    "corrections": "defects",
    "correction_size": "moved",
    "correction_cost": "psnr_loss",
}


# What a field is made of, and whose it is: "tensor" [B, ...]; "tensors", a list of such; "array", whose last axis is the
# samples; "list", one entry a sample; "json"; "prompt" and "call".
# What a file may hold for it.  schema: of JSON.  needed: not nothing.  axes: of an array.  numbers: "whole", at least 0;
# "size", at least 0 or NaN; "finite"; "bool"; "any".  count: how many tensors, evaluations and so many more.
# later: files of earlier versions lack it.
def _sample(kind, **rules):
    return {"kind": kind, "per": "sample", **rules}


def _common(kind, **rules):
    return {"kind": kind, "per": "all", **rules}


_NAME = {"type": ["string", "null"], "pattern": r"^\w+$"}
_TEXTS = {"type": ["string", "array", "null"], "items": {"type": "string"}}
_REASONS = {"type": ["array", "null"], "items": {"enum": list(_C.reasons())}}
_WHOLE = {"type": ["integer", "null"], "minimum": 1}
_CALL = {
    "type": "object",
    "required": ["arguments", "nets", "shared"],
    "additionalProperties": False,
    "properties": {
        "arguments": {
            "type": "object",
            "additionalProperties": {"$ref": "#/$defs/argument"},
            "properties": {
                name: {"allOf": [{"$ref": "#/$defs/argument"}], "required": ["json"], "properties": {"json": _WHOLE}}
                for name in ("num_inference_steps", "num_images_per_prompt")
            },
        },
        "nets": {"type": "integer", "minimum": 0},
        "shared": {"type": "boolean"},
    },
}
_NETWORKS = {
    "type": ["object", "null"],
    "additionalProperties": {
        "type": "object",
        "required": ["class", "config", "weights"],
        "additionalProperties": False,
        "properties": {
            "class": {"type": "string", "pattern": r"^\w+$"},
            "config": {"type": "object"},
            "weights": {"type": "object", "additionalProperties": {"type": "array", "items": {"type": "number"}}},
        },
    },
}


@dataclass(repr=False)
class InversionOutput(BaseOutput):
    """The noise from which a pipeline draws an image, and how well and at what cost it was found.

    latents [B, ...]: the noise, as `pipe(latents=...)` wants it.
    noises: K tensors [B, ...] a stochastic scheduler draws, in its order; None for a deterministic one.
    timesteps [E]: of the sampler's evaluations.  levels [E + 1, 2]: signal and noise of the state before each of them and at
    the end; None if the scheduler does not tell.  start: the first of them in the full schedule (0 unless strength < 1).
    residuals [E, B]: |f(z) - z| / |z| at the last evaluation of each step: the reconstruction error of that step.
    step_nfe [E, B], nfe [B]: network evaluations per step of the last sweep, and in all.
    restarts, rejected, failed [B]: how often the solver went back to its best point, could not use a mixture of what it had
    seen, and met values that are not finite.
    reasons: for each sample why it ended; `nrinv.reasons()` explains the names.
    error [B]: |z_0 - sampler(z_T)| / |z_0|, how far from the latents a stock run from the noise ends; NaN where the reason
    is "non_finite".  measured [B]: whether it was measured by such a run, or is estimated from what the steps miss and how
    much that was seen to grow; docs/mathematics.md says how well.
    trajectory: E + 1 states from z_T to z_0, if asked for.
    defects: E tensors [B, ...], what each evaluation of a stock run from the noise misses the trajectory by, if asked for;
    `generate(..., replay=1)` adds them.  The other fields describe the noise alone.
    corrected [B, ...]: the latents that were inverted, if the encoded image was corrected (`invert(..., correct=...)`), and
    for each image how far that moved it, |corrected - encoded| / |encoded|, and the PSNR in dB that the decoded image has
    lost against the image: moved [B], psnr_loss [B].
    order: how the pipeline was driven, "reversed" or in whole "passes".
    prompt, call: what to call the pipeline with, beside `latents`; a `generator` in the state it had, where something was
    drawn from it.
    networks: what tells the networks it was made with from others; `generate` warns of these.
    stats: how natural the noise is.
    pipeline, scheduler, scheduler_config: class names and configuration the inversion was made with.
    """

    latents: torch.Tensor = field(metadata=_sample("tensor", needed=True))
    noises: list[torch.Tensor] | None = field(default=None, metadata=_sample("tensors"))
    timesteps: np.ndarray | None = field(default=None, metadata=_common("array", needed=True, axes="E", numbers="finite"))
    levels: np.ndarray | None = field(default=None, metadata=_common("array", axes="S2", numbers="size"))
    start: int = field(default=0, metadata=_common("json", schema={"type": "integer", "minimum": 0}))
    residuals: np.ndarray | None = field(default=None, metadata=_sample("array", axes="EB", numbers="size"))
    step_nfe: np.ndarray | None = field(default=None, metadata=_sample("array", axes="EB", numbers="whole"))
    nfe: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="whole"))
    restarts: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="whole"))
    rejected: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="whole"))
    failed: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="whole"))
    reasons: list[str] | None = field(default=None, metadata=_sample("list", schema=_REASONS))
    error: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="size"))
    measured: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="bool"))
    trajectory: list[torch.Tensor] | None = field(default=None, metadata=_sample("tensors", count=1))
    defects: list[torch.Tensor] | None = field(default=None, metadata=_sample("tensors", count=0))
    corrected: torch.Tensor | None = field(default=None, metadata=_sample("tensor"))
    moved: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="size"))
    psnr_loss: np.ndarray | None = field(default=None, metadata=_sample("array", axes="B", numbers="any"))
    order: str = field(default="reversed", metadata=_common("json", schema={"enum": list(_C.ORDERS)}))
    prompt: Any = field(default=None, metadata=_sample("prompt", schema=_TEXTS))
    call: Call = field(default_factory=Call, metadata=_sample("call", schema=_CALL))
    networks: dict[str, Any] | None = field(default=None, metadata=_common("json", schema=_NETWORKS, later=True))
    pipeline: str | None = field(default=None, metadata=_common("json", schema=_NAME))
    scheduler: str | None = field(default=None, metadata=_common("json", schema=_NAME))
    scheduler_config: dict[str, Any] = field(default_factory=dict, metadata=_common("json", schema={"type": "object"}))

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.latents.shape))
        lines = [f"latents {shape}, {str(self.latents.dtype).removeprefix('torch.')}, prompt {self.prompt!r}"]
        if self.timesteps is not None:
            part = f" from step {self.start} on" if self.start else ""
            lines.append(f"{self.pipeline}, {self.scheduler}, {len(self.timesteps)} evaluations{part}, {self.order}")
        if self.nfe is not None and self.residuals is not None:
            lines.append(f"network evaluations {_range(self.nfe)}, residuals up to {np.nanmax(self.residuals):.1e}")
        if self.error is not None and not np.isnan(self.error).all():
            how = "" if self.measured is None else ", measured" if self.measured.all() else ", estimated"
            lines.append(f"error {_range(self.error, '.1e')}{how}")
        if self.reasons is not None:
            ends = [f"{name} ({self.reasons.count(name)})" for name in dict.fromkeys(self.reasons)]
            lines.append(f"ended with {', '.join(ends)}")
        return "InversionOutput(" + "\n    ".join(lines) + ")"

    @property
    def stats(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """How natural the noise is: {name: (value [B], z-score [B])} against white noise of the same size.

        "norm": |z| / sqrt(D), 1 for white noise; "mean", "skew", "excess_kurtosis": moments of its elements, 0;
        "autocorrelation": of neighbours along the last two dimensions, 0.  A z-score is the distance from that value in
        standard errors; beyond 4 the noise is not what a generator would have drawn, however well it reconstructs.
        For a whole inversion only: with strength < 1 the latents are no noise.
        """
        noise = self.latents.detach().double().cpu()
        x, size = noise.flatten(1), noise[0].numel()
        mean, std = x.mean(1), x.std(1, correction=0)
        unit = (x - mean[:, None]) / std[:, None]
        image = unit.reshape(noise.shape)
        pairs = [(image[..., 1:, :] * image[..., :-1, :]).flatten(1), (image[..., 1:] * image[..., :-1]).flatten(1)]
        pairs = torch.cat(pairs, 1)
        found = {  # value, what white noise has, its standard error
            "norm": (x.norm(dim=1) / size**0.5, 1, (2 * size) ** -0.5),
            "mean": (mean, 0, size**-0.5),
            "skew": ((unit**3).mean(1), 0, (6 / size) ** 0.5),
            "excess_kurtosis": ((unit**4).mean(1) - 3, 0, (24 / size) ** 0.5),
            "autocorrelation": (pairs.mean(1), 0, pairs.shape[1] ** -0.5),
        }
        return {
            name: (value.numpy(), ((value - natural) / error).numpy()) for name, (value, natural, error) in found.items()
        }

    @property
    def whole_call(self) -> Call:
        """The call with the prompt among its arguments, for all images."""
        return self.call.like({**self.call, "prompt": self.prompt}, batch=len(self.latents))

    def split(self) -> "list[InversionOutput]":
        """The inversions of the single images, a list of B."""
        count = len(self.latents)
        return [self] if count == 1 else [self.take([i]) for i in range(count)]

    def take(self, samples: Sequence[int]) -> "InversionOutput":
        """The inversion of some of the images, in this order; an image may be there several times."""
        samples, call = list(samples), self.whole_call.part(samples)

        def part(one):
            value, kind = getattr(self, one.name), one.metadata["kind"]
            if kind in ("prompt", "call"):
                return call["prompt"] if kind == "prompt" else call.kept()
            if value is None or one.metadata["per"] == "all":
                return value
            if kind == "tensors":
                return [x[samples] for x in value]
            if kind == "list":
                return [value[i] for i in samples]
            return value[..., samples] if kind == "array" else value[samples]

        return type(self)(**{one.name: part(one) for one in fields(self)})

    def plot_residuals(self, axes: Any = None, label: str | None = None) -> Any:
        """Draw the residual of each step, and of each image, over the timesteps; returns matplotlib's axes.

        axes: matplotlib axes; by default a new figure's.  Needs matplotlib.
        """
        from .plots import plot_residuals

        return plot_residuals(self, axes, label)

    def save(self, path: Any) -> None:
        """Write everything to one safetensors file; tensors, arrays and images among the call arguments included.

        It is written beside `path` and renamed when it is complete: what fails leaves the file that was there.

        Raises ValueError if a call argument can be stored neither as one of these nor as JSON, or if the fields do not go
        together; OSError if the file system does not take the file.
        """
        tensors, metadata = {}, {"versions": _versions()}
        for one in fields(self):
            value, kind = getattr(self, one.name), one.metadata["kind"]
            if kind == "tensors":
                tensors.update({f"{one.name}.{i}": tensor for i, tensor in enumerate(value or [])})
            elif kind in ("tensor", "array"):
                if value is not None:
                    tensors[one.name] = torch.as_tensor(np.ascontiguousarray(value) if kind == "array" else value)
            elif kind == "call":
                arguments = files.pack(value, tensors)
                metadata[one.name] = {"arguments": arguments, "nets": value.nets, "shared": value.shared}
            else:
                metadata[one.name] = value
        try:
            text = json.dumps(metadata, default=files.plain)
            _check_metadata(files.parsed(text))
            _check_fields(self)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"the inversion cannot be saved: {error}") from error
        files.write(path, tensors, text)


def concatenate(parts: list[InversionOutput], prompt: Any, call: Call) -> InversionOutput:
    """The inversion of all images, from those of some of them; prompt, call: those of all."""

    def join(one):
        values, kind = [getattr(part, one.name) for part in parts], one.metadata["kind"]
        if one.name == "order":
            return values[0] if len(set(values)) == 1 else "passes"
        if one.metadata["per"] == "all" or values[0] is None:
            return values[0]
        if kind == "tensors":
            return [torch.cat(each) for each in zip(*values, strict=True)]
        if kind == "list":
            return [entry for value in values for entry in value]
        return torch.cat(values) if kind == "tensor" else np.concatenate(values, axis=-1)

    arguments = {**parts[0].call, **call, "generator": _joined(parts)}
    arguments = {name: value for name, value in arguments.items() if name != "generator" or value is not None}
    own = {"prompt": parts[0].prompt if prompt is None else prompt, "call": call.like(arguments).kept()}
    return InversionOutput(**{one.name: join(one) for one in fields(InversionOutput) if one.name not in own}, **own)


def _joined(parts):
    """The generators of all images, one each; None where several images have drawn from one, which all cannot."""
    found = []
    for part in parts:
        generator = part.call.get("generator")
        found += generator if isinstance(generator, list) else [generator]
    return found if None not in found and len(found) == sum(len(part.latents) for part in parts) else None


def _range(values, form="d"):
    low, high = np.nanmin(values), np.nanmax(values)
    return format(low, form) if low == high else f"{low:{form}}..{high:{form}}"


# ---------------------------------------------------------------------------------------------------------------- the file


def _versions():
    found = {}
    for name in ("nrinv", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load(path: Any, device: Any = "cpu") -> InversionOutput:
    """Read an `InversionOutput` that `save` has written, its tensors to `device`.

    Raises ValueError if the file is missing, truncated, changed, or not such a file; OSError if it cannot be read.
    """
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: {error}") from error
    try:
        form, tensors, metadata = files.read(path)
        if form == files.FIRST_FORMAT:
            tensors, metadata = _from_first_format(tensors, metadata)
        _check_metadata(metadata)
        inversion = _assemble(tensors, metadata, device)
        _check_fields(inversion)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"path: {str(path)!r} cannot be read as a saved inversion: {error}") from error
    return inversion


def _from_first_format(tensors, metadata):
    """Files of version 0.1.0: other names, and of the call's arguments only tensors and JSON."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("call"), dict):
        raise ValueError("call is no dictionary")
    renamed = {}
    for name, tensor in tensors.items():
        head, dot, tail = name.partition(".")
        new = _FIRST_FORMAT.get(head, head) + dot + tail
        if new in renamed:
            raise ValueError(f"two tensors are called {new!r}")
        renamed[new] = tensor
    arguments = {name: {"json": value} for name, value in metadata["call"].items()}
    arguments.update({name.removeprefix("call."): {"tensor": name} for name in tensors if name.startswith("call.")})
    return renamed, {**metadata, "call": {"arguments": arguments, "nets": 0, "shared": False}}


def _assemble(tensors, metadata, device):
    found, left = {}, dict(tensors)

    def take(name):
        if name not in left:
            raise ValueError(f"the tensor {name!r} is missing, or used twice")
        return left.pop(name)

    for one in fields(InversionOutput):
        name, kind = one.name, one.metadata["kind"]
        if kind == "tensors":
            count = sum(key.startswith(f"{name}.") for key in tensors)
            found[name] = [take(f"{name}.{i}").to(device) for i in range(count)] or None
        elif kind == "tensor":
            found[name] = take(name).to(device) if name in tensors else None
        elif kind == "array":
            found[name] = _array(name, take(name)) if name in tensors else None
        elif kind == "call":
            call = metadata[name]
            arguments = {key: files.unpack(value, take, device) for key, value in call["arguments"].items()}
            found[name] = Call(arguments, nets=call["nets"], shared=call["shared"])
        else:
            found[name] = metadata.get(name)
    if left:
        raise ValueError(f"nothing has a tensor {min(left)!r}")
    if found["latents"] is not None and found["latents"].ndim:
        found["call"].batch = len(found["latents"])
    return InversionOutput(**found)


def _array(name, tensor):
    try:
        return tensor.numpy()
    except TypeError as error:
        raise ValueError(f"{name} is no array: {error}") from error


# --------------------------------------------------------------------------------------------------- what a file may hold

# The dtypes that networks compute in.
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) of a file's metadata, from what the fields say of themselves."""
    properties = {one.name: one.metadata["schema"] for one in fields(InversionOutput) if "schema" in one.metadata}
    properties["versions"] = {"type": "object", "additionalProperties": {"type": "string"}}
    later = {one.name for one in fields(InversionOutput) if one.metadata.get("later")}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The metadata of a saved inversion",
        "type": "object",
        "required": [name for name in properties if name not in later],
        "additionalProperties": False,
        "properties": properties,
        "$defs": {"argument": files.ARGUMENT, "name": files.NAME},
    }


# A whole number is one without a decimal point, as in draft 4: 2.0 is no index.
_validator = extend(Draft202012Validator, type_checker=Draft4Validator.TYPE_CHECKER)(schema())


def _check_metadata(metadata):
    error = best_match(_validator.iter_errors(metadata))
    if error is not None:
        where = error.json_path.removeprefix("$").removeprefix(".") or "its metadata"
        text = error.message if len(error.message) < 200 else f"{error.message[:90]} ... {error.message[-90:]}"
        raise ValueError(f"{where}: {text}")
    _check_scheduler(metadata["scheduler"])


def _check_scheduler(name):
    """A name that diffusers has must be that of a scheduler; one that it has not may be a scheduler of one's own."""
    try:
        found = getattr(diffusers, name, None) if name is not None else None
    except (ImportError, RuntimeError):
        found = object
    bases = diffusers.SchedulerMixin, diffusers.ConfigMixin
    if found is not None and not (isinstance(found, type) and all(issubclass(found, base) for base in bases)):
        raise ValueError(f"scheduler: {name!r} is not the name of a scheduler of diffusers")


def _check_fields(inv):
    """Raises ValueError if the fields are not what they should be, one by one and beside each other."""
    values = [(one.name, getattr(inv, one.name), one.metadata) for one in fields(inv)]
    missing = [name for name, value, rules in values if value is None and rules.get("needed")]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    batch, evaluations = len(inv.latents) if inv.latents.ndim else 0, np.size(inv.timesteps)
    if inv.latents.numel() == 0 or inv.latents.ndim < 2 or not evaluations:
        raise ValueError(f"latents {list(inv.latents.shape)} and {evaluations} timesteps are nothing to draw from")
    sizes = {"B": batch, "E": evaluations, "S": evaluations + 1, "2": 2}
    reasons = batch * [None] if inv.reasons is None else inv.reasons
    if len(reasons) != batch:
        raise ValueError(f"reasons must be {batch}, one for each sample, got {len(reasons)}")
    usable = torch.tensor([reason != "non_finite" for reason in reasons])
    for name, value, rules in values:
        if value is None or (rules["kind"] == "tensors" and not value):
            continue
        if rules["kind"] == "array":
            _check_array(name, np.asarray(value), [sizes[axis] for axis in rules["axes"]], rules["numbers"])
        elif rules["kind"] == "tensor":
            _check_tensors(name, [value], inv.latents.shape, inv.latents.dtype, usable)
        elif rules["kind"] == "tensors":
            if "count" in rules and len(value) != evaluations + rules["count"]:
                raise ValueError(f"{name} must be {evaluations + rules['count']} tensors, got {len(value)}")
            _check_tensors(name, value, None, inv.latents.dtype if name == "noises" else None, usable)
    _check_states(inv)
    _check_call(inv.whole_call)
    _check_steps(inv)


def _check_array(name, value, shape, numbers):
    code, kind = {"whole": ("i", "whole numbers"), "bool": ("b", "bool")}.get(numbers, ("f", "floating-point numbers"))
    if list(value.shape) != shape or value.dtype.kind != code:
        raise ValueError(f"{name} must be {kind} {shape}, got {value.dtype} {list(value.shape)}")
    good = {
        "bool": np.ones(value.shape, bool),
        "whole": value >= 0,
        "size": ~(value < 0),
        "finite": np.isfinite(value),
        "any": np.ones(value.shape, bool),
    }[numbers]
    if not good.all():
        raise ValueError(f"{name} must not hold {value[~good].flat[0]}")


def _check_tensors(name, tensors, shape, dtype, usable):
    """shape, dtype: None where any will do that all have.  usable [B]: the samples whose numbers must be finite."""
    shape, dtype = tensors[0].shape if shape is None else shape, tensors[0].dtype if dtype is None else dtype
    for tensor in tensors:
        if tensor.dtype not in _DTYPES or (tensor.shape, tensor.dtype) != (shape, dtype):
            found = f"{tensor.dtype} {list(tensor.shape)}"
            raise ValueError(f"{name} must be floating-point numbers {list(shape)} as {dtype}, got {found}")
        if not tensor.ndim or len(tensor) != len(usable) or not tensor[usable.to(tensor.device)].isfinite().all():
            raise ValueError(f"{name} must hold finite numbers for {len(usable)} samples")


def _check_states(inv):
    """What the scheduler steps has one shape, and not more elements than the latents that the pipeline makes it from."""
    shapes = {tuple(states[0].shape) for states in (inv.noises, inv.trajectory, inv.defects) if states}
    if len(shapes) > 1 or any(np.prod(shape) > inv.latents.numel() for shape in shapes):
        raise ValueError(f"noises, trajectory and defects of shapes {sorted(shapes)} do not belong to the same latents")


def _check_steps(inv):
    """As far as the number of evaluations tells: PNDM makes up to 9 more to begin with, others one less than steps."""
    steps, found = inv.call.get("num_inference_steps"), inv.start + len(inv.timesteps)
    scheduler = getattr(diffusers, inv.scheduler or "", None)
    if steps is None or scheduler is None or any(inv.call.get(name) is not None for name in ("strength", *SCHEDULE[1:])):
        return
    most = getattr(scheduler, "order", 1) * steps + (9 if "skip_prk_steps" in inv.scheduler_config else 0)
    whole = inv.levels is not None and inv.levels[-1, 1] == 0  # else the loop may have taken the first part of them
    if found > most or (whole and found < steps - 1):
        raise ValueError(f"{len(inv.timesteps)} timesteps from {inv.start} on are not those of {steps} steps")


def _check_call(call):
    if call.batch % call.copies:
        raise ValueError(f"num_images_per_prompt must divide the {call.batch} images, got {call.copies}")
    call.check_prompt(call["prompt"])
