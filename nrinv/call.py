"""The arguments of a pipeline's call: which of them belongs to whom."""

import difflib
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

from .known import control_networks, parameters, takes_any, takes_references

# What the arguments of a call for several images are told by, beside the prompts.
COPIES = "num_images_per_prompt"
# What a call says of its schedule.
SCHEDULE = ("num_inference_steps", "timesteps", "sigmas")
# What `invert` reads beside the pipeline's own arguments, whether the pipeline knows it or not.
_SIZE = ("height", "width")


def is_prompt(name):
    return "prompt" in name and name != COPIES


def _is_image(name):
    """Control images, masks and the like.  What adapters are given is everybody's."""
    return ("image" in name or "mask" in name) and not is_prompt(name) and name != COPIES and not name.startswith("ip_")


class Call(dict):
    """The keyword arguments of one call of a pipeline that draws `batch` images; the prompt may be among them.

        a prompt's      names with "prompt": lists and tensors with one entry for each of the prompts
        an image's      names with "image" or "mask": lists, and arrays of at least 4 dimensions (embeddings: 2), with
                        one entry for each prompt too; for several ControlNets such an array for each, or for each prompt
                        a list of their images
        everybody's     all others, which may be as long as the batch by chance
        the callback's  names with "callback": they are nothing that draws the image again

    nets: how many ControlNets the pipeline has side by side.  shared: whether its images are references of every prompt.
    """

    def __init__(self, arguments=(), *, batch=1, nets=0, shared=False):
        super().__init__(arguments)
        self.batch, self.nets, self.shared = batch, nets, shared

    @classmethod
    def of(cls, pipe, arguments, batch):
        """Raises ValueError if there are neither one nor as many prompts as images, or num_images_per_prompt of each."""
        call = cls(arguments, batch=batch, nets=control_networks(pipe), shared=takes_references(pipe))
        if call.copies < 1 or batch % call.copies:
            raise ValueError(f"{COPIES} must divide the {batch} images, got {call.copies!r}")
        call.check_prompt(call.get("prompt"))
        call.check_embeds()
        return call

    @property
    def copies(self):
        return self.get(COPIES) or 1

    @property
    def entries(self):
        """How many prompts there are, one for each `copies` images."""
        return self.batch // self.copies

    def check_prompt(self, prompt):
        if prompt is None or isinstance(prompt, str):
            return
        if not isinstance(prompt, (list, tuple)) or not all(isinstance(one, str) for one in prompt):
            raise ValueError(f"prompt must be a string or a list of strings, got {prompt!r}")
        if len(prompt) != self.entries:
            images = "one for each image" if self.copies == 1 else f"{self.copies} images each"
            raise ValueError(f"prompt must be one prompt or {self.entries}, {images}, got {len(prompt)}")

    def check_embeds(self):
        for name, value in self.items():
            tensor = name.endswith("prompt_embeds") and isinstance(value, torch.Tensor)
            if tensor and value.shape[0] not in (1, self.entries):
                raise ValueError(f"{name} must hold {self.entries} prompts, one for each image, got {value.shape[0]}")

    def like(self, arguments, **changed):
        """A call with other arguments of the same kind."""
        return Call(arguments, **{**vars(self), **changed})

    def part(self, samples):
        """The call that draws some of the images, in this order, a range or a list; each has its own entries then."""
        entries = [i // self.copies for i in samples]
        arguments = {name: self._pick(name, value, entries) for name, value in self.items()}
        if self.copies > 1:
            arguments[COPIES] = 1
        if "generator" in arguments:
            arguments["generator"] = self._generators(arguments["generator"], samples)
        return self.like(arguments, batch=len(entries))

    def _generators(self, generator, samples):
        """Those of some images.  One that the images share draws for all of them together; a single image's can be given to
        each that is made of it."""
        if isinstance(generator, (list, tuple)) and len(generator) == self.batch:
            picked = [generator[i] for i in samples]
        elif self.batch == 1 and isinstance(generator, torch.Generator):
            picked = [generator.clone_state() for _ in samples]
        else:
            return generator
        return picked[0] if len(picked) == 1 else picked

    def split(self, size=None):
        """(samples, call) of parts of at most `size` images, all by default."""
        if size is None or size >= self.batch:
            return [(slice(0, self.batch), self)]
        bounds = [(first, min(first + size, self.batch)) for first in range(0, self.batch, size)]
        return [(slice(*bound), self.part(range(*bound))) for bound in bounds]

    def _pick(self, name, value, entries):
        least_ndim = 2 if is_prompt(name) or "embed" in name else 4
        nested = isinstance(value, (list, tuple)) and any(isinstance(one, (list, tuple)) for one in value)
        if _is_image(name) and self.nets and isinstance(value, (list, tuple)) and not nested:
            return [self._pick_from(one, entries, least_ndim) for one in value]
        if is_prompt(name) or (_is_image(name) and not self.shared):
            return self._pick_from(value, entries, least_ndim)
        return value

    def _pick_from(self, value, entries, least_ndim):
        if isinstance(value, (list, tuple)) and len(value) == self.entries:
            picked = [value[i] for i in entries]
            return picked[0] if len(picked) == 1 and isinstance(picked[0], str) else picked
        if isinstance(value, (torch.Tensor, np.ndarray)) and value.ndim >= least_ndim and len(value) == self.entries:
            return value[entries]
        return value

    def spread(self):
        """One prompt for all becomes one for each: pipelines take the batch size from the prompt."""
        call, count = self.like(self), self.entries
        for name, value in self.items() if count > 1 else ():
            if is_prompt(name) and isinstance(value, str):
                call[name] = [value] * count
            elif is_prompt(name) and isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
                call[name] = value.repeat(count, *(1 for _ in value.shape[1:]))
        return call

    def with_prompt(self, prompt):
        """The call with another prompt: the embeddings of the old one would win over it."""
        call = self if self.copies == 1 else self.part(range(self.batch))
        call.check_prompt(prompt)
        kept = {name: value for name, value in call.items() if not is_prompt(name) or name.startswith("negative")}
        return call.like({**kept, "prompt": prompt})

    def to(self, device, dtype):
        """The call with its floating-point tensors, but those of the schedule, on a device and in a dtype."""

        def moved(value):
            if isinstance(value, torch.Tensor):
                return value.to(device, dtype if value.is_floating_point() else None)
            if type(value) in (list, tuple):
                return type(value)(moved(one) for one in value)
            return {key: moved(one) for key, one in value.items()} if type(value) is dict else value

        return self.like({name: value if name in SCHEDULE else moved(value) for name, value in self.items()})

    def kept(self):
        """What draws the image again."""
        return self.like({name: value for name, value in self.items() if "callback" not in name and name != "prompt"})

    def for_pipeline(self, pipe):
        """The arguments that the pipeline's call takes."""
        known, any_other = parameters(pipe), takes_any(pipe)
        return {name: value for name, value in self.items() if name in known or any_other}


F = TypeVar("F", bound=Callable[..., Any])


def known_names(function: F) -> F:
    """Make a keyword that neither `function` nor the call of its pipeline takes a TypeError that names the nearest one.

    function: its first argument is the pipeline if it has **keywords, which are the pipeline's then.
    """
    own = inspect.signature(function).parameters
    passes_on = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values())

    @functools.wraps(function)
    def checked(*args: Any, **kwargs: Any):
        unknown = [name for name in kwargs if name not in own]
        if unknown:
            pipe = args[0] if args else kwargs.get("pipe")
            names = {*own, *_SIZE, *parameters(pipe)} if passes_on else set(own)
            unknown = [name for name in unknown if name not in names]
        if unknown and not (passes_on and takes_any(pipe)):
            near = difflib.get_close_matches(unknown[0], sorted(names), 1)
            taker = f"{function.__name__}() and {type(pipe).__name__} take" if passes_on else f"{function.__name__}() takes"
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise TypeError(f"{taker} no argument {unknown[0]!r}{hint}")
        return function(*args, **kwargs)

    return checked  # type: ignore[return-value]
