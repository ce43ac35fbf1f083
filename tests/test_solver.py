"""Inversion on the closed-form denoiser: accuracy at a given number of network evaluations (counts are exact)."""

import diffusers
import numpy as np
import pytest
from mixture import BETAS, Mixture, draw, invert, log_error

import nrinv

STEPS, BATCH = 20, 8
NETWORK = Mixture()
DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}


def problem(name, seed=1, **config):
    """(sampler, noise, target): targets the sampler itself has drawn from the noise."""
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    sampler = nrinv.read_sampler(scheduler, STEPS)
    noise = np.random.default_rng(seed).standard_normal((BATCH, 1024)) * float(scheduler.init_noise_sigma)
    return sampler, noise, draw(sampler, NETWORK, noise)


@pytest.mark.parametrize(("max_nfe", "bound"), [(2, -2.0), (3, -3.2)])
def test_ddim_step_by_step(max_nfe, bound):
    sampler, _, target = problem("DDIMScheduler", **DDIM)
    result = invert(sampler, NETWORK, target, max_nfe=max_nfe, tol=0)
    assert result.evaluations == max_nfe * STEPS
    assert log_error(sampler, NETWORK, target, result).mean() <= bound


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DPMSolverMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}),
        ("HeunDiscreteScheduler", {}),
    ],
)
def test_samplers_with_memory_by_defect_correction(name, config):
    sampler, _, target = problem(name, **config)
    assert not sampler.first_order
    result = invert(sampler, NETWORK, target, max_nfe=1, rounds=4, tol=0)
    assert result.evaluations == 10 * len(sampler)
    errors = log_error(sampler, NETWORK, target, result)
    assert errors.mean() <= -4
    np.testing.assert_allclose(result.error, 10**errors, rtol=0.1, atol=2e-7)


def test_the_noise_comes_back():
    sampler, noise, target = problem("DDIMScheduler", **DDIM)
    result = invert(sampler, NETWORK, target, max_nfe=20, tol=1e-6)
    relative = np.linalg.norm(result.latents - noise, axis=1) / np.linalg.norm(noise, axis=1)
    assert relative.max() < 1e-3
    assert set(result.reasons) == {"tol"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"max_nfe": 6, "tol": 1e-4}),
        ("DDIMScheduler", {"max_nfe": 1, "rounds": 5, "tol": 1.3e-4}),
        ("DPMSolverMultistepScheduler", {"max_nfe": 6, "tol": 1e-4}),
        ("DPMSolverMultistepScheduler", {"max_nfe": 1, "rounds": 5, "tol": 7e-4}),
    ],
)
def test_a_stack_gives_what_single_runs_give(name, options):
    sampler, _, target = problem(name, **(DDIM if name == "DDIMScheduler" else {}))
    target[3] *= 0.02  # samples of unlike difficulty stop at different times
    target[5] += np.random.default_rng(2).standard_normal(1024)
    stack = invert(sampler, NETWORK, target, **options)
    for b in range(BATCH):
        single = invert(sampler, NETWORK, target[b : b + 1], **options)
        np.testing.assert_allclose(stack.latents[b], single.latents[0], rtol=1e-5, atol=1e-5)
        assert stack.nfe[b] == single.nfe[0]
        assert stack.reasons[b] == single.reasons[0]
        np.testing.assert_array_equal(stack.step_nfe[:, b], single.step_nfe[:, 0])
    assert len(set(stack.nfe)) > 1


def test_anderson_needs_fewer_evaluations_than_fixed_point():
    sampler, _, target = problem("EulerDiscreteScheduler", timestep_spacing="trailing")
    errors = {
        solver: log_error(sampler, NETWORK, target, invert(sampler, NETWORK, target, solver=solver, max_nfe=3, tol=0)).mean()
        for solver in ("anderson", "fixed_point")
    }
    assert errors["anderson"] < errors["fixed_point"] - 0.3


def test_the_first_guess_is_worth_an_evaluation():
    sampler, _, target = problem("DDIMScheduler", **DDIM)
    errors = [
        log_error(sampler, NETWORK, target, invert(sampler, NETWORK, target, tol=0, max_nfe=n, predictor=p)).mean()
        for n, p in ((1, True), (1, False))
    ]
    assert errors[0] < errors[1] - 0.5


def test_recorded_noise_of_a_stochastic_sampler():
    scheduler = diffusers.EulerAncestralDiscreteScheduler(**BETAS)
    sampler = nrinv.read_sampler(scheduler, STEPS)
    rng = np.random.default_rng(3)
    noises = [rng.standard_normal((2, 1024)) for _ in range(sampler.num_noises)]
    noise = rng.standard_normal((2, 1024)) * float(scheduler.init_noise_sigma)
    target = draw(sampler, NETWORK, noise, noises)
    recorded = [n.astype(np.float32) for n in noises]
    result = invert(sampler, NETWORK, target, noises=recorded, max_nfe=30, depth=5, tol=1e-6, verify=True)
    errors = log_error(sampler, NETWORK, target, result, noises)
    assert errors.max() < -4
    np.testing.assert_allclose(result.error, 10**errors, rtol=0.1, atol=2e-7)


def test_the_trajectory_is_the_one_the_sampler_takes():
    sampler, _, target = problem("DDIMScheduler", **DDIM)
    result = invert(sampler, NETWORK, target[:2], max_nfe=20, tol=1e-6, trajectory=True)
    assert len(result.trajectory) == STEPS + 1
    np.testing.assert_array_equal(result.trajectory[0], result.latents)
    np.testing.assert_allclose(result.trajectory[-1], target[:2], rtol=1e-6)
    for j in range(STEPS):
        state, row = result.trajectory[j].astype(np.float64), sampler.steps[j]
        output = NETWORK(sampler.inputs[j] * state, sampler.timesteps[j])
        again = row[j] * state + row[STEPS + j] * output
        assert np.abs(again - result.trajectory[j + 1]).max() < 1e-3
