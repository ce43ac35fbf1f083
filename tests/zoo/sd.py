"""Stable Diffusion 1 and 2 and what is built on them: UNet pipelines with one text encoder."""

import torch

from . import case, randn, randomize, tame
from .installed import (
    AutoencoderKL,
    CLIPTextConfig,
    CLIPTextModel,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionLDM3DPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionSAGPipeline,
    T2IAdapter,
    TextToVideoSDPipeline,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UniPCMultistepScheduler,
)

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


# One level, which evaluates in a third of the time: for the pipelines that serve as hosts of every scheduler.
SHALLOW = {"block_out_channels": (16,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}


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
    pipe, call = stable_diffusion(unet(**SHALLOW), ddim())
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("SD, v-prediction")
def _():
    pipe, call = stable_diffusion(unet(**SHALLOW), ddim(prediction_type="v_prediction", timestep_spacing="trailing"))
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)


# ------------------------------------------------------------------------------------------------------------- schedulers


def _with(name, scheduler, **call):
    @case(name)
    def _():
        pipe, arguments = stable_diffusion(unet(), scheduler())
        return tame(pipe, {**arguments, **call}, randn(1, 4, 16, 16), pipe.unet.conv_out)


_with("SD, ancestral", lambda: EulerAncestralDiscreteScheduler(**BETAS))
_with("SD, LCM scheduler", lambda: LCMScheduler(**BETAS))
_with("SD, DPM++ 2M", lambda: DPMSolverMultistepScheduler(**BETAS))
_with("SD, UniPC", lambda: UniPCMultistepScheduler(**BETAS))
_with("SD, PNDM", lambda: PNDMScheduler(**BETAS, skip_prk_steps=True, steps_offset=1))
_with("SD, Heun", lambda: HeunDiscreteScheduler(**BETAS))
_with("SD, eta", ddim, eta=0.5)
_with("SD, guidance rescale", ddim, guidance_rescale=0.7)
_with("SD, timesteps", euler, timesteps=[999, 800, 500, 200, 50])
_with("SD, sigmas", euler, sigmas=[14.0, 5.0, 2.0, 0.7, 0.0])


@case("SD, zero SNR")
def _():
    scheduler = ddim(prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True)
    pipe, call = stable_diffusion(unet(), scheduler)
    return tame(pipe, {**call, "guidance_rescale": 0.7}, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("LCM")
def _():
    network = unet(time_cond_proj_dim=32)
    pipe, call = stable_diffusion(network, LCMScheduler(**BETAS), LatentConsistencyModelPipeline)
    call.pop("negative_prompt_embeds")
    return tame(pipe, {**call, "guidance_scale": 8.5}, randn(1, 4, 16, 16), network.conv_out)


# ---------------------------------------------------------------------------------------------------------- conditioning


def controlnet(seed=3, **config):
    network = ControlNetModel.from_unet(unet(**config), conditioning_embedding_out_channels=(16, 32))
    return randomize(network, seed)


def _controlled(name, cls=StableDiffusionControlNetPipeline, count=1, **call):
    @case(name)
    def _():
        nets = [controlnet(seed) for seed in range(3, 3 + count)]
        images = [randn(1, 3, 32, 32, seed=seed).sigmoid() for seed in range(4, 4 + count)]
        pipe, arguments = stable_diffusion(unet(), ddim(), cls, controlnet=nets if count > 1 else nets[0])
        arguments = {**arguments, "image": images if count > 1 else images[0], **call}
        return tame(pipe, arguments, randn(1, 4, 16, 16), pipe.unet.conv_out)


_controlled("SD, ControlNet")
_controlled("SD, two ControlNets", count=2)
_controlled("SD, ControlNet scheduled", control_guidance_start=0.3, control_guidance_end=0.8)
_controlled("SD, ControlNet PAG", StableDiffusionControlNetPAGPipeline, pag_scale=2.0)


def adapter():
    return randomize(T2IAdapter(in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=2))


def _adapted(name, **call):
    @case(name)
    def _():
        blocks = {
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        }
        pipe, arguments = stable_diffusion(unet(**blocks), ddim(), StableDiffusionAdapterPipeline, adapter=adapter())
        arguments = {**arguments, "image": randn(1, 3, 32, 32, seed=4).sigmoid(), "height": 32, "width": 32, **call}
        return tame(pipe, arguments, randn(1, 4, 16, 16), pipe.unet.conv_out)


_adapted("SD, T2I-Adapter")


@case("SD, PAG")
def _():
    pipe, call = stable_diffusion(unet(), ddim(), StableDiffusionPAGPipeline)
    return tame(pipe, {**call, "pag_scale": 2.0}, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("SD, SAG")
def _():
    pipe, call = stable_diffusion(unet(mid_block_type="UNetMidBlock2DCrossAttn"), ddim(), StableDiffusionSAGPipeline)
    return tame(pipe, {**call, "sag_scale": 0.3}, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("SD, panorama")
def _():
    pipe, call = stable_diffusion(unet(), ddim(), StableDiffusionPanoramaPipeline)
    return tame(pipe, {**call, "height": 512, "width": 512}, randn(1, 4, 64, 64), pipe.unet.conv_out)


@case("SD, LDM3D")
def _():
    pipe, call = stable_diffusion(unet(), ddim(), StableDiffusionLDM3DPipeline, image_encoder=None)
    return tame(pipe, {**call, "output_type": "np"}, randn(1, 4, 16, 16), pipe.unet.conv_out)


@case("SD, InstructPix2Pix")
def _():
    pipe, call = stable_diffusion(unet(in_channels=8), ddim(), StableDiffusionInstructPix2PixPipeline, image_encoder=None)
    call = {**call, "image": randn(1, 3, 32, 32, seed=4).sigmoid(), "image_guidance_scale": 1.5}
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)


def _inpainting(name, channels, cls=StableDiffusionInpaintPipeline, **parts):
    @case(name)
    def _():
        built = {key: one() for key, one in parts.items()}
        pipe, call = stable_diffusion(unet(in_channels=channels), ddim(), cls, **built)
        mask = torch.zeros(1, 1, 32, 32)
        mask[..., 16:] = 1
        call = {**call, "image": randn(1, 3, 32, 32, seed=4).sigmoid(), "mask_image": mask, "height": 32, "width": 32}
        if parts:
            call["control_image"] = randn(1, 3, 32, 32, seed=5).sigmoid()
        return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)


_inpainting("SD, inpainting", 9)
_inpainting("SD, inpainting blended", 4)
_inpainting("SD, ControlNet inpainting blended", 4, StableDiffusionControlNetInpaintPipeline, controlnet=controlnet)


@case("SD, GLIGEN")
def _():
    return _gligen(1.0)


@case("SD, GLIGEN scheduled")
def _():
    return _gligen(0.5)


def _gligen(beta):
    from .flow import tokenizer

    text = CLIPTextConfig(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_hidden_layers=1, vocab_size=64, projection_dim=32
    )
    network = unet(attention_type="gated")
    parts = {"text_encoder": CLIPTextModel(text).eval(), "tokenizer": tokenizer()}
    pipe, call = stable_diffusion(network, ddim(), StableDiffusionGLIGENPipeline, **parts)
    boxes = {"gligen_phrases": ["a cat"], "gligen_boxes": [[0.1, 0.2, 0.7, 0.8]], "gligen_scheduled_sampling_beta": beta}
    return tame(pipe, {**call, **boxes}, randn(1, 4, 16, 16), network.conv_out)


@case("Text to video, SD")
def _():
    network = randomize(
        UNet3DConditionModel(
            sample_size=16, in_channels=4, out_channels=4, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=32, attention_head_dim=4,
        )
    )  # fmt: skip
    pipe = TextToVideoSDPipeline(vae(), None, None, network, ddim())
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
    return tame(pipe, {**embeds, "num_frames": 2, "guidance_scale": 4.0}, randn(1, 4, 2, 16, 16), network.conv_out)


@case("SD, IP-Adapter")
def _():
    pipe, call = stable_diffusion(unet(), ddim())
    crosses = [name for name in pipe.unet.attn_processors if name.endswith("attn2.processor")]
    attentions = dict(pipe.unet.named_modules())
    weights = {}
    for i, name in enumerate(crosses):
        size = attentions[name.removesuffix(".processor")].to_k.out_features
        weights[f"{2 * i + 1}.to_k_ip.weight"] = randn(size, 32, seed=10 + i) / 6
        weights[f"{2 * i + 1}.to_v_ip.weight"] = randn(size, 32, seed=30 + i) / 6
    projection = {"proj.weight": randn(4 * 32, 32, seed=5) / 6, "proj.bias": torch.zeros(4 * 32)}
    projection.update({"norm.weight": torch.ones(32), "norm.bias": torch.zeros(32)})
    pipe.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": weights}])
    call = {**call, "ip_adapter_image_embeds": [randn(2, 1, 32, seed=6)]}
    return tame(pipe, call, randn(1, 4, 16, 16), pipe.unet.conv_out)
