"""interpolate, centroid, path_length: ways by another method or of known norms, and what users do with them."""

import math
from functools import partial

import numpy as np
import pytest
import torch
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import gammaln

import nrinv
from nrinv.path import METHODS
from nrinv.prompts import prompt_embeddings
from nrinv.spectral import octaves

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


geodesic = partial(nrinv.interpolate, method="geodesic")


def weight(r, size):
    return -((size - 1) * r.log() - r * r / 2 - (size / 2 - 1) * math.log(2) - gammaln(size / 2))


def polyline(points, size, parts=20):
    """The length of a chain of points [n, 2] in the metric, each chord in `parts`; a tensor."""
    t = (torch.arange(parts, dtype=points.dtype) + 0.5) / parts
    chords = points.diff(dim=0)
    within = points[:-1, None] + chords[:, None] * t[:, None]
    return (weight(within.norm(dim=2), size).mean(1) * chords.norm(dim=1)).sum()


@pytest.mark.parametrize(("first", "second"), [(1.0, 1.0), (0.85, 0.95), (1.1, 1.2), (0.8, 1.2)])
@pytest.mark.parametrize("theta", [0.3, 1.5, 2.8])
def test_no_chain_of_points_is_shorter(first, second, theta):
    """The same problem by brute force: 40 free points in the plane, moved until their chain is shortest."""
    size, count = 64, 40
    norm = math.sqrt(size - 1)
    a, b = first * norm * np.array([1, 0]), second * norm * np.array([math.cos(theta), math.sin(theta)])
    angles, norms = np.linspace(0, theta, count + 2), np.linspace(first * norm, second * norm, count + 2)
    start = np.stack([norms * np.cos(angles), norms * np.sin(angles)], 1)[1:-1]
    ends = torch.from_numpy(np.stack([a, b]))

    def length_and_slope(x):
        x = torch.from_numpy(x).requires_grad_()
        length = polyline(torch.cat([ends[:1], x.view(-1, 2), ends[1:]]), size, 6)
        return length.item(), torch.autograd.grad(length, x)[0].numpy()

    found = minimize(length_and_slope, start.ravel(), method="L-BFGS-B", jac=True)
    x = torch.zeros(1, size, dtype=torch.float64)
    y = x.clone()
    x[0, :2], y[0, :2] = torch.from_numpy(a), torch.from_numpy(b)
    length = float(nrinv.path_length(x.float(), y.float())[0])
    assert length == pytest.approx(found.fun, rel=5e-3)
    points = geodesic(x.float(), y.float(), 400)[:, 0, :2].double()
    assert float(polyline(points, size)) == pytest.approx(length, rel=1e-3)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_points_are_like_the_ends(method, dtype):
    a, b = noise(3, 4, 8, 8).to(dtype), noise(3, 4, 8, 8, seed=1).to(dtype)
    kept = a.clone(), b.clone()
    points = nrinv.interpolate(a, b, 5, method=method)
    assert points.shape == (5, *a.shape) and points.dtype == dtype and torch.isfinite(points).all()
    if dtype != torch.float64:  # which is worked on in float32
        assert torch.equal(points[0], a) and torch.equal(points[-1], b)
    assert torch.equal(a, kept[0]) and torch.equal(b, kept[1])
    one = nrinv.interpolate(a[1:2], b[1:2], 5, method=method)
    assert torch.equal(one[:, 0], points[:, 1])  # each as if it were alone


def test_arrays_and_tensors_give_the_same():
    a, b = noise(2, 4, 8, 8), noise(2, 4, 8, 8, seed=1)
    for method in METHODS:
        tensors = nrinv.interpolate(a, b, 6, method=method)
        arrays = nrinv.interpolate(a.numpy(), b.numpy(), 6, method=method)
        assert isinstance(arrays, np.ndarray)
        np.testing.assert_allclose(arrays, tensors.numpy(), atol=2e-6)


def test_the_norms_of_the_points():
    a, b = noise(1, 4, 16, 16), 1.1 * noise(1, 4, 16, 16, seed=1)
    norms = {
        method: nrinv.interpolate(a, b, 9, method=method)[:, 0].flatten(1).norm(dim=1) / 32
        for method in ("geodesic", "slerp", "lerp", "variance_preserving")
    }
    assert (norms["geodesic"][2:-2] - 1).abs().max() < 0.01  # at once to where noise is
    assert norms["lerp"][4] < 0.8
    np.testing.assert_allclose(norms["slerp"].numpy(), np.linspace(norms["slerp"][0], norms["slerp"][-1], 9), rtol=1e-5)
    middle = norms["variance_preserving"][4]
    assert abs(float(middle) - float(((a + b) / 2**0.5).norm() / 32)) < 1e-5


@pytest.mark.parametrize("spacing", ["metric", "angle", "euclidean"])
def test_the_points_are_evenly_spaced(spacing):
    a, b = 0.95 * noise(1, 4, 16, 16), 1.05 * noise(1, 4, 16, 16, seed=1)
    points = geodesic(a, b, 200, spacing=spacing)[:, 0].flatten(1).double()
    norms = points.norm(dim=1)
    angles = torch.nn.functional.cosine_similarity(points[:-1], points[1:]).clamp(max=1).acos()
    chords = (points[1:] - points[:-1]).norm(dim=1)
    weights = weight((norms[1:] + norms[:-1]) / 2, 1024)
    gaps = {"metric": chords * weights, "angle": angles, "euclidean": chords}[spacing]
    assert float(gaps.max() / gaps.median()) < 1.1
    assert float(gaps[1:-1].min() / gaps.median()) > 0.9


def test_the_ways_between_opposite_and_equal_noises():
    a = noise(1, 4, 8, 8)
    there = geodesic(a, -a, 7)
    assert (there.flatten(1).norm(dim=1) / 16 - 1).abs().max() < 0.08 and torch.equal(there[-1], -a)
    assert torch.equal(there, geodesic(a, -a, 7))
    assert not torch.allclose(there[3], geodesic(a, -a, 7, seed=1)[3], atol=0.1)
    assert torch.allclose(geodesic(a, a.clone(), 3), a, atol=1e-6)
    assert nrinv.path_length(a, a.clone())[0] == 0


@settings(deadline=None, max_examples=60)
@given(
    size=st.integers(4, 3000),
    scale=st.tuples(st.floats(0.5, 3), st.floats(0.5, 3)),
    mix=st.floats(-1, 1),
    seed=st.integers(0, 1000),
)
def test_any_two_noises_have_a_way_and_a_middle(size, scale, mix, seed):
    x, y = noise(1, size, seed=seed), noise(1, size, seed=seed + 1)
    a = scale[0] * x / x.norm() * size**0.5
    y = mix * x + (1 - abs(mix)) * y
    b = scale[1] * y / y.norm() * size**0.5
    points = geodesic(a, b, 11)
    assert torch.isfinite(points).all() and torch.equal(points[0], a) and torch.equal(points[-1], b)
    back = geodesic(b, a, 11).flip(0)
    assert torch.allclose(points, back, atol=2e-3 * float(a.abs().max() + b.abs().max()))
    length = float(nrinv.path_length(a, b)[0])
    halves = [float(nrinv.path_length(*pair)[0]) for pair in ((a, points[5]), (points[5], b))]
    assert sum(halves) == pytest.approx(length, rel=1e-3, abs=1e-3)


def test_a_given_fraction():
    a, b = noise(1, 64), noise(1, 64, seed=1)
    for method in METHODS:
        one = nrinv.interpolate(a, b, [0.25], method=method)[0]
        assert torch.equal(one, nrinv.interpolate(a, b, 5, method=method)[1])


# ------------------------------------------------------------------------------------------------------------- by octaves


def norms_of(x):
    """The norms of latents [B, C, H, W] in each octave, in those of white noise: [octaves, B], by another transform."""
    power = np.abs(np.fft.fft2(x.double().numpy(), norm="ortho")) ** 2
    return np.array([np.sqrt((power * m.numpy()).sum((1, 2, 3)) / (m.sum().item() * x.shape[1])) for m in octaves(x.shape)])


def coloured(*shape, seed, norms):
    """Noise with these norms in its octaves, exactly."""
    x = noise(*shape, seed=seed)
    spectrum = torch.fft.fft2(x.double())
    for mask, norm, own in zip(octaves(shape), norms, norms_of(x), strict=True):
        spectrum *= 1 - mask.double() + mask.double() * torch.from_numpy(norm / own).view(-1, 1, 1, 1)
    return torch.fft.ifft2(spectrum).real.float()


@pytest.mark.parametrize(
    "shape", [(1, 4, 16, 16), (2, 1, 64, 64), (1, 3, 9, 20), (1, 4, 2, 8, 8), (1, 8, 50), (3, 100), (1, 4, 1, 1)]
)
def test_octaves_divide_all_frequencies(shape):
    masks = octaves(shape)
    assert all(mask.shape == shape[max(2, len(shape) - 2) :] for mask in masks)
    assert (sum(masks) == 1).all() and all(mask.any() for mask in masks)


def test_what_octaves_there_are():
    counts = [[int(mask.sum()) for mask in octaves((1, 4, n, n))] for n in (4, 8, 16, 64)]
    assert [len(one) for one in counts] == [2, 3, 4, 6]
    assert counts[2][:3] == counts[3][:3] == [1, 8, 36]  # cycles across the image, whatever its size: 0, 1..2, 2..4


def test_colour_fades_to_white_in_the_middle():
    first, second = (4.0, 2.0, 1.5, 1.1), (2.0, 0.5, 1.0, 0.9)
    a = coloured(2, 4, 16, 16, seed=0, norms=first)
    b = coloured(2, 4, 16, 16, seed=1, norms=second)
    whole = a.flatten(1).norm(dim=1)[0] / 32, b.flatten(1).norm(dim=1)[0] / 32
    points = nrinv.interpolate(a, b, 9)
    for k, t in enumerate(np.linspace(0, 1, 9)):
        middle = (whole[0] ** (1 - t) * whole[1] ** t) ** 0.5
        wanted = [
            p ** max(0, 1 - 2 * t) * q ** max(0, 2 * t - 1) * middle ** (1 - abs(1 - 2 * t))
            for p, q in zip(first, second, strict=True)
        ]
        np.testing.assert_allclose(norms_of(points[k]), np.array(wanted)[:, None].repeat(2, 1), rtol=1e-5)
    middle = norms_of(points[4])
    assert np.ptp(middle) < 1e-5 and middle[0, 0] == pytest.approx(float(whole[0] * whole[1]) ** 0.25, rel=1e-5)


def test_each_octave_goes_along_its_own_arc():
    a, b = noise(1, 4, 16, 16), noise(1, 4, 16, 16, seed=1)
    point = nrinv.interpolate(a, b, [0.3])[0]
    for mask in octaves(a.shape):
        x, y, z = (torch.fft.ifft2(torch.fft.fft2(one) * mask).real.flatten() for one in (a, b, point))
        assert angle(x, z) == pytest.approx(0.3 * angle(x, y), abs=1e-4)
        assert angle(z, y) == pytest.approx(0.7 * angle(x, y), abs=1e-4)


@pytest.mark.parametrize("shape", [(2, 4, 16, 16), (1, 3, 9, 20), (1, 4, 3, 8, 8), (1, 8, 50), (3, 100)])
def test_the_way_by_octaves_is_the_same_there_and_back(shape):
    a, b = noise(*shape), 1.3 * noise(*shape, seed=1)
    there = nrinv.interpolate(a, b, 7)
    assert torch.allclose(there, nrinv.interpolate(b, a, 7).flip(0), atol=1e-5)
    opposite = nrinv.interpolate(a, -a, 7)
    norms = opposite.flatten(2).norm(dim=2) / a[0].numel() ** 0.5
    assert torch.isfinite(opposite).all() and (norms - norms[0]).abs().max() < 0.2 and torch.equal(opposite[-1], -a)
    assert not torch.allclose(opposite[3], nrinv.interpolate(a, -a, 7, seed=1)[3], atol=0.1)
    assert torch.allclose(nrinv.interpolate(a, a.clone(), 3)[1], a, atol=0.5)  # whiter, but no other


def test_a_vector_is_one_octave():
    a, b = noise(2, 300), 1.5 * noise(2, 300, seed=1)
    points, arc = nrinv.interpolate(a, b, 5), nrinv.interpolate(a, b, 5, method="slerp")
    assert torch.allclose(torch.nn.functional.cosine_similarity(points, arc, dim=2), torch.ones(5, 2), atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ centroids


def angle(a, b):
    return float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), dim=0).clamp(-1, 1).acos())


def test_the_centroid_of_two_is_the_middle_of_their_arc():
    a, b = noise(2, 4, 16, 16), 1.1 * noise(2, 4, 16, 16, seed=1)
    middle = geodesic(a, b, 3, spacing="angle")[1]
    assert torch.allclose(nrinv.centroid([a, b]), middle, atol=1e-4)
    assert torch.allclose(nrinv.centroid([b, a]), middle, atol=1e-4)
    np.testing.assert_allclose(nrinv.centroid([a.numpy(), b.numpy()]), middle.numpy(), atol=1e-4)


def test_a_centroid_is_as_far_from_all_as_symmetry_asks():
    latents = noise(6, 4, 32, 32)
    found = nrinv.centroid(latents)
    assert found.shape == (1, 4, 32, 32) and abs(float(found.norm()) / 64 - 1) < 0.01
    angles = [angle(found, one) for one in latents]
    assert max(angles) / min(angles) < 1.1
    assert torch.allclose(nrinv.centroid(latents.flip(0)), found, atol=1e-4)
    assert torch.allclose(nrinv.centroid(latents * torch.arange(1, 7).view(-1, 1, 1, 1)), found, atol=1e-4)
    near = nrinv.centroid(latents, shares=[5, 1, 1, 1, 1, 1])
    assert angle(near, latents[0]) < angles[0]
    # it is the least: what goes a little towards any of them is worse
    cost = sum(one**2 for one in angles)
    for one in latents:
        moved = geodesic(found, one[None], [0.05])[0]
        assert sum(angle(moved, other) ** 2 for other in latents) > cost


def test_the_centroid_of_one_is_its_direction():
    one = 1.3 * noise(1, 4, 8, 8)
    found = nrinv.centroid(one)
    assert angle(found, one) < 1e-3 and abs(float(found.norm()) / 16 - 1) < 0.01


# ------------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (torch.zeros_like(a), b, 3), "a and b: sample 0 must be finite and not zero"),
        (lambda a, b: (a, b * float("nan"), 3), "a and b: sample 0 must be finite and not zero"),
        (lambda a, b: (a, b[:, :2], 3), "b must have a's shape"),
        (lambda a, b: (a, b.numpy(), 3), "b must be a torch tensor like the target"),
        (lambda a, b: (a, b.long(), 3), "b must be float16, bfloat16, float32 or float64"),
        (lambda a, b: ("a", b, 3), "a must be a tensor or an array"),
        (lambda a, b: (a[0, 0, 0], b, 3), r"a must be a tensor or an array \[B, ...\], got shape"),
        (lambda a, b: (a, b, 1), "num must be a whole number of at least 2"),
        (lambda a, b: (a, b, 2.5), "num must be a whole number of at least 2"),
        (lambda a, b: (a, b, [0.5, 2]), "fractions must be a list of numbers in 0..1"),
        (lambda a, b: (a * 1e-3, b, 3), "sample 0 must have a norm in .* as noise has"),
        (lambda a, b: (a, b * 1e5, 3), "sample 0 must have a norm in .* as noise has"),
        (lambda a, b: (a.flatten(1)[:, :3], b.flatten(1)[:, :3], 3), "at least 4 elements a sample"),
    ],
)
def test_bad_ends(change, message):
    with pytest.raises(ValueError, match=message):
        geodesic(*change(noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, b: (torch.zeros_like(a), b), "a and b: sample 0 must be finite and not zero"),
        (lambda a, b: (a, b * float("inf")), "a and b: sample 0 must be finite and not zero"),
        (lambda a, b: (a, b[:, :, :4]), "b must have a's shape"),
        (lambda a, b: (a, b.numpy()), "b must be a torch tensor like the target"),
        (
            lambda a, b: (torch.ones_like(a), b),
            r"sample 0 must have 0.0001..100 times the norm of noise in every octave .* got \d",
        ),
        (
            lambda a, b: (torch.cat([a, a]), torch.cat([b, 200 * b])),
            "sample 1 must have 0.0001..100 times .* the other methods ask",
        ),
    ],
)
def test_bad_ends_of_a_way_by_octaves(change, message):
    with pytest.raises(ValueError, match=message):
        nrinv.interpolate(*change(noise(1, 4, 8, 8), noise(1, 4, 8, 8, seed=1)), 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "straight"},
            "method must be one of spectral, geodesic, slerp, lerp, variance_preserving, got 'straight'",
        ),
        ({"spacing": "even"}, "spacing must be one of metric, angle, euclidean, got 'even'"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        nrinv.interpolate(noise(1, 8), noise(1, 8, seed=1), **options)


@pytest.mark.parametrize(
    ("latents", "shares", "message"),
    [
        (torch.zeros(0, 8), None, "at least one noise"),
        (torch.zeros(2, 8), None, "must be finite and not zero"),
        (torch.ones(2, 8) * torch.tensor([[1.0], [-1.0]]), None, "cancel each other"),
        (noise(2, 8), [1], "shares must be 2 numbers"),
        (noise(2, 8), [1, -1], "shares must be 2 numbers of at least 0"),
        (noise(2, 8), [0, 0], "not all 0"),
        (noise(2, 8), [1, float("nan")], "shares must be 2 numbers"),
        ([noise(1, 8), noise(1, 9)], None, "latents must have the first's shape"),
    ],
)
def test_bad_centroids(latents, shares, message):
    with pytest.raises(ValueError, match=message):
        nrinv.centroid(latents, shares=shares)


# ---------------------------------------------------------------------------------------------------- between inversions


@pytest.fixture(scope="module")
def pair(_pipelines, held_out):
    images, captions, _ = held_out
    pipe = _pipelines["turbo"]
    return nrinv.invert(pipe, images[:2], captions[:2], **CALL).split()


def test_a_path_between_images_ends_in_them(turbo, pair):
    path = nrinv.interpolate(*pair, 4, pipe=turbo)
    assert path.prompt is None and path.call["prompt_embeds"].shape[0] == 4
    drawn = nrinv.generate(turbo, path, output_type="pt").images
    for end, one in zip((0, 3), pair, strict=True):
        alone = nrinv.generate(turbo, one, output_type="pt").images
        assert torch.allclose(drawn[end], alone[0], atol=1e-3)
    assert (drawn[1] - drawn[2]).abs().max() > 0.05


def test_one_prompt_needs_no_pipeline(turbo, held_out, tmp_path):
    images, captions, _ = held_out
    a, b = nrinv.invert(turbo, images[:2], captions[0], **CALL).split()
    path = nrinv.interpolate(a, b, 3)
    assert path.prompt == captions[0]
    path.save(tmp_path / "path.safetensors")
    again = nrinv.load(tmp_path / "path.safetensors")
    assert torch.equal(again.latents, path.latents)
    assert nrinv.generate(turbo, again, output_type="latent").images.shape[0] == 3


def test_inversions_that_do_not_go_together(turbo, held_out, pair):
    images, captions, _ = held_out
    other = nrinv.invert(turbo, images[0], captions[0], num_inference_steps=3, guidance_scale=1.0)
    with pytest.raises(ValueError, match="pipe must be given to mix the prompts"):
        nrinv.interpolate(*pair)
    with pytest.raises(ValueError, match="same sampler"):
        nrinv.interpolate(pair[0], other, pipe=turbo)
    with pytest.raises(ValueError, match="b must be an inversion like the other"):
        nrinv.interpolate(pair[0], pair[1].latents, pipe=turbo)
    both = nrinv.invert(turbo, images[:2], captions[:2], **CALL)
    with pytest.raises(ValueError, match="a must be the inversion of one image, got 2"):
        nrinv.interpolate(both, pair[0], pipe=turbo)
    louder = nrinv.invert(turbo, images[0], captions[0], num_inference_steps=4, guidance_scale=2.0)
    with pytest.raises(ValueError, match="different values of guidance_scale"):
        nrinv.interpolate(pair[0], louder, pipe=turbo)


def test_splitting_undoes_a_batch(pair, turbo, held_out):
    images, captions, _ = held_out
    both = nrinv.invert(turbo, images[:2], captions[:2], return_trajectory=True, **CALL)
    for i, one in enumerate(both.split()):
        assert one.prompt == captions[i] and torch.equal(one.latents, both.latents[i : i + 1])
        assert one.residuals.shape == (4, 1) and len(one.trajectory) == 5 and one.reasons == both.reasons[i : i + 1]
        assert torch.equal(
            nrinv.generate(turbo, one, output_type="latent").images,
            nrinv.generate(turbo, pair[i], output_type="latent").images,
        )


def test_packed_latents_are_taken_apart_first():
    """Flux lays patches of 2 x 2 in a row: octaves are those of the image all the same."""
    pipe, call, latents = zoo.make("Flux")
    both = torch.cat([latents, noise(*latents.shape, seed=5)])
    found = nrinv.invert(pipe, both, num_inference_steps=4, max_nfe=2, **call)
    a, b = found.split()
    path = nrinv.interpolate(a, b, 5, pipe=pipe)
    assert path.latents.shape == (5, *latents.shape[1:])
    size = {name: found.call[name] for name in ("height", "width")}
    unpacked = [unpack(one.latents, **size) for one in (a, b)]
    expected = nrinv.interpolate(*unpacked, 5)[:, 0]
    assert unpacked[0].ndim == 4 and torch.allclose(unpack(path.latents, **size), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"pipe must be given, .* to find the places of packed latents"):
        nrinv.interpolate(a, b, 5)
    assert nrinv.interpolate(a, b, 5, method="slerp").latents.shape == path.latents.shape


def unpack(z, height, width):
    """[B, h w / 4, 4 C] -> [B, C, h, w], h and w an eighth of the image's or what the number of patches allows."""
    rows = round((z.shape[1] * height / width) ** 0.5)
    columns = z.shape[1] // rows
    return z.view(len(z), rows, columns, -1, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(len(z), -1, 2 * rows, 2 * columns)


@pytest.mark.parametrize("name", ["SD", "SDXL", "SD3", "Flux", "PixArt, sigma", "Qwen-Image"])
def test_embeddings_are_those_that_the_pipeline_makes(name):
    pipe, call, _ = zoo.make(name)
    scheduler, calls = pipe.scheduler, []
    network = getattr(pipe, "unet", None) or pipe.transformer
    network.register_forward_hook(lambda *args: calls.append(1))
    found = prompt_embeddings(pipe, call)
    assert "prompt_embeds" in found and torch.equal(found["prompt_embeds"][:1], call["prompt_embeds"][:1])
    assert not calls and pipe.scheduler is scheduler and "encode_prompt" not in vars(pipe)
    assert "set_timesteps" not in vars(scheduler)


def test_pipelines_without_embeddings_are_refused():
    pipe, call, _ = zoo.make("Kandinsky 2.2")
    with pytest.raises(ValueError, match="takes no embeddings of prompts"):
        prompt_embeddings(pipe, call)
