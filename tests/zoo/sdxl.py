"""Stable Diffusion XL and what is built on it: UNet pipelines with two text encoders, size conditioning, pooled prompts."""

from . import case, randn, randomize, tame
from .installed import (
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPAGPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionPipeline,
    StableDiffusionXLControlNetXSPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    T2IAdapter,
    TCDScheduler,
    UNetControlNetXSModel,
)
from .sd import BETAS, SHALLOW, euler, unet, vae

# Width of an embedded size or score, and of a pooled prompt.
TIME, POOLED = 8, 32
# The base model is told three sizes of two numbers each, the refiner two sizes and a score.
SIZES, SIZES_AND_SCORE = ({"projection_class_embeddings_input_dim": count * TIME + POOLED} for count in (6, 5))
ADDED = {"addition_embed_type": "text_time", "addition_time_embed_dim": TIME, "use_linear_projection": True, **SIZES}

ENCODERS = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")


def xl_unet(**config):
    return unet(**{**ADDED, **config})


def leading(**config):
    return euler(**{"timestep_spacing": "leading", "steps_offset": 1, **config})


def trailing(**config):
    return euler(timestep_spacing="trailing", **config)


def xl(cls=StableDiffusionXLPipeline, *, scheduler=None, network=None, encoders=ENCODERS, **parts):
    """A pipeline of the family without text encoders; what it is called with."""
    parts = {**dict.fromkeys(encoders), **parts}
    pipe = cls(vae=vae(), unet=network or xl_unet(), scheduler=scheduler or leading(), **parts)
    call = {
        "prompt_embeds": randn(1, 7, 32),
        "negative_prompt_embeds": randn(1, 7, 32, seed=2),
        "pooled_prompt_embeds": randn(1, POOLED, seed=3),
        "negative_pooled_prompt_embeds": randn(1, POOLED, seed=4),
        "guidance_scale": 4.0,
    }
    return pipe, call


def tamed(pipe, call, **more):
    return tame(pipe, {**call, **more}, randn(1, 4, 16, 16), pipe.unet.conv_out)


def picture(seed=5):
    return randn(1, 3, 32, 32, seed=seed).sigmoid()


def control_config(network):
    """What a ControlNet takes from its UNet; its hint is twice as large as the latents."""
    sizes = ("block_out_channels", "layers_per_block", "down_block_types", "attention_head_dim", "norm_num_groups")
    added = ("addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim")
    shared = {name: network.config[name] for name in (*sizes, *added, "cross_attention_dim", "use_linear_projection")}
    return {**shared, "conditioning_embedding_out_channels": (16, 32)}


@case("SDXL")
def _():
    return tamed(*xl(network=xl_unet(**SHALLOW)))


@case("SDXL, turbo")
def _():
    return tamed(*xl(scheduler=trailing()), guidance_scale=0.0)


@case("SDXL, v-prediction, zero SNR")
def _():
    return tamed(*xl(scheduler=trailing(prediction_type="v_prediction", rescale_betas_zero_snr=True)), guidance_rescale=0.7)


@case("SDXL, guidance rescale")
def _():
    return tamed(*xl(), guidance_rescale=0.7)


@case("SDXL, sigmas")
def _():
    return tamed(*xl(), sigmas=[14.6, 4.0, 1.3, 0.4, 0.0])


@case("SDXL, timesteps")
def _():
    return tamed(*xl(), timesteps=[999, 730, 443, 116])


@case("SDXL, denoising end")
def _():
    return tamed(*xl(), denoising_end=0.6, num_inference_steps=8)


@case("SDXL, ancestral")
def _():
    return tamed(*xl(scheduler=EulerAncestralDiscreteScheduler(**BETAS, timestep_spacing="leading", steps_offset=1)))


@case("SDXL, DPM++ 2M Karras")
def _():
    return tamed(*xl(scheduler=DPMSolverMultistepScheduler(**BETAS, use_karras_sigmas=True)))


@case("SDXL, LCM")
def _():
    return tamed(*xl(scheduler=LCMScheduler(**BETAS), network=xl_unet(time_cond_proj_dim=8)), guidance_scale=8.0)


@case("SDXL, TCD")
def _():
    return tamed(*xl(scheduler=TCDScheduler(**BETAS)), guidance_scale=0.0, eta=0.3)


@case("SDXL, TCD without noise")
def _():
    return tamed(*xl(scheduler=TCDScheduler(**BETAS)), guidance_scale=0.0, eta=0.0)


@case("SDXL, image to image")
def _():
    pipe, call = xl(StableDiffusionXLImg2ImgPipeline)
    return tamed(pipe, call, image=picture(), strength=0.5, num_inference_steps=8)


@case("SDXL, refiner")
def _():
    network = xl_unet(**SIZES_AND_SCORE)
    pipe, call = xl(StableDiffusionXLImg2ImgPipeline, network=network, requires_aesthetics_score=True)
    return tamed(pipe, call, image=picture(), strength=0.5, num_inference_steps=8)


@case("SDXL, refiner after base")
def _():
    network = xl_unet(**SIZES_AND_SCORE)
    pipe, call = xl(StableDiffusionXLImg2ImgPipeline, network=network, requires_aesthetics_score=True)
    return tamed(pipe, call, image=randn(1, 4, 16, 16), denoising_start=0.5, num_inference_steps=8)


@case("SDXL, inpainting")
def _():
    pipe, call = xl(StableDiffusionXLInpaintPipeline, network=xl_unet(in_channels=9))
    mask = (picture(seed=6)[:, :1] > 0.5).float()
    return tamed(pipe, call, image=picture(), mask_image=mask, height=32, width=32, strength=1.0)


@case("SDXL, InstructPix2Pix")
def _():
    pipe, call = xl(StableDiffusionXLInstructPix2PixPipeline, network=xl_unet(in_channels=8))
    return tamed(pipe, call, image=picture(), image_guidance_scale=1.5, height=32, width=32)


def controlled(cls=StableDiffusionXLControlNetPipeline, **parts):
    network = xl_unet()
    return xl(cls, network=network, controlnet=randomize(ControlNetModel(**control_config(network)), seed=1), **parts)


@case("SDXL, ControlNet")
def _():
    return tamed(*controlled(), image=picture(), height=32, width=32)


@case("SDXL, ControlNet scheduled")
def _():
    return tamed(*controlled(), image=picture(), height=32, width=32, control_guidance_start=0.2, control_guidance_end=0.7)


@case("SDXL, ControlNet PAG")
def _():
    pipe, call = controlled(StableDiffusionXLControlNetPAGPipeline, pag_applied_layers=["mid"])
    return tamed(pipe, call, image=picture(), height=32, width=32)


def union(**more):
    network = xl_unet()
    sizes = {"num_trans_channel": 32, "num_trans_head": 4, "num_proj_channel": 32}
    controlnet = ControlNetUnionModel(**control_config(network), **sizes)
    pipe, call = xl(StableDiffusionXLControlNetUnionPipeline, network=network, controlnet=randomize(controlnet, seed=1))
    return tamed(pipe, call, control_image=[picture()], control_mode=[3], height=32, width=32, **more)


@case("SDXL, ControlNet-Union")
def _():
    return union()


@case("SDXL, ControlNet-Union scheduled")
def _():
    return union(control_guidance_start=0.2, control_guidance_end=0.7)


def cross_controlled(**more):
    network = xl_unet(layers_per_block=2)  # the only number that it is made for
    adapter = ControlNetXSAdapter.from_unet(network, size_ratio=0.5, conditioning_embedding_out_channels=(16, 32))
    joint = randomize(UNetControlNetXSModel.from_unet(network, adapter))
    pipe, call = xl(StableDiffusionXLControlNetXSPipeline, network=joint, controlnet=adapter)
    call = {**call, "image": picture(), "height": 32, "width": 32, **more}
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.base_conv_out)


@case("SDXL, ControlNet-XS")
def _():
    return cross_controlled()


@case("SDXL, ControlNet-XS scheduled")
def _():
    return cross_controlled(control_guidance_start=0.2, control_guidance_end=0.7)


def adapted(**more):
    adapter = T2IAdapter(
        in_channels=3,
        channels=(32, 64, 64, 64),
        num_res_blocks=1,
        downscale_factor=4,
        adapter_type="full_adapter_xl",
    )
    pipe, call = xl(StableDiffusionXLAdapterPipeline, adapter=randomize(adapter, seed=1))
    return tamed(pipe, call, image=picture(), height=32, width=32, **more)


@case("SDXL, T2I-Adapter")
def _():
    return adapted()


@case("SDXL, T2I-Adapter scheduled")
def _():
    return adapted(adapter_conditioning_factor=0.5)


@case("SDXL, PAG")
def _():
    return tamed(*xl(StableDiffusionXLPAGPipeline, pag_applied_layers=["mid"]))
