"""Levels and the guess drawn from them, noise that absorbs, seeds, and replay of defects."""

import diffusers
import numpy as np
import pytest
import torch
from helpers import SCHEDULERS
from mixture import BETAS, Mixture, draw, invert
from zoo.schedulers import make

import nrinv
from nrinv import natural_guess

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


def with_scheduler(pipe, name, **config):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **config)
    return pipe


def distance(a, b):
    return (a - b).flatten(1).norm(dim=1) / b.flatten(1).norm(dim=1)


# --------------------------------------------------------------------------------------------------------------- levels


def expected_levels(scheduler, sampler):
    """Signal and noise at the sampler's timesteps, from what the scheduler itself keeps."""
    if hasattr(scheduler, "alphas_cumprod") and hasattr(scheduler, "scale_model_input") and hasattr(scheduler, "sigmas"):
        lookup = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), strict=False))
        sigma = np.array([lookup[t] for t in sampler.timesteps])
        return np.ones_like(sigma), sigma
    if hasattr(scheduler, "alphas_cumprod"):
        alpha = scheduler.alphas_cumprod.double().numpy()[sampler.timesteps.astype(int)]
        return np.sqrt(alpha), np.sqrt(1 - alpha)
    lookup = dict(zip(scheduler.timesteps.tolist(), scheduler.sigmas.tolist(), strict=False))
    sigma = np.array([lookup[t] for t in sampler.timesteps])
    return 1 - sigma, sigma


@pytest.mark.parametrize("start", [0, 2])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {**BETAS, "clip_sample": False}),
        ("LCMScheduler", BETAS),
        ("EulerDiscreteScheduler", {**BETAS, "timestep_spacing": "trailing"}),
        ("EulerAncestralDiscreteScheduler", BETAS),
        ("HeunDiscreteScheduler", BETAS),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
    ],
)
def test_levels_are_those_of_the_forward_process(name, config, start):
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(5)
    sampler = nrinv.read_sampler(scheduler, start=start)
    assert sampler.levels.shape == (len(sampler) + 1, 2)
    signal, noise = expected_levels(scheduler, sampler)
    np.testing.assert_allclose(sampler.levels[:-1, 0], signal, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(sampler.levels[:-1, 1], noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(sampler.levels[-1], [1, 0])


@pytest.mark.parametrize("name", SCHEDULERS)
def test_levels_fall_towards_the_image(name):
    sampler = nrinv.read_sampler(make(name), 4)
    signal, noise = sampler.levels.T
    assert np.isfinite(sampler.levels).all() and (signal >= 0).all()
    assert (np.diff(noise) <= 1e-7).all() and noise[0] > 1.5 * noise[-2] > 0
    assert tuple(sampler.levels[-1]) == (1, 0)


def test_a_scheduler_that_adds_no_noise_has_no_levels():
    sampler = nrinv.read_sampler(diffusers.IPNDMScheduler(), 4)
    assert sampler.levels is None
    assert natural_guess(sampler, torch.zeros(1, 4, 8, 8)) is None


def test_the_natural_guess():
    sampler = nrinv.read_sampler(diffusers.LCMScheduler(**BETAS), 4)
    target = torch.randn(5, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    guess = natural_guess(sampler, target, seed=3)
    torch.manual_seed(1)
    assert torch.equal(natural_guess(sampler, target, seed=3), guess)
    for some in (slice(1), slice(2), slice(3, 5)):  # each image as if it were alone
        assert torch.equal(natural_guess(sampler, target[some], seed=3), guess[some])
    assert not torch.allclose(natural_guess(sampler, target, seed=4), guess)
    assert natural_guess(sampler, target.half()).dtype == torch.float16
    np.testing.assert_allclose(natural_guess(sampler, target.numpy(), seed=3), guess.numpy(), rtol=1e-6, atol=1e-6)
    signal, sigma = sampler.levels[-2]
    noise = (guess - signal * target) / sigma
    assert torch.allclose(noise[0], noise[1], atol=1e-5)
    assert abs(float(noise[0].mean())) < 0.06 and abs(float(noise[0].std()) - 1) < 0.06
    assert abs(float((noise * target).mean())) < 0.03


def test_other_seeds_find_other_noises_of_the_same_image(turbo, held_out):
    images, captions, _ = held_out
    z = nrinv.encode(turbo, images[0])
    found = [nrinv.invert(turbo, images[0], captions[0], seed=seed, max_nfe=8, **CALL) for seed in (0, 1, 0)]
    assert torch.equal(found[0].latents, found[2].latents)
    assert distance(found[0].latents, found[1].latents) > 0.1
    for inv in found[:2]:
        assert distance(nrinv.generate(turbo, inv, output_type="latent").images, z) < 3e-2
    off = [
        nrinv.invert(turbo, images[0], captions[0], seed=seed, solver=nrinv.Solver(predictor=False), **CALL).latents
        for seed in (0, 1)
    ]
    assert torch.equal(*off)


# --------------------------------------------------------------------------------------------------------------- absorb


def root_mean_square(x):
    return x.flatten(1).square().mean(1).sqrt()


@pytest.fixture(params=["EulerAncestralDiscreteScheduler", "LCMScheduler"])
def stochastic(turbo, request):
    return with_scheduler(turbo, request.param, timestep_spacing="trailing")


def test_absorbed_noise_draws_the_image_again(stochastic, held_out, tmp_path):
    images, captions, _ = held_out
    inv = nrinv.invert(stochastic, images[:2], captions[:2], noise="absorb", max_nfe=60, tol=1e-6, **CALL)
    z = nrinv.encode(stochastic, images[:2])
    drawn = nrinv.generate(stochastic, inv, output_type="latent").images
    assert distance(drawn, z).max() < 1e-4
    assert all(root_mean_square(n).max() < 1.5 for n in inv.noises)
    inv.save(tmp_path / "x.safetensors")
    loaded = nrinv.load(tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(inv.noises, loaded.noises, strict=True))
    assert torch.equal(nrinv.generate(stochastic, loaded, output_type="latent").images, drawn)


@pytest.mark.parametrize("max_nfe", [2, 4, 8])
def test_absorbing_leaves_the_latents_the_size_of_noise(stochastic, held_out, max_nfe):
    images, captions, _ = held_out
    inv = nrinv.invert(stochastic, images[:2], captions[:2], noise="absorb", max_nfe=max_nfe, **CALL)
    if max_nfe <= 4:
        assert (root_mean_square(inv.latents) - 1).abs().max() < 0.2
    else:  # what an exact reconstruction needs is shared between the state and the noises
        noises = torch.stack([root_mean_square(noise) for noise in inv.noises])
        assert (root_mean_square(inv.latents) < 1.25 * noises.amax(0)).all() and noises.max() < 1.5


def test_noises_that_need_not_absorb_are_the_generator_s_own(turbo, held_out):
    images, captions, _ = held_out
    with_scheduler(turbo, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")

    def noises(noise):
        generator = torch.Generator().manual_seed(2)
        return nrinv.invert(turbo, images[0], captions[0], noise=noise, generator=generator, max_nfe=2, **CALL).noises

    absorbed, recorded = noises("absorb"), noises("record")
    assert len(absorbed) == len(recorded) == 4
    assert torch.equal(absorbed[-1], recorded[-1])  # the last step ends without noise: nothing to absorb with
    assert all(distance(a, b) > 0.1 for a, b in zip(absorbed[:-1], recorded[:-1], strict=True))


def test_without_noise_nothing_is_absorbed(turbo, held_out):
    images, captions, _ = held_out
    found = [nrinv.invert(turbo, images[:2], captions[:2], noise=noise, **CALL) for noise in ("record", "absorb")]
    assert torch.equal(found[0].latents, found[1].latents)
    assert not found[1].noises
    np.testing.assert_array_equal(found[0].nfe, found[1].nfe)


def test_absorbing_costs_what_recording_costs(turbo, held_out):
    images, captions, _ = held_out
    with_scheduler(turbo, "EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    inv = nrinv.invert(turbo, images[0], captions[0], noise="absorb", max_nfe=3, tol=0, **CALL)
    assert inv.step_nfe[-1, 0] == 6 and inv.nfe[0] <= 12
    np.testing.assert_array_equal(inv.residuals[:-1], np.zeros((3, 1)))
    assert inv.residuals[-1, 0] > 0


@pytest.mark.parametrize(
    ("name", "config", "options", "missing"),
    [
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}, "remembers no older network outputs"),
        ("EulerAncestralDiscreteScheduler", {}, {"solver": nrinv.Solver(rounds=2)}, "rounds=0"),
    ],
)
def test_where_noise_cannot_absorb(turbo, held_out, name, config, options, missing):
    with_scheduler(turbo, name, **config)
    calls = []
    hook = turbo.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        with pytest.raises(ValueError, match=f"noise='absorb' needs.*{missing}.*noise='record'"):
            nrinv.invert(turbo, held_out[0][0], held_out[1][0], noise="absorb", **options, **CALL)
    finally:
        hook.remove()
    assert not calls


def test_absorbing_on_the_closed_form_denoiser():
    """An ideal network leaves noise on its shell, white or nearly so, and the round trip is exact."""
    scheduler = diffusers.LCMScheduler(**BETAS)
    sampler, network = nrinv.read_sampler(scheduler, 4), Mixture()
    rng = np.random.default_rng(5)
    noises = rng.standard_normal((3, 2, 1024))
    target = draw(sampler, network, rng.standard_normal((2, 1024)), noises)
    fresh = [n.astype(np.float32) for n in rng.standard_normal((3, 2, 1024))]
    result = invert(sampler, network, target, noises=fresh, noise="absorb", max_nfe=40, tol=1e-6)
    found = [np.asarray(n, np.float64) for n in result.noises]
    again = draw(sampler, network, result.latents.astype(np.float64), found)
    assert (np.linalg.norm(again - target, axis=1) / np.linalg.norm(target, axis=1)).max() < 1e-4
    for x in (*found, result.latents):
        assert np.abs(np.sqrt((x**2).mean(1)) - 1).max() < 0.15
    assert invert(sampler, network, target, noises=fresh, max_nfe=2).noises is None


@pytest.mark.parametrize("solver", ["auto", "newton"])
def test_unregularised_steps_without_contraction_end_with_a_reason(turbo, held_out, solver):
    with_scheduler(turbo, "LCMScheduler")
    inv = nrinv.invert(turbo, held_out[0][:2], held_out[1][:2], solver=nrinv.Solver(solver, lam=0.0), max_nfe=4, **CALL)
    assert torch.isfinite(inv.latents).all() and np.isfinite(inv.residuals).all()
    assert set(inv.reasons) <= {"tol", "max_nfe", "stalled", "diverged"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": "x"}, "noise must be one of record, absorb, got 'x'"),
        ({"solver": "x"}, "solver must be one of auto, anderson, fixed_point, newton, got 'x'"),
        ({"lam": -1.0}, r"lam must be a finite number of at least 0, got -1\.0"),
        ({"lam": float("nan")}, "lam must be a finite number of at least 0, got nan"),
        ({"solver": "newton", "floor": 0.0}, r"floor must be a finite number above 0, got 0\.0"),
        ({"solver": "newton", "floor": float("nan")}, "floor must be a finite number above 0, got nan"),
    ],
)
def test_bad_values_of_the_new_options(options, message):
    sampler = nrinv.read_sampler(diffusers.LCMScheduler(**BETAS), 4)
    zeros = np.zeros((1, 4), np.float32)
    with pytest.raises(ValueError, match=message):
        nrinv.Inversion(sampler, zeros, noises=[zeros] * sampler.num_noises, **options)


# --------------------------------------------------------------------------------------------------------------- replay


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
    ],
)
def test_replay_reconstructs_to_rounding(turbo, held_out, name, config, tmp_path):
    images, captions, _ = held_out
    with_scheduler(turbo, name, **config)

    def seeded():
        return {"generator": torch.Generator().manual_seed(6), **CALL}

    z = nrinv.encode(turbo, images[:2])
    plain = nrinv.invert(turbo, images[:2], captions[:2], **seeded())
    inv = nrinv.invert(turbo, images[:2], captions[:2], return_defects=True, **seeded())
    assert torch.equal(inv.latents, plain.latents)
    np.testing.assert_array_equal(inv.residuals, plain.residuals)
    assert inv.trajectory is None and plain.defects is None
    assert len(inv.defects) == len(inv.timesteps)
    np.testing.assert_array_equal(inv.nfe, plain.nfe + len(inv.timesteps))
    replayed = nrinv.generate(turbo, inv, replay=True, output_type="latent").images
    assert distance(replayed, z).max() < 1e-5
    drawn = nrinv.generate(turbo, inv, output_type="latent").images
    assert torch.equal(drawn, nrinv.generate(turbo, plain, output_type="latent").images)
    assert distance(drawn, z).max() > 1e-4  # there was something to correct
    inv.save(tmp_path / "x.safetensors")
    loaded = nrinv.load(tmp_path / "x.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(inv.defects, loaded.defects, strict=True))
    assert torch.equal(nrinv.generate(turbo, loaded, replay=True, output_type="latent").images, replayed)


def test_replay_part_of_the_way_and_with_the_trajectory_asked_for(base, held_out):
    images, captions, _ = held_out
    call = {"num_inference_steps": 8, "guidance_scale": 1.0, "strength": 0.5}
    inv = nrinv.invert(base, images[0], captions[0], return_defects=True, return_trajectory=True, max_nfe=1, **call)
    assert len(inv.defects) == 4 and len(inv.trajectory) == 5
    z = nrinv.encode(base, images[0])
    assert distance(nrinv.generate(base, inv, replay=True, output_type="latent").images, z) < 1e-5
    assert distance(nrinv.generate(base, inv, output_type="latent").images, z) > 1e-3


def test_replay_needs_defects(turbo, held_out):
    inv = nrinv.invert(turbo, held_out[0][0], held_out[1][0], max_nfe=1, **CALL)
    own = turbo.scheduler
    with pytest.raises(ValueError, match=r"replay: the inversion holds no defects.*return_defects=True"):
        nrinv.generate(turbo, inv, replay=True)
    assert turbo.scheduler is own
