"""Transformers with the schedulers of diffusion or of flows: PixArt, Sana, HunyuanDiT, CogView, Latte."""

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogView3PlusPipeline,
    CogView3PlusTransformer2DModel,
    CogView4Pipeline,
    CogView4Transformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPAGPipeline,
    HunyuanDiTPipeline,
    LattePipeline,
    LatteTransformer3DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPAGPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPAGPipeline,
    SanaPipeline,
    SanaTransformer2DModel,
)

from . import case, randn, randomize, tame
from .sd import BETAS, ddim, vae

EMBEDS = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
MASKS = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
NO_TEXT = {"text_encoder": None, "tokenizer": None}
SIZE = {"height": 32, "width": 32}


def pixart(name, cls, scheduler=ddim, **call):
    @case(name)
    def _():
        network = randomize(
            PixArtTransformer2DModel(
                sample_size=16,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=3,
                caption_channels=32,
                in_channels=4,
                cross_attention_dim=24,
                out_channels=8,
                norm_type="ada_norm_single",
            )
        )
        pipe = cls(vae=vae(), transformer=network, scheduler=scheduler(), **NO_TEXT)
        arguments = {"negative_prompt": None, **EMBEDS, **MASKS, **SIZE, "use_resolution_binning": False, **call}
        return tame(pipe, {**arguments, "guidance_scale": 4.0}, randn(1, 4, 16, 16), network.proj_out)


pixart("PixArt-alpha", PixArtAlphaPipeline)
pixart("PixArt-alpha, DPM++", PixArtAlphaPipeline, lambda: DPMSolverMultistepScheduler(**BETAS))
pixart("PixArt-sigma", PixArtSigmaPipeline)
pixart("PixArt-sigma, PAG", PixArtSigmaPAGPipeline, pag_scale=2.0)


def sana(name, cls, scheduler, **call):
    @case(name)
    def _():
        network = randomize(
            SanaTransformer2DModel(
                in_channels=4,
                out_channels=4,
                num_layers=2,
                num_attention_heads=2,
                attention_head_dim=8,
                num_cross_attention_heads=2,
                cross_attention_head_dim=8,
                cross_attention_dim=16,
                caption_channels=32,
                sample_size=16,
            )
        )
        pipe = cls(vae=None, transformer=network, scheduler=scheduler(), **NO_TEXT)
        size = {"height": 16 * pipe.vae_scale_factor, "width": 16 * pipe.vae_scale_factor}
        arguments = {"negative_prompt": None, **EMBEDS, **MASKS, **size, "use_resolution_binning": False, **call}
        return tame(pipe, {**arguments, "guidance_scale": 4.0}, randn(1, 4, 16, 16), network.proj_out)


def flow_dpm():
    return DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


sana("Sana", SanaPipeline, flow_dpm)
sana("Sana, flow Euler", SanaPipeline, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0))
sana("Sana, PAG", SanaPAGPipeline, lambda: FlowMatchEulerDiscreteScheduler(shift=3.0), pag_scale=2.0)


def hunyuan(name, cls, **call):
    @case(name)
    def _():
        network = randomize(
            HunyuanDiT2DModel(
                sample_size=16,
                num_layers=2,
                patch_size=2,
                attention_head_dim=8,
                num_attention_heads=3,
                in_channels=4,
                cross_attention_dim=32,
                cross_attention_dim_t5=32,
                pooled_projection_dim=16,
                hidden_size=24,
                text_len=7,
                text_len_t5=7,
                activation_fn="gelu-approximate",
            )
        )
        parts = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None, "safety_checker": None, "feature_extractor": None}
        scheduler = ddim(prediction_type="v_prediction")
        pipe = cls(vae=None, transformer=network, scheduler=scheduler, requires_safety_checker=False, **parts)
        arguments = dict(call)
        for prefix, seed in (("", 1), ("negative_", 3)):
            for suffix in ("", "_2"):
                arguments[f"{prefix}prompt_embeds{suffix}"] = randn(1, 7, 32, seed=seed + bool(suffix))
                arguments[f"{prefix}prompt_attention_mask{suffix}"] = torch.ones(1, 7)
        # The grid of positions takes 8 pixels for a latent, whatever the autoencoder.
        arguments = {**arguments, "height": 128, "width": 128, "use_resolution_binning": False, "guidance_scale": 4.0}
        return tame(pipe, arguments, randn(1, 4, 16, 16), network.proj_out)


hunyuan("HunyuanDiT", HunyuanDiTPipeline)
hunyuan("HunyuanDiT, PAG", HunyuanDiTPAGPipeline, pag_scale=2.0)


@case("CogView 3+")
def _():
    network = randomize(
        CogView3PlusTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            attention_head_dim=4,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=8,
            condition_dim=2,
            pos_embed_max_size=8,
            sample_size=8,
        )
    )
    scheduler = CogVideoXDDIMScheduler(
        rescale_betas_zero_snr=True, timestep_spacing="trailing", prediction_type="v_prediction", snr_shift_scale=4.0
    )
    pipe = CogView3PlusPipeline(vae=vae(), transformer=network, scheduler=scheduler, **NO_TEXT)
    return tame(pipe, {**EMBEDS, **SIZE, "guidance_scale": 4.0}, randn(1, 4, 16, 16), network.proj_out)


def cogview4(name, **call):
    @case(name)
    def _():
        network = randomize(
            CogView4Transformer2DModel(
                patch_size=2,
                in_channels=4,
                out_channels=4,
                num_layers=2,
                attention_head_dim=4,
                num_attention_heads=4,
                text_embed_dim=32,
                time_embed_dim=8,
                condition_dim=4,
                rope_axes_dim=(16, 16),
                sample_size=16,
            )
        )
        scheduler = FlowMatchEulerDiscreteScheduler(
            base_shift=0.25, max_shift=0.75, base_image_seq_len=256, use_dynamic_shifting=True, time_shift_type="linear"
        )
        pipe = CogView4Pipeline(vae=vae(), transformer=network, scheduler=scheduler, **NO_TEXT)
        return tame(pipe, {**EMBEDS, **SIZE, "guidance_scale": 4.0, **call}, randn(1, 4, 16, 16), network.proj_out)


cogview4("CogView 4")
cogview4("CogView 4, sigmas", sigmas=[1.0, 0.8, 0.5, 0.2])


@case("Latte")
def _():
    network = randomize(
        LatteTransformer3DModel(
            sample_size=8,
            num_layers=1,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=3,
            caption_channels=32,
            in_channels=4,
            cross_attention_dim=24,
            out_channels=8,
            attention_bias=True,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_single",
            norm_elementwise_affine=False,
            activation_fn="gelu-approximate",
            video_length=2,
        )
    )
    pipe = LattePipeline(vae=vae(), transformer=network, scheduler=ddim(), **NO_TEXT)
    call = {"negative_prompt": None, **EMBEDS, "height": 16, "width": 16, "video_length": 2, "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), network.proj_out)
