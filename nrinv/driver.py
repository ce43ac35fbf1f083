"""Drives a stock pipeline with a scheduler in the place of its own: its calls, their arguments, and what is put back."""

import inspect

import diffusers
import numpy as np
import torch

from .host import RandomState, compaction, gradients, kept_processors, parameters, slices, swapped_scheduler
from .latents import image_size
from .scheduler import Finished, learn_layout

# Pipelines, by class name, whose loop is no sampler of their one scheduler, and what it does instead.
_REFUSED = {
    "CosmosTextToWorldPipeline": "steps its scheduler twice for each timestep",
    "CosmosVideoToWorldPipeline": "steps its scheduler twice for each timestep",
    "LTXConditionPipeline": "draws its own noise whatever latents it is given",
    "StableDiffusionPanoramaPipeline": "steps a copy of its scheduler for each view",
}


def check_whole(name, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def check_pipeline(pipe):
    """Refuse pipelines whose loop is known to be no sampler of its scheduler alone."""
    name, known = type(pipe).__name__, parameters(pipe)
    for cls in type(pipe).__mro__:
        if cls.__name__ in _REFUSED:
            raise ValueError(f"pipe: {cls.__name__} {_REFUSED[cls.__name__]}, which cannot be inverted")
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"pipe: {name} has no scheduler of its own; give the pipelines it is made of")
    if "latents" not in known and "strength" not in known:
        raise ValueError(f"pipe: {name} takes no latents, so nothing can be drawn from the noise that would be found")
    network = next((getattr(pipe, part) for part in ("unet", "transformer") if getattr(pipe, part, None) is not None), None)
    if "mask_image" in known and network is not None:
        taken, drawn = (
            network.config.get("in_channels"),
            network.config.get("out_channels") or network.config.get("in_channels"),
        )
        if taken == drawn:
            raise ValueError(
                f"pipe: {name} with a network that does not take the mask mixes the known part of the image in after each "
                "step, which cannot be inverted; invert with the text-to-image pipeline and give mask_image to generate"
            )


def check_prompts(prompt, pipe_kwargs, batch):
    copies = pipe_kwargs.get("num_images_per_prompt") or 1
    if copies < 1 or batch % copies:
        raise ValueError(f"num_images_per_prompt must divide the {batch} images, got {copies!r}")
    check_prompt(prompt, batch // copies, batch)
    for name, value in pipe_kwargs.items():
        if name.endswith("prompt_embeds") and isinstance(value, torch.Tensor) and value.shape[0] not in (1, batch // copies):
            raise ValueError(f"{name} must hold {batch // copies} prompts, one for each image, got {value.shape[0]}")


def check_prompt(prompt, count, batch):
    if prompt is None or isinstance(prompt, str):
        return
    if not isinstance(prompt, (list, tuple)) or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt must be a string or a list of strings, got {prompt!r}")
    if len(prompt) != count:
        images = "one for each image" if count == batch else f"{batch // count} images each"
        raise ValueError(f"prompt must be one prompt or {count}, {images}, got {len(prompt)}")


def per_sample(arguments, batch):
    """One prompt for all becomes one for each: pipelines take the batch size from the prompt."""
    count = batch // (arguments.get("num_images_per_prompt") or 1)

    def spread(name, value):
        if "prompt" not in name or count == 1:
            return value
        if isinstance(value, str):
            return [value] * count
        if isinstance(value, torch.Tensor) and value.ndim and value.shape[0] == 1:
            return value.repeat(count, *(1 for _ in value.shape[1:]))
        return value

    return {name: spread(name, value) for name, value in arguments.items()}


class Driver:
    """One batch on its way: the call that draws it, and the schedulers that take turns in making it.

    target: the latents [B, ...] that are worked on.  image, prompt, call, generator: as `invert` has them.  size: height and
    width of the image in pixels, if it was one.
    """

    def __init__(self, pipe, target, image, prompt, call, generator, strength, size=(None, None)):
        self.pipe, self.target, self.prompt, self.generator = pipe, target, prompt, generator
        known = parameters(pipe)
        size = image_size(pipe, target, height=size[0], width=size[1])
        call = {**call, **{name: n for name, n in size.items() if call.get(name) is None}}
        self.strength = strength
        if slices(pipe):
            call = {"image": image, **call, "strength": strength}
            self.strength = 1.0
        self.call = call
        embedded = any("prompt_embeds" in name and not name.startswith("negative") for name in call)
        if prompt is None and not embedded:
            self.prompt = ""
        self.arguments = per_sample({**call, "prompt": self.prompt}, target.shape[0])
        self.arguments = {name: value for name, value in self.arguments.items() if name != "prompt" or name in known}
        self.random = RandomState(generator)
        self.spent = 0

    @property
    def name(self):
        return type(self.pipe).__name__

    def run_pipeline(self, scheduler, start, *, newton=False):
        """One call of the pipeline; False if it has returned by itself."""
        pipe, known = self.pipe, parameters(self.pipe)
        host = {"latents": start, "generator": self.generator, "output_type": "latent", "return_dict": True}
        host = {name: value for name, value in host.items() if name in known}
        self.random.restore()
        with (
            swapped_scheduler(pipe, scheduler),
            kept_processors(pipe),
            gradients(pipe, newton) as call_pipe,
            compaction(pipe, lambda: getattr(scheduler, "active", None)),
        ):
            try:
                call_pipe(**host, **self._watched(scheduler))
            except Finished:
                pipe.maybe_free_model_hooks()  # what the pipeline does after its loop
                return True
        return False

    def _watched(self, scheduler):
        """The arguments, with an eye on a callback that changes the call: it does so at some index of the loop."""
        callback = self.arguments.get("callback_on_step_end")
        if not inspect.isroutine(callback) or not hasattr(scheduler, "leave") or scheduler.driving == "passes":
            return self.arguments

        def watched(pipe, i, t, values):
            before, guidance = dict(values), getattr(pipe, "_guidance_scale", None)
            returned = callback(pipe, i, t, values) or {}
            if any(one is not before.get(name) for name, one in returned.items()) or guidance != getattr(
                pipe, "_guidance_scale", None
            ):
                scheduler.leave("the callback changes the call at an index of the loop")
            return returned

        return {**self.arguments, "callback_on_step_end": watched}

    def drive(self, make, *, doubtful=False, newton=False):
        """The scheduler make(latents, layout) when it has its result, or is `unfollowed`."""
        layout = None
        while True:
            start = self.target.detach().clone().requires_grad_(newton)
            scheduler = make(start, layout)
            scheduler.loop_length = lambda: getattr(self.pipe, "_num_timesteps", None)
            while scheduler.result is None and not scheduler.unlaid and not scheduler.unfollowed:
                try:
                    left = self.run_pipeline(scheduler, start, newton=newton)
                except IndexError as error:  # a list with an entry for each round of the loop, which has got longer
                    if not doubtful:
                        raise
                    scheduler.unfollowed = f"its loop raised IndexError: {error}"
                    continue
                if not left:
                    if getattr(self.pipe, "interrupt", False):
                        raise RuntimeError("pipe: its loop was interrupted before the inversion was done")
                    scheduler.call_ended()
            self.spent += scheduler.spent
            if not scheduler.unlaid:
                return scheduler
            if layout is not None:
                raise ValueError(f"pipe: {self.name} changes its latents before its loop in a way of its own")
            layout = learn_layout(self.pipe.scheduler, self.target, self.run_pipeline)
            self.spent += 1

    def orders(self, order):
        """In which orders the pipeline may be driven, the best first."""
        callback = self.call.get("callback_on_step_end")
        if order != "auto":
            return (order,)
        if callable(callback) and not inspect.isroutine(callback):  # made to change the call at some index of the loop
            return ("passes",)
        return ("reversed", "passes")


def stock_scheduler(pipe, inv):
    """The scheduler the inversion was made with: the pipeline's own if it is that, else one of the same configuration."""
    own = pipe.scheduler
    if inv.scheduler is None:
        return own
    if type(own).__name__ == inv.scheduler and _comparable(own.config) == _comparable(inv.scheduler_config):
        return own
    cls = getattr(diffusers, inv.scheduler, None)
    if cls is None:
        raise ValueError(f"inv: diffusers has no scheduler {inv.scheduler}; set it on the pipeline yourself")
    return cls.from_config(inv.scheduler_config)


def _comparable(config):
    """A configuration without diffusers' private entries, as it looks after a trip through JSON."""
    plain = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, (tuple, np.ndarray)) else value for name, value in plain.items()}
