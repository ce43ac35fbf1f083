"""Flow matching: Stable Diffusion 3, Flux and the transformers that followed them."""

import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from . import case, randn, randomize, tame
from .installed import (
    AuraFlowPipeline,
    AuraFlowTransformer2DModel,
    AutoencoderKL,
    AutoencoderKLFlux2,
    AutoencoderKLQwenImage,
    BriaFibo2Pipeline,
    BriaFibo2Transformer2DModel,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    BriaPipeline,
    BriaTransformer2DModel,
    ChromaImg2ImgPipeline,
    ChromaPipeline,
    ChromaTransformer2DModel,
    DPMSolverMultistepScheduler,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    Flux2KleinInpaintPipeline,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
    FluxControlImg2ImgPipeline,
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
    Krea2Pipeline,
    Krea2Transformer2DModel,
    LongCatImagePipeline,
    LongCatImageTransformer2DModel,
    OvisImagePipeline,
    OvisImageTransformer2DModel,
    PreTrainedTokenizerFast,
    PRXPipeline,
    PRXPixelPipeline,
    PRXTransformer2DModel,
    Qwen3Config,
    Qwen3Model,
    Qwen3VLConfig,
    Qwen3VLModel,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
    StableDiffusion3ControlNetInpaintingPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusion3PAGPipeline,
    StableDiffusion3Pipeline,
    UniPCMultistepScheduler,
)
from .sd import ddim

SIZE = {"height": 32, "width": 32}
SCHEDULED = {"control_guidance_start": 0.2, "control_guidance_end": 0.8}
# Nothing that a scheduler would choose by itself; that it is one more than the 4 steps of a call shows who decides.
SIGMAS = {"sigmas": [1.0, 0.9, 0.7, 0.4, 0.2]}
# Keeps all of 4 steps, 4 of 5 and 8 of 10.
STRENGTH = {"strength": 0.8}
SHIFTING = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256}


class MeanAutoencoder(AutoencoderKL):
    """For pipelines that sample the latents of their images without the call's generator."""

    def encode(self, x, return_dict=True):
        output = super().encode(x, return_dict)
        (output.latent_dist if return_dict else output[0]).std = 0.0
        return output


def vae(cls=AutoencoderKL, channels=4, **config):
    torch.manual_seed(0)
    return cls(
        block_out_channels=(8, 8),
        latent_channels=channels,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        **{"scaling_factor": 1.5305, "shift_factor": 0.0609, **config},
    ).eval()


def euler(**config):
    return FlowMatchEulerDiscreteScheduler(**{"shift": 3.0, **config})


def image(seed=3):
    return randn(1, 3, 32, 32, seed=seed).clamp(-1, 1)


def inpaint(seed=3):
    """Repaint the right half of an image."""
    mask = (torch.arange(32) >= 16).float().expand(1, 1, 32, 32)
    return {"image": image(seed), "mask_image": mask, "strength": 1.0}


def absent(*parts):
    return dict.fromkeys(parts)


SD3 = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 32,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 32,
}


def sd3(scheduler, cls=StableDiffusion3Pipeline, arguments=(), network=(), encoder=None, **parts):
    """The case of a pipeline of the family, called with `arguments` too; network: changes to the transformer.

    Two layers, as the last one takes no part in ControlNet, skipped layers and perturbed attention.
    """
    transformer = randomize(SD3Transformer2DModel(**{**SD3, **dict(network)}))
    texts = [f"{part}{n}" for part in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    channels = transformer.config.out_channels
    pipe = cls(
        transformer=transformer, scheduler=scheduler, vae=encoder or vae(channels=channels), **absent(*texts), **parts
    )
    embeds = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2)}
    pooled = {"pooled_prompt_embeds": randn(1, 32), "negative_pooled_prompt_embeds": randn(1, 32, seed=2)}
    call = {**embeds, **pooled, **SIZE, "guidance_scale": 4.0, **dict(arguments)}
    return tame(pipe, call, randn(1, channels, 16, 16), transformer.proj_out)


@case("SD3")
def _():
    return sd3(euler())


@case("SD3, dynamic shifting")
def _():
    return sd3(euler(**SHIFTING))


@case("SD3, sigmas")
def _():
    return sd3(euler(), arguments=SIGMAS)


@case("SD3, skip layers")
def _():
    skip = {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.2, "skip_layer_guidance_stop": 0.8}
    return sd3(euler(), arguments=skip)


@case("SD3, Heun")
def _():
    return sd3(FlowMatchHeunDiscreteScheduler(shift=3.0))


@case("SD3, DPM++")
def _():
    return sd3(DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0))


@case("SD3, UniPC")
def _():
    return sd3(UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0))


@case("SD3, PAG")
def _():
    return sd3(euler(), StableDiffusion3PAGPipeline, pag_applied_layers="blocks.0")


def sd3_controlnet(cls=StableDiffusion3ControlNetPipeline, channels=0, **arguments):
    config = {**SD3, "extra_conditioning_channels": channels}
    del config["out_channels"]
    return sd3(
        euler(),
        cls,
        arguments={"control_image": image(), **arguments},
        encoder=vae(MeanAutoencoder),
        controlnet=randomize(SD3ControlNetModel(**config)),
    )


@case("SD3, ControlNet")
def _():
    return sd3_controlnet()


@case("SD3, ControlNet scheduled")
def _():
    return sd3_controlnet(**SCHEDULED)


@case("SD3, ControlNet inpaint")
def _():
    return sd3_controlnet(StableDiffusion3ControlNetInpaintingPipeline, channels=1, control_mask=inpaint()["mask_image"])


@case("SD3, img2img")
def _():
    return sd3(euler(), StableDiffusion3Img2ImgPipeline, arguments={"image": image(), **STRENGTH})


@case("SD3, img2img sliced")
def _():
    arguments = {"image": image(), **STRENGTH, **SIGMAS}
    return sd3(euler(), StableDiffusion3Img2ImgPipeline, arguments=arguments)


@case("SD3, inpaint blended")
def _():
    # The pipeline tells the two kinds of network apart by their 16 or 33 channels.
    network = {"in_channels": 16, "out_channels": 16}
    return sd3(euler(), StableDiffusion3InpaintPipeline, arguments=inpaint(), network=network)


@case("SD3, inpaint")
def _():
    network = {"in_channels": 33, "out_channels": 16}
    return sd3(euler(), StableDiffusion3InpaintPipeline, arguments=inpaint(), network=network)


FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 32,
    "pooled_projection_dim": 32,
    "axes_dims_rope": (4, 4, 8),
}
# The state, 2x2 patches of 4 channels, is what most pipelines take; those that inpaint pack it themselves.
PACKED, UNPACKED = (1, 64, 16), (1, 4, 16, 16)


def flux(scheduler=None, cls=FluxPipeline, arguments=(), network=(), shape=PACKED, **parts):
    """As `sd3`; as Flux.1 dev without more."""
    transformer = randomize(FluxTransformer2DModel(**{**FLUX, "guidance_embeds": True, **dict(network)}))
    pipe = cls(
        transformer=transformer,
        scheduler=scheduler or euler(**SHIFTING),
        vae=vae(scaling_factor=0.3611, shift_factor=0.1159),
        **absent("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"),
        **parts,
    )
    call = {"prompt_embeds": randn(1, 7, 32), "pooled_prompt_embeds": randn(1, 32), **SIZE, **dict(arguments)}
    return tame(pipe, call, randn(*shape), transformer.proj_out)


TRUE_CFG = {
    "true_cfg_scale": 3.0,
    "negative_prompt_embeds": randn(1, 7, 32, seed=2),
    "negative_pooled_prompt_embeds": randn(1, 32, seed=2),
}


@case("Flux")
def _():
    return flux()


@case("Flux, schnell")
def _():
    return flux(euler(shift=1.0), network={"guidance_embeds": False})


@case("Flux, stochastic")
def _():
    return flux(euler(**SHIFTING, stochastic_sampling=True))


@case("Flux, true cfg")
def _():
    return flux(arguments=TRUE_CFG)


@case("Flux, sigmas")
def _():
    return flux(arguments=SIGMAS)


def flux_controlnet(cls=FluxControlNetPipeline, shape=PACKED, **arguments):
    return flux(
        cls=cls,
        arguments={"control_image": image(), **arguments},
        shape=shape,
        controlnet=randomize(FluxControlNetModel(**FLUX, guidance_embeds=True)),
    )


@case("Flux, ControlNet")
def _():
    return flux_controlnet()


@case("Flux, ControlNet scheduled")
def _():
    return flux_controlnet(**SCHEDULED)


@case("Flux, ControlNet img2img")
def _():
    return flux_controlnet(FluxControlNetImg2ImgPipeline, image=image(4), **STRENGTH)


@case("Flux, ControlNet inpaint blended")
def _():
    return flux_controlnet(FluxControlNetInpaintPipeline, UNPACKED, **inpaint(4))


@case("Flux, Control")
def _():
    network = {"in_channels": 32, "out_channels": 16}
    return flux(cls=FluxControlPipeline, arguments={"control_image": image()}, network=network)


@case("Flux, Control img2img")
def _():
    network = {"in_channels": 32, "out_channels": 16}
    arguments = {"control_image": image(), "image": image(4), **STRENGTH}
    return flux(cls=FluxControlImg2ImgPipeline, arguments=arguments, network=network)


@case("Flux, Fill")
def _():
    # Latents, those of the masked image, and the mask at the resolution of the image.
    network = {"in_channels": 16 + 16 + 16, "out_channels": 16}
    return flux(cls=FluxFillPipeline, arguments=inpaint(), network=network)


@case("Flux, Kontext")
def _():
    arguments = {"image": image(), "max_area": 32 * 32, "_auto_resize": False, **TRUE_CFG}
    return flux(cls=FluxKontextPipeline, arguments=arguments)


@case("Flux, Kontext inpaint blended")
def _():
    arguments = {**inpaint(), "max_area": 32 * 32, "_auto_resize": False}
    return flux(cls=FluxKontextInpaintPipeline, arguments={**arguments, **TRUE_CFG}, shape=UNPACKED)


@case("Flux, img2img")
def _():
    return flux(cls=FluxImg2ImgPipeline, arguments={"image": image(), **STRENGTH})


@case("Flux, img2img sliced")
def _():
    return flux(cls=FluxImg2ImgPipeline, arguments={"image": image(), **STRENGTH, **SIGMAS})


@case("Flux, inpaint blended")
def _():
    return flux(cls=FluxInpaintPipeline, arguments=inpaint(), shape=UNPACKED)


def latents_vae():
    """Of Flux.2 and its like, which hold the statistics of their latents."""
    torch.manual_seed(0)
    return AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        latent_channels=4,
        norm_num_groups=4,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
    ).eval()


def photo(size=64):
    return Image.effect_mandelbrot((size, size), (-2, -1, 1, 1), 20).convert("RGB")


def flux2(cls=Flux2Pipeline, guidance_embeds=False, size=8, **arguments):
    """The latents go in as [1, 16, size, size]; the scheduler sees [1, size * size, 16]."""
    transformer = randomize(
        Flux2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            timestep_guidance_channels=16,
            axes_dims_rope=(4, 4, 4, 4),
            guidance_embeds=guidance_embeds,
        )
    )
    pipe = cls(
        scheduler=euler(use_dynamic_shifting=True),
        vae=latents_vae(),
        transformer=transformer,
        **absent("text_encoder", "tokenizer"),
    )
    call = {"prompt_embeds": randn(1, 7, 32), "height": 4 * size, "width": 4 * size, **arguments}
    return tame(pipe, call, randn(1, 16, size, size), transformer.proj_out)


@case("Flux.2")
def _():
    return flux2(guidance_embeds=True)


@case("Flux.2, image")
def _():
    return flux2(guidance_embeds=True, image=photo())


@case("Flux.2, Klein")
def _():
    return flux2(Flux2KleinPipeline, negative_prompt_embeds=randn(1, 7, 32, seed=2), guidance_scale=4.0)


@case("Flux.2, Klein KV")
def _():
    return flux2(Flux2KleinKVPipeline)


@case("Flux.2, Klein KV image")
def _():
    return flux2(Flux2KleinKVPipeline, image=photo())


@case("Flux.2, Klein inpaint blended")
def _():
    # The pipeline refuses images of fewer than 64 pixels, and its guidance needs a text encoder.
    arguments = {"image": photo(), "mask_image": Image.linear_gradient("L").resize((64, 64)), "strength": 1.0}
    return flux2(Flux2KleinInpaintPipeline, size=16, **arguments, guidance_scale=1.0)


NEGATIVE = {"prompt_embeds": randn(1, 7, 32), "negative_prompt_embeds": randn(1, 7, 32, seed=2), "guidance_scale": 4.0}
MASKS = {"prompt_attention_mask": torch.ones(1, 7), "negative_prompt_attention_mask": torch.ones(1, 7)}
FLUX_LIKE = {key: value for key, value in FLUX.items() if key != "pooled_projection_dim"}


def like_flux(cls, network, scheduler=None, arguments=NEGATIVE, **parts):
    """The case of a pipeline with packed latents as those of Flux."""
    pipe = cls(
        scheduler=scheduler or euler(**SHIFTING),
        vae=vae(),
        transformer=randomize(network),
        **{**absent("text_encoder", "tokenizer"), **parts},
    )
    return tame(pipe, {**SIZE, **arguments}, randn(*PACKED), network.proj_out)


def chroma(cls=ChromaPipeline, **arguments):
    network = ChromaTransformer2DModel(
        **FLUX_LIKE, approximator_num_channels=16, approximator_hidden_dim=16, approximator_layers=1
    )
    return like_flux(cls, network, euler(shift=1.0), arguments={**NEGATIVE, **MASKS, **arguments})


@case("Chroma")
def _():
    return chroma()


@case("Chroma, img2img")
def _():
    return chroma(ChromaImg2ImgPipeline, image=image(), **STRENGTH)


def bria(scheduler=None, **arguments):
    return like_flux(BriaPipeline, BriaTransformer2DModel(**FLUX_LIKE), scheduler, arguments={**NEGATIVE, **arguments})


@case("Bria")
def _():
    return bria()


@case("Bria, original sigmas")
def _():
    return bria(euler())


@case("Bria, normalized and clipped")
def _():
    return bria(normalize=True, clip_value=0.2)


@case("Bria, DDIM")
def _():
    return bria(ddim())


WORDS = "a an and at blurry by cat dog hat in of on photo sits the user assistant".split()
TEMPLATE = """{% for message in messages %}{{ message.role }}
{% for part in message.content %}{{ part.text }} {% endfor %}{% endfor %}"""


def tokenizer():
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(["?", *WORDS])}, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", pad_token="?", chat_template=TEMPLATE)


def text_config(cls, layers=2, hidden=32):
    return cls(
        vocab_size=len(WORDS) + 1,
        hidden_size=hidden,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=1024,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )


PROMPTS = {"prompt": "a photo of a cat in a hat", "negative_prompt": "a blurry dog", "guidance_scale": 4.0}


@case("Bria, Fibo")
def _():
    torch.manual_seed(0)
    encoder = SmolLM3ForCausalLM(text_config(SmolLM3Config)).eval()
    network = BriaFiboTransformer2DModel(**{**FLUX_LIKE, "joint_attention_dim": 64}, text_encoder_dim=32)
    # The latents are 8x8 of 16 channels: the pipeline takes 16 pixels for each.
    arguments = {**PROMPTS, "height": 128, "width": 128}
    return like_flux(BriaFiboPipeline, network, arguments=arguments, text_encoder=encoder, tokenizer=tokenizer())


@case("Bria, Fibo 2")
def _():
    transformer = randomize(
        BriaFibo2Transformer2DModel(
            in_channels=4,
            dim=32,
            n_layers=1,
            n_refiner_layers=1,
            n_heads=2,
            cap_feat_dim=16,
            injection_layer_ids=(0,),
            perceiver_num_layers=1,
            min_num_gist_tokens=4,
            max_num_gist_tokens=4,
            gist_step=4,
            axes_dims=(4, 4, 8),
            axes_lens=(64, 64, 64),
        )
    )
    pipe = BriaFibo2Pipeline(
        transformer=transformer,
        scheduler=euler(**SHIFTING),
        vae=latents_vae(),
        **absent("text_encoder", "processor"),
    )
    embeds = {"prompt_embeds": randn(1, 2, 7, 16), "negative_prompt_embeds": randn(1, 2, 7, 16, seed=2)}
    call = {**SIZE, **embeds, "guidance_scale": 4.0}
    return tame(pipe, call, randn(1, 4, 16, 16), transformer.final_layer.linear)


def longcat(**arguments):
    # The family's encoder sees images too; of any the pipeline reads the last hidden states alone.
    torch.manual_seed(0)
    return like_flux(
        LongCatImagePipeline,
        LongCatImageTransformer2DModel(**FLUX_LIKE),
        arguments={**PROMPTS, "enable_prompt_rewrite": False, **arguments},
        text_encoder=Qwen3Model(text_config(Qwen3Config)).eval(),
        tokenizer=tokenizer(),
        text_processor=None,
    )


@case("LongCat")
def _():
    return longcat()


@case("LongCat, no renormalization")
def _():
    return longcat(enable_cfg_renorm=False)


@case("Ovis")
def _():
    network = OvisImageTransformer2DModel(**FLUX_LIKE, out_channels=16)
    return like_flux(OvisImagePipeline, network, arguments={**NEGATIVE, "negative_prompt": None})


def krea2(is_distilled=False, **arguments):
    torch.manual_seed(0)
    transformer = randomize(
        Krea2Transformer2DModel(
            in_channels=16,
            num_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            num_key_value_heads=1,
            intermediate_size=32,
            timestep_embed_dim=16,
            text_hidden_dim=32,
            num_text_layers=2,
            text_num_attention_heads=2,
            text_num_key_value_heads=2,
            text_intermediate_size=32,
            num_layerwise_text_blocks=1,
            num_refiner_text_blocks=1,
            axes_dims_rope=(4, 4, 8),
        )
    )
    encoder = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    ).eval()
    pipe = Krea2Pipeline(
        scheduler=euler(**SHIFTING),
        vae=encoder,
        transformer=transformer,
        is_distilled=is_distilled,
        **absent("text_encoder", "tokenizer"),
    )
    embeds = {"prompt_embeds": randn(1, 7, 2, 32), "prompt_embeds_mask": torch.ones(1, 7, dtype=torch.bool)}
    call = {**SIZE, **embeds, **arguments}
    return tame(pipe, call, randn(*PACKED), transformer.final_layer.linear)


@case("Krea 2")
def _():
    negative = {"negative_prompt_embeds": randn(1, 7, 2, 32, seed=2)}
    return krea2(**negative, negative_prompt_embeds_mask=torch.ones(1, 7, dtype=torch.bool), guidance_scale=4.0)


@case("Krea 2, distilled")
def _():
    return krea2(is_distilled=True, guidance_scale=0.0)


@case("Ideogram 4")
def _():
    torch.manual_seed(0)
    # The pipeline reads layers 0 to 35 of its encoder.
    text = text_config(Qwen3Config, layers=36, hidden=16).to_dict()
    vision = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 1, "out_hidden_size": 16}
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}
    encoder = Qwen3VLModel(Qwen3VLConfig(text_config={**text, "rope_parameters": rope}, vision_config=vision)).eval()
    networks = [
        randomize(
            Ideogram4Transformer2DModel(
                in_channels=16,
                num_layers=1,
                attention_head_dim=16,
                num_attention_heads=2,
                intermediate_size=32,
                adaln_dim=16,
                llm_features_dim=13 * 16,
                mrope_section=(4, 2, 2),
            ),
            seed,
        )
        for seed in (0, 1)
    ]
    pipe = Ideogram4Pipeline(
        scheduler=euler(shift=1.0),
        vae=latents_vae(),
        text_encoder=encoder,
        tokenizer=tokenizer(),
        transformer=networks[0],
        unconditional_transformer=networks[1],
    )
    call = {"prompt": PROMPTS["prompt"], "max_sequence_length": 16, "guidance_scale": 4.0, "guidance_schedule": None}
    layers = torch.nn.ModuleList(network.final_layer.linear for network in networks)
    return tame(pipe, {**SIZE, **call}, randn(*PACKED), layers)


def prx(cls, bottleneck=None, scale=1.0, **parts):
    transformer = randomize(
        PRXTransformer2DModel(
            in_channels=4,
            context_in_dim=32,
            hidden_size=32,
            mlp_ratio=1.0,
            num_heads=2,
            depth=1,
            axes_dim=[8, 8],
            bottleneck_size=bottleneck,
        )
    )
    pipe = cls(transformer=transformer, scheduler=euler(), **absent("text_encoder", "tokenizer"), **parts)
    masks = {name: value.bool() for name, value in MASKS.items()}
    height = 16 * pipe.vae_scale_factor
    call = {**NEGATIVE, **masks, "height": height, "width": height, "use_resolution_binning": False}
    return tame(pipe, call, scale * randn(1, 4, 16, 16), transformer.final_layer.linear)


@case("PRX")
def _():
    return prx(PRXPipeline, vae=vae())


@case("PRX, pixels")
def _():
    # The network predicts the clean image: what reaches the scheduler, (latents - image) / t, is as large as the latents.
    return prx(PRXPixelPipeline, bottleneck=8, scale=0.5)


@case("Ernie")
def _():
    transformer = randomize(
        ErnieImageTransformer2DModel(
            hidden_size=32,
            num_attention_heads=2,
            num_layers=1,
            ffn_hidden_size=32,
            in_channels=16,
            out_channels=16,
            text_in_dim=16,
            rope_axes_dim=(4, 4, 8),
        )
    )
    pipe = ErnieImagePipeline(
        transformer=transformer, vae=latents_vae(), scheduler=euler(), **absent("text_encoder", "tokenizer")
    )
    embeds = {"prompt_embeds": [randn(7, 16)], "negative_prompt_embeds": [randn(5, 16, seed=2)]}
    return tame(pipe, {**SIZE, **embeds, "guidance_scale": 4.0}, randn(1, 16, 8, 8), transformer.final_linear)


@case("AuraFlow")
def _():
    transformer = randomize(
        AuraFlowTransformer2DModel(
            sample_size=16,
            num_mmdit_layers=1,
            num_single_dit_layers=1,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=32,
            pos_embed_max_size=64,
        )
    )
    pipe = AuraFlowPipeline(
        transformer=transformer, vae=vae(), scheduler=euler(shift=1.73), **absent("text_encoder", "tokenizer")
    )
    return tame(pipe, {**SIZE, **NEGATIVE, **MASKS}, randn(1, 4, 16, 16), transformer.proj_out)
