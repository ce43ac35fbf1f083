"""What an inversion gives back, and its file format."""

import json
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .call import Call

FORMAT = "nrinv-inversion-2"
# What fields were called in files of the first format.
_FIRST_FORMAT = {
    "corrections": "defects",
    "correction_size": "moved",
    "correction_cost": "psnr_loss",
}


# What a field is made of, and whose it is: "tensor" [B, ...]; "tensors", a list of such; "array", whose last axis is the
# samples; "list", one entry a sample; "json"; "prompt" and "call".
TENSOR, TENSORS, ARRAY, LIST, PROMPT, CALL = (
    {"kind": kind, "per": "sample"} for kind in ("tensor", "tensors", "array", "list", "prompt", "call")
)
COMMON_ARRAY, COMMON = ({"kind": kind, "per": "all"} for kind in ("array", "json"))


@dataclass(repr=False)
class InversionOutput(BaseOutput):
    """The noise from which a pipeline draws an image, and how well and at what cost it was found.

    latents [B, ...]: the noise, as `pipe(latents=...)` wants it.
    noises: K tensors [B, ...] a stochastic scheduler draws, in its order; None for a deterministic one.
    timesteps [E]: of the sampler's evaluations.  start: the first of them in the full schedule (0 unless strength < 1).
    residuals [E, B]: |f(z) - z| / |z| at the last evaluation of each step: the reconstruction error of that step.
    step_nfe [E, B], nfe [B]: network evaluations per step of the last sweep, and in all.
    restarts, rejected, failed [B]: how often the solver went back to its best point, could not use a mixture of what it had
    seen, and met values that are not finite.
    reasons: for each sample why it ended; `nrinv.reasons()` explains the names.
    error [B]: |z_0 - sampler(z_T)| / |z_0|, end to end, where it was measured (rounds, verify); else NaN.
    trajectory: E + 1 states from z_T to z_0, if asked for.
    defects: E tensors [B, ...], what each evaluation of a stock run from the noise misses the trajectory by, if asked for;
    `generate(..., replay=1)` adds them.  The other fields describe the noise alone.
    corrected [B, ...]: the latents that were inverted, if the encoded image was corrected (`invert(..., correct=...)`), and
    for each image how far that moved it, |corrected - encoded| / |encoded|, and the PSNR in dB that the decoded image has
    lost against the image: moved [B], psnr_loss [B].
    order: how the pipeline was driven, "reversed" or in whole "passes".
    prompt, call: what to call the pipeline with, beside `latents`.
    stats: how natural the noise is.
    pipeline, scheduler, scheduler_config: class names and configuration the inversion was made with.
    """

    latents: torch.Tensor = field(metadata=TENSOR)
    noises: list[torch.Tensor] | None = field(default=None, metadata=TENSORS)
    timesteps: np.ndarray | None = field(default=None, metadata=COMMON_ARRAY)
    start: int = field(default=0, metadata=COMMON)
    residuals: np.ndarray | None = field(default=None, metadata=ARRAY)
    step_nfe: np.ndarray | None = field(default=None, metadata=ARRAY)
    nfe: np.ndarray | None = field(default=None, metadata=ARRAY)
    restarts: np.ndarray | None = field(default=None, metadata=ARRAY)
    rejected: np.ndarray | None = field(default=None, metadata=ARRAY)
    failed: np.ndarray | None = field(default=None, metadata=ARRAY)
    reasons: list[str] | None = field(default=None, metadata=LIST)
    error: np.ndarray | None = field(default=None, metadata=ARRAY)
    trajectory: list[torch.Tensor] | None = field(default=None, metadata=TENSORS)
    defects: list[torch.Tensor] | None = field(default=None, metadata=TENSORS)
    corrected: torch.Tensor | None = field(default=None, metadata=TENSOR)
    moved: np.ndarray | None = field(default=None, metadata=ARRAY)
    psnr_loss: np.ndarray | None = field(default=None, metadata=ARRAY)
    order: str = field(default="reversed", metadata=COMMON)
    prompt: Any = field(default=None, metadata=PROMPT)
    call: Call = field(default_factory=Call, metadata=CALL)
    pipeline: str | None = field(default=None, metadata=COMMON)
    scheduler: str | None = field(default=None, metadata=COMMON)
    scheduler_config: dict[str, Any] = field(default_factory=dict, metadata=COMMON)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.latents.shape))
        lines = [f"latents {shape}, {str(self.latents.dtype).removeprefix('torch.')}, prompt {self.prompt!r}"]
        if self.timesteps is not None:
            part = f" from step {self.start} on" if self.start else ""
            lines.append(f"{self.pipeline}, {self.scheduler}, {len(self.timesteps)} evaluations{part}, {self.order}")
        if self.nfe is not None and self.residuals is not None:
            lines.append(f"network evaluations {_range(self.nfe)}, residuals up to {np.nanmax(self.residuals):.1e}")
        if self.error is not None and not np.isnan(self.error).all():
            lines.append(f"error {_range(self.error, '.1e')}")
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
        if count == 1:
            return [self]
        calls = [self.whole_call.part(range(i, i + 1)) for i in range(count)]

        def part(one, i):
            value, kind = getattr(self, one.name), one.metadata["kind"]
            if kind in ("prompt", "call"):
                return calls[i]["prompt"] if kind == "prompt" else calls[i].kept()
            if value is None or one.metadata["per"] == "all":
                return value
            if kind == "tensors":
                return [x[i : i + 1] for x in value]
            return value[..., i : i + 1] if kind == "array" else value[i : i + 1]

        return [type(self)(**{one.name: part(one, i) for one in fields(self)}) for i in range(count)]

    def plot_residuals(self, axes: Any = None, label: str | None = None) -> Any:
        """Draw the residual of each step, and of each image, over the timesteps; returns matplotlib's axes.

        axes: matplotlib axes; by default a new figure's.  Needs matplotlib.
        """
        from .plots import plot_residuals

        return plot_residuals(self, axes, label)

    def save(self, path: Any) -> None:
        """Write everything to one safetensors file; tensors, arrays and images among the call arguments included.

        Raises ValueError if a call argument can be stored neither as one of these nor as JSON.
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
                arguments = {name: _argument(name, part, tensors) for name, part in value.items()}
                metadata[one.name] = {"arguments": arguments, "nets": value.nets, "shared": value.shared}
            else:
                metadata[one.name] = value
        text = json.dumps(metadata, default=_plain)
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, str(path), metadata={"format": FORMAT, "nrinv": text})


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

    own = {"prompt": parts[0].prompt if prompt is None else prompt, "call": call.like({**parts[0].call, **call}).kept()}
    return InversionOutput(**{one.name: join(one) for one in fields(InversionOutput) if one.name not in own}, **own)


def _range(values, form="d"):
    low, high = np.nanmin(values), np.nanmax(values)
    return format(low, form) if low == high else f"{low:{form}}..{high:{form}}"


# ---------------------------------------------------------------------------------------------------------------- the file


# Kinds of images whose pixels say everything; others are kept as RGB.
_MODES = ("L", "RGB", "RGBA", "I", "I;16", "F")


def _argument(name, value, tensors):
    packed = _packed(name, value, tensors)
    try:
        json.dumps(packed, default=_plain)
    except TypeError as error:
        raise ValueError(f"call: argument {name!r} cannot be saved: {error}") from error
    return packed


def _packed(name, value, tensors):
    """JSON that stands for an argument; the numbers it holds go to `tensors`."""
    if isinstance(value, dict):
        return {"dict": {key: _packed(f"{name}.{key}", one, tensors) for key, one in value.items()}}
    if isinstance(value, (list, tuple)):
        return {"list": [_packed(f"{name}.{i}", one, tensors) for i, one in enumerate(value)]}
    if isinstance(value, Image.Image):
        value = value if value.mode in _MODES else value.convert("RGB")
        tensors[f"call.{name}"] = torch.from_numpy(np.array(value))
        return {"image": f"call.{name}"}
    if isinstance(value, (torch.Tensor, np.ndarray)):
        tensors[f"call.{name}"] = torch.as_tensor(value)
        return {"tensor" if isinstance(value, torch.Tensor) else "array": f"call.{name}"}
    return {"json": value}


def _unpacked(packed, tensors):
    ((kind, value),) = packed.items()
    if kind == "dict":
        return {key: _unpacked(one, tensors) for key, one in value.items()}
    if kind == "list":
        return [_unpacked(one, tensors) for one in value]
    if kind == "json":
        return value
    tensor = tensors[value]
    if kind == "tensor":
        return tensor
    return Image.fromarray(tensor.cpu().numpy()) if kind == "image" else tensor.cpu().numpy()


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a tensor, an image nor JSON")


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

    Raises ValueError if the file is missing, truncated, or not such a file.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") not in (FORMAT, "nrinv-inversion-1"):
                raise ValueError(f"path: {str(path)!r} is not an inversion saved by nrinv")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = json.loads(header["nrinv"])
        if header["format"] != FORMAT:
            tensors, metadata = _from_first_format(tensors, metadata)
        return _assemble(tensors, metadata)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {str(path)!r} cannot be read as a saved inversion: {error}") from error


def _from_first_format(tensors, metadata):
    """Files of version 0.1.0: other names, and of the call's arguments only tensors and JSON."""
    renamed = {}
    for name, tensor in tensors.items():
        head, dot, tail = name.partition(".")
        renamed[_FIRST_FORMAT.get(head, head) + dot + tail] = tensor
    arguments = {name: {"json": value} for name, value in metadata["call"].items()}
    arguments.update({name.removeprefix("call."): {"tensor": name} for name in tensors if name.startswith("call.")})
    return renamed, {**metadata, "call": {"arguments": arguments, "nets": 0, "shared": False}}


def _assemble(tensors, metadata):
    found = {}
    for one in fields(InversionOutput):
        name, kind = one.name, one.metadata["kind"]
        if kind == "tensors":
            count = sum(key.startswith(f"{name}.") for key in tensors)
            found[name] = [tensors[f"{name}.{i}"] for i in range(count)] or None
        elif kind == "tensor":
            found[name] = tensors["latents"] if name == "latents" else tensors.get(name)
        elif kind == "array":
            found[name] = tensors[name].cpu().numpy() if name in tensors else None
        elif kind == "call":
            call = metadata[name]
            arguments = {key: _unpacked(value, tensors) for key, value in call["arguments"].items()}
            found[name] = Call(arguments, batch=len(tensors["latents"]), nets=call["nets"], shared=call["shared"])
        else:
            found[name] = metadata[name]
    return InversionOutput(**found)
