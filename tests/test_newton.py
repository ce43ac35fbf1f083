"""solver="newton": its equations with gradients by torch.autograd, alone and through a stock pipeline."""

import diffusers
import numpy as np
import pytest
import torch
from mixture import BETAS, Mixture

import nrinv

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


class TorchMixture(Mixture):
    """The closed-form denoiser, differentiable."""

    def __call__(self, x, timestep):
        sigma = float(np.exp(np.interp(timestep, np.arange(1000), self.log_sigma)))
        variance, means = torch.from_numpy(self.variance), torch.from_numpy(self.means)
        z = x * (1 + sigma**2) ** 0.5
        total = variance + sigma**2
        weight = torch.softmax(-0.5 * ((z[:, None] - means) ** 2 / total).sum(-1), 1)
        gain = variance / total
        return (z - (weight @ ((1 - gain) * means) + gain * z)) / sigma


NETWORK = TorchMixture(dimension=64)


def problem(name, **config):
    sampler = nrinv.read_sampler(getattr(diffusers, name)(**BETAS, **config), 4)
    assert sampler.first_order
    return sampler, torch.from_numpy(np.random.default_rng(0).standard_normal((3, 64))) * 0.7


def drive(sampler, target, **options):
    """The result, and for each step its points in order: (z, None), or (z, cotangent) where a product was asked for."""
    inversion = nrinv.Inversion(sampler, target.float(), solver="newton", **options)
    points = {j: [] for j in range(len(sampler))}
    output = None
    while (request := inversion.next()) is not None:
        if request.cotangent is None:
            sample = request.sample.double().requires_grad_(request.wants_gradient)
            output = NETWORK(request.scale * sample, request.timestep)
            points[request.index].append((sample.detach(), None))
            inversion.feed(output.detach().float())
        else:
            assert sample.requires_grad and request.cotangent.shape == request.sample.shape
            points[request.index].append((request.sample.double(), request.cotangent.double()))
            product = torch.autograd.grad(output, sample, request.cotangent.double(), retain_graph=True)[0]
            inversion.feed(product.float())
    return inversion.result(), points


def objective(sampler, j, state, z, lam):
    """f(z) and F(z) / D of each sample, as they are printed."""
    A, b = sampler.steps[j, j], sampler.steps[j, len(sampler) + j]
    f = (state - b * NETWORK(sampler.inputs[j] * z, sampler.timesteps[j])) / A
    weight = 1 / (1 - 1 / A**2) if A > 1 else 1.0
    return f, (z - f).abs().mean(1) + lam * weight * (z - state / A).norm(dim=1) / z.shape[1] ** 0.5


@pytest.mark.parametrize("lam", [0.0, 0.1])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    ],
)
def test_every_point_is_where_the_printed_update_puts_it(name, config, lam):
    sampler, target = problem(name, **config)
    floor = 0.5
    result, points = drive(sampler, target, lam=lam, floor=floor, max_nfe=15, tol=0, trajectory=True)
    updates = 0
    for j, steps in points.items():
        state = result.trajectory[j + 1].double()
        for b in range(len(target)):
            best, merit, gradient, length, nfe = None, np.inf, None, 1.0, 0
            for z, cotangent in steps:
                if nfe == result.step_nfe[j, b]:
                    break  # the rest is for the others
                if cotangent is None:
                    if gradient is not None:
                        step = length * merit * gradient.sign() / gradient.abs().clamp_min(floor)
                        torch.testing.assert_close(z[b], best - step, rtol=1e-4, atol=2e-4)
                        updates += 1
                    f, F = (x[b] for x in objective(sampler, j, state, z, lam))
                    accepted = bool(F < merit)
                    if accepted:
                        best, best_f, merit, length = z[b], f, float(F), 1.0
                    else:
                        length /= 2
                    nfe += 1
                elif accepted:
                    assert torch.equal(z[b], best)
                    leaf = z.clone().requires_grad_()
                    f, F = objective(sampler, j, state, leaf, lam)
                    signs = (f - leaf)[b].detach().sign()
                    sure = (f - leaf)[b].abs() > 1e-5
                    assert torch.equal(cotangent[b][sure], signs[sure])
                    # F is the mean over elements, g the gradient of their sum but for that of G, which is w (z - mu) / rms
                    gradient = torch.autograd.grad(F[b], leaf)[0][b] * leaf.shape[1]
                    nfe += 1
            assert nfe == result.step_nfe[j, b]
            torch.testing.assert_close(result.trajectory[j][b].double(), best_f, rtol=1e-4, atol=2e-4)
    assert updates > 12
    np.testing.assert_array_equal(result.nfe, result.step_nfe.sum(0))
    assert result.evaluations == sum(len(steps) for steps in points.values())
    assert all(sum(cotangent is None for _, cotangent in steps) <= 15 for steps in points.values())
    assert set(result.reasons) <= {"max_nfe", "stalled"}


def test_a_gradient_is_announced_only_where_one_can_follow():
    sampler, target = problem("EulerDiscreteScheduler", timestep_spacing="trailing")
    for max_nfe, count in ((1, 1), (2, 1), (3, 3)):
        result, points = drive(sampler, target, max_nfe=max_nfe, tol=0)
        assert all(len(steps) == count for steps in points.values())
        assert [cotangent is not None for _, cotangent in points[0]] == [False, True, False][:count]
        np.testing.assert_array_equal(result.step_nfe, np.full((4, 3), count))
    inversion = nrinv.Inversion(sampler, target.float(), solver="newton", max_nfe=2)
    assert not inversion.next().wants_gradient
    inversion = nrinv.Inversion(sampler, target.float(), solver="auto", max_nfe=9)
    assert not inversion.next().wants_gradient
    inversion = nrinv.Inversion(sampler, target.float(), solver="newton", max_nfe=3)
    first = inversion.next()
    assert first.wants_gradient and first.cotangent is None
    inversion.feed(torch.ones(3, 64))
    for _ in range(2):
        request = inversion.next()
        assert request.index == first.index and set(request.cotangent.unique().tolist()) <= {-1.0, 0.0, 1.0}


def test_a_product_that_is_not_finite_ends_its_sample_alone():
    sampler, target = problem("EulerDiscreteScheduler", timestep_spacing="trailing")

    def run(spoil):
        inversion = nrinv.Inversion(sampler, target.float(), solver="newton", max_nfe=3, tol=0)
        while (request := inversion.next()) is not None:
            answer = 0.3 * request.sample if request.cotangent is None else 0.3 * request.cotangent
            answer[1] = answer[1] * (float("nan") if spoil and request.cotangent is not None else 1)
            inversion.feed(answer)
        return inversion.result()

    want, got = run(False), run(True)
    assert got.reasons == [want.reasons[0], "non_finite", want.reasons[2]]
    assert torch.isfinite(got.latents).all()
    assert torch.equal(got.latents[[0, 2]], want.latents[[0, 2]])


# ------------------------------------------------------------------------------------------------------------- pipeline


@pytest.fixture
def half_frozen(turbo):
    """Some parameters need gradients, some do not; as it was afterwards."""
    parameters = list(turbo.unet.parameters()) + list(turbo.vae.parameters())
    before = [p.requires_grad for p in parameters]
    for i, parameter in enumerate(parameters):
        parameter.requires_grad_(i % 3 > 0)
    yield turbo, lambda: [p.requires_grad for p in parameters] == [i % 3 > 0 for i in range(len(parameters))]
    for parameter, state in zip(parameters, before, strict=True):
        parameter.requires_grad_(state)


def test_through_the_pipeline(half_frozen, held_out):
    pipe, unchanged = half_frozen
    images, captions, _ = held_out
    inv = nrinv.invert(pipe, images[:2], captions[:2], solver="newton", max_nfe=5, tol=0, **CALL)
    assert torch.isfinite(inv.latents).all() and not inv.latents.requires_grad
    assert set(inv.reasons) <= {"max_nfe", "stalled"}
    assert ((inv.step_nfe >= 4) & (inv.step_nfe <= 5)).all()
    assert unchanged() and all(p.grad is None for p in pipe.unet.parameters())
    plain = nrinv.invert(pipe, images[:2], captions[:2], solver="fixed_point", max_nfe=1, **CALL)
    assert not torch.allclose(inv.latents, plain.latents)
    once = nrinv.invert(pipe, images[:2], captions[:2], solver="newton", max_nfe=1, **CALL)
    torch.testing.assert_close(once.latents, plain.latents, rtol=1e-5, atol=1e-5)


def test_parameters_are_as_they_were_after_an_exception(half_frozen, held_out):
    pipe, unchanged = half_frozen
    seen = []

    def fail(module, args, output):
        seen.append(any(p.requires_grad for p in module.parameters()))
        if len(seen) == 3:
            raise KeyboardInterrupt

    hook = pipe.unet.register_forward_hook(fail)
    try:
        with pytest.raises(KeyboardInterrupt):
            nrinv.invert(pipe, held_out[0][0], held_out[1][0], solver="newton", **CALL)
    finally:
        hook.remove()
    assert seen == [False, False, False]
    assert unchanged()


def test_a_network_without_gradient_is_refused_by_name(half_frozen, held_out):
    pipe, unchanged = half_frozen
    hook = pipe.unet.register_forward_hook(lambda module, args, output: (output[0].detach(), *output[1:]))
    own = pipe.scheduler
    try:
        with pytest.raises(ValueError, match="solver: 'newton' needs the gradient"):
            nrinv.invert(pipe, held_out[0][0], held_out[1][0], solver="newton", **CALL)
        assert unchanged() and pipe.scheduler is own
        inv = nrinv.invert(pipe, held_out[0][0], held_out[1][0], solver="newton", max_nfe=2, **CALL)  # needs none
        assert torch.isfinite(inv.latents).all()
    finally:
        hook.remove()
