"""Transformers of the language-model age: Qwen-Image, Z-Image, Lumina, HiDream, Cosmos, Kandinsky 5 and their like."""

import numpy as np
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from PIL import Image

from . import case, randn, randomize, tame
from .flow import SCHEDULED, SHIFTING, SIGMAS, SIZE, STRENGTH, absent, euler, image, tokenizer, vae
from .installed import (
    AdaptiveProjectedMixGuidance,
    AnyFlowPipeline,
    AnyFlowTransformer3DModel,
    AutoencoderKLQwenImage,
    AutoencoderKLWan,
    AutoencoderOobleck,
    ClassifierFreeGuidance,
    CosineDPMSolverMultistepScheduler,
    Cosmos2_5_PredictBasePipeline,
    Cosmos2TextToImagePipeline,
    CosmosTextToWorldPipeline,
    CosmosTransformer3DModel,
    EDMDPMSolverMultistepScheduler,
    EDMEulerScheduler,
    FlowMapEulerDiscreteScheduler,
    GlmImagePipeline,
    GlmImageTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    HunyuanImagePipeline,
    HunyuanImageRefinerPipeline,
    HunyuanImageTransformer2DModel,
    JoyImageEditPipeline,
    JoyImageEditTransformer3DModel,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
    LongCatAudioDiTPipeline,
    LongCatAudioDiTTransformer,
    LongCatAudioDiTVae,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    LuminaNextDiT2DModel,
    LuminaPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
    NucleusMoEImagePipeline,
    NucleusMoEImageTransformer2DModel,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
    QwenImageControlNetModel,
    QwenImageControlNetPipeline,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageImg2ImgPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
    StableAudioDiTModel,
    StableAudioPipeline,
    StableAudioProjectionModel,
    UMT5Config,
    UMT5EncoderModel,
    UniPCMultistepScheduler,
    ZImageControlNetModel,
    ZImageControlNetPipeline,
    ZImageImg2ImgPipeline,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)

EMBEDS = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}


def masks(name="prompt_embeds_mask"):
    return {name: torch.ones(1, 7, dtype=torch.int64), f"negative_{name}": torch.ones(1, 7, dtype=torch.int64)}


# Qwen-Image


class Pooling:
    """A quick autoencoder, for pipelines that enlarge what they edit to a million pixels; it draws no noise either."""

    def encode(self, x, return_dict=True):
        size = 2 ** len(self.config.temperal_downsample)
        mean = torch.nn.functional.avg_pool3d(x, (1, size, size))
        mean = torch.cat([mean, mean[:, :1]], dim=1)
        moments = torch.cat([mean, torch.full_like(mean, -30)], dim=1)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z, return_dict=True):
        return (z,)


class PoolingAutoencoder(Pooling, AutoencoderKLQwenImage):
    pass


class PoolingWan(Pooling, AutoencoderKLWan):
    pass


def qwen_vae(cls=AutoencoderKLQwenImage, levels=1, **config):
    torch.manual_seed(0)
    return cls(
        **{
            "base_dim": 8,
            "z_dim": 4,
            "dim_mult": [1] * (levels + 1),
            "num_res_blocks": 1,
            "temperal_downsample": [False] * levels,
            "latents_mean": [0.1] * 4,
            "latents_std": [1.5] * 4,
            **config,
        }
    ).eval()


QWEN = {
    "in_channels": 16,
    "out_channels": 4,
    "num_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
QWEN_SHIFTING = {
    "shift": 1.0,
    "use_dynamic_shifting": True,
    "base_shift": 0.5,
    "max_shift": 0.9,
    "base_image_seq_len": 256,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
}
# The state is packed: 2x2 patches of 4 channels.
PACKED, UNPACKED = (1, 64, 16), (1, 4, 16, 16)


def qwen(cls=QwenImagePipeline, arguments=(), network=(), shape=PACKED, autoencoder=None, **parts):
    transformer = randomize(QwenImageTransformer2DModel(**{**QWEN, **dict(network)}))
    parts = {**absent("text_encoder", "tokenizer"), **parts}
    scheduler = euler(**QWEN_SHIFTING)
    pipe = cls(transformer=transformer, scheduler=scheduler, vae=autoencoder or qwen_vae(), **parts)
    call = {**EMBEDS, **masks(), **SIZE, "true_cfg_scale": 4.0, **dict(arguments)}
    if cls is QwenImageLayeredPipeline:
        del call["height"], call["width"]
    return tame(pipe, call, randn(*shape), transformer.proj_out)


@case("Qwen-Image")
def _():
    return qwen()


@case("Qwen-Image, no cfg")
def _():
    return qwen(arguments={"true_cfg_scale": 1.0})


@case("Qwen-Image, sigmas")
def _():
    return qwen(arguments=SIGMAS)


def qwen_controlnet(**arguments):
    network = randomize(QwenImageControlNetModel(**QWEN))
    return qwen(QwenImageControlNetPipeline, {"control_image": image(), **arguments}, controlnet=network)


@case("Qwen-Image, ControlNet")
def _():
    return qwen_controlnet()


@case("Qwen-Image, ControlNet scheduled")
def _():
    return qwen_controlnet(**SCHEDULED)


@case("Qwen-Image, img2img")
def _():
    return qwen(QwenImageImg2ImgPipeline, {"image": image(), **STRENGTH})


@case("Qwen-Image, img2img sliced")
def _():
    return qwen(QwenImageImg2ImgPipeline, {"image": image(), **STRENGTH, **SIGMAS})


def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8))


def qwen_edit(cls, arguments, shape=(1, 16, 16), network=(), **parts):
    autoencoder = qwen_vae(PoolingAutoencoder, levels=7, base_dim=4)
    parts = {"processor": None, **parts}
    return qwen(cls, {"image": picture(), **arguments}, network, shape, autoencoder, **parts)


LARGE = {"height": 1024, "width": 1024}


@case("Qwen-Image, edit")
def _():
    return qwen_edit(QwenImageEditPipeline, LARGE)


@case("Qwen-Image, edit plus")
def _():
    return qwen_edit(QwenImageEditPlusPipeline, LARGE, network={"zero_cond_t": True})


@case("Qwen-Image, layered")
def _():
    network = {"use_additional_t_cond": True, "use_layer3d_rope": True}
    arguments = {"prompt": "a prompt", "layers": 1, "resolution": 1024, "output_type": "pt"}
    # The pipeline cannot return latents.
    encoder = qwen_vae()  # anything that has a dtype
    return qwen_edit(QwenImageLayeredPipeline, arguments, (1, 32, 16), network, text_encoder=encoder)


class Processor:
    """What Qwen-Image 2.1 wants to know of its tokenizer even if it need not encode anything."""

    @property
    def tokenizer(self):
        return self

    def apply_chat_template(self, messages, **arguments):
        return [[0]]

    def encode(self, text):
        return [0]


def qwen21(**arguments):
    transformer = randomize(
        QwenImage21Transformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            context_in_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
    )
    scheduler = euler(**QWEN_SHIFTING)
    parts = {"vae": None, "text_encoder": None, "processor": Processor()}
    pipe = QwenImage21Pipeline(transformer=transformer, scheduler=scheduler, **parts)
    call = {**EMBEDS, **masks(), "height": 64, "width": 64, "true_cfg_scale": 4.0, **arguments}
    return tame(pipe, call, randn(1, 16, 4), transformer.proj_out)


@case("Qwen-Image 2.1")
def _():
    return qwen21()


@case("Qwen-Image 2.1, no cache")
def _():
    return qwen21(use_kv_cache=False)


# Z-Image

ZIMAGE = {
    "dim": 32,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
}


def zimage(cls=ZImagePipeline, arguments=(), network=(), **parts):
    transformer = randomize(
        ZImageTransformer2DModel(
            **{
                **ZIMAGE,
                "in_channels": 4,
                "n_layers": 1,
                "cap_feat_dim": 32,
                "axes_dims": [4, 4, 8],
                "axes_lens": [64, 32, 32],
                **dict(network),
            }
        )
    )
    autoencoder = vae(scaling_factor=0.3611, shift_factor=0.1159)
    parts = {**absent("text_encoder", "tokenizer"), **parts}
    pipe = cls(transformer=transformer, scheduler=euler(), vae=autoencoder, **parts)
    embeds = {name: [value[0]] for name, value in EMBEDS.items()}
    call = {**embeds, **SIZE, "guidance_scale": 4.0, **dict(arguments)}
    return tame(pipe, call, randn(*UNPACKED), transformer.all_final_layer["2-1"].linear)


@case("Z-Image")
def _():
    return zimage()


@case("Z-Image, turbo")
def _():
    return zimage(arguments={"guidance_scale": 0.0})


@case("Z-Image, cfg truncation")
def _():
    return zimage(arguments={"cfg_truncation": 0.2})


@case("Z-Image, cfg normalization")
def _():
    return zimage(arguments={"cfg_normalization": True})


@case("Z-Image, ControlNet")
def _():
    network = randomize(ZImageControlNetModel([0], [0], control_in_dim=4, **ZIMAGE))
    return zimage(ZImageControlNetPipeline, {"control_image": image()}, controlnet=network)


@case("Z-Image, img2img")
def _():
    return zimage(ZImageImg2ImgPipeline, {"image": image(), **STRENGTH})


@case("Z-Image, omni")
def _():
    arguments = {name: [[value[0]]] for name, value in EMBEDS.items()}
    return zimage(ZImageOmniPipeline, arguments, siglip=None, siglip_processor=None)


# Lumina


@case("Lumina")
def _():
    transformer = randomize(
        LuminaNextDiT2DModel(
            sample_size=16,
            hidden_size=32,
            num_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            cross_attention_dim=32,
        )
    )
    pipe = LuminaPipeline(
        transformer=transformer, scheduler=euler(shift=1.0), vae=vae(), **absent("text_encoder", "tokenizer")
    )
    call = {**EMBEDS, **masks("prompt_attention_mask"), **SIZE, "guidance_scale": 4.0}
    return tame(pipe, call, randn(*UNPACKED), transformer.norm_out.linear_2)


def lumina2(**arguments):
    transformer = randomize(
        Lumina2Transformer2DModel(
            sample_size=16,
            in_channels=4,
            hidden_size=32,
            num_layers=1,
            num_refiner_layers=1,
            num_attention_heads=2,
            num_kv_heads=1,
            multiple_of=16,
            axes_dim_rope=(4, 4, 8),
            axes_lens=(32, 32, 32),
            cap_feat_dim=32,
        )
    )
    pipe = Lumina2Pipeline(
        transformer=transformer, scheduler=euler(shift=6.0), vae=vae(), **absent("text_encoder", "tokenizer")
    )
    call = {**EMBEDS, **masks("prompt_attention_mask"), **SIZE, "guidance_scale": 4.0, **arguments}
    return tame(pipe, call, randn(*UNPACKED), transformer.norm_out.linear_2)


@case("Lumina 2")
def _():
    return lumina2()


@case("Lumina 2, cfg truncated")
def _():
    return lumina2(cfg_trunc_ratio=0.5)


# HiDream


@case("HiDream")
def _():
    transformer = randomize(
        HiDreamImageTransformer2DModel(
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            caption_channels=[32, 32],
            text_emb_dim=32,
            axes_dims_rope=(4, 4, 8),
            max_resolution=(16, 16),
            llama_layers=[0, 0],
        )
    )
    texts = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3", "_4")]
    pipe = HiDreamImagePipeline(transformer=transformer, scheduler=euler(), vae=vae(), **absent(*texts))
    pipe.default_sample_size = 16  # otherwise every image has a million pixels
    call = {
        "prompt_embeds_t5": randn(1, 7, 32),
        "negative_prompt_embeds_t5": randn(1, 7, 32, seed=2),
        "prompt_embeds_llama3": randn(1, 1, 7, 32),
        "negative_prompt_embeds_llama3": randn(1, 1, 7, 32, seed=2),
        "pooled_prompt_embeds": randn(1, 32),
        "negative_pooled_prompt_embeds": randn(1, 32, seed=2),
        "guidance_scale": 4.0,
        **SIZE,
    }
    return tame(pipe, call, randn(*UNPACKED), transformer.final_layer.linear)


# Kandinsky 5


def kandinsky5(cls, frames, **arguments):
    transformer = randomize(
        Kandinsky5Transformer3DModel(
            in_text_dim=32,
            in_text_dim2=32,
            time_dim=32,
            model_dim=32,
            ff_dim=32,
            num_text_blocks=1,
            num_visual_blocks=1,
            axes_dims=(4, 4, 8),
        )
    )
    texts = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    pipe = cls(transformer=transformer, scheduler=euler(shift=5.0), vae=None, **absent(*texts))
    pipe.resolutions = [(128, 128)]
    lengths = torch.tensor([0, 7], dtype=torch.int32)
    call = {
        "prompt_embeds_qwen": randn(1, 7, 32),
        "negative_prompt_embeds_qwen": randn(1, 7, 32, seed=2),
        "prompt_embeds_clip": randn(1, 32),
        "negative_prompt_embeds_clip": randn(1, 32, seed=2),
        "prompt_cu_seqlens": lengths,
        "negative_prompt_cu_seqlens": lengths,
        "guidance_scale": 4.0,
        **arguments,
    }
    return tame(pipe, call, randn(1, frames, 16, 16, 4), transformer.out_layer.out_layer)


@case("Kandinsky 5")
def _():
    return kandinsky5(Kandinsky5T2IPipeline, 1, height=128, width=128)


@case("Kandinsky 5, video")
def _():
    return kandinsky5(Kandinsky5T2VPipeline, 2, height=128, width=128, num_frames=5)


# Cosmos


class Lenient:
    """A safety checker that lets everything pass."""

    def to(self, device):
        return self

    def check_text_safety(self, prompt):
        return True

    def check_video_safety(self, frames):
        return frames


def cosmos(cls, scheduler, arguments=(), network=(), autoencoder=None):
    transformer = randomize(
        CosmosTransformer3DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "text_embed_dim": 32,
                "adaln_lora_dim": 4,
                "max_size": (4, 32, 32),
                "concat_padding_mask": False,  # resizing it takes torchvision
                **dict(network),
            }
        )
    )
    pipe = cls(
        transformer=transformer,
        scheduler=scheduler,
        vae=autoencoder,
        safety_checker=Lenient(),
        **absent("text_encoder", "tokenizer"),
    )
    call = {**EMBEDS, "height": 64, "width": 64, "guidance_scale": 4.0, **dict(arguments)}
    return pipe, call, transformer.proj_out


@case("Cosmos")
def _():
    scheduler = EDMEulerScheduler(sigma_max=80.0, sigma_data=0.5, final_sigmas_type="sigma_min")
    pipe, call, last = cosmos(CosmosTextToWorldPipeline, scheduler, {"num_frames": 9})
    return tame(pipe, call, randn(1, 4, 2, 8, 8), last)


@case("Cosmos 2")
def _():
    scheduler = euler(shift=1.0, use_karras_sigmas=True)
    pipe, call, last = cosmos(Cosmos2TextToImagePipeline, scheduler, network={"extra_pos_embed_type": None})
    return tame(pipe, call, randn(1, 4, 1, 8, 8), last)


def cosmos25(shape, **arguments):
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, use_karras_sigmas=True, sigma_max=200.0, sigma_min=0.01
    )
    autoencoder = qwen_vae(PoolingWan, levels=3, base_dim=4)
    network = {"in_channels": 5, "extra_pos_embed_type": None}
    pipe, call, last = cosmos(Cosmos2_5_PredictBasePipeline, scheduler, arguments, network, autoencoder)
    return tame(pipe, call, randn(*shape), last)


@case("Cosmos 2.5")
def _():
    return cosmos25((1, 4, 2, 8, 8), num_frames=2)


@case("Cosmos 2.5, video to world")
def _():
    video = randn(1, 3, 1, 64, 64, seed=3)
    return cosmos25((1, 4, 2, 8, 8), num_frames=2, video=video, num_latent_conditional_frames=1)


# GLM-Image, Nucleus


@case("GLM-Image")
def _():
    transformer = randomize(
        GlmImageTransformer2DModel(
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            text_embed_dim=32,
            time_embed_dim=32,
            condition_dim=16,
            prior_vq_quantizer_codebook_size=8,
        )
    )
    shifting = {"base_shift": 0.25, "max_shift": 0.75, "base_image_seq_len": 256, "time_shift_type": "linear"}
    pipe = GlmImagePipeline(
        transformer=transformer,
        scheduler=euler(shift=1.0, use_dynamic_shifting=True, **shifting),
        vae=vae(),
        **absent("text_encoder", "tokenizer", "processor", "vision_language_encoder"),
    )
    call = {**EMBEDS, **SIZE, "prior_token_ids": torch.arange(64)[None] % 8, "guidance_scale": 4.0}
    return tame(pipe, call, randn(*UNPACKED), transformer.proj_out)


@case("Nucleus-MoE")
def _():
    transformer = randomize(
        NucleusMoEImageTransformer2DModel(
            in_channels=16,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,  # with fewer the feed-forward layers are empty
            joint_attention_dim=32,
            axes_dims_rope=(4, 4, 8),
            num_experts=2,
            moe_intermediate_dim=32,
        )
    )
    pipe = NucleusMoEImagePipeline(
        transformer=transformer,
        scheduler=euler(**QWEN_SHIFTING),
        vae=qwen_vae(),
        **absent("text_encoder", "processor"),
    )
    call = {**EMBEDS, **masks(), **SIZE, "guidance_scale": 4.0}
    return tame(pipe, call, randn(*PACKED), transformer.proj_out)


# HunyuanImage


def hunyuan_image(cls, shape, network=(), arguments=(), guider=None, **parts):
    transformer = randomize(
        HunyuanImageTransformer2DModel(
            **{
                "in_channels": 4,
                "out_channels": 4,
                "num_attention_heads": 2,
                "attention_head_dim": 16,
                "num_layers": 1,
                "num_single_layers": 1,
                "num_refiner_layers": 1,
                "text_embed_dim": 32,
                "rope_axes_dim": (8, 8),
                **dict(network),
            }
        )
    )
    pipe = cls(
        transformer=transformer,
        scheduler=euler(shift=5.0),
        vae=None,
        guider=guider,
        **absent("text_encoder", "tokenizer"),
        **parts,
    )
    call = {**EMBEDS, **masks(), **dict(arguments)}
    return tame(pipe, call, randn(*shape), transformer.proj_out)


GLYPHS = {
    "prompt_embeds_2": randn(1, 7, 32, seed=3),
    "negative_prompt_embeds_2": randn(1, 7, 32, seed=4),
    "prompt_embeds_mask_2": torch.ones(1, 7, dtype=torch.int64),
    "negative_prompt_embeds_mask_2": torch.ones(1, 7, dtype=torch.int64),
}


def hunyuan_base(network=(), guider=None):
    return hunyuan_image(
        HunyuanImagePipeline,
        (1, 4, 8, 8),
        {"text_embed_2_dim": 32, **dict(network)},
        {**GLYPHS, "height": 256, "width": 256},
        guider,
        **absent("text_encoder_2", "tokenizer_2"),
    )


@case("HunyuanImage")
def _():
    return hunyuan_base(guider=AdaptiveProjectedMixGuidance(adaptive_projected_guidance_start_step=2))


@case("HunyuanImage, cfg")
def _():
    return hunyuan_base(guider=ClassifierFreeGuidance(guidance_scale=4.0))


@case("HunyuanImage, mean flow")
def _():
    return hunyuan_base({"guidance_embeds": True, "use_meanflow": True})


@case("HunyuanImage, refiner")
def _():
    network = {"in_channels": 8, "patch_size": (1, 1, 1), "rope_axes_dim": (4, 4, 8), "guidance_embeds": True}
    arguments = {"image": randn(1, 4, 1, 8, 8, seed=3), "height": 128, "width": 128}
    return hunyuan_image(HunyuanImageRefinerPipeline, (1, 4, 1, 8, 8), network, arguments)


# JoyImage


def joy_image(**arguments):
    transformer = randomize(
        JoyImageEditTransformer3DModel(
            in_channels=4,
            hidden_size=32,
            num_attention_heads=2,
            text_dim=32,
            num_layers=1,
            rope_dim_list=[4, 4, 8],
        )
    )
    pipe = JoyImageEditPipeline(
        transformer=transformer,
        scheduler=euler(shift=4.0),
        vae=qwen_vae(PoolingWan, levels=7, base_dim=4, scale_factor_spatial=128),
        **absent("text_encoder", "tokenizer", "processor"),
    )
    call = {**EMBEDS, **masks(), **LARGE, "guidance_scale": 4.0, **arguments}
    return tame(pipe, call, randn(1, 1, 4, 1, 8, 8), transformer.proj_out)


@case("JoyImage")
def _():
    return joy_image()


@case("JoyImage, edit")
def _():
    return joy_image(image=picture())


# Video


@case("Motif-Video")
def _():
    transformer = randomize(
        MotifVideoTransformer3DModel(
            in_channels=9,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=16,
            num_layers=1,
            num_single_layers=1,
            text_embed_dim=32,
            rope_axes_dim=(4, 4, 8),
        )
    )
    pipe = MotifVideoPipeline(
        transformer=transformer,
        scheduler=euler(**SHIFTING),
        vae=qwen_vae(PoolingWan),
        guider=ClassifierFreeGuidance(guidance_scale=4.0),
        **absent("text_encoder", "tokenizer"),
    )
    call = {**EMBEDS, **masks("prompt_attention_mask"), "height": 64, "width": 64, "num_frames": 5}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


def any_flow(**arguments):
    transformer = randomize(
        AnyFlowTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=16,
            in_channels=4,
            out_channels=4,
            text_dim=32,
            freq_dim=32,
            ffn_dim=32,
            num_layers=1,
            rope_max_seq_len=32,
        )
    )
    pipe = AnyFlowPipeline(
        transformer=transformer,
        scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
        vae=None,
        **absent("text_encoder", "tokenizer"),
    )
    call = {**EMBEDS, "height": 64, "width": 64, "num_frames": 5, "guidance_scale": 4.0, **arguments}
    return tame(pipe, call, randn(1, 4, 2, 8, 8), transformer.proj_out)


@case("AnyFlow")
def _():
    return any_flow()


@case("AnyFlow, instantaneous velocity")
def _():
    return any_flow(use_mean_velocity=False)


# Audio


def stable_audio(scheduler):
    transformer = randomize(
        StableAudioDiTModel(
            sample_size=32,
            in_channels=4,
            out_channels=4,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_attention_heads=2,
            cross_attention_dim=32,
            time_proj_dim=32,
            global_states_input_dim=64,
            cross_attention_input_dim=32,
        )
    )
    torch.manual_seed(0)
    autoencoder = AutoencoderOobleck(
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 1],
        decoder_channels=8,
        decoder_input_channels=4,
    )
    projection = StableAudioProjectionModel(text_encoder_dim=32, conditioning_dim=32, min_value=0, max_value=32)
    pipe = StableAudioPipeline(
        transformer=transformer,
        scheduler=scheduler,
        vae=autoencoder,
        projection_model=randomize(projection),
        **absent("text_encoder", "tokenizer"),
    )
    mask = torch.ones(1, 7, dtype=torch.int64)
    call = {**EMBEDS, "attention_mask": mask, "negative_attention_mask": mask, "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 4, 32), transformer.proj_out)


AUDIO = {"sigma_min": 0.3, "sigma_max": 500.0, "sigma_data": 1.0, "prediction_type": "v_prediction"}


@case("Stable Audio")
def _():
    return stable_audio(EDMDPMSolverMultistepScheduler(**AUDIO, sigma_schedule="exponential"))


@case("Stable Audio, SDE")
def _():
    return stable_audio(CosineDPMSolverMultistepScheduler(**AUDIO, sigma_schedule="exponential"))


@case("LongCat-AudioDiT")
def _():
    transformer = randomize(
        LongCatAudioDiTTransformer(dit_dim=32, dit_depth=1, dit_heads=2, dit_text_dim=32, latent_dim=4, ff_mult=1.0)
    )
    config = UMT5Config(vocab_size=8, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2, dropout_rate=0.0)
    pipe = LongCatAudioDiTPipeline(
        transformer=transformer,
        scheduler=euler(shift=1.0, invert_sigmas=True),
        vae=LongCatAudioDiTVae(channels=4, c_mults=[1, 1], strides=[2], latent_dim=4, encoder_latent_dim=8),
        text_encoder=randomize(UMT5EncoderModel(config)),
        tokenizer=tokenizer(),
    )
    call = {"prompt": "a prompt", "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 16, 4), transformer.proj_out)
