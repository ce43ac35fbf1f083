"""SD- and SDXL-shaped pipelines with small random networks: batches, prompts, guidance, precision, generators.

Random networks have almost no Jacobian: these tests prove plumbing, not accuracy.
"""

import numpy as np
import pytest
import torch
import zoo
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
)
from mixture import BETAS

import nrinv

SCHEDULERS = {
    "ddim": lambda: DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
    "euler": lambda: EulerDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
    "dpm++2m": lambda: DPMSolverMultistepScheduler(**BETAS, steps_offset=1),
    "euler-ancestral": lambda: EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="trailing", steps_offset=1),
}


@pytest.fixture(params=["SD", "SDXL"])
def make(request):
    def build(scheduler, dtype=torch.float32, batch=1):
        pipe, call, _ = zoo.make(request.param)
        pipe.scheduler = SCHEDULERS[scheduler]()
        pipe.vae.register_to_config(force_upcast=request.param == "SDXL")
        generator = torch.Generator().manual_seed(1)
        prompts = {
            name: torch.randn(batch, *value.shape[1:], generator=generator).to(dtype)
            for name, value in call.items()
            if isinstance(value, torch.Tensor)
        }
        return pipe.to(dtype), prompts

    return build


def relative(a, b):
    return ((a.float() - b.float()).flatten(1).norm(dim=1) / b.float().flatten(1).norm(dim=1)).max()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_a_batch_is_inverted_and_drawn_again_by_a_plain_call(make, scheduler, guidance):
    pipe, prompts = make(scheduler, batch=3)
    call = {"num_inference_steps": 6, "guidance_scale": guidance, **prompts}
    noise = torch.randn(3, 4, 16, 16, generator=torch.Generator().manual_seed(2))

    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (1, 2, 3)]

    drawn = pipe(latents=noise, generator=generators(), output_type="latent", **call).images
    options = {"max_nfe": 8, "solver": nrinv.Solver(rounds=4)} if scheduler == "dpm++2m" else {"max_nfe": 32}
    inv = nrinv.invert(pipe, drawn, generator=generators(), tol=1e-6, **options, **call)
    if scheduler != "euler-ancestral":  # fresh noise in every step leaves little of the first in the image
        assert relative(inv.latents, noise) < 1e-3
    again = pipe(latents=inv.latents, output_type="latent", **{**inv.call, "generator": generators()}).images
    assert relative(again, drawn) < 2e-4
    assert relative(nrinv.generate(pipe, inv, output_type="latent").images, drawn) < 2e-4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(make, dtype):
    pipe, prompts = make("euler", dtype)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoded = nrinv.encode(pipe, image)
    assert encoded.dtype == dtype and pipe.vae.dtype == dtype and torch.isfinite(encoded).all()
    call = {"num_inference_steps": 6, "guidance_scale": 3.0, **prompts}
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(2)).to(dtype)
    drawn = pipe(latents=noise, output_type="latent", **call).images
    inv = nrinv.invert(pipe, drawn, max_nfe=8, **call)
    assert inv.latents.dtype == dtype
    assert relative(nrinv.generate(pipe, inv, output_type="latent").images, drawn) < 20 * torch.finfo(dtype).eps


def test_an_inverted_noise_is_scaled_as_the_pipeline_wants_it(make):
    pipe, prompts = make("euler")
    sigma = 14.0
    call = {"num_inference_steps": 6, "guidance_scale": 1.0, **prompts}
    inv = nrinv.invert(pipe, torch.randn(1, 4, 16, 16), **call)
    assert inv.latents.std() < 2 < sigma


def test_the_size_of_the_image_reaches_the_pipeline(make):
    pipe, prompts = make("ddim")
    image = np.zeros((48, 32, 3), np.uint8)
    inv = nrinv.invert(pipe, image, num_inference_steps=4, guidance_scale=1.0, **prompts)
    assert inv.latents.shape == (1, 4, 24, 16)
    assert (inv.call["height"], inv.call["width"]) == (48, 32)


def test_vae_statistics_are_honoured(make):
    pipe, _ = make("ddim")
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    pipe.vae.register_to_config(scaling_factor=1.0)
    raw = nrinv.encode(pipe, image)
    pipe.vae.register_to_config(scaling_factor=0.5, shift_factor=0.25)
    assert torch.allclose(nrinv.encode(pipe, image), (raw - 0.25) * 0.5, atol=1e-6)
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]
    pipe.vae.register_to_config(latents_mean=mean, latents_std=std, scaling_factor=0.5)
    column = torch.tensor(mean).reshape(1, 4, 1, 1), torch.tensor(std).reshape(1, 4, 1, 1)
    encoded = nrinv.encode(pipe, image)
    assert torch.allclose(encoded, (raw - column[0]) * 0.5 / column[1], atol=1e-6)
    again = nrinv.decode(pipe, encoded)
    pipe.vae.register_to_config(latents_mean=None, latents_std=None, shift_factor=None, scaling_factor=1.0)
    assert torch.allclose(again, nrinv.decode(pipe, raw), atol=1e-5)
