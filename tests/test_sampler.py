"""read_sampler: the linear form equals what the scheduler itself does."""

import copy

import diffusers
import numpy as np
import pytest
import torch
from mixture import BETAS

import nrinv
from nrinv.sampler import with_noise

FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
SCHEDULERS = {
    "ddim-leading": ("DDIMScheduler", {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
    "ddim-trailing": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "ddim-zero-snr": (
        "DDIMScheduler",
        {
            "clip_sample": False,
            "timestep_spacing": "trailing",
            "rescale_betas_zero_snr": True,
            "prediction_type": "v_prediction",
        },
    ),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler-karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler-trailing": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "heun": ("HeunDiscreteScheduler", {}),
    "pndm": ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
    "dpm++2m": ("DPMSolverMultistepScheduler", {}),
    "dpm++2m-karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpm++2m-sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "deis": ("DEISMultistepScheduler", {}),
    "kdpm2": ("KDPM2DiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
    "tcd": ("TCDScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", FLOW),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", FLOW),
}
STOCHASTIC = {"ddpm", "euler-ancestral", "dpm++2m-sde", "lcm", "tcd"}


def make(name, **extra):
    cls, config = SCHEDULERS[name]
    common = {} if config is FLOW else BETAS
    return getattr(diffusers, cls)(**common, **{**config, **extra})


def network(x, timestep):
    return 0.7 * torch.tanh(x) + 0.1 * x.roll(1, -1)


def run(scheduler, steps, draw):
    """The trajectory of the scheduler itself: states, network outputs, noises."""
    noises = []

    def recorded(shape, *args, **kwargs):
        noises.append(draw(shape))
        return noises[-1]

    scheduler = with_noise(scheduler, recorded)
    scheduler.set_timesteps(steps)
    states, outputs = (
        [draw((1, 4, 8, 8)) * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1)],
        [],
    )
    for t in scheduler.timesteps:
        x = scheduler.scale_model_input(states[-1], t) if hasattr(scheduler, "scale_model_input") else states[-1]
        outputs.append(network(x, t))
        states.append(scheduler.step(outputs[-1], t, states[-1], return_dict=False)[0])
    return states, outputs, noises


@pytest.mark.parametrize("steps", [2, 4, 20])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_linear_form_replays_the_trajectory(name, steps):
    scheduler = make(name)
    generator = torch.Generator().manual_seed(0)
    states, outputs, noises = run(
        scheduler, steps, lambda shape: torch.randn(shape, generator=generator, dtype=torch.float64)
    )
    sampler = nrinv.read_sampler(scheduler, steps)
    assert len(sampler) == len(outputs)
    assert sampler.num_noises == len(noises)
    assert (sampler.num_noises > 0) == (name in STOCHASTIC)
    basis = torch.stack([states[0], *outputs, *noises]).reshape(1 + len(outputs) + len(noises), -1)
    expected = torch.stack(states).reshape(len(states), -1)
    got = torch.from_numpy(sampler.states) @ basis
    error = (got - expected).norm(dim=1) / expected.norm(dim=1)
    assert error.max() < 1e-5


def test_the_local_form_is_the_global_one_substituted():
    sampler = nrinv.read_sampler(make("unipc"), 10)
    rng = np.random.default_rng(0)
    noise, outputs = rng.standard_normal(16), rng.standard_normal((10, 16))
    states = [noise]
    for row in sampler.steps:
        states.append(sum(row[k] * s for k, s in enumerate(states)) + row[10:20] @ outputs)
    np.testing.assert_allclose(sampler.states @ np.vstack([noise[None], outputs]), states, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("option", ["clip_sample", "thresholding"])
def test_a_nonlinear_scheduler_is_refused_by_the_name_of_its_option(option):
    scheduler = diffusers.DDIMScheduler(**BETAS, **{"clip_sample": False, option: True})
    with pytest.raises(ValueError, match=f"DDIMScheduler with {option}=True is not linear.*{option}=False"):
        nrinv.read_sampler(scheduler, 10)


def test_the_scheduler_it_is_given_is_not_touched():
    scheduler = make("dpm++2m")
    scheduler.set_timesteps(7)
    before = copy.deepcopy(vars(scheduler))
    nrinv.read_sampler(scheduler)
    after = vars(scheduler)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = torch.equal(value, after[name]) if isinstance(value, torch.Tensor) else np.array_equal(value, after[name])
        assert same, name


def test_noise_is_not_drawn_from_the_global_generator():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    nrinv.read_sampler(make("euler-ancestral"), 4)
    assert torch.equal(state, torch.random.get_rng_state())


def test_the_part_from_a_step_on():
    whole, part = nrinv.read_sampler(make("ddim-leading"), 10), nrinv.read_sampler(make("ddim-leading"), 10, start=4)
    assert len(part) == 6
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[4:])
    np.testing.assert_allclose(part.steps[:, :6], whole.steps[4:, 4:10])


def test_ddim_with_eta_draws_noise():
    assert nrinv.read_sampler(make("ddim-leading"), 5, step_kwargs={"eta": 1.0}).num_noises == 5


def test_a_scheduler_without_timesteps_or_in_the_middle_of_a_run_is_refused():
    scheduler = make("euler")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"start must be in 0\.\.3, got 4"):
        nrinv.read_sampler(scheduler, start=4)
    x = torch.zeros(1, 4, 8, 8)
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="has already been stepped"):
        nrinv.read_sampler(scheduler)
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_inference_steps must be"):
            nrinv.read_sampler(make("euler"), bad)


def test_zero_terminal_snr_has_a_way_back_although_its_last_state_forgets_the_noise():
    sampler = nrinv.read_sampler(make("ddim-zero-snr"), 10)
    assert sampler.singular == ()
    single = nrinv.read_sampler(make("ddim-zero-snr"), 1)
    assert single.singular == (0,)
    with pytest.raises(ValueError, match="step 0 of 1 cannot be inverted: the coefficient of the step's own state is 0"):
        nrinv.Inversion(single, np.zeros((1, 4), np.float32))
