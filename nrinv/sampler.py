"""Reads the linear form of a diffusers scheduler off the scheduler itself.

Every step of an image scheduler combines the states, network outputs and noises it has seen linearly.  So a copy of the
scheduler is run once on one-hot vectors: what comes back are the coefficients.  No scheduler's formula is written here.
"""

import copy
import inspect
import types

import numpy as np
import torch

from ._C import Sampler

# A scheduler computes in float32 at worst; clipping and thresholding change the result by far more than this.
LINEAR_TOLERANCE = 1e-3
# Options of diffusers' schedulers that make a step nonlinear.
NONLINEAR_OPTIONS = ("clip_sample", "thresholding")
# Columns kept free for noise draws, per evaluation; no scheduler of diffusers 0.42 draws more.
MAX_DRAWS = 2


def with_noise(scheduler, draw):
    """A copy of `scheduler` whose steps call `draw(shape, **kwargs)` where the original draws noise.

    The copy gets a class of its own with the drawing methods rebound: patching `randn_tensor` in the scheduler's module
    would reach every other pipeline of the process while it lasts.
    """
    cls = type(scheduler)
    methods = {}
    for base in reversed(cls.__mro__):
        for name, method in vars(base).items():
            if isinstance(method, types.FunctionType) and "randn_tensor" in method.__code__.co_names:
                rebound = types.FunctionType(
                    method.__code__,
                    {**method.__globals__, "randn_tensor": draw},
                    name,
                    method.__defaults__,
                    method.__closure__,
                )
                rebound.__kwdefaults__ = method.__kwdefaults__
                methods[name] = rebound
    clone = copy.deepcopy(scheduler)
    clone.__class__ = type(cls.__name__, (cls,), methods)
    return clone


def start_at(scheduler, start):
    """The timesteps from evaluation `start` on; tells the scheduler that it begins there, as img2img pipelines do."""
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return scheduler.timesteps[start:]


def read_sampler(scheduler, num_inference_steps=None, *, start=0, step_kwargs=None):
    """Read `scheduler` as a `Sampler`: E evaluations, K noise draws, all coefficients in float64.

    scheduler: a diffusers scheduler; it is copied and not touched.  num_inference_steps: set on the copy; without it the
    scheduler's present timesteps are read.  start: the evaluation to begin at.  step_kwargs: further arguments of its
    `step`, such as DDIM's `eta`.

    Raises ValueError if the scheduler has no timesteps, has already been stepped, or is not linear (`clip_sample`,
    `thresholding`); the message names the option to turn off.
    """
    name = type(scheduler).__name__
    if num_inference_steps is not None:
        if (
            isinstance(num_inference_steps, bool)
            or int(num_inference_steps) != num_inference_steps
            or num_inference_steps < 1
        ):
            raise ValueError(f"num_inference_steps must be a whole number of at least 1, got {num_inference_steps!r}")
        scheduler = copy.deepcopy(scheduler)
        scheduler.set_timesteps(int(num_inference_steps))
    if getattr(scheduler, "num_inference_steps", None) is None and getattr(scheduler, "timesteps", None) is None:
        raise ValueError(f"scheduler: {name} has no timesteps: call set_timesteps or pass num_inference_steps")
    if getattr(scheduler, "_step_index", None) is not None:
        raise ValueError(f"scheduler: {name} has already been stepped: call set_timesteps first")
    count = len(scheduler.timesteps) - start
    if start < 0 or count < 1:
        raise ValueError(f"start must be in 0..{len(scheduler.timesteps) - 1}, got {start}")
    step_kwargs = dict(step_kwargs or {})
    if "return_dict" in inspect.signature(type(scheduler).step).parameters:
        step_kwargs["return_dict"] = False

    timesteps, steps, inputs = _probe(scheduler, start, count, step_kwargs)
    sampler = Sampler(timesteps, steps, inputs, _read_levels(scheduler, start))
    _check_linear(scheduler, start, sampler, step_kwargs)
    return sampler


def _read_levels(scheduler, start):
    """Signal and noise of the forward process at every evaluation and at the end, [E + 1, 2]; None if it has none.

    The end counts as clean, though some samplers stop a little before it.
    """
    flow = hasattr(scheduler, "scale_noise")
    if not flow and not hasattr(scheduler, "add_noise"):
        return None
    signal, noise = torch.eye(2, dtype=torch.float64).reshape(2, 1, 1, 1, 2)

    def level(timestep):
        fresh = copy.deepcopy(scheduler)  # some remember the first timestep they were asked for
        fresh._begin_index = None  # else every timestep would be taken for the first
        t = timestep.reshape(1)
        return (fresh.scale_noise(signal, t, noise) if flow else fresh.add_noise(signal, noise, t)).double().reshape(2)

    return torch.stack([*(level(timestep) for timestep in scheduler.timesteps[start:]), signal.reshape(2)]).numpy()


def natural_guess(sampler, target, seed=0):
    """Where the inversion of `target` [B, ...] best starts: a noisy image of the last step's level, S z_0 + sigma n.

    Its solution inherits the noise's nature; started from the clean image itself, a step without contraction ends in noise
    that is none.  The noise is the same on every machine and device, and for the first images of a longer batch.
    Returns None if the sampler does not tell its levels.
    """
    if sampler.levels is None:
        return None
    signal, sigma = sampler.levels[-2]
    noise = np.random.default_rng(seed).standard_normal(tuple(target.shape), dtype=np.float32)
    return signal * target + sigma * torch.from_numpy(noise).to(target)


def _run(scheduler, start, step_kwargs, draw, state, model_output):
    """Step a copy of the scheduler; state(j, previous) and model_output(j) say what it is given."""
    scheduler = with_noise(scheduler, draw)
    sample = None
    for j, timestep in enumerate(start_at(scheduler, start)):
        sample = state(j, sample)
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(model_output(j), timestep, sample, **step_kwargs)[0]
        yield timestep, scaled, sample


def _probe(scheduler, start, count, step_kwargs):
    width = (2 + MAX_DRAWS) * count + MAX_DRAWS
    draws = 0

    def one_hot(i):
        vector = torch.zeros(1, 1, 1, width, dtype=torch.float64)
        vector[..., i] = 1
        return vector

    def draw(shape, *args, **kwargs):
        nonlocal draws
        draws += 1
        if 2 * count + draws > width:
            raise ValueError(f"scheduler: {type(scheduler).__name__} draws noise more than {MAX_DRAWS} times a step")
        return one_hot(2 * count + draws - 1)

    timesteps, steps, inputs = [], [], []
    run = _run(scheduler, start, step_kwargs, draw, lambda j, _: one_hot(j), lambda j: one_hot(count + j))
    for j, (timestep, scaled, sample) in enumerate(run):
        timesteps.append(float(timestep))
        steps.append(sample.double().reshape(-1).numpy())
        scaled = scaled.double().reshape(-1).numpy()
        inputs.append(scaled[j])
        if np.count_nonzero(scaled) > 1 or scaled[j] == 0:
            raise ValueError(
                f"scheduler: {type(scheduler).__name__}.scale_model_input does more than scale the sample it is given"
            )
    return np.array(timesteps), np.stack(steps)[:, : 2 * count + draws], np.array(inputs)


def _check_linear(scheduler, start, sampler, step_kwargs):
    """Run the scheduler on random vectors, large enough to be clipped, and compare with the linear form."""
    count, states, rng = len(sampler), sampler.states, np.random.default_rng(0)
    given = 4 * rng.standard_normal((1 + count + sampler.num_noises, 64))
    given[0] *= max(1.0, float(getattr(scheduler, "init_noise_sigma", 1.0)))
    vectors = [torch.from_numpy(row).reshape(1, 1, 8, 8) for row in given]
    noises = iter(vectors[1 + count :])

    def state(j, previous):
        return vectors[0] if j == 0 else previous

    run = _run(scheduler, start, step_kwargs, lambda *a, **k: next(noises), state, lambda j: vectors[1 + j])
    for j, (_, _, sample) in enumerate(run):
        expected = states[j + 1] @ given
        error = np.abs(sample.double().reshape(-1).numpy() - expected).max()
        if not error <= LINEAR_TOLERANCE * np.abs(states[j + 1][:, None] * given).max():
            raise ValueError(_nonlinear_message(scheduler))


def _nonlinear_message(scheduler):
    name = type(scheduler).__name__
    active = [option for option in NONLINEAR_OPTIONS if scheduler.config.get(option)]
    if not active:
        return f"scheduler: {name} is not linear in the network's output and cannot be inverted"
    options = ", ".join(f"{option}=False" for option in active)
    return (
        f"scheduler: {name} with {' and '.join(f'{option}=True' for option in active)} is not linear and cannot be "
        f"inverted; turn it off with {name}.from_config(scheduler.config, {options})"
    )
