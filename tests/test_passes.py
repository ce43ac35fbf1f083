"""Whole passes: every state of the trajectory at once, in the sampler's own order."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import SHAPE, drive, numpy_answer, small_sampler, torch_answer
from mixture import BETAS, Mixture, draw, log_error

import nrinv
from nrinv import Inversion, Sampler

STEPS, BATCH, DIMENSION = 20, 4, 256
NETWORK = Mixture(DIMENSION)
DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
PNDM = {"skip_prk_steps": True, "steps_offset": 1}


def problem(name, steps=STEPS, seed=1, **config):
    """(sampler, z_T, step noises, target, a natural noisy target of the first level)"""
    scheduler = getattr(diffusers, name)(**BETAS, **config)
    form = nrinv.read_sampler(scheduler, steps)
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((BATCH, DIMENSION)) * float(scheduler.init_noise_sigma)
    noises = [rng.standard_normal((BATCH, DIMENSION)) for _ in range(form.num_noises)]
    target = draw(form, NETWORK, noise, noises)
    signal, sigma = form.levels[-2]
    return form, noise, noises, target, signal * target + sigma * rng.standard_normal(target.shape)


def invert(form, target, noises=(), wrap=np.asarray, **options):
    """Drive whole passes with the mixture; checks that they come in the sampler's order."""
    options = {"order": "passes", "max_nfe": 12, "tol": 0} | options
    if "guess" in options:
        options["guess"] = wrap(options["guess"].astype(np.float32))
    noises = [wrap(noise.astype(np.float32)) for noise in noises]
    inversion = Inversion(form, wrap(target.astype(np.float32)), noises=noises, **options)
    count = 0
    while request := inversion.next():
        assert request.index == count % len(form) and request.timestep == form.timesteps[request.index]
        output = NETWORK(request.scale * np.asarray(request.sample, np.float64), request.timestep)
        inversion.feed(wrap(output.astype(np.float32)))
        count += 1
    result = inversion.result()
    assert count == result.evaluations <= inversion.max_evaluations
    return result


@pytest.mark.parametrize(
    ("name", "config", "bound"),
    [
        ("DDIMScheduler", DDIM, -4.7),
        ("EulerDiscreteScheduler", {}, -4.5),
        ("DPMSolverMultistepScheduler", {}, -4.7),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, -4.7),
        ("UniPCMultistepScheduler", {}, -4.7),
        ("PNDMScheduler", PNDM, -5.0),
        ("HeunDiscreteScheduler", {}, -5.0),
        ("LMSDiscreteScheduler", {}, -5.0),
        ("DEISMultistepScheduler", {}, -5.0),
        ("KDPM2DiscreteScheduler", {}, -5.0),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
@pytest.mark.parametrize("guessed", [False, True])
def test_twelve_passes(name, config, bound, guessed):
    form, noise, _, target, guess = problem(name, **config)
    result = invert(form, target, verify=True, **({"guess": guess} if guessed else {}))
    assert result.evaluations == 13 * len(form) and (result.step_nfe == 12).all() and (result.nfe == 13 * len(form)).all()
    errors = log_error(form, NETWORK, target, result)
    assert errors.mean() < bound
    np.testing.assert_allclose(result.error, 10**errors, rtol=0.1, atol=3e-7)
    relative = np.linalg.norm(result.latents - noise, axis=1) / np.linalg.norm(noise, axis=1)
    assert relative.max() < 0.03  # which the sampler contracts


@pytest.mark.parametrize(("max_nfe", "depth", "bound"), [(12, 5, -1.0), (12, 11, -2.0), (24, 15, -5.0)])
def test_fixed_noises_of_a_stochastic_sampler_need_a_deep_memory(max_nfe, depth, bound):
    form, _, noises, target, _ = problem("EulerAncestralDiscreteScheduler")
    result = invert(form, target, noises, max_nfe=max_nfe, depth=depth)
    assert log_error(form, NETWORK, target, result, noises).mean() < bound


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "HeunDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_a_deeper_memory_helps(name):
    form, _, _, target, _ = problem(name)
    shallow, deep = (log_error(form, NETWORK, target, invert(form, target, max_nfe=9, depth=depth)) for depth in (3, 8))
    assert deep.mean() < shallow.mean() - 0.5


def test_tol_ends_each_sample_for_itself():
    form, _, _, target, _ = problem("DPMSolverMultistepScheduler")
    target[0] = 0  # an easy one
    result = invert(form, target, max_nfe=40, tol=1e-3, trajectory=True)
    assert set(result.reasons) == {"tol"}
    assert result.residuals.max() < 0.01
    assert len(set(result.step_nfe[0])) > 1 and result.step_nfe.max() < 12
    assert (result.step_nfe == result.step_nfe[0]).all()
    np.testing.assert_array_equal(result.trajectory[0], result.latents)
    np.testing.assert_array_equal(result.trajectory[-1], target.astype(np.float32))
    for b in range(BATCH):
        alone = invert(form, target[b : b + 1], max_nfe=40, tol=1e-3)
        np.testing.assert_array_equal(alone.latents[0], result.latents[b])
        assert alone.nfe[0] == result.nfe[b]


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_both_orders_find_the_same(name):
    form, _, _, target, _ = problem(name)
    found = invert(form, target, max_nfe=40, depth=15, tol=1e-7).latents
    rounds = {"max_nfe": 40} if form.first_order else {"max_nfe": 3, "rounds": 12}
    inversion = Inversion(form, target.astype(np.float32), tol=1e-6, **rounds)
    while request := inversion.next():
        inversion.feed(NETWORK(request.scale * request.sample.astype(np.float64), request.timestep))
    want = inversion.result().latents
    assert (np.linalg.norm(found - want, axis=1) / np.linalg.norm(want, axis=1)).max() < 1e-3


def test_levels_do_not_matter_where_inputs_tell_the_same():
    form, _, _, target, _ = problem("EulerDiscreteScheduler")
    bare = Sampler(form.timesteps, form.steps, form.inputs)
    np.testing.assert_allclose(invert(bare, target).latents, invert(form, target).latents, atol=1e-2)


@pytest.mark.parametrize("solver", ["auto", "anderson", "fixed_point"])
def test_tensors_and_arrays_give_the_same_passes(solver):
    form, _, _, target, guess = problem("UniPCMultistepScheduler", steps=8)
    a = invert(form, target, guess=guess, solver=solver, max_nfe=6, trajectory=True)
    b = invert(form, target, wrap=torch.from_numpy, guess=guess, solver=solver, max_nfe=6, trajectory=True)
    assert isinstance(b.latents, torch.Tensor) and a.reasons == b.reasons
    np.testing.assert_array_equal(a.nfe, b.nfe)
    for x, y in zip(a.trajectory, b.trajectory, strict=True):
        np.testing.assert_allclose(y.numpy(), x, atol=2e-3)


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("garbage", [1e30, np.nan])
def test_rows_of_inactive_samples_do_not_matter_to_passes(kind, garbage):
    wrap, answer = (np.asarray, numpy_answer) if kind == "numpy" else (torch.from_numpy, torch_answer)
    target = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
    target[1] *= 30
    target[2] = 0
    littered = 0

    def spoil(request):
        nonlocal littered
        output = answer(request)
        output[wrap(~request.active)] = garbage
        littered += (~request.active).sum()
        return output

    options = {"order": "passes", "max_nfe": 30, "verify": True, "trajectory": True}
    want = drive(Inversion(small_sampler(), wrap(target), **options), answer)
    got = drive(Inversion(small_sampler(), wrap(target), **options), spoil)
    assert littered and got.reasons == want.reasons
    for name in ("latents", "residuals", "step_nfe", "nfe", "error", "trajectory"):
        np.testing.assert_array_equal(getattr(got, name), getattr(want, name), err_msg=name)


def test_a_network_that_keeps_failing_is_a_reason():
    target = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)

    def sometimes(request):
        output = numpy_answer(request)
        output[1] = np.nan
        return output

    want = drive(Inversion(small_sampler(), target, order="passes", max_nfe=30), numpy_answer)
    got = drive(Inversion(small_sampler(), target, order="passes", max_nfe=30, verify=True), sometimes)
    assert got.reasons == [want.reasons[0], "non_finite", want.reasons[2]]
    assert np.isfinite(got.latents).all() and np.isnan(got.error[1]) and (got.error[[0, 2]] < 1e-3).all()
    np.testing.assert_array_equal(got.latents[[0, 2]], want.latents[[0, 2]])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "forward"}, "order must be one of reversed, passes, got 'forward'"),
        ({"order": "passes", "rounds": 1}, "order='passes' does not go with rounds above 0"),
        (
            {"order": "passes", "correct_from": small_sampler()},
            "order='passes' does not go with a correction without draws",
        ),
        ({"order": "passes", "noise": "absorb"}, "order='passes' does not go with noise='absorb'"),
        ({"order": "passes", "solver": "newton"}, "order='passes' does not go with solver='newton'"),
    ],
)
def test_bad_orders(options, message):
    with pytest.raises(ValueError, match=message):
        Inversion(small_sampler(), np.zeros(SHAPE, np.float32), **options)


def test_a_singular_step_is_refused():
    steps = np.zeros((2, 4))
    steps[0, 0], steps[0, 2], steps[1, 3] = 1, -0.5, 1
    with pytest.raises(ValueError, match="step 1 of 2 cannot be inverted"):
        Inversion(Sampler([1, 0], steps, [1, 1]), np.zeros(SHAPE, np.float32), order="passes")
