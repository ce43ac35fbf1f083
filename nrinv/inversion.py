"""What an inversion gives back, and its file format."""

import json
from dataclasses import dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

FORMAT = "nrinv-inversion-1"
# Fields kept as one array, and as a list of tensors.
ARRAYS = ("timesteps", "residuals", "step_nfe", "nfe", "error", "correction_size", "correction_cost")
LISTS = ("noises", "trajectory", "corrections")


@dataclass
class InversionOutput(BaseOutput):
    """The noise from which a pipeline draws an image, and how well and at what cost it was found.

    latents [B, ...]: the noise, as `pipe(latents=...)` wants it.
    noises: K tensors [B, ...] a stochastic scheduler draws, in its order; None for a deterministic one.
    timesteps [E]: of the sampler's evaluations.  start: the first of them in the full schedule (0 unless strength < 1).
    residuals [E, B]: |f(z) - z| / |z| at the last evaluation of each step: the reconstruction error of that step.
    step_nfe [E, B], nfe [B]: network evaluations per step of the last sweep, and in all.
    reasons: for each sample why it ended; `nrinv.reasons()` explains the names.
    error [B]: |z_0 - sampler(z_T)| / |z_0|, end to end, where it was measured (refine, verify); else NaN.
    trajectory: E + 1 states from z_T to z_0, if asked for.
    corrections: E tensors [B, ...], what each evaluation of a stock run from the noise misses the trajectory by, if asked
    for; `generate(..., replay=True)` adds them.  The other fields describe the noise alone.
    corrected [B, ...]: the latents that were inverted, if the encoded image was corrected (`invert(..., correct=...)`), and
    for each image how far that moved it, |corrected - encoded| / |encoded|, and what it cost in dB of PSNR against the
    image: correction_size [B], correction_cost [B].
    order: how the pipeline was driven, "reversed" or in whole "passes".
    prompt, call: what to call the pipeline with, beside `latents`.
    stats: how natural the noise is.
    pipeline, scheduler, scheduler_config: class names and configuration the inversion was made with.
    """

    latents: torch.Tensor
    noises: list | None = None
    timesteps: np.ndarray | None = None
    start: int = 0
    residuals: np.ndarray | None = None
    step_nfe: np.ndarray | None = None
    nfe: np.ndarray | None = None
    reasons: list | None = None
    error: np.ndarray | None = None
    trajectory: list | None = None
    corrections: list | None = None
    corrected: torch.Tensor | None = None
    correction_size: np.ndarray | None = None
    correction_cost: np.ndarray | None = None
    order: str = "reversed"
    prompt: Any = None
    call: dict = field(default_factory=dict)
    pipeline: str | None = None
    scheduler: str | None = None
    scheduler_config: dict = field(default_factory=dict)

    @property
    def stats(self):
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

    def split(self):
        """The inversions of the single images, a list of B."""
        count = len(self.latents)
        if count == 1:
            return [self]
        copies = self.call.get("num_images_per_prompt") or 1

        def part(name, value, i):
            if value is None or name in ("timesteps", "start", "order", "pipeline", "scheduler", "scheduler_config"):
                return value
            if name in LISTS:
                return [one[i : i + 1] for one in value]
            if name in ("residuals", "step_nfe"):
                return value[:, i : i + 1]
            if name == "call":
                call = {key: _of(key, one, i // copies, count // copies) for key, one in value.items()}
                return {**call, "num_images_per_prompt": 1} if copies > 1 else call
            if name == "prompt":
                return value if isinstance(value, str) else value[i // copies]
            return value[i : i + 1]

        names = [one.name for one in fields(self)]
        return [type(self)(**{name: part(name, getattr(self, name), i) for name in names}) for i in range(count)]

    def plot_residuals(self, axes=None, label=None):
        """Draw the residual of each step, and of each image, over the timesteps; returns matplotlib's axes.

        axes: matplotlib axes; by default a new figure's.  Needs matplotlib.
        """
        from .plots import plot_residuals

        return plot_residuals(self, axes, label)

    def save(self, path):
        """Write everything to one safetensors file; tensors among the call arguments included.

        Raises ValueError if a call argument can be stored neither as a tensor nor as JSON.
        """
        tensors = {"latents": self.latents}
        if self.corrected is not None:
            tensors["corrected"] = self.corrected
        for name in LISTS:
            tensors.update({f"{name}.{i}": tensor for i, tensor in enumerate(getattr(self, name) or [])})
        for name in ARRAYS:
            if getattr(self, name) is not None:
                tensors[name] = torch.from_numpy(np.ascontiguousarray(getattr(self, name)))
        call = {}
        for name, value in self.call.items():
            if isinstance(value, torch.Tensor):
                tensors[f"call.{name}"] = value
            else:
                call[name] = value
        metadata = {name: getattr(self, name) for name in ("start", "reasons", "order", "prompt", "pipeline", "scheduler")}
        metadata.update(call=call, scheduler_config=self.scheduler_config, versions=_versions())
        try:
            text = json.dumps(metadata, default=_plain)
        except TypeError as error:
            raise ValueError(f"call: an argument cannot be saved: {error}") from error
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
        save_file(tensors, str(path), metadata={"format": FORMAT, "nrinv": text})


def concatenate(parts, prompt, call):
    """The inversion of all images, from those of some of them."""

    def join(name):
        values = [getattr(part, name) for part in parts]
        if any(value is None for value in values):
            return None
        if name in ("latents", "corrected"):
            return torch.cat(values)
        if name in LISTS:
            return [torch.cat(each) for each in zip(*values, strict=True)]
        return np.concatenate(values, axis=-1)

    same = {name: getattr(parts[0], name) for name in ("timesteps", "start", "pipeline", "scheduler", "scheduler_config")}
    names = ("latents", "corrected", *(name for name in ARRAYS if name != "timesteps"), *LISTS)
    orders = {part.order for part in parts}
    return InversionOutput(
        **{name: join(name) for name in names},
        **same,
        reasons=[reason for part in parts for reason in part.reasons],
        order=orders.pop() if len(orders) == 1 else "passes",
        prompt=parts[0].prompt if prompt is None or isinstance(prompt, str) else prompt,
        call={**parts[0].call, **call},
    )


def _of(name, value, i, count):
    """What belongs to image i of `count` in an argument of the pipeline's call; others than prompts are everybody's."""
    if "prompt" not in name:
        return value
    if isinstance(value, (list, tuple)) and len(value) == count:
        return value[i]
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == count:
        return value[i : i + 1]
    return value


def _plain(value):
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is neither a tensor nor JSON")


def _versions():
    found = {}
    for name in ("nrinv", "torch", "diffusers", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def load(path, device="cpu"):
    """Read an `InversionOutput` that `save` has written.

    Raises ValueError if the file is missing, truncated, or not such a file.
    """
    try:
        with safe_open(str(path), framework="pt", device=str(device)) as file:
            header = file.metadata() or {}
            if header.get("format") != FORMAT:
                raise ValueError(f"path: {str(path)!r} is not an inversion saved by nrinv")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
        metadata = json.loads(header["nrinv"])
        return _assemble(tensors, metadata)
    except (OSError, SafetensorError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"path: {str(path)!r} cannot be read as a saved inversion: {error}") from error


def _assemble(tensors, metadata):
    metadata.pop("versions")
    call = metadata.pop("call")
    call.update({name.removeprefix("call."): t for name, t in tensors.items() if name.startswith("call.")})
    fields = {name: tensors[name].cpu().numpy() for name in ARRAYS if name in tensors}
    for name in LISTS:
        count = sum(key.startswith(f"{name}.") for key in tensors)
        fields[name] = [tensors[f"{name}.{i}"] for i in range(count)] or None
    return InversionOutput(latents=tensors["latents"], corrected=tensors.get("corrected"), call=call, **fields, **metadata)
