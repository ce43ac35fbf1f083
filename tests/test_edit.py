"""generate: how much of an image an edit keeps, guidance step by step, shares of a replay."""

import numpy as np
import pytest
import torch
import zoo
from helpers import distance, with_scheduler

import nrinv

CALL = {"num_inference_steps": 8, "guidance_scale": 1.5}


def inverted(pipe, held_out, **options):
    images, captions, _ = held_out
    call = {"return_trajectory": True, "max_nfe": 8, **CALL, **options}
    return nrinv.invert(pipe, images[:2], captions[:2], **call)


def latents(output):
    return output.images


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"])
def test_a_part_of_the_steps_with_the_same_prompt_is_the_same_image(base, held_out, name):
    with_scheduler(base, name)
    inv = inverted(base, held_out)
    z = nrinv.encode(base, held_out[0][:2])
    for strength in (1.0, 0.5, 0.13):
        drawn = latents(nrinv.generate(base, inv, edit_strength=strength, output_type="latent"))
        assert distance(drawn, z).max() < 0.02


def test_less_edit_strength_keeps_more_of_the_image(base, held_out):
    inv = inverted(base, held_out)
    z = nrinv.encode(base, held_out[0][:2])
    to = ["pink heart, noto style", "pizza, noto style"]
    gaps, calls = [], []
    hook = base.unet.register_forward_hook(lambda *args: calls.append(1))
    for strength in (0.125, 0.5, 1.0):
        calls.clear()
        edited = latents(nrinv.generate(base, inv, to, edit_strength=strength, output_type="latent"))
        assert len(calls) == 8 * strength
        gaps.append(float(distance(edited, z).mean()))
    hook.remove()
    assert gaps[0] < gaps[1] < gaps[2]


def test_steps_of_two_evaluations_are_left_out_whole(base, held_out):
    with_scheduler(base, "HeunDiscreteScheduler")
    inv = inverted(base, held_out, solver=nrinv.Solver(rounds=4), num_inference_steps=5)
    assert len(inv.timesteps) == 9
    z = inv.trajectory[-1]
    for strength in (0.2, 0.5, 0.8):
        drawn = latents(nrinv.generate(base, inv, edit_strength=strength, output_type="latent"))
        assert distance(drawn, z).max() < 1e-3


def test_an_img2img_pipeline_takes_the_edit_over():
    import diffusers

    pipe, call, noise = zoo.make("SDXL")
    image = torch.randn(noise.shape, generator=torch.Generator().manual_seed(2))
    found = nrinv.invert(pipe, image, max_nfe=20, tol=1e-5, return_trajectory=True, num_inference_steps=4, **call)
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    drawn = latents(nrinv.generate(other, found, edit_strength=0.5, output_type="latent"))
    assert distance(drawn, image) < 1e-3


def test_guidance_for_each_evaluation(base, held_out):
    inv = inverted(base, held_out)
    plain = latents(nrinv.generate(base, inv, output_type="latent"))
    same = latents(nrinv.generate(base, inv, guidance_scale=[1.5] * 8, output_type="latent"))
    assert torch.equal(plain, same)
    late = latents(nrinv.generate(base, inv, guidance_scale=[1.5] * 7 + [6.0], output_type="latent"))
    early = latents(nrinv.generate(base, inv, guidance_scale=np.array([6.0] + [1.5] * 7), output_type="latent"))
    assert 0 < distance(late, plain).max() and 0 < distance(early, plain).max()
    assert not torch.allclose(late, early, atol=1e-3)
    off = latents(nrinv.generate(base, inv, guidance_scale=[1.0] * 8, output_type="latent"))
    none = latents(nrinv.generate(base, inv, guidance_scale=1.0, output_type="latent"))
    assert torch.allclose(off, none, atol=1e-5)
    mixed = latents(nrinv.generate(base, inv, guidance_scale=[1.0] * 4 + [3.0] * 4, output_type="latent"))
    assert torch.isfinite(mixed).all() and distance(mixed, none).max() > 1e-3


def test_a_share_of_the_replay(turbo, held_out):
    images, captions, _ = held_out
    call = {"num_inference_steps": 4, "guidance_scale": 1.0}
    inv = nrinv.invert(turbo, images[:2], captions[:2], return_defects=True, max_nfe=2, **call)
    z = nrinv.encode(turbo, images[:2])
    gaps = [
        float(distance(latents(nrinv.generate(turbo, inv, replay=share, output_type="latent")), z).mean())
        for share in (0, 0.5, 1.0, True)
    ]
    assert gaps[0] > gaps[1] > gaps[2] and gaps[2] == gaps[3] < 1e-5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"edit_strength": 0}, "edit_strength must be above 0 and at most 1, got 0"),
        ({"edit_strength": 1.5}, "edit_strength must be above 0 and at most 1, got 1.5"),
        ({"edit_strength": float("nan")}, "edit_strength must be above 0"),
        ({"replay": 2}, r"replay must be a share in 0..1, got 2"),
        ({"guidance_scale": [2.0, 2.0]}, "guidance_scale must be a number, or 8 of at least 1"),
        ({"guidance_scale": [2.0] * 7 + [0.5]}, "guidance_scale must be a number, or 8 of at least 1"),
        ({"guidance_scale": [2.0] * 7 + [float("inf")]}, "guidance_scale must be a number, or 8 of at least 1"),
    ],
)
def test_bad_edits(base, held_out, options, message):
    inv = inverted(base, held_out)
    with pytest.raises(ValueError, match=message):
        nrinv.generate(base, inv, **options)


def test_what_an_edit_needs(turbo, held_out):
    images, captions, _ = held_out
    inv = nrinv.invert(turbo, images[0], captions[0], num_inference_steps=4, guidance_scale=1.0)
    with pytest.raises(ValueError, match="edit_strength: the inversion holds no trajectory"):
        nrinv.generate(turbo, inv, edit_strength=0.5)
    pipe, call, noise = zoo.make("Flux")
    found = nrinv.invert(pipe, noise, num_inference_steps=4, return_trajectory=True, **call)
    with pytest.raises(ValueError, match="guidance_scale must be a number: FluxPipeline does not read it in each step"):
        nrinv.generate(pipe, found, guidance_scale=[2.0] * 4)
