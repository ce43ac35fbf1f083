"""Invert an image with a stock diffusers pipeline, and draw from the noise that was found."""

import inspect
from contextlib import contextmanager
from functools import partial

import diffusers
import numpy as np
import torch

from .inversion import InversionOutput
from .latents import encode
from .scheduler import CorrectionRecorder, Finished, InverseScheduler, ReplayScheduler

# Arguments of one call that say nothing about how to draw the image again.
_TRANSIENT = ("callback_on_step_end", "callback_on_step_end_tensor_inputs")


@contextmanager
def swapped_scheduler(pipe, scheduler):
    """`pipe` with another scheduler; whatever happens, it has its own back afterwards.

    Goes around DiffusionPipeline.__setattr__, which would record the other class in the pipeline's configuration.
    """
    own = pipe.scheduler
    vars(pipe)["scheduler"] = scheduler
    try:
        yield scheduler
    finally:
        vars(pipe)["scheduler"] = own


@contextmanager
def _gradients(pipe, wanted):
    """What to call the pipeline by; where gradients are wanted, those of the latents alone.

    Pipelines switch gradients off by a decorator.  Parameters are frozen meanwhile: their gradients would only cost memory.
    """
    if not wanted:
        yield pipe
        return
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    trained = [p for module in modules for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield partial(inspect.unwrap(type(pipe).__call__), pipe)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _check_options(strength, num_inference_steps, seed, pipe_kwargs):
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps!r}")
    if not isinstance(seed, int) or seed < 0:
        raise ValueError(f"seed must be a whole number of at least 0, got {seed!r}")
    if "latents" in pipe_kwargs:
        raise ValueError("latents: what is to be inverted is given as `image`, which may hold latents")
    if pipe_kwargs.get("num_images_per_prompt", 1) not in (None, 1):
        raise ValueError(
            f"num_images_per_prompt must be 1, got {pipe_kwargs['num_images_per_prompt']!r}: give one prompt an image"
        )


def _check_prompts(prompt, pipe_kwargs, batch):
    _check_prompt(prompt, batch)
    for name, value in pipe_kwargs.items():
        if name.endswith("prompt_embeds") and isinstance(value, torch.Tensor) and value.shape[0] != batch:
            raise ValueError(f"{name} must hold {batch} prompts, one for each image, got {value.shape[0]}")


def _check_prompt(prompt, batch):
    if prompt is None or isinstance(prompt, str):
        return
    if not isinstance(prompt, (list, tuple)) or not all(isinstance(one, str) for one in prompt):
        raise ValueError(f"prompt must be a string or a list of strings, got {prompt!r}")
    if len(prompt) != batch:
        raise ValueError(f"prompt must be one prompt or {batch}, one for each image, got {len(prompt)}")


def _per_sample(arguments, batch):
    """One prompt for all becomes a list: pipelines take the batch size from the prompt."""
    return {
        name: [value] * batch if "prompt" in name and isinstance(value, str) and batch > 1 else value
        for name, value in arguments.items()
    }


def _size_arguments(pipe, latents):
    """height and width of the image the latents stand for, if the pipeline takes them."""
    parameters = inspect.signature(type(pipe).__call__).parameters
    sizes = {name: n * pipe.vae_scale_factor for name, n in zip(("height", "width"), latents.shape[-2:], strict=True)}
    return {name: n for name, n in sizes.items() if name in parameters}


def invert(
    pipe,
    image,
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
    replay=False,
    verify=False,
    return_trajectory=False,
    return_dict=True,
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
    image: see `encode`; B images are inverted together, each with its own stopping.
    prompt: one for all or one for each image; None is the empty prompt, unless `prompt_embeds` are given.
    num_inference_steps, guidance_scale, generator, **pipe_kwargs: passed to the pipeline's call (`negative_prompt`,
    `prompt_embeds`, `callback_on_step_end` ...), None meaning the pipeline's default.  Callbacks run once an evaluation.
    strength: invert the last part of the steps only, above 0 and at most 1; `generate` goes on from there.

    solver: "auto", Anderson acceleration (`depth` vectors of memory) with the evaluations dealt out to the steps by what the
    scheduler's linear form tells; "anderson", the same number for every step; "fixed_point"; "newton", the scalar
    Newton-Raphson of arXiv 2312.12540 (weight `lam` of its prior, `floor` of its gradient), which differentiates the
    network: memory of a training step without weight gradients, each product with the Jacobian counted as an evaluation.
    max_nfe: network evaluations a step, on average; default 4 up to 8 steps, 3 beyond, 1 where the scheduler needs `refine`.
    predictor: start each step from the step before, the first one from a natural noisy image drawn with `seed`; other seeds
    find other noises of the same image.  False: from the state itself.
    tol: a step ends at a relative residual of tol; `atol`: or at a root mean square of atol.
    refine: rounds of defect correction; default 0, or 3 for schedulers that remember older network outputs (DPM++ 2M,
    UniPC, PNDM, Heun ...).  extrapolation: how far a sweep extrapolates what such a scheduler remembers, 0..1.
    prior: weight of Lavrentiev's regularisation, z = (f(z) + prior mu) / (1 + prior) with mu the step's first guess; trades
    reconstruction for natural noise where a step is ill-posed (few steps, the step to sigma 0); default none.
    noise: "record" draws the noise of a stochastic scheduler from `generator` in the pipeline's own order; "absorb" draws
    the states instead and lets the noises take up what the steps leave (`noises`, which `generate` replays): few-step
    stochastic samplers then reconstruct well from natural noise.
    replay: also record what a stock run misses (`corrections`), for an exact `generate(..., replay=True)`; costs one
    evaluation per step, and leaves noise and figures as they are.
    verify: draw the image once more with the stock pipeline and report `error`; costs one evaluation per step.
    return_trajectory: keep all states.  return_dict: False gives a tuple in field order.

    Raises ValueError naming the argument for bad input and for a scheduler that cannot be inverted, before the network is
    evaluated.  Running out of evaluations, or a network that returns NaN, is no exception but a reason in the output.
    """
    pipe_kwargs.pop("output_type", None)
    _check_options(strength, num_inference_steps, seed, pipe_kwargs)
    latents = encode(pipe, image, height=pipe_kwargs.get("height"), width=pipe_kwargs.get("width"))
    _check_prompts(prompt, pipe_kwargs, latents.shape[0])
    if prompt is None and pipe_kwargs.get("prompt_embeds") is None:
        prompt = ""
    call = {
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
        **_size_arguments(pipe, latents),
    }
    call = {name: value for name, value in {**call, **pipe_kwargs}.items() if value is not None}
    arguments = _per_sample({**call, "prompt": prompt}, latents.shape[0])

    newton = solver == "newton"
    start = latents.clone().requires_grad_(newton)
    scheduler = InverseScheduler(
        pipe.scheduler,
        strength=strength,
        unwind=True,
        latents=start,
        seed=seed,
        solver=solver,
        noise=noise,
        max_nfe=max_nfe,
        tol=tol,
        atol=atol,
        depth=depth,
        refine=refine,
        prior=prior,
        lam=lam,
        floor=floor,
        extrapolation=extrapolation,
        predictor=predictor,
        trajectory=return_trajectory or replay,
    )
    with swapped_scheduler(pipe, scheduler), _gradients(pipe, newton) as call_pipe:
        try:
            call_pipe(latents=start, generator=generator, output_type="latent", **arguments)
        except Finished:
            pipe.maybe_free_model_hooks()  # what the pipeline does after its loop
    if scheduler.result is None:
        raise RuntimeError(
            f"{type(pipe).__name__} ended its loop before the inversion was done: it does not iterate over its scheduler's "
            "timesteps and cannot be inverted this way"
        )
    out = _assemble(pipe, scheduler, latents, prompt, call)
    if replay:
        _record_corrections(pipe, out, latents)
        out.trajectory = out.trajectory if return_trajectory else None
    if verify:
        _verify(pipe, out, latents)
    return out if return_dict else out.to_tuple()


def _assemble(pipe, scheduler, latents, prompt, call):
    result = scheduler.result
    scaled = scheduler.scaled and scheduler.start == 0
    sigma = float(scheduler._inner.init_noise_sigma) if scaled else 1.0
    return InversionOutput(
        latents=(result.latents / sigma).to(latents.dtype),
        noises=[noise.to(latents.dtype) for noise in scheduler.noises] or None,
        timesteps=scheduler.sampler.timesteps,
        start=scheduler.start,
        residuals=result.residuals,
        step_nfe=result.step_nfe,
        nfe=result.nfe,
        reasons=list(result.reasons),
        error=result.error,
        trajectory=result.trajectory,
        prompt=prompt,
        call={name: value for name, value in call.items() if name not in _TRANSIENT},
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=dict(pipe.scheduler.config),
    )


def _record_corrections(pipe, out, latents):
    # With refine the trajectory is that of a forward run, which ends beside the image.
    recorder = CorrectionRecorder(_stock_scheduler(pipe, out), out, [*out.trajectory[:-1], latents])
    with swapped_scheduler(pipe, recorder):
        pipe(latents=out.latents.to(pipe._execution_device), output_type="latent", **_call_arguments(out, None, {}))
    out.corrections = recorder.corrections
    out.nfe = out.nfe + len(out.timesteps)


def _verify(pipe, out, latents):
    """Draw the image again with the stock pipeline; the error replaces the solver's own figure."""
    drawn = generate(pipe, out, output_type="latent").images.to(latents.device)
    difference = (drawn.float() - latents.float()).flatten(1).norm(dim=1)
    out.error = (difference / latents.float().flatten(1).norm(dim=1)).double().cpu().numpy()
    out.nfe = out.nfe + len(out.timesteps)


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
    _check_prompt(prompt, batch)
    return _per_sample({**call, "prompt": prompt}, batch)


def generate(pipe, inv, prompt=None, *, replay=False, **pipe_kwargs):
    """Draw from an inversion's noise with the stock pipeline: the image again, or with another `prompt` an edit of it.

    pipe: the pipeline; if its scheduler is not the one the inversion was made with, that one is used for this call.
    inv: an `InversionOutput`.  prompt: default the inversion's own.  **pipe_kwargs override `inv.call`.
    replay: add the recorded corrections, which makes the reconstruction exact and is no longer the noise's own drawing.
    Returns the pipeline's own output (`.images`).

    Raises ValueError if there are neither one nor B prompts, or if there are no corrections to replay.
    """
    call = _call_arguments(inv, prompt, pipe_kwargs)
    scheduler = _stock_scheduler(pipe, inv)
    if inv.noises or inv.start or replay:
        scheduler = ReplayScheduler(scheduler, inv, replay=replay)
    with swapped_scheduler(pipe, scheduler):
        return pipe(latents=inv.latents.to(pipe._execution_device), **call)
