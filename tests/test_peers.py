"""The published methods against problems whose answers are known, and their runner against nrinv's own."""

import diffusers
import numpy as np
import pytest
import torch
from mixture import BETAS, Mixture
from peers import METHODS, PeerInversion, Step, aidi_anderson, aidi_e, fixed_point, newton_gmres, renoise, sign_step

import nrinv

KAPPA, NFE = 0.8, {"sign step": 400, "AIDI-E": 120, "ExactDPM": 400, "forward step": 200}


def answer(method, f, step, nfe):
    """What a method answers and how often it asked."""
    solver = method(step, nfe)
    point = next(solver)
    for used in range(1, nfe + 1):
        try:
            point = solver.send(f(point))
        except StopIteration as end:
            return end.value, used
    raise AssertionError(f"more than {nfe} evaluations")


def linear(batch=3, dimension=24):
    """(f, fixed points, step) of f(z) = z* + J (z - z*), J symmetric with eigenvalues in 0..KAPPA."""
    generator = torch.Generator().manual_seed(0)
    axes = torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))[0]
    jacobian = axes @ torch.diag(torch.linspace(0, KAPPA, dimension, dtype=torch.float64)) @ axes.T
    fixed, start = torch.randn(2, batch, dimension, 1, generator=generator, dtype=torch.float64)

    def f(z):
        return fixed + jacobian @ (z - fixed)

    # With A = 1 the step of the sampler from z is s + z - f(z), whatever b and m are.
    return f, fixed, Step(start, 1.0, -1.0, 0, 1, KAPPA, 2.0**-52)


@pytest.mark.parametrize("name", METHODS)
def test_a_linear_problem_is_solved(name):
    f, fixed, step = linear()
    z, used = answer(METHODS[name], f, step, NFE.get(name, 60))
    assert z.shape == step.state.shape
    assert used <= NFE.get(name, 60)
    # The public code's sign step oscillates about the solution with a step of mean|r|; ExactDPM stops at |r|^2 = 1e-3.
    bound = {"sign step": 0.3, "ExactDPM": 0.2, "forward step": 0.2}.get(name, 1e-4)
    assert (z - fixed).flatten(1).norm(dim=1).max() < bound


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 5])
def test_samples_do_not_depend_on_each_other(name, nfe):
    def f(z):
        return 1 + torch.sin(z) / 2

    step = Step(torch.tensor([[0.0, 1.0], [30.0, -2.0], [5.0, 0.1]]), 1.0, -1.0, 0, 1, 0.5)
    batch, used = answer(METHODS[name], f, step, nfe)
    assert used == nfe
    for b in range(3):
        single, _ = answer(METHODS[name], f, Step(step.state[b : b + 1], 1.0, -1.0, 0, 1, 0.5), nfe)
        torch.testing.assert_close(batch[b : b + 1], single)


def scalar(value):
    return torch.tensor([[value]], dtype=torch.float64)


def halve(z):
    """f with the fixed point 0."""
    return z / 2


def test_formulas_by_hand():
    step = Step(scalar(16.0), 1.0, -1.0, 0, 1)
    assert answer(fixed_point, halve, step, 3)[0] == 2
    # z: 16, 8, (8 + 4) / 2 = 6, (4 + 3) / 2 = 3.5
    assert answer(aidi_e, halve, step, 3)[0] == 3.5
    # In one dimension a single secant is exact.
    assert answer(aidi_anderson, halve, step, 2)[0].abs() < 1e-12
    assert answer(newton_gmres, halve, step, 2)[0].abs() < 1e-6
    # r = -8 and the step -8, then r = -4: the answer is f(8).
    assert answer(sign_step, halve, step, 2)[0] == 4


def test_renoise_averages_the_published_outputs():
    values = [16 / 2 ** (k + 1) for k in range(10)]  # f at evaluation k
    general = Step(scalar(16.0), 1.0, -1.0, 0, 3)
    assert answer(renoise, halve, general, 10) == (scalar(np.mean(values[8:10])), 10)
    cleanest = Step(scalar(16.0), 1.0, -1.0, 3, 3)
    assert answer(renoise, halve, cleanest, 10) == (scalar(np.mean(values[:5])), 5)


def run(inversion, network):
    while request := inversion.next():
        inversion.feed(network(request.scale * request.sample, request.timestep))
    return inversion.result()


DDIM = {"clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
NETWORK = Mixture(dimension=64, components=4)


def network(x, timestep):
    return torch.from_numpy(NETWORK(x.numpy(), timestep)).float()


def recorded(sampler, seed=0):
    """(target, noises) of a run of this sampler."""
    draws = np.random.default_rng(seed).standard_normal((1 + sampler.num_noises, 2, 64)).astype(np.float32)
    target, *noises = torch.from_numpy(draws)
    return target, noises


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", DDIM),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
    ],
)
def test_a_sweep_is_that_of_nrinv(name, config):
    sampler = nrinv.read_sampler(getattr(diffusers, name)(**BETAS, **config), 6)
    target, noises = recorded(sampler)
    extrapolation = 0.0 if sampler.first_order else 1.0
    for rho in {0.0, extrapolation}:
        for nfe in (1, 3):
            options = {"solver": "fixed_point", "max_nfe": nfe, "predictor": False, "rounds": 0, "tol": 0}
            own = run(nrinv.Inversion(sampler, target, noises=noises, extrapolation=rho, **options), network)
            peer = run(PeerInversion(sampler, target, fixed_point, nfe, noises=noises, extrapolation=rho), network)
            scale = own.latents.abs().max()
            torch.testing.assert_close(peer.latents / scale, own.latents / scale, rtol=0, atol=2e-6)
            assert peer.evaluations == own.evaluations == nfe * len(sampler)
            np.testing.assert_array_equal(peer.step_nfe, own.step_nfe)
            np.testing.assert_array_equal(peer.nfe, own.nfe)


def test_the_result_has_the_fields_of_nrinvs():
    sampler = nrinv.read_sampler(diffusers.DDIMScheduler(**BETAS, **DDIM), 4)
    target, _ = recorded(sampler)
    inversion = PeerInversion(sampler, target, renoise, 8)
    with pytest.raises(RuntimeError, match="not done"):
        inversion.result()
    request, result = inversion.next(), run(inversion, network)
    own = nrinv.Inversion(sampler, target)
    wanted, reference = own.next(), run(own, network)
    assert set(request._fields) == set(wanted.__match_args__)
    assert set(result._fields) == set(reference.__match_args__)
    for field in ("index", "timestep", "scale", "wants_gradient", "cotangent", "active", "correcting"):
        assert type(getattr(request, field)) is type(getattr(wanted, field))
    for field in result._fields:
        assert type(getattr(result, field)) is type(getattr(reference, field))
        assert np.shape(getattr(result, field)) == np.shape(getattr(reference, field))
    assert inversion.max_evaluations == 32
    assert result.evaluations == 29
    np.testing.assert_array_equal(result.step_nfe[:, 0], [8, 8, 8, 5])
    assert np.isfinite(result.residuals).all()


def test_noises_have_to_match_the_sampler():
    sampler = nrinv.read_sampler(diffusers.EulerAncestralDiscreteScheduler(**BETAS), 3)
    with pytest.raises(ValueError, match=f"draws {sampler.num_noises} noises, got 0"):
        PeerInversion(sampler, torch.zeros(1, 4), fixed_point, 1)
