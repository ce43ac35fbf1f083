"""Invert an image with a stock diffusers pipeline, and draw from the noise that was found."""

import numpy as np
import torch

from .correction import Correcting, check_correction, run_correction
from .driver import Driver, check_pipeline, check_prompt, check_prompts, check_whole, per_sample, stock_scheduler
from .host import guides_each_step, parameters, reads_index, slices, swapped_scheduler
from .inversion import InversionOutput, concatenate
from .latents import encode_pixels, is_latents, mask_like, read_images
from .replay import Recorder, ReplayScheduler
from .scheduler import ORDERS, InverseScheduler, closeness

# Arguments of one call that say nothing about how to draw the image again.
_TRANSIENT = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")
# What LEDITS++ calls the same things, and what they mean here.
_ALIASES = {
    "source_prompt": ("prompt", lambda value: value),
    "source_guidance_scale": ("guidance_scale", lambda value: value),
    "num_inversion_steps": ("num_inference_steps", lambda value: value),
    "skip": ("strength", lambda value: 1 - value),
}
# How `invert` corrects: what `correct` does by default.
CORRECTION = {"rounds": 2, "radius": 2.0, "noise": "random", "seed": 0}
# A stock run that is off the trajectory by more than the solver says, this many times and beyond rounding, is another map.
_MISSED, _ROUNDING = 2.0, 1e-3


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
    check_whole("seed", seed, 0)
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1)
    if "latents" in pipe_kwargs:
        raise ValueError("latents: what is to be inverted is given as `image`, which may hold latents")
    check_pipeline(pipe)


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
    correct=0.0,
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
    correct: strength of the prompt-aware correction of the encoded image, see `correct`; 0 is none, 0.05 are 2 of 50 steps.
    What is inverted then is `corrected`, and the image again is drawn with its errors taken away and the correction put in.
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
    if correct:
        check_correction(pipe, correct, **CORRECTION)
    pixels = read_images(pipe, image, height=pipe_kwargs.get("height"), width=pipe_kwargs.get("width"))
    batch = pixels.shape[0]
    check_prompts(prompt, pipe_kwargs, batch)
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

    def inverted(chunk):
        given = (
            _part(image, chunk, batch),
            _part(prompt, chunk, batch),
            _parts(pipe, call, chunk, batch),
            _part(generator, chunk, batch),
        )
        size = (None, None) if is_latents(pipe, pixels) else pixels.shape[-2:]
        target, corrected = encode_pixels(pipe, pixels[chunk]), None
        if correct:
            corrected = run_correction(Correcting(pipe, target, *given, correct, size), pixels[chunk], **CORRECTION)
            target = corrected.latents
        inverting = _Inverting(pipe, target, *given, strength, size, seed=seed, options=options, keep=keep)
        return _with_correction(inverting.run(order), corrected)

    found = [inverted(chunk) for chunk in chunks]
    out = found[0] if len(found) == 1 else concatenate(found, prompt, call)
    return out if return_dict else out.to_tuple()


def _with_correction(out, corrected):
    if corrected is not None:
        out.corrected, out.correction_size, out.correction_cost = corrected.latents, corrected.moved, corrected.cost
        out.nfe = out.nfe + corrected.nfe
    return out


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


class _Inverting(Driver):
    """One batch on its way to its noise."""

    def __init__(self, *args, seed, options, keep, **more):
        super().__init__(*args, **more)
        self.seed, self.options, self.keep = seed, options, keep

    def run(self, order):
        """The inversion in the first order that suits the pipeline."""
        for which in self.orders(order):
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
        raise ValueError(f"pipe: {self.name} cannot be inverted: {why}")

    def _drive(self, order, doubtful):
        def make(latents, layout):
            return InverseScheduler(
                self.pipe.scheduler,
                strength=self.strength,
                order=order,
                unwind=True,
                sliced=slices(self.pipe),
                latents=latents,
                layout=layout,
                seed=self.seed,
                trajectory=self.keep["trajectory"] or self.keep["replay"] or doubtful,
                **self.options,
            )

        return self.drive(make, doubtful=doubtful, newton=self.options["solver"] == "newton")

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
        recorder = Recorder(stock_scheduler(self.pipe, out), out, sliced=slices(self.pipe), **options)
        self.run_pipeline(recorder, out.latents.to(self.pipe._execution_device))
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


def _call_arguments(inv, prompt, pipe_kwargs):
    """How to call the pipeline for an inversion, with another prompt or other arguments where they are given."""
    batch = inv.latents.shape[0]
    call = {**inv.call, **pipe_kwargs}
    if prompt is None:
        prompt = inv.prompt
    else:  # the source prompt's embeddings would win over the new prompt
        call = {k: v for k, v in call.items() if not ("prompt" in k and not k.startswith("negative")) or k in pipe_kwargs}
    check_prompt(prompt, batch // (call.get("num_images_per_prompt") or 1), batch)
    return per_sample({**call, "prompt": prompt}, batch)


def generate(pipe, inv, prompt=None, *, edit_strength=1.0, replay=False, mask_image=None, **pipe_kwargs):
    """Draw from an inversion's noise with the stock pipeline: the image again, or with another `prompt` an edit of it.

    pipe: the pipeline; if its scheduler is not the one the inversion was made with, that one is used for this call.  An
    img2img or inpainting pipeline goes on from a part-way inversion (`invert(..., strength=...)`, best with
    return_trajectory=True for inpainting); its `image` may be left out.
    inv: an `InversionOutput`.  prompt: default the inversion's own.  **pipe_kwargs override `inv.call`.
    guidance_scale: a number; or one for each evaluation that is made, at least 1, for pipelines that read it in every step.
    edit_strength: the share of the inverted steps that is drawn anew, above 0; the rest is the stored trajectory's, which
    keeps more of the image.  Below 1 it needs `invert(..., return_trajectory=True)`.
    replay: add the recorded corrections, which makes the reconstruction exact and is no longer the noise's own drawing; a
    number in 0..1 adds that share of them.
    mask_image: PIL image, array or tensor [H, W], white where the image may change; elsewhere each step returns to the
    stored trajectory.  Needs `invert(..., return_trajectory=True)`; an inpainting pipeline uses its own `mask_image`.
    Returns the pipeline's own output (`.images`).

    Raises ValueError if there are neither one nor B prompts, for numbers out of range, and if there are no corrections to
    replay or no trajectory to start or to mask with.
    """
    known = parameters(pipe)
    call = _call_arguments(inv, prompt, pipe_kwargs)
    scheduler, sliced, mask = stock_scheduler(pipe, inv), slices(pipe), None
    skip = _skipped_evaluations(inv, scheduler, edit_strength)
    if not 0 <= replay <= 1:
        raise ValueError(f"replay must be a share in 0..1, got {replay!r}")
    if mask_image is not None and "mask_image" in known:
        call["mask_image"] = mask_image
    elif mask_image is not None:
        mask = mask_like(pipe, mask_image, inv)
    if sliced:
        call = {"image": inv.latents, **call, "strength": _strength(inv, skip, call)}
    evaluated = _guide(pipe, call, len(inv.timesteps) - skip)
    if inv.noises or inv.start or skip or replay or sliced or mask is not None or evaluated:
        scheduler = ReplayScheduler(scheduler, inv, skip=skip, replay=replay, sliced=sliced, mask=mask, evaluated=evaluated)
    call["latents"] = (inv.trajectory[skip].to(inv.latents.dtype) if skip else inv.latents).to(pipe._execution_device)
    call = {name: value for name, value in call.items() if name in known}
    with swapped_scheduler(pipe, scheduler):
        return pipe(**call)


def _skipped_evaluations(inv, scheduler, edit_strength):
    """How many of an inversion's evaluations an edit leaves out: whole steps."""
    if not 0 < edit_strength <= 1:
        raise ValueError(f"edit_strength must be above 0 and at most 1, got {edit_strength!r}")
    if edit_strength == 1:
        return 0
    if not inv.trajectory:
        raise ValueError(
            "edit_strength: the inversion holds no trajectory; make it with invert(..., return_trajectory=True)"
        )
    if inv.trajectory[0].shape != inv.latents.shape:
        raise ValueError("edit_strength must be 1: the pipeline lays its states out otherwise than its latents")
    count = len(inv.timesteps)
    skip = count - max(1, round(edit_strength * count))
    return skip - skip % int(getattr(scheduler, "order", 1))


def _guide(pipe, call, evaluations):
    """What sets the guidance of the next evaluation, where there is one for each; `call` gets the first."""
    scale = call.get("guidance_scale")
    if scale is None or np.ndim(scale) == 0:
        return None
    if not guides_each_step(type(pipe)):
        raise ValueError(f"guidance_scale must be a number: {type(pipe).__name__} does not read it in each step")
    scales = [float(one) for one in scale]
    if len(scales) != evaluations or not all(one >= 1 and np.isfinite(one) for one in scales):
        raise ValueError(
            f"guidance_scale must be a number, or {evaluations} of at least 1, one an evaluation, got {scale!r}"
        )
    if max(scales) > 1:  # at 1 pipelines do without the empty prompt, and cannot do otherwise later
        scales = [max(one, 1 + 1e-6) for one in scales]
    call["guidance_scale"] = scales[0]

    def evaluated(j):
        pipe._guidance_scale = scales[min(j + 1, evaluations - 1)]

    return evaluated


def _strength(inv, skip, call):
    """The share of the steps that is drawn, in the middle of the values that give that many."""
    if "strength" in call:
        return call["strength"]
    evaluations, done = len(inv.timesteps) + inv.start, inv.start + skip
    steps = call.get("num_inference_steps")
    if not done or not steps:
        return 1.0
    return min(1.0, (steps - done * steps / evaluations + 0.5) / steps)
