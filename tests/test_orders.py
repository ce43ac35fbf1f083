"""The orders of driving a pipeline: chosen by evidence, never silently wrong, and what goes on from a part of the way."""

import diffusers
import numpy as np
import pytest
import torch
import zoo
from PIL import Image

import nrinv

FEW = {"num_inference_steps": 4, "guidance_scale": 1.0}
LONG = {"num_inference_steps": 10, "guidance_scale": 1.0}


def distance(a, b):
    return float((a.float() - b.float()).norm() / b.float().norm())


def target(latents):
    return torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))


# ---------------------------------------------------------------------------------------------------------------- evidence


def test_a_loop_that_reads_its_index_is_found_out():
    pipe, call, latents = zoo.make("SD3, ControlNet scheduled")
    image, call = target(latents), {**call, "num_inference_steps": 4, "max_nfe": 20}
    wrong = nrinv.invert(pipe, image, order="reversed", verify=True, **call)
    assert wrong.residuals.max() < 1e-3 < 1e-2 < wrong.error[0]  # it looks solved, and a stock run shows that it is not
    right = nrinv.invert(pipe, image, verify=True, **call)
    assert right.order == "passes" and right.error[0] < 1e-3
    assert right.nfe[0] > right.step_nfe.sum() / 4 + 4  # what the attempt and the check have cost is counted


def hidden_index(cls):
    """A pipeline whose loop does something else in each round, which its code does not show."""

    class Hidden(cls):
        rounds = 0

        def __call__(self, *args, **kwargs):
            self.rounds = 0
            return super().__call__(*args, **kwargs)

    def fade(module, args, output):
        module.owner.rounds += 1
        return (output[0] / module.owner.rounds,)

    return Hidden, fade


@pytest.mark.parametrize("order", ["auto", "reversed"])
def test_a_pipeline_of_the_users_that_counts_its_rounds(turbo, held_out, order):
    cls, fade = hidden_index(type(turbo))
    pipe = cls(**turbo.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    object.__setattr__(pipe.unet, "owner", pipe)
    hook = pipe.unet.register_forward_hook(fade)
    try:
        found = nrinv.invert(pipe, held_out[0][0], held_out[1][0], order=order, verify=True, max_nfe=12, **FEW)
    finally:
        hook.remove()
        del pipe.unet.__dict__["owner"]
    if order == "auto":
        assert found.order == "passes" and found.error[0] < 0.1
    else:
        assert found.error[0] > 0.2


def test_a_pipeline_of_the_users_that_counts_nothing_stays_reversed(turbo, held_out):
    class Mine(type(turbo)):
        pass

    pipe = Mine(**turbo.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    found = nrinv.invert(pipe, held_out[0][0], held_out[1][0], **FEW)
    plain = nrinv.invert(turbo, held_out[0][0], held_out[1][0], **FEW)
    assert found.order == "reversed" and torch.allclose(found.latents, plain.latents, atol=1e-5)
    assert found.nfe[0] == plain.nfe[0] + 4 and found.trajectory is None and found.defects is None


def test_a_callback_that_changes_the_call_is_run_in_passes(base, held_out):
    """Guidance that ends half way, as diffusers' documentation shows it."""
    images, captions, _ = held_out

    def cutoff(pipe, i, t, values):
        if i == 4:
            pipe._guidance_scale = 1.0
            values["prompt_embeds"] = values["prompt_embeds"][-1:]
        return values

    call = {
        "num_inference_steps": 10,
        "guidance_scale": 2.0,
        "callback_on_step_end": cutoff,
        "callback_on_step_end_tensor_inputs": ["prompt_embeds"],
    }
    found = nrinv.invert(base, images[0], captions[0], verify=True, max_nfe=25, **call)
    assert found.order == "passes" and found.error[0] < 0.1
    drawn = base(captions[0], latents=found.latents, output_type="latent", **call).images
    assert distance(drawn, nrinv.encode(base, images[0])) == pytest.approx(found.error[0], rel=0.1)


def test_an_exception_in_a_callback_is_the_users(turbo, held_out):
    def fail(pipe, i, t, values):
        raise IndexError("mine")

    with pytest.raises(IndexError, match="mine"):
        nrinv.invert(turbo, held_out[0][0], held_out[1][0], callback_on_step_end=fail, **FEW)


# ------------------------------------------------------------------------------------------------------------------ passes


@pytest.mark.parametrize("scheduler", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler", "HeunDiscreteScheduler"])
def test_passes_find_what_the_stock_pipeline_draws_from(base, held_out, scheduler):
    images, captions, _ = held_out
    base.scheduler = getattr(diffusers, scheduler).from_config(base.scheduler.config)
    z = nrinv.encode(base, images[0])
    found = nrinv.invert(base, z, captions[0], order="passes", max_nfe=30, tol=1e-5, return_trajectory=True, **LONG)
    assert found.order == "passes" and (found.step_nfe <= 30).all()
    drawn = base(captions[0], latents=found.latents, output_type="latent", **LONG).images
    assert distance(drawn, z) < 0.02
    assert len(found.trajectory) == len(found.timesteps) + 1


def test_passes_of_a_stochastic_scheduler(turbo, held_out):
    images, captions, _ = held_out
    turbo.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(turbo.scheduler.config)
    z, generator = nrinv.encode(turbo, images[0]), torch.Generator().manual_seed(3)
    found = nrinv.invert(turbo, z, captions[0], order="passes", max_nfe=40, generator=generator, **FEW)
    drawn = turbo(captions[0], latents=found.latents, generator=generator.manual_seed(3), output_type="latent", **FEW).images
    assert distance(drawn, z) < 0.05


@pytest.mark.parametrize("option", [{"solver": "newton"}, {"noise": "absorb"}])
def test_what_passes_cannot_do_is_refused_before_the_network_runs(turbo, held_out, option):
    if "noise" in option:
        turbo.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(turbo.scheduler.config)
    calls = []
    hook = turbo.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        with pytest.raises(ValueError, match=next(iter(option))):
            nrinv.invert(turbo, held_out[0][0], held_out[1][0], order="passes", **option, **FEW)
    finally:
        hook.remove()
    assert not calls


# ----------------------------------------------------------------------------------------------------------------- refusals


def test_pipelines_that_cannot_be_inverted_are_refused_before_the_network_runs():
    unet = diffusers.UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8,), norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), layers_per_block=1,
    )  # fmt: skip
    pixels = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler(clip_sample=False))
    with pytest.raises(ValueError, match="pipe: DDPMPipeline takes no latents"):
        nrinv.invert(pixels, torch.zeros(1, 3, 8, 8))

    class Blocks(diffusers.ModularPipeline):
        def __init__(self):
            pass

    with pytest.raises(ValueError, match="pipe: Blocks is made of blocks"):
        nrinv.invert(Blocks(), torch.zeros(1, 4, 8, 8), "a dog")
    pipe, call, latents = zoo.make("SD3, inpaint blended")
    calls = []
    pipe.transformer.register_forward_hook(lambda *args: calls.append(1))
    with pytest.raises(
        ValueError, match=r"mixes the known part of the image in after each step.*give mask_image to generate"
    ):
        nrinv.invert(pipe, latents, num_inference_steps=4, **call)
    assert not calls


# ------------------------------------------------------------------------------------------------------- part of the way


def test_an_img2img_pipeline_goes_on_where_the_inversion_ended():
    pipe, call, latents = zoo.make("SDXL")
    image, call = target(latents), {**call, "num_inference_steps": 4}
    found = nrinv.invert(pipe, image, strength=0.5, max_nfe=20, tol=1e-5, **call)
    assert found.start == 2
    drawn = nrinv.generate(pipe, found, output_type="latent").images
    assert distance(drawn, image) < 1e-3
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    assert distance(nrinv.generate(other, found, output_type="latent").images, image) < 1e-3
    assert distance(other(image=image, strength=0.5, output_type="latent", **call).images, image) > 0.01


def test_an_img2img_pipeline_is_inverted_part_of_the_way():
    pipe, call, latents = zoo.make("SDXL")
    other = diffusers.StableDiffusionXLImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    image, call = target(latents), {**call, "num_inference_steps": 8}
    found = nrinv.invert(other, image, strength=0.5, max_nfe=20, tol=1e-5, **call)
    assert found.order == "passes" and found.start == 4 and len(found.timesteps) == 4
    assert distance(nrinv.generate(other, found, output_type="latent").images, image) < 1e-3


# ------------------------------------------------------------------------------------------------------------------- masks


def test_a_mask_keeps_the_rest_of_the_image(turbo, held_out):
    images, captions, _ = held_out
    z = nrinv.encode(turbo, images[0])
    found = nrinv.invert(turbo, z, captions[0], return_trajectory=True, max_nfe=8, **FEW)
    right = np.zeros((64, 64), np.uint8)
    right[:, 32:] = 255
    for mask in (Image.fromarray(right), right / 255.0, torch.from_numpy(right)):
        edited = nrinv.generate(turbo, found, captions[5], mask_image=mask, output_type="latent").images
        assert torch.allclose(edited[..., :8], z[..., :8], atol=1e-5)
        free = nrinv.generate(turbo, found, captions[5], output_type="latent").images
        assert distance(edited[..., 8:], z[..., 8:]) > 0.2 and distance(free[..., :8], z[..., :8]) > 0.2
    whole = nrinv.generate(turbo, found, captions[5], mask_image=np.ones((64, 64)), output_type="latent").images
    assert torch.allclose(whole, free, atol=1e-5)


def test_a_mask_of_packed_latents():
    pipe, call, latents = zoo.make("Flux")
    image = target(latents)
    found = nrinv.invert(pipe, image, num_inference_steps=4, max_nfe=20, return_trajectory=True, **call)
    size = call["height"]
    mask = np.zeros((size, size))
    mask[: size // 2] = 1
    other = {**call, "prompt_embeds": -call["prompt_embeds"]}
    edited = nrinv.generate(pipe, found, mask_image=mask, output_type="latent", **other).images
    half = latents.shape[1] // 2  # the patches of the upper half come first
    assert torch.allclose(edited[:, half:], image[:, half:], atol=1e-4)
    assert distance(edited[:, :half], image[:, :half]) > 1e-3


def test_masks_need_a_trajectory_and_an_image(turbo, held_out):
    found = nrinv.invert(turbo, held_out[0][0], held_out[1][0], **FEW)
    with pytest.raises(ValueError, match="mask_image: the inversion holds no trajectory"):
        nrinv.generate(turbo, found, mask_image=np.ones((64, 64)))
    with pytest.raises(ValueError, match="mask_image must be an image"):
        nrinv.generate(turbo, found, mask_image=np.ones(3))
