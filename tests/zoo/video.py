"""Videos: CogVideoX, Wan and what is built on it, LTX, Mochi, HunyuanVideo, and others with a time axis."""

import torch
from PIL import Image

from . import case, randn, randomize, tame
from .dit import EMBEDS, LINEAR, MASKS, TEXT
from .flow import SIGMAS, SIZE, absent, euler
from .installed import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    AutoencoderKLMagvit,
    AutoencoderKLWan,
    ChronoEditPipeline,
    ChronoEditTransformer3DModel,
    ClassifierFreeGuidance,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    CLIPVisionModel,
    CogVideoXDDIMScheduler,
    CogVideoXDPMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DPMSolverMultistepScheduler,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HunyuanSkyreelsImageToVideoPipeline,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
    LTX2Pipeline,
    LTX2TextConnectors,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
    LucyEditPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
    SkyReelsV2ImageToVideoPipeline,
    SkyReelsV2Pipeline,
    SkyReelsV2Transformer3DModel,
    UniPCMultistepScheduler,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
)
from .qwen import qwen_vae
from .unets import weaken


def unipc(shift=3.0):
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)


def picture(seed=3):
    pixels = (randn(32, 32, 3, seed=seed).sigmoid() * 255).byte().numpy()
    return Image.fromarray(pixels)


# Allegro


def allegro(scheduler, **arguments):
    transformer = randomize(
        AllegroTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=32,
            sample_height=8,
            sample_width=8,
            sample_frames=2,
        )
    )
    pipe = AllegroPipeline(transformer=transformer, scheduler=scheduler, vae=None, **TEXT)
    call = {**EMBEDS, **MASKS, "negative_prompt": None, "num_frames": 8, "height": 64, "width": 64, "guidance_scale": 7.5}
    tamed = tame(pipe, {**call, **arguments}, randn(1, 4, 2, 8, 8), transformer.proj_out)
    # The first of four steps, which divides sigma by 4, amplifies what is not noise.
    weaken(transformer.proj_out, 0.2)
    return tamed


@case("Allegro")
def _():
    return allegro(EulerAncestralDiscreteScheduler(**LINEAR, timestep_spacing="leading", steps_offset=1))


@case("Allegro, Euler")
def _():
    return allegro(EulerDiscreteScheduler(**LINEAR, timestep_spacing="leading", steps_offset=1))


# CogVideoX

COGVIDEOX = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "time_embed_dim": 16,
    "text_embed_dim": 32,
    "max_text_seq_length": 7,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 5,
}


def cogvideox_scheduler(cls=CogVideoXDDIMScheduler, snr_shift_scale=3.0, **config):
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", **config}
    return cls(prediction_type="v_prediction", snr_shift_scale=snr_shift_scale, clip_sample=False, **config)


def cogvideox_vae():
    torch.manual_seed(0)
    return AutoencoderKLCogVideoX(
        block_out_channels=(4,) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        sample_height=64,
        sample_width=64,
    ).eval()


def cogvideox(cls=CogVideoXPipeline, scheduler=None, network=(), autoencoder=None, frames=2, **arguments):
    transformer = randomize(CogVideoXTransformer3DModel(**{**COGVIDEOX, **dict(network)}))
    pipe = cls(transformer=transformer, scheduler=scheduler or cogvideox_scheduler(), vae=autoencoder, **TEXT)
    call = {**EMBEDS, "height": 64, "width": 64, "guidance_scale": 6.0, **arguments}
    if cls is not CogVideoXFunControlPipeline:
        call["num_frames"] = 5
    return tame(pipe, call, randn(1, frames, 4, 8, 8), transformer.proj_out)


@case("CogVideoX")
def _():
    return cogvideox()


@case("CogVideoX, DPM")
def _():
    scheduler = cogvideox_scheduler(CogVideoXDPMScheduler, 1.0)
    return cogvideox(scheduler=scheduler, network={"use_rotary_positional_embeddings": True})


@case("CogVideoX, DPM without zero SNR")
def _():
    scheduler = cogvideox_scheduler(CogVideoXDPMScheduler, 1.0, rescale_betas_zero_snr=False)
    return cogvideox(scheduler=scheduler, network={"use_rotary_positional_embeddings": True})


@case("CogVideoX, 1.5")
def _():
    network = {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False}
    return cogvideox(scheduler=cogvideox_scheduler(snr_shift_scale=1.0), network=network)


@case("CogVideoX, dynamic cfg")
def _():
    return cogvideox(use_dynamic_cfg=True)


@case("CogVideoX, image to video")
def _():
    network = {"in_channels": 8, "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True}
    return cogvideox(CogVideoXImageToVideoPipeline, None, network, cogvideox_vae(), image=picture())


@case("CogVideoX, Fun Control")
def _():
    video = randn(1, 5, 3, 64, 64, seed=3).sigmoid()
    return cogvideox(CogVideoXFunControlPipeline, None, {"in_channels": 8}, cogvideox_vae(), control_video=video)


# Wan

WAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "text_dim": 32,
    "freq_dim": 16,
    "ffn_dim": 32,
    "rope_max_seq_len": 32,
}
# The mask of 4 frames and an encoded video are what the channels of the state are followed by.
IMAGE_TO_VIDEO = {"in_channels": 12}
WITH_CLIP = {**IMAGE_TO_VIDEO, "image_dim": 16, "added_kv_proj_dim": 24}


def clip():
    """What encodes the image; its embeddings cannot be passed, as the pipelines want the image too, and not both."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "image_size": 32, "patch_size": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, num_hidden_layers=2, num_attention_heads=2))
    return {"image_processor": processor, "image_encoder": encoder.eval()}


def wan_vae():
    """4 times smaller in space and time."""
    temporal = {"temperal_downsample": [True, True], "scale_factor_temporal": 4, "scale_factor_spatial": 4}
    return qwen_vae(AutoencoderKLWan, levels=2, base_dim=4, **temporal)


def wan(cls=WanPipeline, scheduler=None, arguments=(), network=(), model=WanTransformer3DModel, frames=5, count=1, **parts):
    """5 frames are 2 of the latents; count: of the networks, the second of which the last timesteps are left to."""
    transformers = [randomize(model(**{**WAN, **dict(network)}), seed) for seed in range(count)]
    last = torch.nn.ModuleList([one.proj_out for one in transformers])
    parts |= dict(zip(("transformer", "transformer_2"), transformers, strict=False))
    pipe = cls(scheduler=scheduler or unipc(), vae=wan_vae(), **TEXT, **parts)
    call = {**EMBEDS, **SIZE, "num_frames": frames, "guidance_scale": 5.0, **dict(arguments)}
    return tame(pipe, call, randn(1, 4, (frames - 1) // 4 + 1, 8, 8), last)


@case("Wan")
def _():
    return wan()


@case("Wan, flow match")
def _():
    return wan(scheduler=euler())


@case("Wan, two networks")
def _():
    return wan(scheduler=euler(), arguments={"guidance_scale_2": 3.0}, count=2, boundary_ratio=0.875)


@case("Wan, two networks UniPC")
def _():
    return wan(arguments={"guidance_scale_2": 3.0}, count=2, boundary_ratio=0.875)


@case("Wan, expanded timesteps")
def _():
    return wan(scheduler=unipc(5.0), expand_timesteps=True)


@case("Wan, image to video")
def _():
    return wan(WanImageToVideoPipeline, arguments={"image": picture()}, network=WITH_CLIP, **clip())


@case("Wan, first and last image")
def _():
    call = {"image": picture(), "last_image": picture(4)}
    return wan(WanImageToVideoPipeline, euler(), call, IMAGE_TO_VIDEO)


@case("Wan, image to video with expanded timesteps")
def _():
    return wan(WanImageToVideoPipeline, euler(shift=5.0), {"image": picture()}, expand_timesteps=True)


@case("Wan, VACE")
def _():
    # The channels of two encoded videos, the active and the inactive one, and of a mask of 4x4 pixels.
    network = {"vace_layers": [0], "vace_in_channels": 24}
    return wan(WanVACEPipeline, network=network, model=WanVACETransformer3DModel)


@case("Wan, VACE video")
def _():
    network = {"vace_layers": [0], "vace_in_channels": 24}
    mask = torch.ones(1, 5, 3, 32, 32)
    mask[..., 16:] = 0
    call = {"video": randn(1, 5, 3, 32, 32, seed=3).sigmoid(), "mask": mask, "conditioning_scale": 0.5}
    return wan(WanVACEPipeline, euler(), call, network, WanVACETransformer3DModel)


@case("SkyReels 2")
def _():
    return wan(SkyReelsV2Pipeline, unipc(8.0), {"guidance_scale": 6.0}, model=SkyReelsV2Transformer3DModel)


@case("SkyReels 2, image to video")
def _():
    call = {"image": picture()}
    return wan(SkyReelsV2ImageToVideoPipeline, unipc(5.0), call, WITH_CLIP, SkyReelsV2Transformer3DModel, **clip())


def chrono_edit(frames=5, **arguments):
    call, network = {"image": picture(), **arguments}, {**WITH_CLIP, "rope_temporal_skip_len": 2}
    return wan(ChronoEditPipeline, unipc(5.0), call, network, ChronoEditTransformer3DModel, frames, **clip())


@case("ChronoEdit")
def _():
    return chrono_edit()


@case("ChronoEdit, temporal reasoning")
def _():
    return chrono_edit(frames=9, enable_temporal_reasoning=True, num_temporal_reasoning_steps=2)


@case("Lucy, edit")
def _():
    call = {"video": randn(1, 5, 3, 32, 32, seed=3).sigmoid()}
    return wan(LucyEditPipeline, unipc(5.0), call, {"in_channels": 8}, expand_timesteps=True)


# LTX

# 4x4 patches of 2 frames, packed; the shifts of LTX-Video 0.9.
LTX_SIZE = {"height": 128, "width": 128, "num_frames": 9}
LTX_SHIFTING = {
    "shift": 1.0, "use_dynamic_shifting": True, "base_shift": 0.95, "max_shift": 2.05, "base_image_seq_len": 1024,
    "shift_terminal": 0.1,
}  # fmt: skip


def ltx(cls=LTXPipeline, scheduler=None, shape=(1, 32, 8), autoencoder=None, **arguments):
    transformer = randomize(
        LTXVideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=32,
        )
    )
    pipe = cls(transformer=transformer, scheduler=scheduler or euler(**LTX_SHIFTING), vae=autoencoder, **TEXT)
    call = {**EMBEDS, **MASKS, **LTX_SIZE, "guidance_scale": 3.0, **arguments}
    return tame(pipe, call, randn(*shape), transformer.proj_out)


@case("LTX")
def _():
    return ltx()


@case("LTX, guidance rescale")
def _():
    return ltx(guidance_rescale=0.7)


@case("LTX, image to video")
def _():
    return ltx(LTXImageToVideoPipeline, image=picture())


@case("LTX, condition strength")
def _():
    torch.manual_seed(0)
    autoencoder = AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8,) * 4, decoder_block_out_channels=(8,) * 4, layers_per_block=(1,) * 5,
        decoder_layers_per_block=(1,) * 5,
    ).eval()  # fmt: skip
    call = {"denoise_strength": 0.5, "num_inference_steps": 8}
    return ltx(LTXConditionPipeline, euler(shift=1.0), (1, 8, 2, 4, 4), autoencoder, **call)


def ltx2(**arguments):
    """Video and audio are denoised together; the latents are those of the video."""
    transformer = randomize(
        LTX2VideoTransformer3DModel(
            in_channels=8,
            out_channels=8,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=12,
            cross_attention_dim=24,
            audio_in_channels=16,
            audio_out_channels=16,
            audio_num_attention_heads=2,
            audio_attention_head_dim=4,
            audio_cross_attention_dim=8,
            caption_channels=32,
        )
    )
    connector = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 1, "num_learnable_registers": None}
    connectors = LTX2TextConnectors(
        caption_channels=32,
        text_proj_in_factor=1,
        **{f"{kind}_connector_{name}": value for kind in ("video", "audio") for name, value in connector.items()},
    )
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(
        latent_channels=8,
        block_out_channels=(8,) * 4,
        layers_per_block=(1,) * 5,
        decoder_block_out_channels=(8,) * 3,
        decoder_layers_per_block=(1,) * 4,
        spatial_compression_ratio=32,
        temporal_compression_ratio=8,
    )
    audio_vae = AutoencoderKLLTX2Audio(base_channels=16, ch_mult=(1, 1, 1), num_res_blocks=1, latent_channels=4, mel_bins=16)
    pipe = LTX2Pipeline(
        transformer=transformer,
        connectors=randomize(connectors),
        scheduler=euler(**LTX_SHIFTING),
        vae=vae.eval(),
        audio_vae=audio_vae.eval(),
        **TEXT,
        **absent("vocoder"),
    )
    masks = {name: mask.long() for name, mask in MASKS.items()}
    # More guidance than of the classifier-free kind takes more evaluations, and a network that knows of it.
    others = {"stg_scale": 0.0, "audio_stg_scale": 0.0, "modality_scale": 1.0, "audio_modality_scale": 1.0}
    call = {**EMBEDS, **masks, **LTX_SIZE, **others, "guidance_scale": 3.0, **arguments}
    return tame(pipe, call, randn(1, 32, 8), torch.nn.ModuleList([transformer.proj_out, transformer.audio_proj_out]))


@case("LTX 2")
def _():
    return ltx2()


# Mochi


@case("Mochi")
def _():
    transformer = randomize(
        MochiTransformer3DModel(
            in_channels=4,
            num_layers=2,
            num_attention_heads=2,
            attention_head_dim=8,
            pooled_projection_dim=16,
            text_embed_dim=32,
            time_embed_dim=16,
            max_sequence_length=7,
        )
    )
    pipe = MochiPipeline(transformer=transformer, scheduler=euler(shift=1.0, invert_sigmas=True), vae=None, **TEXT)
    masks = {name: mask.bool() for name, mask in MASKS.items()}
    call = {**EMBEDS, **masks, "num_frames": 7, "height": 64, "width": 64, "guidance_scale": 4.5}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


# HunyuanVideo

HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 1,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "rope_axes_dim": (4, 6, 6),
    "text_embed_dim": 32,
}
POOLED = {"pooled_prompt_embeds": randn(1, 16), "negative_pooled_prompt_embeds": randn(1, 16, seed=2)}


def hunyuan_vae():
    torch.manual_seed(0)
    return AutoencoderKLHunyuanVideo(
        block_out_channels=(4,) * 4, latent_channels=4, layers_per_block=1, norm_num_groups=2, mid_block_add_attention=False
    ).eval()


def hunyuan(cls=HunyuanVideoPipeline, scheduler=None, network=(), autoencoder=None, **arguments):
    config = {**HUNYUAN, "num_single_layers": 1, "pooled_projection_dim": 16, **dict(network)}
    transformer = randomize(HunyuanVideoTransformer3DModel(**config))
    pipe = cls(
        transformer=transformer,
        scheduler=scheduler or euler(shift=7.0),
        vae=autoencoder,
        **TEXT,
        **absent("text_encoder_2", "tokenizer_2"),
    )
    call = {**EMBEDS, **MASKS, **POOLED, "num_frames": 5, "height": 64, "width": 64, **arguments}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


@case("HunyuanVideo")
def _():
    return hunyuan(guidance_scale=6.0)


@case("HunyuanVideo, true cfg")
def _():
    return hunyuan(true_cfg_scale=6.0, guidance_scale=1.0)


@case("HunyuanVideo, sigmas")
def _():
    return hunyuan(guidance_scale=6.0, **SIGMAS)


@case("HunyuanVideo, SkyReels image to video")
def _():
    call = {"image": picture(), "true_cfg_scale": 6.0, "guidance_scale": 1.0}
    return hunyuan(HunyuanSkyreelsImageToVideoPipeline, None, {"in_channels": 8}, hunyuan_vae(), **call)


@case("HunyuanVideo 1.5")
def _():
    torch.manual_seed(0)
    autoencoder = AutoencoderKLHunyuanVideo15(
        latent_channels=4, block_out_channels=(8,) * 5, layers_per_block=1, downsample_match_channel=False,
        upsample_match_channel=False,
    ).eval()  # fmt: skip
    config = {**HUNYUAN, "in_channels": 9, "text_embed_2_dim": 16, "image_embed_dim": 16, "target_size": 64}
    transformer = randomize(HunyuanVideo15Transformer3DModel(**config, task_type="t2v"))
    pipe = HunyuanVideo15Pipeline(
        transformer=transformer,
        scheduler=euler(shift=5.0),
        vae=autoencoder,
        guider=ClassifierFreeGuidance(guidance_scale=6.0),
        **TEXT,
        **absent("text_encoder_2", "tokenizer_2"),
    )
    embeds = {
        f"{name}{suffix}": randn(1, 7, size, seed=seed)
        for suffix, size in (("", 32), ("_2", 16))
        for seed, name in ((1, "prompt_embeds"), (2, "negative_prompt_embeds"))
    }
    masks = {
        f"{name}_mask{suffix}": torch.ones(1, 7)
        for suffix in ("", "_2")
        for name in ("prompt_embeds", "negative_prompt_embeds")
    }
    call = {**embeds, **masks, "num_frames": 5, "height": 128, "width": 128}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


# EasyAnimate, Sana


@case("EasyAnimate")
def _():
    transformer = randomize(
        EasyAnimateTransformer3DModel(
            in_channels=4,
            out_channels=4,
            patch_size=2,
            num_layers=1,
            mmdit_layers=1,
            num_attention_heads=2,
            attention_head_dim=16,
            time_embed_dim=16,
            text_embed_dim=32,
            sample_width=8,
            sample_height=8,
        )
    )
    torch.manual_seed(0)
    autoencoder = AutoencoderKLMagvit(
        latent_channels=4, block_out_channels=[4] * 4, layers_per_block=1, norm_num_groups=2
    ).eval()
    pipe = EasyAnimatePipeline(transformer=transformer, scheduler=euler(shift=5.0), vae=autoencoder, **TEXT)
    call = {**EMBEDS, **MASKS, "num_frames": 5, "height": 64, "width": 64, "guidance_scale": 5.0}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


def sana_video(scheduler, **arguments):
    transformer = randomize(
        SanaVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_attention_heads=2,
            attention_head_dim=12,
            num_cross_attention_heads=2,
            cross_attention_head_dim=12,
            cross_attention_dim=24,
            caption_channels=32,
            sample_size=8,
        )
    )
    pipe = SanaVideoPipeline(transformer=transformer, scheduler=scheduler, vae=wan_vae(), **TEXT)
    call = {**EMBEDS, **MASKS, **SIZE, "negative_prompt": None, "frames": 5, "use_resolution_binning": False}
    return tame(pipe, {**call, "guidance_scale": 6.0, **arguments}, randn(1, 4, 2, 8, 8), transformer.proj_out)


@case("Sana, video")
def _():
    return sana_video(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=8.0))


@case("Sana, video flow match")
def _():
    return sana_video(euler(shift=8.0))
