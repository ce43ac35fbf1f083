"""Video models: their latents have frames, [B, C, F, h, w] or [B, F, C, h, w], or are packed."""

import torch
from diffusers import (
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
    UniPCMultistepScheduler,
    WanPipeline,
    WanTransformer3DModel,
)

from . import case, randn, randomize, tame

EMBEDS = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
NO_TEXT = {"text_encoder": None, "tokenizer": None}


def flow():
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc():
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def wan(name, scheduler, **call):
    @case(name)
    def _():
        network = randomize(
            WanTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=4,
                text_dim=32,
                freq_dim=32,
                ffn_dim=32,
                num_layers=2,
                cross_attn_norm=True,
                rope_max_seq_len=32,
            )
        )
        pipe = WanPipeline(vae=None, transformer=network, scheduler=scheduler(), **NO_TEXT)
        arguments = {**EMBEDS, "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 4.0, **call}
        return tame(pipe, arguments, randn(1, 4, 2, 8, 8), network.proj_out)


wan("Wan", unipc)
wan("Wan, flow Euler", flow)


@case("LTX")
def _():
    network = randomize(
        LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_attention_heads=4,
            attention_head_dim=8,
            cross_attention_dim=32,
            num_layers=2,
            caption_channels=32,
        )
    )
    pipe = LTXPipeline(vae=None, transformer=network, scheduler=flow(), **NO_TEXT)
    masks = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
    call = {**EMBEDS, **masks, "height": 128, "width": 128, "num_frames": 9, "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 32, 8), network.proj_out)


def cogvideox(name, scheduler):
    @case(name)
    def _():
        network = randomize(
            CogVideoXTransformer3DModel(
                num_attention_heads=2,
                attention_head_dim=16,
                in_channels=4,
                out_channels=4,
                time_embed_dim=2,
                text_embed_dim=32,
                num_layers=2,
                sample_width=2,
                sample_height=2,
                sample_frames=5,
                patch_size=2,
                temporal_compression_ratio=4,
                max_text_seq_length=7,
                use_rotary_positional_embeddings=True,
            )
        )
        pipe = CogVideoXPipeline(vae=None, transformer=network, scheduler=scheduler(), **NO_TEXT)
        call = {**EMBEDS, "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 4.0, "max_sequence_length": 7}
        return tame(pipe, call, randn(1, 2, 4, 8, 8), network.proj_out)


SNR = {"prediction_type": "v_prediction", "timestep_spacing": "trailing", "snr_shift_scale": 3.0}
cogvideox("CogVideoX", lambda: CogVideoXDDIMScheduler(**SNR, rescale_betas_zero_snr=True))
cogvideox("CogVideoX, DPM", lambda: CogVideoXDPMScheduler(**SNR))


@case("Mochi")
def _():
    network = randomize(
        MochiTransformer3DModel(
            patch_size=2,
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=4,
            text_embed_dim=32,
            time_embed_dim=4,
            max_sequence_length=7,
        )
    )
    pipe = MochiPipeline(vae=None, transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(), **NO_TEXT)
    masks = {"prompt_attention_mask": torch.ones(1, 7).bool(), "negative_prompt_attention_mask": torch.ones(1, 7).bool()}
    call = {**EMBEDS, **masks, "height": 64, "width": 64, "num_frames": 7, "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), network.proj_out)


@case("HunyuanVideo")
def _():
    network = randomize(
        HunyuanVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=10,
            num_layers=1,
            num_single_layers=1,
            num_refiner_layers=1,
            patch_size=1,
            patch_size_t=1,
            guidance_embeds=True,
            text_embed_dim=32,
            pooled_projection_dim=8,
            rope_axes_dim=(2, 4, 4),
        )
    )
    parts = {**NO_TEXT, "text_encoder_2": None, "tokenizer_2": None}
    pipe = HunyuanVideoPipeline(vae=None, transformer=network, scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0), **parts)
    embeds = {
        "prompt_embeds": randn(1, 7, 32),
        "pooled_prompt_embeds": randn(1, 8),
        "prompt_attention_mask": torch.ones(1, 7),
    }
    call = {**embeds, "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 6.0}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), network.proj_out)
