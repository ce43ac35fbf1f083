"""Stable Diffusion 1 and 2 and what is built on them: UNet pipelines with one text encoder."""

import torch
from diffusers import AutoencoderKL, DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline, UNet2DConditionModel

from . import case, randn, randomize, tame

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def vae(channels=4):
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        latent_channels=channels,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()


def unet(**config):
    return randomize(
        UNet2DConditionModel(
            **{
                "sample_size": 16,
                "in_channels": 4,
                "out_channels": 4,
                "block_out_channels": (32, 64),
                "layers_per_block": 1,
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
                "cross_attention_dim": 32,
                "attention_head_dim": 4,
                "norm_num_groups": 8,
                **config,
            }
        )
    )


def ddim(**config):
    return DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1, **config)


def euler(**config):
    return EulerDiscreteScheduler(**BETAS, **config)


def stable_diffusion(network, scheduler, cls=StableDiffusionPipeline, **parts):
    """A pipeline of the family without text encoder; what it is called with."""
    parts = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None, **parts}
    pipe = cls(vae=vae(), unet=network, scheduler=scheduler, requires_safety_checker=False, **parts)
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
    return pipe, {**embeds, "guidance_scale": 4.0}


@case("SD")
def _():
    pipe, call = stable_diffusion(unet(), ddim())
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("SD, v-prediction")
def _():
    pipe, call = stable_diffusion(unet(), ddim(prediction_type="v_prediction", timestep_spacing="trailing"))
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)
