"""Reads the linear form of a diffusers scheduler off the scheduler itself.

Every step of an image scheduler combines the states, network outputs and noises it has seen linearly.  So a copy of the
scheduler is run once on one-hot vectors: what comes back are the coefficients.  No scheduler's formula is written here.
"""

import copy
import inspect
import types
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor

from ._C import Sampler
from .derived import rebind
from .known import (
    MIRRORED,
    NONLINEAR_OPTIONS,
    RECTIFIED,
    REFUSED_OPTIONS,
    REFUSED_SCHEDULERS,
    TIMESTEP_PER_SAMPLE,
    USE,
    USE_FLOW,
    check_methods,
    is_one_of,
    refusal,
    step_signature,
)

# A scheduler computes in float32 at worst; clipping and thresholding change the result by far more than this.
LINEAR_TOLERANCE = 1e-3
# Columns kept free for noise draws, per evaluation; no scheduler of diffusers 0.42 draws more.
MAX_DRAWS = 2
# Elements that check the linearity, beside those that read the coefficients.
CHECKED = 64


def _rebind(scheduler, replacements):
    """A copy of `scheduler` whose methods find `replacements`, by name, in place of their module's globals.

    The copy gets classes of its own with these methods rebound: patching the scheduler's module would reach every other
    pipeline of the process while it lasts.
    """
    cls = type(scheduler)
    # One before each class that has such methods, so that those of a derived class reach them by super().
    classes = [cls]
    for base in cls.__mro__:
        methods = {
            name: rebind(method, **replacements)
            for name, method in vars(base).items()
            if isinstance(method, types.FunctionType) and not replacements.keys().isdisjoint(method.__code__.co_names)
        }
        if methods:
            shadow = type(base.__name__, (base,), methods)
            classes = [shadow] if base is cls else [*classes, shadow]
    clone = copy.deepcopy(scheduler)
    clone.__class__ = type(cls.__name__, tuple(classes), {})
    return clone


def _to_cpu(scheduler):
    """The scheduler, a copy, where double precision is to be had and nothing waits for a device."""
    vars(scheduler).update({k: v.cpu() for k, v in vars(scheduler).items() if isinstance(v, torch.Tensor)})
    return scheduler


def with_noise(scheduler, draw):
    """A copy of `scheduler` whose steps call `draw(shape, device=..., dtype=..., ...)` where the original draws noise.

    That is `randn_tensor`, and every increment of a Brownian tree.
    """

    def tree(x, *args, **kwargs):
        return lambda *sigmas: draw(x.shape, device=x.device, dtype=x.dtype)

    return _rebind(scheduler, {"randn_tensor": draw, "BrownianTreeNoiseSampler": tree})


def draw_noises(scheduler, sample, *, start=0, stop=None, generator=None, step_kwargs=None):
    """The noises that `scheduler` will draw in its evaluations start..stop for a sample like `sample`, in its own order.

    scheduler: with timesteps, not stepped; it is copied and not touched.  sample: what a pipeline hands to `step`, of
    which only shape, dtype and device count.  generator: as in a pipeline's call; one, a list of one for each sample, or
    None for PyTorch's global one.  It ends where a stock run leaves it, the global one too.

    Raises ValueError if the scheduler is refused by name, has no timesteps, has been stepped, or cannot be stepped.
    """
    _check_class(scheduler)
    _check_ready(scheduler)
    noises = []

    def recorded(noise):
        noises.append(noise)
        return noise

    def tree(*args, **kwargs):
        sampler = diffusers.schedulers.scheduling_dpmsolver_sde.BrownianTreeNoiseSampler(*args, **kwargs)
        return lambda *sigmas: recorded(sampler(*sigmas))

    def draw(*args, **kwargs):
        return recorded(randn_tensor(*args, **kwargs))

    own = _rebind(scheduler, {"randn_tensor": draw, "BrownianTreeNoiseSampler": tree})
    step_kwargs = dict(step_kwargs or {})
    if "generator" in inspect.signature(type(scheduler).step).parameters:
        step_kwargs["generator"] = generator
    blank = torch.zeros_like(sample)
    for _ in _run(own, start, stop, step_kwargs, lambda j, _: blank, lambda j: blank):
        pass
    return noises


def start_at(scheduler, start):
    """The timesteps from evaluation `start` on; tells the scheduler that it begins there, as img2img pipelines do."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


def first_evaluation(scheduler, strength):
    """The evaluation at which a run over the last `strength` of the steps begins, as in img2img pipelines."""
    if strength == 1:  # some schedulers with timesteps of the user's own do not know how many steps they are
        return 0
    steps = int(scheduler.num_inference_steps)
    return max(steps - min(int(steps * strength), steps), 0) * int(getattr(scheduler, "order", 1))


def read_sampler(
    scheduler: Any,
    num_inference_steps: int | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    step_kwargs: dict[str, Any] | None = None,
) -> Sampler:
    """Read `scheduler` as a `Sampler`: E evaluations, K noise draws, all coefficients in float64.

    scheduler: a diffusers scheduler; it is copied and not touched.  num_inference_steps: set on the copy; without it the
    scheduler's present timesteps are read.  start, stop: the evaluation to begin at and the one to end before, for
    pipelines that take a slice of the timesteps.  A last timestep that is only the end of the last step is no evaluation.
    step_kwargs: further arguments of its `step`, such as DDIM's `eta`.

    Raises ValueError, which names the scheduler and what to use or turn off, if it has no timesteps, has already been
    stepped, is not linear (`clip_sample`, `thresholding`), or is one that no stock loop just steps.
    """
    _check_class(scheduler)
    name = type(scheduler).__name__
    if (steps := num_inference_steps) is not None:
        if isinstance(steps, bool) or int(steps) != steps or steps < 1:
            raise ValueError(f"num_inference_steps must be a whole number of at least 1, got {steps!r}")
        scheduler = copy.deepcopy(scheduler)
        try:
            scheduler.set_timesteps(int(steps))
        except Exception as error:
            raise ValueError(
                f"scheduler: {name}.set_timesteps({steps}) raised {_describe(error)}; set its timesteps yourself, or use "
                "another number of steps"
            ) from error
    _check_ready(scheduler)
    whole = len(scheduler.timesteps)
    if not 0 <= start < whole:
        raise ValueError(f"start must be in 0..{whole - 1}, got {start}")
    if stop is not None and not start < stop <= whole:
        raise ValueError(f"stop must be in {start + 1}..{whole}, got {stop}")
    timesteps, steps, inputs = _probe(scheduler, start, stop, dict(step_kwargs or {}))
    return Sampler(timesteps, steps, inputs, _read_levels(scheduler, start, inputs, stop not in (None, whole)))


# ---------------------------------------------------------------------------------------------------------- what is refused


def _check_class(scheduler):
    """Refuse what is known not to be a linear sampler, and what is known to hand `step` more than samples."""
    if (why := refusal(scheduler, REFUSED_SCHEDULERS)) is not None:
        raise ValueError(f"scheduler: {why[0]} cannot be inverted: it {why[1]}")
    check_methods(scheduler)
    name = type(scheduler).__name__
    for option, (refused, what, instead) in REFUSED_OPTIONS.items():
        if refused(value := _option(scheduler, option)):
            use = _instead(scheduler, **instead)
            raise ValueError(f"scheduler: {name} with {what.format(value)}, which cannot be inverted; use {use}")


def _check_ready(scheduler):
    name = type(scheduler).__name__
    timesteps = getattr(scheduler, "timesteps", None)
    count = 0 if timesteps is None else len(timesteps)
    # Before set_timesteps some hold those they were trained with; after it some do not keep the number.
    trained = count == scheduler.config.get("num_train_timesteps")
    if count == 0 or (trained and getattr(scheduler, "num_inference_steps", None) is None):
        raise ValueError(f"scheduler: {name} has no timesteps: call set_timesteps or pass num_inference_steps")
    if getattr(scheduler, "_step_index", None) is not None or getattr(scheduler, "counter", 0):  # the latter: PNDM
        raise ValueError(f"scheduler: {name} has already been stepped: call set_timesteps first")


def _option(scheduler, name):
    """An option of the scheduler's own class: from_config also carries along those of the class before it."""
    return scheduler.config.get(name) if name in inspect.signature(type(scheduler).__init__).parameters else None


def _describe(error):
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _instead(scheduler, **options):
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    return f"{type(scheduler).__name__}.from_config(scheduler.config, {given})"


def _alternative(scheduler):
    flow = hasattr(scheduler, "scale_noise") or "Flow" in type(scheduler).__name__
    return USE_FLOW if flow or scheduler.config.get("prediction_type") == "flow_prediction" else USE


def _nonlinear_message(scheduler):
    name = type(scheduler).__name__
    active = [option for option in NONLINEAR_OPTIONS if _option(scheduler, option)]
    if not active:
        return f"scheduler: {name} is not linear in the network's output and cannot be inverted; {_alternative(scheduler)}"
    return (
        f"scheduler: {name} with {' and '.join(f'{option}=True' for option in active)} is not linear and cannot be "
        f"inverted; turn it off with {_instead(scheduler, **dict.fromkeys(active, False))}"
    )


# ---------------------------------------------------------------------------------------------------------------- the levels


def _read_levels(scheduler, start, inputs, open_end):
    """Signal and noise of the forward process at the evaluations and at their end, [E + 1, 2]; None if it has none.

    inputs [E]: what the network's input is scaled by.  open_end: the end is the timestep that would come next.  Else it
    counts as clean, though some samplers stop a little before it.
    """
    level = _forward_process(scheduler)
    timesteps = scheduler.timesteps[start : start + len(inputs) + open_end].cpu()
    if level is None:
        return None
    try:
        levels = np.array([level(timestep) for timestep in timesteps])
    except Exception:  # whatever an unknown scheduler makes of it: it is only the first guess that needs the levels
        return None
    if _option(scheduler, "invert_sigmas"):
        levels = levels[:, ::-1]
    # Second-order schedulers name the level of a step's end for the point within it; the scale of its input tells better.
    evaluated = levels[: len(inputs)]
    off = np.abs(inputs * np.hypot(*evaluated.T) - 1) > 1e-3
    if not off[0] and (evaluated[:, 0] == 1).all() and _option(scheduler, "sigma_data") is None:
        evaluated[off, 1] = np.sqrt(1 / np.minimum(inputs[off], 1) ** 2 - 1)
    levels = levels if open_end else np.vstack([levels, [1, 0]])
    # A scheduler that runs from the image to the noise does not end at a clean one.
    return levels if np.isfinite(levels).all() and (np.diff(levels[: len(inputs), 1]) <= 1e-6).all() else None


def _forward_process(scheduler):
    """level(timestep) -> [2], the signal and the noise there; None if the scheduler does not tell."""
    signal, noise = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2)
    fresh = _to_cpu(copy.deepcopy(scheduler))
    fresh._begin_index = None  # else every timestep would be taken for the first
    state = dict(vars(fresh))

    def added(timestep):
        t = timestep.reshape(1)
        result = fresh.scale_noise(signal, t, noise) if hasattr(fresh, "scale_noise") else fresh.add_noise(signal, noise, t)
        vars(fresh).update(state)  # some remember the first timestep they were asked for
        return result.double().reshape(2).tolist()

    def diffused(timestep):
        alpha = float(fresh.alphas_cumprod[timestep])
        return [alpha**0.5, (1 - alpha) ** 0.5]

    def rectified(timestep):
        sigma = float(fresh.sigmas[int((fresh.timesteps == timestep).nonzero()[-1])])
        return [1 - sigma, sigma]

    if hasattr(scheduler, "scale_noise") or hasattr(scheduler, "add_noise"):
        return added
    if hasattr(scheduler, "alphas_cumprod"):
        return diffused
    return rectified if is_one_of(scheduler, RECTIFIED) else None


# ------------------------------------------------------------------------------------------------------------------- the run


def _run(scheduler, start, stop, step_kwargs, state, model_output):
    """Step `scheduler` from evaluation start to stop; state(j, previous) and model_output(j) say what it is given.

    Yields timestep, scaled model input and new sample.  Ends early at a timestep that is only the end of the last step.
    """
    name = type(scheduler).__name__
    parameters = step_signature(type(scheduler)).parameters
    step_kwargs = {key: value for key, value in step_kwargs.items() if key not in MIRRORED}
    if "return_dict" in parameters:
        step_kwargs["return_dict"] = False
    timesteps = start_at(scheduler, start)[: None if stop is None else stop - start]
    sample, result = None, (None, None)
    for j, timestep in enumerate(timesteps):
        sample, output = state(j, sample), model_output(j)
        told = dict(step_kwargs)
        if "old_pred_original_sample" in parameters:
            told["old_pred_original_sample"] = result[1]
            told["timestep_back"] = timesteps[j - 1] if j > 0 else None
        if "prev_timestep" in parameters:
            told["prev_timestep"] = timesteps[j + 1] if j + 1 < len(timesteps) else None
        if is_one_of(scheduler, TIMESTEP_PER_SAMPLE):
            timestep = timestep.expand(len(sample))
        try:
            scaled = sample
            if hasattr(scheduler, "scale_model_input"):
                scaled = scheduler.scale_model_input(sample, timestep)
            result = scheduler.step(model_output=output, timestep=timestep, sample=sample, **told)
            if isinstance(result, dict):
                result = result.to_tuple()
        except Exception as error:
            if isinstance(error, IndexError) and stop is None and 0 < j == len(timesteps) - 1:
                return
            raise ValueError(
                f"scheduler: {name} cannot be inverted: its step raised {_describe(error)}; {_alternative(scheduler)}"
            ) from error
        sample = result[0]
        yield timestep, scaled, sample


def _probe(scheduler, start, stop, step_kwargs):
    """Read timesteps [E], steps [E, 2 E + K] and inputs [E], and check that the scheduler is linear.

    Each vector holds one-hot elements, which read the coefficients of a step, and beside them random ones, large enough
    to be clipped, which run through all steps: these have to come out as the coefficients say.
    """
    name = type(scheduler).__name__
    count = (len(scheduler.timesteps) if stop is None else stop) - start
    width = (2 + MAX_DRAWS) * count + MAX_DRAWS
    rng = np.random.default_rng(0)
    given = 4 * rng.standard_normal((width, CHECKED))  # in the order of the columns; of the states only the first counts
    given[0] *= max(1.0, float(getattr(scheduler, "init_noise_sigma", 1.0)))
    draws = 0

    def vector(i, checked):
        one_hot = torch.zeros(width, dtype=torch.float64)
        one_hot[i] = 1
        return torch.cat([one_hot, torch.as_tensor(checked)]).reshape(1, 1, 1, -1)

    def state(j, previous):
        return vector(j, given[0] if j == 0 else previous.reshape(-1)[width:])

    def model_output(j):
        return vector(count + j, given[count + j])

    def draw(shape, *args, **kwargs):
        nonlocal draws
        if 2 * count + draws == width:
            raise ValueError(f"it draws noise more than {MAX_DRAWS} times a step")
        if tuple(shape) != (1, 1, 1, width + CHECKED):
            raise ValueError("it changes the size of its sample")
        draws += 1
        return vector(2 * count + draws - 1, given[2 * count + draws - 1])

    def is_linear(sample):
        row, checked = sample[:width], sample[width:]
        error = np.abs(checked - row @ given).max()
        return error <= LINEAR_TOLERANCE * np.abs(row[:, None] * given).max()

    timesteps, steps, inputs, drawn = [], [], [], 0
    for j, (timestep, scaled, sample) in enumerate(
        _run(_to_cpu(with_noise(scheduler, draw)), start, stop, step_kwargs, state, model_output)
    ):
        if sample.numel() != width + CHECKED:
            raise ValueError(f"scheduler: {name} cannot be inverted: it changes the size of its sample")
        sample, scaled = (one.double().reshape(-1).numpy() for one in (sample, scaled))
        if np.count_nonzero(scaled[:width]) > 1 or scaled[j] == 0:
            raise ValueError(f"scheduler: {name}.scale_model_input does more than scale the sample it is given")
        if not np.isfinite(sample[:width]).all():
            raise ValueError(
                f"scheduler: {name} cannot be inverted: step {j} of {count} returns NaN or infinity in this configuration; "
                f"{_alternative(scheduler)}"
            )
        if not is_linear(sample):
            raise ValueError(_nonlinear_message(scheduler))
        if j + 1 < count:
            given[j + 1] = sample[width:]
        timesteps.append(float(timestep))
        steps.append(sample[:width])
        inputs.append(scaled[j])
        drawn = draws
    done = len(steps)
    columns = np.r_[0:done, count : count + done, 2 * count : 2 * count + drawn]
    return np.array(timesteps), np.stack(steps)[:, columns], np.array(inputs)
