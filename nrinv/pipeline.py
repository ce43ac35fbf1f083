"""Invert an image with a stock diffusers pipeline, and draw from the noise that was found."""

import inspect

import diffusers
import numpy as np
import torch

from .host import RandomState, compaction, gradients, kept_processors, parameters, reads_index, slices, swapped_scheduler
from .inversion import InversionOutput, concatenate
from .latents import encode_pixels, image_size, is_latents, mask_like, read_images
from .replay import Recorder, ReplayScheduler
from .scheduler import ORDERS, Finished, InverseScheduler, closeness, learn_layout

# Arguments of one call that say nothing about how to draw the image again.
_TRANSIENT = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
# What LEDITS++ calls the same things, and what they mean here.
_ALIASES = {
    "source_prompt": ("prompt", lambda value: value),
    "source_guidance_scale": ("guidance_scale", lambda value: value),
    "num_inversion_steps": ("num_inference_steps", lambda value: value),
    "skip": ("strength", lambda value: 1 - value),
}
# A stock run that is off the trajectory by more than the solver says, this many times and beyond rounding, is another map.
_MISSED, _ROUNDING = 2.0, 1e-3


# Pipelines, by class name, whose loop is no sampler of their one scheduler, and what it does instead.
_REFUSED = {
    "CosmosTextToWorldPipeline": "steps its scheduler twice for each timestep",
    "CosmosVideoToWorldPipeline": "steps its scheduler twice for each timestep",
    "LTXConditionPipeline": "draws its own noise whatever latents it is given",
    "StableDiffusionPanoramaPipeline": "steps a copy of its scheduler for each view",
}


def _resolve_aliases(given, defaults, pipe_kwargs):
    """Arguments under the names of LEDITS++, moved to ours; `defaults` tells what is not given."""
    for alias, (name, convert) in _ALIASES.items():
        if alias in pipe_kwargs:
            if given[name] is not None and given[name] != defaults[name]:
                raise ValueError(f"{alias} is another name of {name}: give one of them")
            given[name] = convert(pipe_kwargs.pop(alias))
    return given


def _check_options(pipe, strength, num_inference_steps, seed, order, batch_size, pipe_kwargs):
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if batch_size is not None and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be a whole number of at least 1, got {batch_size!r}")
    if "latents" in pipe_kwargs:
        raise ValueError("latents: what is to be inverted is given as `image`, which may hold latents")
    _check_pipeline(pipe)


def _check_pipeline(pipe):
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


def _check_prompts(prompt, pipe_kwargs, batch):
    copies = pipe_kwargs.get("num_images_per_prompt") or 1
    if copies < 1 or batch % copies:
        raise ValueError(f"num_images_per_prompt must divide the {batch} images, got {copies!r}")
    _check_prompt(prompt, batch // copies, batch)
    for name, value in pipe_kwargs.items():
        if name.endswith("prompt_embeds") and isinstance(value, torch.Tensor) and value.shape[0] not in (1, batch // copies):
            raise ValueError(f"{name} must hold {batch // copies} prompts, one for each image, got {value.shape[0]}")


def _check_prompt(prompt, count, batch):
    if prompt is None or isinstance(prompt, str):
        return
    if not isinstance(prompt, (list, tuple)) or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt must be a string or a list of strings, got {prompt!r}")
    if len(prompt) != count:
        images = "one for each image" if count == batch else f"{batch // count} images each"
        raise ValueError(f"prompt must be one prompt or {count}, {images}, got {len(prompt)}")


def _per_sample(arguments, batch):
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


@torch.no_grad()
def invert(
    pipe,
    image=None,
    /,
    prompt=None,
    *,
    num_inference_steps=None,
    guidance_scale=None,
    generator=None,
    strength=1.0,
    solver="auto",
    max_nfe=None,
    tol=1e-4,
    refine=None,
    prior=0.0,
    noise="record",
    order="auto",
    replay=False,
    verify=False,
    return_trajectory=False,
    return_dict=True,
    batch_size=None,
    atol=0.0,
    depth=5,
    lam=0.1,
    floor=0.5,
    extrapolation=1.0,
    predictor=True,
    seed=0,
    **pipe_kwargs,
):
    """Find the noise from which `pipe` draws `image`; returns an `InversionOutput` whose first field is `latents`.

    pipe: a diffusers pipeline, used as it is and left as it was: scheduler, configuration, hooks, also after an exception.
    image: see `encode`; B images are inverted together, each with its own stopping.  It is given by position: `image=` is
    the pipeline's own argument of that name (the control image of a ControlNet), unless the pipeline has none.
    prompt: one for all or one for each image; None is the empty prompt, unless `prompt_embeds` are given.
    num_inference_steps, guidance_scale (default: the pipeline's own), generator, **pipe_kwargs: passed to the pipeline's
    call (`negative_prompt`, `prompt_embeds`, `num_images_per_prompt`, `callback_on_step_end` ...).  Callbacks run once an
    evaluation.  LEDITS++' names are understood: source_prompt, source_guidance_scale, num_inversion_steps, skip.
    strength: invert the last part of the steps only, above 0 and at most 1; `generate` goes on from there.
    batch_size: invert at most so many images together (default: all).  A batch takes the memory of a stock call and, in
    float32, about 30 latents an image with the default depth; in whole passes 18 more for each evaluation of the sampler.
    Noises, and the trajectory if it is kept, come on top.  Samples that are done leave the network's batch.

    solver: "auto", Anderson acceleration (`depth` vectors of memory) with the evaluations dealt out to the steps by what the
    scheduler's linear form tells; "anderson", the same number for every step; "fixed_point"; "newton", the scalar
    Newton-Raphson of arXiv 2312.12540 (weight `lam` of its prior, `floor` of its gradient), which differentiates the
    network: memory of a training step without weight gradients, each product with the Jacobian counted as an evaluation.
    max_nfe: network evaluations a step, on average; default 4 up to 8 steps, 3 beyond, 1 where the scheduler needs `refine`,
    20 in whole passes.
    predictor: start each step from the step before, the first one from a natural noisy image drawn with `seed`; other seeds
    find other noises of the same image.  False: from the state itself.
    tol: a step ends at a relative residual of tol; `atol`: or at a root mean square of atol.
    refine: rounds of defect correction; default 0, or 3 for schedulers that remember older network outputs (DPM++ 2M,
    UniPC, PNDM, Heun ...); whole passes know what is remembered, and make further passes of the rounds.
    extrapolation: how far a sweep extrapolates what such a scheduler remembers, 0..1.
    prior: weight of Lavrentiev's regularisation, z = (f(z) + prior mu) / (1 + prior) with mu the step's first guess; trades
    reconstruction for natural noise where a step is ill-posed (few steps, the step to sigma 0); default none.
    noise: "record" draws the noise of a stochastic scheduler from `generator` in the pipeline's own order; "absorb" draws
    the states instead and lets the noises take up what the steps leave (`noises`, which `generate` replays): few-step
    stochastic samplers then reconstruct well from natural noise.
    order: "reversed" visits the timesteps from the image to the noise, each as often as the solver wants; "passes" runs the
    pipeline's loop as it is, `max_nfe` times, and improves the whole trajectory after each; "auto" is reversed, and passes
    where the loop turns out to read its own index, or to take a slice of the timesteps.  If its code says that it may, a
    stock run along the trajectory decides, one evaluation per step.
    replay: also record what a stock run misses (`corrections`), for an exact `generate(..., replay=True)`; costs one
    evaluation per step, and leaves noise and figures as they are.
    verify: draw the image once more with the stock pipeline and report `error`; costs one evaluation per step.
    return_trajectory: keep all states.  return_dict: False gives a tuple in field order.

    Raises ValueError naming the argument for bad input and for a scheduler or a pipeline that cannot be inverted, before
    the network is evaluated wherever that can be known; RuntimeError if a callback interrupts the pipeline.  Running out of
    evaluations, or a network that returns NaN, is no exception but a reason in the output.
    """
    given = {
        "prompt": prompt,
        "guidance_scale": guidance_scale,
        "num_inference_steps": num_inference_steps,
        "strength": strength,
    }
    given = _resolve_aliases(given, {**dict.fromkeys(given), "strength": 1.0}, pipe_kwargs)
    prompt, strength = given["prompt"], given["strength"]
    if image is None and "image" not in parameters(pipe):
        image = pipe_kwargs.pop("image", None)
    pipe_kwargs.pop("output_type", None)
    _check_options(pipe, strength, given["num_inference_steps"], seed, order, batch_size, pipe_kwargs)
    pixels = read_images(pipe, image, height=pipe_kwargs.get("height"), width=pipe_kwargs.get("width"))
    batch = pixels.shape[0]
    _check_prompts(prompt, pipe_kwargs, batch)
    options = {
        "solver": solver,
        "max_nfe": max_nfe,
        "tol": tol,
        "refine": refine,
        "prior": prior,
        "noise": noise,
        "atol": atol,
        "depth": depth,
        "lam": lam,
        "floor": floor,
        "extrapolation": extrapolation,
        "predictor": predictor,
    }
    call = {name: given[name] for name in ("num_inference_steps", "guidance_scale") if given[name] is not None}
    call = {**call, **pipe_kwargs}
    keep = {"replay": replay, "verify": verify, "trajectory": return_trajectory}
    if batch_size is None or batch <= batch_size:
        chunks = [slice(0, batch)]
    else:
        chunks = [slice(first, min(first + batch_size, batch)) for first in range(0, batch, batch_size)]
    found = [
        _Inverting(
            pipe,
            pixels[chunk],
            _part(image, chunk, batch),
            _part(prompt, chunk, batch),
            _parts(pipe, call, chunk, batch),
            _part(generator, chunk, batch),
            strength,
            seed,
            options,
            keep,
        ).run(order)
        for chunk in chunks
    ]
    out = found[0] if len(found) == 1 else concatenate(found, prompt, call)
    return out if return_dict else out.to_tuple()


def _part(value, chunk, batch):
    """What belongs to some samples of an argument that has one entry for each."""
    if isinstance(value, (list, tuple)) and len(value) == batch:
        return list(value[chunk])
    if isinstance(value, torch.Tensor) and value.ndim > 1 and value.shape[0] == batch:
        return value[chunk]
    return value


def _parts(pipe, call, chunk, batch):
    """The arguments of the pipeline's call for some of the samples.

    Other lists may be as long as the batch by chance: sigmas, timesteps, the images of several ControlNets.
    """
    if chunk == slice(0, batch):
        return call
    if (call.get("num_images_per_prompt") or 1) != 1:
        raise ValueError("num_images_per_prompt must be 1 where batch_size splits the images: give a prompt for each")
    each = ("prompt", "mask") if hasattr(getattr(pipe, "controlnet", None), "nets") else ("prompt", "mask", "image")
    return {name: _part(one, chunk, batch) if any(part in name for part in each) else one for name, one in call.items()}


class _Inverting:
    """One batch on its way: the call that draws it, and the schedulers that take turns in making it."""

    def __init__(self, pipe, pixels, image, prompt, call, generator, strength, seed, options, keep):
        self.pipe, self.prompt, self.generator = pipe, prompt, generator
        self.seed, self.options, self.keep = seed, options, keep
        known = parameters(pipe)
        self.target = encode_pixels(pipe, pixels)
        size = (None, None) if is_latents(pipe, pixels) else pixels.shape[-2:]
        size = image_size(pipe, self.target, height=size[0], width=size[1])
        call = {**call, **{name: n for name, n in size.items() if call.get(name) is None}}
        self.strength = strength
        if slices(pipe):
            call = {"image": image, **call, "strength": strength}
            self.strength = 1.0
        self.call = call
        embedded = any("prompt_embeds" in name and not name.startswith("negative") for name in call)
        if prompt is None and not embedded:
            self.prompt = ""
        self.arguments = _per_sample({**call, "prompt": self.prompt}, self.target.shape[0])
        self.arguments = {name: value for name, value in self.arguments.items() if name != "prompt" or name in known}
        self.random = RandomState(generator)
        self.spent = 0

    def run(self, order):
        """The inversion in the first order that suits the pipeline."""
        changing = callable(self.call.get("callback_on_step_end")) and not inspect.isroutine(
            self.call["callback_on_step_end"]
        )
        orders = ("reversed", "passes") if order == "auto" else (order,)
        if order == "auto" and changing:  # PipelineCallback: made to change the call at some index of the loop
            orders = ("passes",)
        why = None
        for which in orders:
            doubtful = which == "reversed" and order == "auto" and reads_index(self.pipe)
            scheduler = self._drive(which, doubtful)
            why = scheduler.unfollowed
            if why is None:
                out = self._assemble(scheduler)
                if doubtful and not self._is_followed(scheduler, out):
                    why = "its loop reads its own index"
                    self.spent += int(out.nfe.max())
                    continue
                return self._finish(scheduler, out)
        raise ValueError(f"pipe: {type(self.pipe).__name__} cannot be inverted: {why}")

    # ------------------------------------------------------------------------------------------------------------- calls

    def _call(self, scheduler, start, *, newton=False):
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

    def _drive(self, order, doubtful):
        newton, layout = self.options["solver"] == "newton", None
        while True:
            start = self.target.detach().clone().requires_grad_(newton)
            scheduler = InverseScheduler(
                self.pipe.scheduler,
                strength=self.strength,
                order=order,
                unwind=True,
                sliced=slices(self.pipe),
                latents=start,
                layout=layout,
                seed=self.seed,
                trajectory=self.keep["trajectory"] or self.keep["replay"] or doubtful,
                **self.options,
            )
            scheduler.loop_length = lambda: getattr(self.pipe, "_num_timesteps", None)
            while scheduler.result is None and not scheduler.unlaid and not scheduler.unfollowed:
                try:
                    left = self._call(scheduler, start, newton=newton)
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
                raise ValueError(f"pipe: {type(self.pipe).__name__} changes its latents before its loop in a way of its own")
            layout = learn_layout(self.pipe.scheduler, self.target, self._call)
            self.spent += 1

    # ------------------------------------------------------------------------------------------------------------ results

    def _assemble(self, scheduler):
        result, layout, pipe = scheduler.result, scheduler.layout, self.pipe
        scaled = scheduler.scaled and scheduler.start == 0
        sigma = float(scheduler._inner.init_noise_sigma) if scaled else 1.0
        dtype = self.target.dtype
        return InversionOutput(
            latents=layout.latents(result.latents / sigma, self.target).to(dtype),
            noises=[noise.to(dtype) for noise in scheduler.noises] or None,
            timesteps=scheduler.sampler.timesteps,
            start=scheduler.start,
            residuals=result.residuals,
            step_nfe=result.step_nfe,
            nfe=result.nfe,
            reasons=list(result.reasons),
            error=result.error,
            trajectory=result.trajectory,
            order=scheduler.driving,
            prompt=self.prompt,
            call={name: value for name, value in self.call.items() if name not in _TRANSIENT},
            pipeline=type(pipe).__name__,
            scheduler=type(pipe.scheduler).__name__,
            scheduler_config=dict(pipe.scheduler.config),
        )

    def _stock_run(self, out, **options):
        recorder = Recorder(_stock_scheduler(self.pipe, out), out, sliced=slices(self.pipe), **options)
        self._call(recorder, out.latents.to(self.pipe._execution_device))
        return recorder

    def _end(self, scheduler):
        return scheduler.layout.sample(self.target)

    def _record(self, scheduler, out):
        # With refine the trajectory is that of a forward run, which ends beside the image.
        recorder = self._stock_run(out, trajectory=[*out.trajectory[:-1], self._end(scheduler)])
        self.spent += len(out.timesteps)
        return recorder

    def _is_followed(self, scheduler, out):
        """Whether a stock run along the trajectory does what the solver has seen."""
        recorder = self._record(scheduler, out)
        out.corrections = recorder.corrections
        if len(recorder.corrections) != len(out.timesteps):
            return False
        missed = recorder.missed().double().cpu().numpy()
        back = np.abs(np.diagonal(scheduler.sampler.steps[:, : len(missed)]))
        states = np.array([s.flatten(1).norm(dim=1).double().cpu().numpy() for s in out.trajectory])
        expected = np.nan_to_num(out.residuals, nan=0.0) * back[:, None] * states[:-1] / states[1:]
        expected[-1] = np.maximum(expected[-1], np.nan_to_num(out.error, nan=0.0))
        rounding = max(_ROUNDING, 4 * closeness(self.target.dtype))
        return bool((missed <= _MISSED * expected + rounding).all()) or "non_finite" in out.reasons

    def _finish(self, scheduler, out):
        if self.keep["replay"] and out.corrections is None:
            out.corrections = self._record(scheduler, out).corrections
        if not self.keep["replay"]:
            out.corrections = None
        if not self.keep["trajectory"]:
            out.trajectory = None
        if self.keep["verify"]:
            target = self._end(scheduler).float()
            drawn = self._stock_run(out).sample.to(target)
            self.spent += len(out.timesteps)
            out.error = ((drawn - target).flatten(1).norm(dim=1) / target.flatten(1).norm(dim=1)).double().cpu().numpy()
        out.nfe = out.nfe + self.spent
        return out


def _stock_scheduler(pipe, inv):
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


def _call_arguments(inv, prompt, pipe_kwargs):
    """How to call the pipeline for an inversion, with another prompt or other arguments where they are given."""
    batch = inv.latents.shape[0]
    call = {**inv.call, **pipe_kwargs}
    if prompt is None:
        prompt = inv.prompt
    else:  # the source prompt's embeddings would win over the new prompt
        call = {k: v for k, v in call.items() if not ("prompt" in k and not k.startswith("negative")) or k in pipe_kwargs}
    _check_prompt(prompt, batch // (call.get("num_images_per_prompt") or 1), batch)
    return _per_sample({**call, "prompt": prompt}, batch)


def generate(pipe, inv, prompt=None, *, replay=False, mask_image=None, **pipe_kwargs):
    """Draw from an inversion's noise with the stock pipeline: the image again, or with another `prompt` an edit of it.

    pipe: the pipeline; if its scheduler is not the one the inversion was made with, that one is used for this call.  An
    img2img or inpainting pipeline goes on from a part-way inversion (`invert(..., strength=...)`, best with
    return_trajectory=True for inpainting); its `image` may be left out.
    inv: an `InversionOutput`.  prompt: default the inversion's own.  **pipe_kwargs override `inv.call`.
    replay: add the recorded corrections, which makes the reconstruction exact and is no longer the noise's own drawing.
    mask_image: PIL image, array or tensor [H, W], white where the image may change; elsewhere each step returns to the
    stored trajectory.  Needs `invert(..., return_trajectory=True)`; an inpainting pipeline uses its own `mask_image`.
    Returns the pipeline's own output (`.images`).

    Raises ValueError if there are neither one nor B prompts, or if there are no corrections to replay or no trajectory to
    mask with.
    """
    known = parameters(pipe)
    call = _call_arguments(inv, prompt, pipe_kwargs)
    scheduler, sliced, mask = _stock_scheduler(pipe, inv), slices(pipe), None
    if mask_image is not None and "mask_image" in known:
        call["mask_image"] = mask_image
    elif mask_image is not None:
        mask = mask_like(pipe, mask_image, inv)
    if sliced:
        call = {"image": inv.latents, **call, "strength": _strength(inv, scheduler, call)}
    if inv.noises or inv.start or replay or sliced or mask is not None:
        scheduler = ReplayScheduler(scheduler, inv, replay=replay, sliced=sliced, mask=mask)
    call["latents"] = inv.latents.to(pipe._execution_device)
    call = {name: value for name, value in call.items() if name in known}
    with swapped_scheduler(pipe, scheduler):
        return pipe(**call)


def _strength(inv, scheduler, call):
    """The share of the steps that a part-way inversion covers, in the middle of the values that give that many."""
    if "strength" in call:
        return call["strength"]
    evaluations, done = len(inv.timesteps) + inv.start, inv.start
    steps = call.get("num_inference_steps")
    if not done or not steps:
        return 1.0
    return min(1.0, (steps - done * steps / evaluations + 0.5) / steps)
