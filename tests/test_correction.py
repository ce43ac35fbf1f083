"""The prompt-aware correction: on the closed-form denoiser, and through pipelines."""

import copy

import diffusers
import numpy as np
import pytest
import torch
import zoo
from helpers import assert_same, fingerprint, with_scheduler
from mixture import BETAS, Mixture, draw

import nrinv
from nrinv.pipeline import round_trip_error

CALL = {"num_inference_steps": 20, "guidance_scale": 3.0}


def tail(steps=50, strength=0.1, name="DDIMScheduler"):
    scheduler = getattr(diffusers, name)(**BETAS, **({"clip_sample": False} if name == "DDIMScheduler" else {}))
    return nrinv.read_sampler(scheduler, steps, start=steps - int(steps * strength))


def answer(network, request):
    x = request.scale * np.asarray(request.sample, np.float64)
    return network(x.reshape(len(x), -1), request.timestep).reshape(x.shape).astype(np.float32)


def correction(sampler, target, rounds=2, noises=None, **options):
    """An inversion that ends with its correction."""
    return nrinv.Inversion(
        sampler, target, correct_from=sampler, correct_rounds=rounds, correct_noises=noises, correct_only=True, **options
    )


def run(correction, network):
    while request := correction.next():
        assert request.correcting
        m = answer(network, request)
        correction.feed(m if isinstance(request.sample, np.ndarray) else torch.from_numpy(m))
    return correction.result()


# ------------------------------------------------------------------------------------------------------- the closed form


def test_what_is_not_the_models_own_goes_away():
    """Half of the directions have next to no variance in the data: what an image has there, a correction takes away."""
    network, sampler = Mixture(dimension=256), tail()
    network.variance[128:] = 1e-4
    rng = np.random.default_rng(0)
    image = network.means[:4] + rng.standard_normal((4, 256)) * np.sqrt(network.variance)
    dirt = np.zeros((4, 256))
    dirt[:, 128:] = 0.3 * rng.standard_normal((4, 128))
    target = (image + dirt).astype(np.float32)
    draws = [rng.standard_normal((4, 256)).astype(np.float32) for _ in range(3)]
    found = run(correction(sampler, target, draws=draws, rounds=3), network)
    before, after = (np.linalg.norm(x[:, 128:] - image[:, 128:], axis=1) for x in (target, found.latents))
    assert (after < 0.2 * before).all()
    kept = np.linalg.norm(found.latents[:, :16] - image[:, :16], axis=1) / np.linalg.norm(image[:, :16], axis=1)
    assert (kept < 0.2).all() and not found.held.any() and not found.failed.any()
    np.testing.assert_array_equal(found.corrected, found.latents)
    assert found.evaluations == 3 * len(sampler)


@pytest.mark.parametrize(
    "name", ["DDIMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"]
)
def test_one_round_is_a_stock_run_from_the_noised_image(name):
    network, sampler = Mixture(dimension=64), tail(20, 0.2, name)
    rng = np.random.default_rng(1)
    target, drawn = (rng.standard_normal((2, 64)).astype(np.float32) for _ in range(2))
    found = run(correction(sampler, target, draws=[drawn], rounds=1), network)
    signal, sigma = sampler.levels[0]
    want = draw(sampler, network, signal * target.astype(np.float64) + sigma * drawn)
    np.testing.assert_allclose(found.latents, want, atol=1e-4)
    moved = np.linalg.norm(want - target, axis=1) / np.linalg.norm(target, axis=1)
    np.testing.assert_allclose(found.moved, moved, rtol=1e-3)


@pytest.mark.parametrize("inverted", [False, True])
def test_tensors_and_arrays_give_the_same(inverted):
    network, sampler = Mixture(dimension=64), tail()
    rng = np.random.default_rng(2)
    target, *draws = (rng.standard_normal((2, 64)).astype(np.float32) for _ in range(3))
    draws, radius = None if inverted else draws, [0.5, 100.0]
    arrays = run(correction(sampler, target, draws=draws, radius=radius), network)
    drawn = draws and [torch.from_numpy(one) for one in draws]
    tensors = run(correction(sampler, torch.from_numpy(target), draws=drawn, radius=radius), network)
    np.testing.assert_allclose(tensors.latents.numpy(), arrays.latents, atol=1e-5)
    np.testing.assert_array_equal(tensors.held, arrays.held)
    assert np.linalg.norm(arrays.latents[0] - target[0]) <= 0.5 * (1 + 1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "correct_rounds must be at least 1, got 0"),
        ({"draws": []}, "draws must hold 2 tensors, one for each round with drawn noise, got 0"),
        (
            {"noises": [np.zeros((2, 8), np.float32)]},
            "correct_noises must hold 0 tensors, each round's noises of correct_from, got 1",
        ),
        ({"radius": [1.0]}, "radius must hold a norm of at least 0 for each of the 2 samples"),
        ({"radius": [1.0, -1.0]}, "radius must hold a norm of at least 0"),
        ({"radius": [1.0, np.nan]}, "radius must hold a norm of at least 0"),
        ({"target": np.full((2, 8), np.nan, np.float32)}, "target must be finite, got NaN or infinity"),
        ({"draws": [np.zeros((2, 9), np.float32)] * 2}, "draws must have the target's shape"),
        ({"sampler": 3}, "sampler must be a Sampler"),
    ],
)
def test_bad_arguments_of_the_machine(change, message):
    given = {
        "sampler": tail(),
        "target": np.ones((2, 8), np.float32),
        "draws": [np.ones((2, 8), np.float32)] * 2,
        **change,
    }
    with pytest.raises(ValueError, match=message):
        correction(given.pop("sampler"), given.pop("target"), **given)


def test_levels_are_needed_where_noise_is_drawn():
    form = tail()
    bare, target = nrinv.Sampler(form.timesteps, form.steps, form.inputs), np.ones((2, 8), np.float32)
    with pytest.raises(ValueError, match="correct_from must have levels where noise is drawn; leave out draws"):
        correction(bare, target, draws=[target, target])
    assert correction(bare, target).max_evaluations == 4 * len(bare)


def test_out_of_order():
    machine = correction(tail(), np.ones((1, 8), np.float32))
    with pytest.raises(RuntimeError, match="not finished"):
        machine.result()
    first, again = machine.next(), machine.next()
    assert first.index == again.index and np.array_equal(first.sample, again.sample)
    machine.feed(np.ones((1, 8), np.float32))
    with pytest.raises(RuntimeError, match="feed needs a request"):
        machine.feed(np.ones((1, 8), np.float32))


@pytest.mark.parametrize("order", ["reversed", "passes"])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_an_inversion_corrects_first_and_then_inverts_what_it_found(order, kind):
    network, last = Mixture(dimension=64), tail()
    whole = nrinv.read_sampler(diffusers.DDIMScheduler(**BETAS, clip_sample=False), 10)
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    rng = np.random.default_rng(3)
    target, guess, *draws = (rng.standard_normal((2, 64)).astype(np.float32) for _ in range(4))
    draws, options = [wrap(one) for one in draws], {"order": order, "max_nfe": 5, "verify": True}
    found = run(correction(last, wrap(target), draws=draws, radius=[0.3, 9.0]), network)
    assert found.reasons == ["max_nfe"] * 2 and np.isnan(found.residuals).all() and not found.step_nfe.any()
    corrected = np.asarray(found.latents)
    moved = wrap(guess + np.float32(whole.levels[-2, 0]) * (corrected - target))
    both = nrinv.Inversion(
        whole, wrap(target), guess=wrap(guess), correct_from=last, draws=draws, radius=[0.3, 9.0], **options
    )
    alone = nrinv.Inversion(whole, wrap(corrected), guess=moved, **options)
    results, requests = [], []
    for machine in (both, alone):
        correcting = []
        while request := machine.next():
            correcting.append(request.correcting)
            form = last if request.correcting else whole
            assert request.timestep == form.timesteps[request.index]
            machine.feed(wrap(answer(network, request)))
        requests.append(correcting)
        results.append(machine.result())
        assert len(correcting) == results[-1].evaluations <= machine.max_evaluations
    assert requests[0] == [True] * found.evaluations + requests[1] and not any(requests[1])
    np.testing.assert_array_equal(np.asarray(results[0].corrected), corrected)
    np.testing.assert_allclose(np.asarray(results[0].latents), np.asarray(results[1].latents), atol=1e-5)
    np.testing.assert_array_equal(results[0].nfe, results[1].nfe + found.evaluations)
    np.testing.assert_array_equal(results[0].moved, found.moved)
    np.testing.assert_array_equal(results[0].held, [True, False])


# ------------------------------------------------------------------------------------------------------------- pipelines


def test_images_of_the_models_own_are_moved_less(base, held_out):
    images, captions, _ = held_out
    drawn = base(captions[:3], generator=[torch.Generator().manual_seed(i) for i in range(3)], output_type="latent", **CALL)
    own = nrinv.correct(base, drawn.images, captions[:3], radius=None, strength=0.1, **CALL)
    real = nrinv.correct(base, images[:3], captions[:3], radius=None, strength=0.1, **CALL)
    assert own.moved.mean() < 0.7 * real.moved.mean()
    assert np.isnan(own.psnr_loss).all() and np.isfinite(real.psnr_loss).all()
    assert own.nfe == real.nfe == 4


def test_both_orders_do_the_same_and_leave_the_pipeline_alone(base, held_out):
    images, captions, _ = held_out
    before = fingerprint(base)
    found = [nrinv.correct(base, images[:2], captions[:2], order=order, **CALL) for order in ("reversed", "passes", "auto")]
    assert_same(before, fingerprint(base))
    for other in found[1:]:
        assert torch.allclose(other.latents, found[0].latents, atol=1e-4)
    assert torch.equal(found[2].latents, nrinv.correct(base, images[:2], captions[:2], **CALL).latents)
    assert not torch.equal(found[2].latents, nrinv.correct(base, images[:2], captions[:2], seed=1, **CALL).latents)


def test_the_radius_is_a_multiple_of_the_autoencoders_error(base, held_out):
    images, captions, _ = held_out
    z = nrinv.encode(base, images[:2])
    error = round_trip_error(base, z, None, None)
    for radius in (0.0, 0.5, 3.0):
        found = nrinv.correct(base, images[:2], captions[:2], radius=radius, rounds=1, strength=0.3, **CALL)
        gap = (found.latents - z).flatten(1).norm(dim=1).double().numpy()
        assert (gap <= radius * error * (1 + 1e-4) + 1e-5).all()
        np.testing.assert_allclose(found.moved, gap / z.flatten(1).norm(dim=1).numpy(), rtol=1e-3, atol=1e-6)
    free = nrinv.correct(base, images[:2], captions[:2], radius=None, rounds=1, strength=0.3, **CALL)
    assert not free.held.any()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DDIMScheduler", {"noise": "inverted"}),
    ],
)
def test_every_kind_of_scheduler(base, held_out, name, options):
    images, captions, _ = held_out
    with_scheduler(base, name)
    generators = [torch.Generator().manual_seed(4) for _ in range(2)]
    found = [
        nrinv.correct(base, images[0], captions[0], generator=one, strength=0.2, **options, **CALL) for one in generators
    ]
    assert torch.equal(found[0].latents, found[1].latents) and torch.isfinite(found[0].latents).all()
    assert 0 < found[0].moved[0] < 0.5


def test_one_step_of_a_few_step_sampler(turbo, held_out):
    images, captions, _ = held_out
    found = nrinv.correct(turbo, images[0], captions[0], rounds=1, num_inference_steps=4, guidance_scale=1.0)
    assert found.nfe == 1


def test_half_precision(base, held_out):
    images, captions, _ = held_out
    pipe = copy.deepcopy(base).to(torch.bfloat16)
    found = nrinv.correct(pipe, images[0], captions[0], **CALL)
    want = nrinv.correct(base, images[0], captions[0], **CALL)
    assert found.latents.dtype == torch.bfloat16
    assert (found.latents.float() - want.latents).norm() / want.latents.norm() < 0.05


def test_a_loop_that_reads_its_index_is_run_as_it_is():
    pipe, call, latents = zoo.make("SD, ControlNet scheduled")
    image = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    found = nrinv.correct(pipe, image, radius=None, num_inference_steps=8, strength=0.25, **call)
    assert torch.isfinite(found.latents).all() and found.nfe == 4
    with pytest.raises(ValueError, match="noise='inverted' visits the timesteps backwards"):
        nrinv.correct(pipe, image, radius=None, noise="inverted", num_inference_steps=8, strength=0.25, **call)


def test_another_layout():
    pipe, call, latents = zoo.make("Flux")
    image = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    found = nrinv.correct(pipe, image, radius=None, num_inference_steps=4, strength=0.5, **call)
    assert found.latents.shape == latents.shape and 0 < found.moved[0] < 2


def test_inversion_of_the_corrected_image(base, held_out, tmp_path):
    images, captions, _ = held_out
    call = {"num_inference_steps": 10, "guidance_scale": 2.0}
    corrected = nrinv.correct(base, images[:2], captions[:2], **call)
    found = nrinv.invert(base, images[:2], captions[:2], correct=0.05, max_nfe=4, **call)
    assert torch.equal(found.corrected, corrected.latents)
    np.testing.assert_array_equal(found.moved, corrected.moved)
    np.testing.assert_array_equal(found.psnr_loss, corrected.psnr_loss)
    plain = nrinv.invert(base, images[:2], captions[:2], max_nfe=4, **call)
    assert plain.corrected is None
    drawn = nrinv.generate(base, found, output_type="latent").images
    gaps = [(drawn - z).norm() for z in (found.corrected, nrinv.encode(base, images[:2]))]
    assert gaps[0] < gaps[1]
    parts = nrinv.invert(base, images[:2], captions[:2], correct=0.05, max_nfe=4, batch_size=1, **call)
    assert torch.allclose(parts.corrected, found.corrected, atol=1e-4)
    found.save(tmp_path / "x.safetensors")
    again = nrinv.load(tmp_path / "x.safetensors")
    assert torch.equal(again.corrected, found.corrected)
    np.testing.assert_array_equal(again.psnr_loss, found.psnr_loss)
    assert torch.equal(found.split()[1].corrected, found.corrected[1:])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": float("nan")}, "strength must be above 0"),
        ({"rounds": 0}, "rounds must be a whole number of at least 1, got 0"),
        ({"radius": -1.0}, "radius must be None or a finite number of at least 0, got -1.0"),
        ({"noise": "none"}, "noise must be one of random, inverted, got 'none'"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"order": "forward"}, "order must be one of auto, reversed, passes, got 'forward'"),
        ({"prompt": ["a", "b"]}, "prompt must be one prompt or 1"),
    ],
)
def test_bad_options_are_refused_before_the_network_runs(base, held_out, options, message):
    calls = []
    hook = base.unet.register_forward_hook(lambda *args: calls.append(1))
    with pytest.raises(ValueError, match=message):
        nrinv.correct(base, held_out[0][0], **{"prompt": "a", **options})
    hook.remove()
    assert not calls


def test_where_there_is_nothing_to_correct_by():
    pipe, call, latents = zoo.make("SD")
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    with pytest.raises(ValueError, match="takes a part of the steps itself; give the text-to-image pipeline"):
        nrinv.correct(other, latents)
    with pytest.raises(ValueError, match="strength must be above 0 and at most 1, got 2"):
        nrinv.invert(pipe, latents, correct=2, num_inference_steps=4, **call)
