"""What else denoises with a UNet: Kolors, Kandinsky, Stable Cascade, AnimateDiff, sound."""

import torch

from . import case, randn, randomize, tame
from .flow import PROMPTS, tokenizer
from .installed import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPAGPipeline,
    AnimateDiffPipeline,
    AnimateDiffSDXLPipeline,
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    AutoencoderKL,
    ClapTextConfig,
    ClapTextModelWithProjection,
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    DDPMWuerstchenScheduler,
    EulerDiscreteScheduler,
    GPT2Config,
    GPT2LMHeadModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    KandinskyPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Pipeline,
    KolorsPAGPipeline,
    KolorsPipeline,
    MCLIPConfig,
    MultilingualCLIP,
    MusicLDMPipeline,
    PIAPipeline,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    T5Config,
    T5EncoderModel,
    UNet2DModel,
    UNetMotionModel,
    VQModel,
)
from .sd import BETAS, unet, vae
from .sdxl import ADDED, control_config, picture, tamed, xl

LINEAR = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


def kolors(cls, **parts):
    config = {**BETAS, "beta_end": 0.014, "num_train_timesteps": 1100}
    scheduler = EulerDiscreteScheduler(**config, timestep_spacing="leading", steps_offset=1)
    return xl(cls, scheduler=scheduler, encoders=("text_encoder", "tokenizer"), **parts)


@case("Kolors")
def _():
    return tamed(*kolors(KolorsPipeline))


@case("Kolors, PAG")
def _():
    return tamed(*kolors(KolorsPAGPipeline, pag_applied_layers=["mid"]))


def motion_unet(**config):
    sizes = {"num_attention_heads": 4, "motion_num_attention_heads": 4, "motion_max_seq_length": 8}
    return randomize(
        UNetMotionModel(
            **sizes,
            sample_size=16,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlockMotion", "CrossAttnDownBlockMotion"),
            up_block_types=("CrossAttnUpBlockMotion", "UpBlockMotion"),
            cross_attention_dim=32,
            norm_num_groups=8,
            **config,
        )
    )


def motion_ddim():
    return DDIMScheduler(**LINEAR, clip_sample=False, timestep_spacing="linspace", steps_offset=1)


def animate(cls=AnimateDiffPipeline, *, network=None, **parts):
    pipe = cls(
        vae=vae(),
        text_encoder=None,
        tokenizer=None,
        unet=network or motion_unet(),
        motion_adapter=None,
        scheduler=motion_ddim(),
        **parts,
    )
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
    return pipe, {**embeds, "guidance_scale": 4.0, "num_frames": 2}


def animated(pipe, call, **more):
    return tame(pipe, {**call, **more}, randn(1, 4, 2, 16, 16), pipe.unet.conv_out)


@case("AnimateDiff")
def _():
    return animated(*animate())


@case("AnimateDiff, SDXL")
def _():
    network = motion_unet(**ADDED)
    pipe, call = xl(AnimateDiffSDXLPipeline, scheduler=motion_ddim(), network=network, motion_adapter=None)
    return animated(pipe, call, num_frames=2)


def animate_controlled(**more):
    controlnet = randomize(ControlNetModel(**control_config(unet())), seed=1)
    frames = [picture(seed=seed) for seed in (5, 6)]
    pipe, call = animate(AnimateDiffControlNetPipeline, controlnet=controlnet)
    return animated(pipe, call, conditioning_frames=frames, height=32, width=32, **more)


@case("AnimateDiff, ControlNet")
def _():
    return animate_controlled()


@case("AnimateDiff, ControlNet scheduled")
def _():
    return animate_controlled(control_guidance_start=0.2, control_guidance_end=0.7)


@case("AnimateDiff, PAG")
def _():
    return animated(*animate(AnimateDiffPAGPipeline, pag_applied_layers="mid_block.*attn1"))


@case("PIA")
def _():
    pipe, call = animate(PIAPipeline, network=motion_unet(in_channels=9))
    return animated(pipe, call, image=picture(), height=32, width=32, strength=1.0)


def movq():
    torch.manual_seed(0)
    return VQModel(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        vq_embed_dim=4,
        norm_num_groups=8,
        num_vq_embeddings=12,
        norm_type="spatial",
    ).eval()


def kandinsky_unet(**config):
    return unet(
        **{
            "out_channels": 8,
            "addition_embed_type": "image",
            "encoder_hid_dim": 16,
            "encoder_hid_dim_type": "image_proj",
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "resnet_time_scale_shift": "scale_shift",
            **config,
        }
    )


def kandinsky_ddim():
    return DDIMScheduler(**LINEAR, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def kandinsky(cls=KandinskyV22Pipeline, scheduler=None, **config):
    pipe = cls(unet=kandinsky_unet(**config), scheduler=scheduler or kandinsky_ddim(), movq=movq())
    embeds = {"image_embeds": randn(1, 16), "negative_image_embeds": randn(1, 16, seed=2)}
    return pipe, {**embeds, "guidance_scale": 4.0, "height": 32, "width": 32}


@case("Kandinsky 2.2")
def _():
    return tamed(*kandinsky())


@case("Kandinsky 2.2, DDPM")
def _():
    return tamed(*kandinsky(scheduler=DDPMScheduler(**LINEAR, clip_sample=False)))


@case("Kandinsky 2.2, ControlNet")
def _():
    config = {"in_channels": 8, "addition_embed_type": "image_hint"}
    return tamed(*kandinsky(KandinskyV22ControlnetPipeline, **config), hint=randn(1, 3, 128, 128), output_type="pt")


@case("Kandinsky 2.1")
def _():
    torch.manual_seed(0)
    config = MCLIPConfig(
        transformerDimSize=32,
        imageDimSize=32,
        vocab_size=64,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=80,
        pad_token_id=0,
    )
    network = kandinsky_unet(
        addition_embed_type="text_image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="text_image_proj",
        addition_embed_type_num_heads=4,
    )
    pipe = KandinskyPipeline(
        text_encoder=MultilingualCLIP(config).eval(),
        tokenizer=tokenizer(),
        unet=network,
        scheduler=kandinsky_ddim(),
        movq=movq(),
    )
    embeds = {"image_embeds": randn(1, 32), "negative_image_embeds": randn(1, 32, seed=2)}
    call = {**PROMPTS, **embeds, "height": 32, "width": 32, "output_type": "pt"}
    return tamed(pipe, call)


@case("Kandinsky 3")
def _():
    network = Kandinsky3UNet(
        time_embedding_dim=32,
        groups=8,
        attention_head_dim=16,
        layers_per_block=2,  # the fewest that fit together
        block_out_channels=(32, 64),
        cross_attention_dim=32,
        encoder_hid_dim=16,
    )
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    parts = {"tokenizer": None, "text_encoder": None, "movq": movq()}
    pipe = Kandinsky3Pipeline(unet=randomize(network), scheduler=scheduler, **parts)
    call = {
        "prompt_embeds": randn(1, 7, 16),
        "negative_prompt_embeds": randn(1, 7, 16, seed=2),
        "attention_mask": torch.ones(1, 7),
        "negative_attention_mask": torch.ones(1, 7),
        "guidance_scale": 3.0,
        "height": 128,
        "width": 128,
    }
    return tamed(pipe, call)


def cascade_unet(**config):
    return randomize(
        StableCascadeUNet(
            timestep_ratio_embedding_dim=16,
            conditioning_dim=32,
            block_out_channels=(32, 32),
            num_attention_heads=(4, 4),
            down_num_layers_per_block=(1, 1),
            up_num_layers_per_block=(1, 1),
            clip_text_pooled_in_channels=32,
            **config,
        )
    )


def clip():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "projection_dim": 32, "max_position_embeddings": 8}
    config = CLIPTextConfig(**sizes, vocab_size=64, num_hidden_layers=1, num_attention_heads=2)
    return {"text_encoder": CLIPTextModelWithProjection(config).eval(), "tokenizer": tokenizer()}


@torch.no_grad()
def weaken(layer, factor):
    """The first of four steps of a cosine schedule amplifies whatever is not noise in the network's output forty times."""
    layer.weight.mul_(factor)
    layer.bias.mul_(factor)


def predict_noise(network):
    """Add the best prediction for white data, as `zoo.make` does for schedulers that tell their alphas_cumprod."""

    def add(module, args, kwargs, output):
        share = (kwargs["timestep_ratio"][0] * torch.pi / 2).sin()
        return (output[0] + share * kwargs["sample"],)

    network.register_forward_hook(add, with_kwargs=True)


def cascade(pipe, call, latents, network):
    tame(pipe, call, latents, network.clf[1])
    weaken(network.clf[1], 0.3)
    predict_noise(network)
    return pipe, call, latents


CASCADE = {"prompt_embeds_pooled": randn(1, 1, 32, seed=3), "negative_prompt_embeds_pooled": randn(1, 1, 32, seed=4)}


@case("Stable Cascade, prior")
def _():
    prior = cascade_unet(clip_text_in_channels=32, clip_image_in_channels=32, switch_level=(False,))
    pipe = StableCascadePriorPipeline(prior=prior, scheduler=DDPMWuerstchenScheduler(), resolution_multiple=4, **clip())
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2), **CASCADE}
    call = {**embeds, "guidance_scale": 4.0, "height": 32, "width": 32}
    return cascade(pipe, call, randn(1, 16, 8, 8), prior)


@case("Stable Cascade, decoder")
def _():
    decoder = cascade_unet(in_channels=4, out_channels=4, patch_size=2, effnet_in_channels=16)
    parts = {"tokenizer": None, "text_encoder": None, "vqgan": None, "latent_dim_scale": 4}
    pipe = StableCascadeDecoderPipeline(decoder=decoder, scheduler=DDPMWuerstchenScheduler(), **parts)
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2), **CASCADE}
    call = {**embeds, "image_embeddings": randn(1, 16, 4, 4), "guidance_scale": 1.1}
    return cascade(pipe, call, randn(1, 4, 16, 16), decoder)


def mel_vae():
    torch.manual_seed(0)
    config = {name: value for name, value in vae().config.items() if not name.startswith("_")}
    return AutoencoderKL(**{**config, "in_channels": 1, "out_channels": 1}).eval()


def sound(cls, network, **parts):
    """A pipeline that draws spectrograms of 32 by 32; its encoders are asked for their dtype only."""
    torch.manual_seed(0)
    vocoder = SpeechT5HifiGanConfig(
        model_in_dim=32,
        upsample_initial_channel=16,
        upsample_rates=[2, 2],
        upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1, 3]],
        normalize_before=False,
    )
    betas = {**BETAS, "beta_start": 0.0015, "beta_end": 0.0195}
    return cls(
        vae=mel_vae(),
        tokenizer=None,
        unet=network,
        scheduler=DDIMScheduler(**betas, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        vocoder=SpeechT5HifiGan(vocoder).eval(),
        **parts,
    )


def clap():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "projection_dim": 32, "max_position_embeddings": 8}
    return ClapTextModelWithProjection(ClapTextConfig(**sizes, vocab_size=64, num_hidden_layers=1, num_attention_heads=2))


def film_unet():
    """A UNet that is told its prompt by class embeddings alone."""
    named = {"class_embed_type": "simple_projection", "projection_class_embeddings_input_dim": 32}
    return unet(cross_attention_dim=(32, 64), class_embeddings_concat=True, **named)


SOUND = {"prompt_embeds": randn(1, 32), "negative_prompt_embeds": randn(1, 32, seed=2), "guidance_scale": 2.5}


@case("AudioLDM")
def _():
    return tamed(sound(AudioLDMPipeline, film_unet(), text_encoder=clap()), SOUND)


@case("MusicLDM")
def _():
    return tamed(sound(MusicLDMPipeline, film_unet(), text_encoder=clap(), feature_extractor=None), SOUND)


@case("AudioLDM 2")
def _():
    torch.manual_seed(0)
    network = AudioLDM2UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=([None, 32, 16], [None, 32, 16]),
        attention_head_dim=4,
        norm_num_groups=8,
    )
    t5 = T5Config(vocab_size=64, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    pipe = sound(
        AudioLDM2Pipeline,
        randomize(network),
        text_encoder=None,
        text_encoder_2=T5EncoderModel(t5).eval(),
        projection_model=None,
        language_model=GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=1, n_head=2, n_positions=16)).eval(),
        tokenizer_2=None,
        feature_extractor=None,
    )
    call = {
        "prompt_embeds": randn(1, 7, 16),
        "negative_prompt_embeds": randn(1, 7, 16, seed=2),
        "generated_prompt_embeds": randn(1, 8, 32),
        "negative_generated_prompt_embeds": randn(1, 8, 32, seed=2),
        "attention_mask": torch.ones(1, 7, dtype=torch.long),
        "negative_attention_mask": torch.ones(1, 7, dtype=torch.long),
        "guidance_scale": 3.5,
    }
    return tamed(pipe, call)


@case("Consistency model")
def _():
    network = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "ResnetUpsampleBlock2D"),
        resnet_time_scale_shift="scale_shift",
        attention_head_dim=8,
        norm_num_groups=8,
        num_class_embeds=10,
    )
    scheduler = CMStochasticIterativeScheduler(num_train_timesteps=40)
    pipe = ConsistencyModelPipeline(unet=randomize(network), scheduler=scheduler)
    return tame(pipe, {"class_labels": 3, "output_type": "pt"}, randn(1, 3, 16, 16), pipe.unet.conv_out)
