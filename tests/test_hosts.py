"""docs/hosts.md: its code runs as it stands, and does what it says."""

import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from mixture import Mixture

import nrinv

PAGE = Path(__file__).parent.parent / "docs" / "hosts.md"


@pytest.fixture(scope="module")
def page():
    """What the page's code defines."""
    names = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(block, names)
    return names


class Denoiser:
    """model(x, sigma) as in k-diffusion, of data from a Gaussian mixture."""

    def __init__(self):
        self.mixture = Mixture(dimension=256)
        self.calls = 0

    def __call__(self, x, sigma):
        assert sigma.shape == (len(x),)
        self.calls += 1
        total = float(sigma[0])
        timestep = np.interp(np.log(total), self.mixture.log_sigma, np.arange(1000))
        seen = x.double().numpy() / np.sqrt(1 + total**2)
        return x - total * torch.from_numpy(self.mixture(seen, timestep)).to(x)


def sample_euler(model, x, sigmas):
    for now, later in pairwise(sigmas):
        x = x + (later - now) * (x - model(x, x.new_full((len(x),), now))) / now
    return x


def test_the_noise_of_an_image_drawn_by_a_plain_loop_is_found(page):
    model = Denoiser()
    sigmas = np.append(np.geomspace(12, 0.05, 12), 0)
    x = 12 * torch.randn(3, 256, generator=torch.Generator().manual_seed(0))
    image = sample_euler(model, x, sigmas)
    model.calls = 0
    result = page["invert"](model, image, sigmas, max_nfe=12, tol=1e-6)
    assert model.calls == result.evaluations <= 12 * 12
    again = sample_euler(model, result.latents, sigmas)
    assert ((again - image).norm(dim=1) / image.norm(dim=1)).max() < 1e-4


def test_an_exception_in_the_network_loses_nothing(page):
    model, failures = Denoiser(), iter([False, False, True] + [False] * 99)
    sigmas = np.append(np.geomspace(12, 0.05, 4), 0)
    inversion = nrinv.Inversion(page["euler"](sigmas), torch.ones(1, 256), max_nfe=2)
    calls = 0
    while (request := inversion.next()) is not None:
        try:
            if next(failures):
                raise ConnectionError
            x = request.sample
            answer = (x - model(x, x.new_full((1,), request.timestep))) / request.timestep
        except ConnectionError:
            continue
        calls += 1
        inversion.feed(answer)
    assert calls == inversion.result().evaluations == 8


def test_a_round_of_the_correction_is_a_run_from_the_noised_image(page):
    model, sigmas = Denoiser(), np.append(np.geomspace(12, 0.05, 12), 0)
    image = sample_euler(model, 12 * torch.randn(2, 256, generator=torch.Generator().manual_seed(0)), sigmas)
    image = image + 0.1 * torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    model.calls = 0
    found = page["correct"](model, image, sigmas, steps=3, rounds=1)
    assert model.calls == found.evaluations == 3 and not found.held.any()
    noise = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 256))).float()
    want = sample_euler(model, image + sigmas[-4] * noise, sigmas[-4:])
    torch.testing.assert_close(found.corrected, want, atol=1e-4, rtol=0)
    moved = (want - image).norm(dim=1) / image.norm(dim=1)
    np.testing.assert_allclose(found.moved, moved, rtol=1e-4)


def test_the_radius_of_a_correction_holds_each_image_back(page):
    model, sigmas = Denoiser(), np.append(np.geomspace(12, 0.05, 12), 0)
    image = torch.randn(2, 256, generator=torch.Generator().manual_seed(2))
    found = page["correct"](model, image, sigmas, steps=3, radius=[0.5, 1e3])
    assert list(found.held) == [True, False]
    assert float((found.corrected - image)[0].norm()) == pytest.approx(0.5, rel=1e-4)


def test_a_step_that_forgets_its_state_is_refused():
    sigmas = np.array([2.0, 1.0, 0.0])
    steps = np.zeros((2, 4))
    for j in range(2):
        steps[j, j], steps[j, 2 + j] = sigmas[j + 1] / sigmas[j], 1 - sigmas[j + 1] / sigmas[j]
    with pytest.raises(ValueError, match="step 1 of 2 cannot be inverted"):
        nrinv.Inversion(nrinv.Sampler(sigmas[:-1], steps, np.ones(2)), np.zeros((1, 8), np.float32))
