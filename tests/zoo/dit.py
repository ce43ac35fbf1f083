"""Diffusion transformers of images before flow matching, and Sana: PixArt, HunyuanDiT, CogView and Latte too."""

import torch

from . import case, randn, randomize, tame
from .flow import SIGMAS, SIZE, MeanAutoencoder, absent, euler, image, vae
from .installed import (
    AutoencoderDC,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4ControlPipeline,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    HunyuanDiT2DControlNetModel,
    HunyuanDiT2DModel,
    HunyuanDiT2DMultiControlNetModel,
    HunyuanDiTControlNetPipeline,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaControlNetModel,
    SanaControlNetPipeline,
    SanaPAGPipeline,
    SanaPipeline,
    SanaSprintPipeline,
    SanaTransformer2DModel,
    SCMScheduler,
)

EMBEDS = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
MASKS = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
TEXT = absent("tokenizer", "text_encoder")
# As trained: linear betas, of which PixArt and Latte know the noise, CogView3 and HunyuanDiT the velocity.
LINEAR = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def ddim(**config):
    return DDIMScheduler(**{**LINEAR, "clip_sample": False, "set_alpha_to_one": False, **config})


# PixArt


def pixart(cls=PixArtSigmaPipeline, scheduler=None, layers=1, arguments=(), network=(), **parts):
    transformer = randomize(
        PixArtTransformer2DModel(
            **{
                "sample_size": 16,
                "in_channels": 4,
                "out_channels": 8,
                "num_layers": layers,
                "attention_head_dim": 8,
                "num_attention_heads": 3,
                "cross_attention_dim": 24,
                "caption_channels": 32,
                "use_additional_conditions": False,
                **dict(network),
            }
        )
    )
    scheduler = scheduler or DPMSolverMultistepScheduler(**LINEAR)
    pipe = cls(transformer=transformer, scheduler=scheduler, vae=vae(), **TEXT, **parts)
    call = {**EMBEDS, **MASKS, **SIZE, "use_resolution_binning": False, "guidance_scale": 4.5, **dict(arguments)}
    call["negative_prompt"] = None
    return tame(pipe, call, randn(1, 4, 16, 16), transformer.proj_out)


@case("PixArt, alpha")
def _():
    # The pipeline gives the size of the image to networks with this sample_size, and only to them.
    return pixart(PixArtAlphaPipeline, network={"sample_size": 128, "use_additional_conditions": True})


@case("PixArt, alpha DDIM")
def _():
    return pixart(PixArtAlphaPipeline, ddim())


@case("PixArt, sigma")
def _():
    return pixart()


@case("PixArt, sigma DDIM")
def _():
    return pixart(scheduler=ddim())


@case("PixArt, eta")
def _():
    return pixart(scheduler=ddim(), arguments={"eta": 0.5})


@case("PixArt, timesteps")
def _():
    timesteps = {"timesteps": [999, 950, 850, 750, 600, 450, 300, 200, 100, 20]}
    return pixart(scheduler=DPMSolverMultistepScheduler(**LINEAR), arguments=timesteps)


@case("PixArt, PAG")
def _():
    return pixart(PixArtSigmaPAGPipeline, ddim(), layers=2, arguments={"pag_scale": 3.0}, pag_applied_layers="blocks.1")


# Sana

SANA = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 8,
    "cross_attention_dim": 16,
    "caption_channels": 32,
}


def autoencoder_dc():
    torch.manual_seed(0)
    return AutoencoderDC(
        latent_channels=4,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()),
        decoder_qkv_multiscales=((), ()),
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        scaling_factor=0.41407,
    ).eval()


def sana(cls=SanaPipeline, scheduler=None, arguments=(), network=(), **parts):
    """As the real ones; two layers, as the last one takes no part in ControlNet."""
    transformer = randomize(SanaTransformer2DModel(**{**SANA, **dict(network)}))
    scheduler = scheduler or DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipe = cls(transformer=transformer, scheduler=scheduler, vae=autoencoder_dc(), **TEXT, **parts)
    call = {**SIZE, "use_resolution_binning": False, "guidance_scale": 4.5, **dict(arguments)}
    if cls is SanaSprintPipeline:
        call |= {"prompt_embeds": EMBEDS["prompt_embeds"], "prompt_attention_mask": MASKS["prompt_attention_mask"]}
    else:
        call |= {**EMBEDS, **MASKS, "negative_prompt": None}
    return tame(pipe, call, randn(1, 4, 16, 16), transformer.proj_out)


@case("Sana")
def _():
    return sana()


@case("Sana, flow match")
def _():
    return sana(scheduler=euler())


@case("Sana, sigmas")
def _():
    return sana(scheduler=euler(), arguments=SIGMAS)


@case("Sana, ControlNet")
def _():
    controlnet = randomize(SanaControlNetModel(**{**SANA, "num_layers": 1}), seed=3)
    return sana(SanaControlNetPipeline, euler(), {"control_image": image()}, controlnet=controlnet)


@case("Sana, PAG")
def _():
    return sana(SanaPAGPipeline, arguments={"pag_scale": 2.0}, pag_applied_layers="transformer_blocks.0")


def sprint(**arguments):
    network = {"guidance_embeds": True, "qk_norm": "rms_norm_across_heads"}
    return sana(SanaSprintPipeline, SCMScheduler(), {"intermediate_timesteps": None, **arguments}, network)


@case("Sana, Sprint")
def _():
    return sprint()


@case("Sana, Sprint from less than all noise")
def _():
    # The first step multiplies its state by the cosine of the first timestep: 4e-6 at the pipeline's own 1.5708.
    return sprint(max_timesteps=1.4)


# HunyuanDiT

# The positions are those of latents 8 times smaller than the image, whatever the autoencoder.
HUNYUAN = {
    "sample_size": 8,
    "in_channels": 4,
    "patch_size": 2,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 32,
    "cross_attention_dim_t5": 32,
    "pooled_projection_dim": 16,
    "text_len": 7,
    "text_len_t5": 7,
    "activation_fn": "gelu-approximate",
}


def deep_vae():
    torch.manual_seed(0)
    return MeanAutoencoder(
        block_out_channels=(4,) * 4,
        latent_channels=4,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
    ).eval()


def hunyuan(cls=HunyuanDiTPipeline, scheduler=None, arguments=(), layers=2, **parts):
    transformer = randomize(HunyuanDiT2DModel(**HUNYUAN, num_layers=layers))
    scheduler = scheduler or DDIMScheduler(
        beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, steps_offset=1,
    )  # fmt: skip
    pipe = cls(
        transformer=transformer,
        scheduler=scheduler,
        vae=deep_vae(),
        requires_safety_checker=False,
        **TEXT,
        **absent("text_encoder_2", "tokenizer_2", "safety_checker", "feature_extractor"),
        **parts,
    )
    second = {f"{name}_2": value.flip(1) for name, value in {**EMBEDS, **MASKS}.items()}
    call = {**EMBEDS, **MASKS, **second, "height": 64, "width": 64, "guidance_scale": 5.0}
    call = {**call, "use_resolution_binning": False, **dict(arguments)}
    return tame(pipe, call, randn(1, 4, 8, 8), transformer.proj_out)


@case("HunyuanDiT")
def _():
    return hunyuan()


@case("HunyuanDiT, DDPM")
def _():
    return hunyuan(
        scheduler=DDPMScheduler(
            beta_start=0.00085, beta_end=0.02, beta_schedule="scaled_linear", prediction_type="v_prediction",
            clip_sample=False, steps_offset=1,
        )
    )  # fmt: skip


@case("HunyuanDiT, guidance rescale")
def _():
    return hunyuan(arguments={"guidance_rescale": 0.7})


@case("HunyuanDiT, PAG")
def _():
    return hunyuan(HunyuanDiTPAGPipeline, arguments={"pag_scale": 3.0}, layers=4, pag_applied_layers="blocks.1")


def photo(seed):
    return randn(1, 3, 64, 64, seed=seed).clamp(-1, 1)


def hunyuan_controlnet(seed=3):
    return randomize(HunyuanDiT2DControlNetModel(**HUNYUAN, transformer_num_layers=2), seed)


@case("HunyuanDiT, ControlNet")
def _():
    control = {"control_image": photo(3)}
    return hunyuan(HunyuanDiTControlNetPipeline, arguments=control, controlnet=hunyuan_controlnet())


@case("HunyuanDiT, two ControlNets")
def _():
    both = HunyuanDiT2DMultiControlNetModel([hunyuan_controlnet(3), hunyuan_controlnet(4)])
    control = {"control_image": [photo(3), photo(4)], "controlnet_conditioning_scale": [1.0, 0.5]}
    return hunyuan(HunyuanDiTControlNetPipeline, arguments=control, controlnet=both)


# CogView

COGVIEW = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "text_embed_dim": 32,
    "time_embed_dim": 16,
    "condition_dim": 8,
}


def cogview(cls, network, scheduler, channels=4, **arguments):
    pipe = cls(transformer=network, scheduler=scheduler, vae=vae(MeanAutoencoder, channels), **TEXT)
    call = {**EMBEDS, **SIZE, "guidance_scale": 5.0, **arguments}
    return tame(pipe, call, randn(1, channels, 16, 16), network.proj_out)


def cogview3(scheduler, **config):
    network = randomize(CogView3PlusTransformer2DModel(**COGVIEW, pos_embed_max_size=16))
    scheduler = scheduler(
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=4.0, timestep_spacing="linspace",
        clip_sample=False, set_alpha_to_one=True, **config,
    )  # fmt: skip
    return cogview(CogView3PlusPipeline, network, scheduler)


@case("CogView3")
def _():
    return cogview3(CogVideoXDDIMScheduler)


@case("CogView3, DPM")
def _():
    return cogview3(CogVideoXDPMScheduler)


def cogview4(cls=CogView4Pipeline, channels=4, **arguments):
    config = {**COGVIEW, "in_channels": channels, "rope_axes_dim": (8, 8)}
    network = randomize(CogView4Transformer2DModel(**config))
    scheduler = euler(
        shift=1.0,
        use_dynamic_shifting=True,
        base_shift=0.25,
        max_shift=0.75,
        base_image_seq_len=256,
        time_shift_type="linear",
    )
    return cogview(cls, network, scheduler, **arguments)


@case("CogView4")
def _():
    return cogview4()


@case("CogView4, sigmas")
def _():
    # The pipeline makes as many timesteps as there are steps, and insists on as many sigmas.
    return cogview4(num_inference_steps=len(SIGMAS["sigmas"]), **SIGMAS)


@case("CogView4, timesteps and sigmas")
def _():
    return cogview4(timesteps=[1000, 900, 700, 400, 200], **SIGMAS)


@case("CogView4, Control")
def _():
    return cogview4(CogView4ControlPipeline, channels=8, control_image=image())


# Latte


def latte(scheduler, **arguments):
    transformer = randomize(
        LatteTransformer3DModel(
            sample_size=16,
            in_channels=4,
            out_channels=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            cross_attention_dim=24,
            caption_channels=32,
            video_length=2,
            norm_type="ada_norm_single",
            activation_fn="gelu-approximate",
            attention_bias=True,
            norm_elementwise_affine=False,
            norm_eps=1e-6,
            num_embeds_ada_norm=1000,
        )
    )
    pipe = LattePipeline(transformer=transformer, scheduler=scheduler, vae=vae(), **TEXT)
    call = {**EMBEDS, **SIZE, "negative_prompt": None, "video_length": 2, "guidance_scale": 7.5, **arguments}
    return tame(pipe, call, randn(1, 4, 2, 16, 16), transformer.proj_out)


@case("Latte")
def _():
    return latte(ddim())


@case("Latte, no temporal attention")
def _():
    return latte(ddim(), enable_temporal_attentions=False)
