"""Every name of a pipeline, a scheduler or a part that is special, with its reason: the one table, and how it is read."""

import functools
import inspect
import re
from typing import Any

import torch

# ---------------------------------------------------------------------------------------------------------------- pipelines

# Pipelines whose loop is no sampler of their one scheduler, and what it does instead.
REFUSED_PIPELINES = {
    "CosmosTextToWorldPipeline": "steps its scheduler twice for each timestep",
    "CosmosVideoToWorldPipeline": "steps its scheduler twice for each timestep",
    "LTXConditionPipeline": "draws its own noise whatever latents it is given",
    "StableDiffusionPanoramaPipeline": "steps a copy of its scheduler for each view",
}
# Pipelines that take a list of images as several references of every prompt: it is not one image for each prompt.
REFERENCES = ("Flux2", "QwenImageEditPlus", "QwenImageLayered", "OmniGen", "FluxPriorRedux")
# What a loop may call and still do nothing but report where it is.
HARMLESS_CALLS = {"update", "callback", "mark_step", "len", "getattr", "callback_on_step_end"}
# Arguments of networks that hold positions, the same for all samples: they may be as long as the batch by chance.
POSITIONS = ("img_ids", "txt_ids")

# -------------------------------------------------------------------------------------------------------------------- parts

# How pipelines call the network that is evaluated in the loop, and the autoencoder, the first that is there.
NETWORKS = ("unet", "transformer", "prior", "decoder")
AUTOENCODERS = ("vae", "movq", "vqgan", "vqvae")
# How the names of networks begin that decide what is drawn, beside these.
CONDITIONS = ("text_encoder", "controlnet")
# The libraries that pipelines are made of, and nrinv, whose clock in the demo changes nothing.  What else takes part in a
# call may count the calls, or change them.
LIBRARIES = (
    "accelerate",
    "bitsandbytes",
    "diffusers",
    "nrinv",
    "optimum",
    "peft",
    "torch",
    "torchao",
    "torchvision",
    "transformers",
    "xformers",
)
# Hooks of diffusers, by how their names begin, that leave the network the same map in each evaluation; caches do not.
HARMLESS_HOOKS = (
    "cp_",
    "group_offloading",
    "layer_execution_tracker",
    "layerwise_casting",
    "lazy_",
    "peft_autocast_disable",
    "tensor_parallel",
)
# How pipelines call the pixels of an image per latent; those without such a name have 8.
SCALE_FACTORS = ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio", "movq_scale_factor")
# How calls call the number of frames that they draw; and what they have, that one or another, if they draw videos.
FRAMES = ("num_frames", "frames", "video_length")
VIDEOS = (*FRAMES, "num_videos_per_prompt")
# How calls call the masks that their pipelines take.
MASKS = ("mask_image", "control_mask")
# How configurations call the channels of an autoencoder's latents, and those of a network.
LATENT_CHANNELS, NETWORK_CHANNELS = ("latent_channels", "z_dim"), ("in_channels", "out_channels")

# --------------------------------------------------------------------------------------------------------------- schedulers

_TOKENS = "draws discrete tokens: only pipelines with continuous latents can be inverted"
USE_FLOW = "use FlowMatchEulerDiscreteScheduler"
USE = "use DDIMScheduler or EulerDiscreteScheduler"
# Schedulers that are no linear sampler whatever their configuration: what they do, and what to use instead.
REFUSED_SCHEDULERS = {
    "AmusedScheduler": _TOKENS,
    "BlockRefinementScheduler": _TOKENS,
    "DiscreteDDIMScheduler": _TOKENS,
    "EntropyBoundScheduler": _TOKENS,
    "VQDiffusionScheduler": _TOKENS,
    "HeliosDMDScheduler": f"is given its noises and levels by its pipeline; {USE_FLOW}",
    "KarrasVeScheduler": "has its pipeline perturb the sample and correct the step; use EulerDiscreteScheduler",
    "PiflowScheduler": f"integrates a policy made of many predictions of one network output; {USE_FLOW}",
    "RePaintScheduler": "mixes a known image into each step; use DDIMScheduler",
    "RFD4ProteinaScheduler": f"steps the tokens of a mask, of two modalities at once; {USE_FLOW}",
    "ScoreSdeVeScheduler": f"corrects each state by a step whose length it takes from the network's output; {USE}",
    "ScoreSdeVpScheduler": f"has no step of its own, its pipeline writes the noise in; {USE}",
}
# Options with which a scheduler is no linear sampler: the values that do it, what it does then, and what to use instead.
REFUSED_OPTIONS = {
    "stages": (
        lambda n: n not in (None, 1),
        "stages={} starts anew at each size of its sample",
        {"stages": 1, "stage_range": [0, 1]},
    ),
    "scale_factors": (bool, "scale_factors changes the size of its sample", {"scale_factors": None}),
    "variance_type": (
        lambda kind: kind in ("learned", "learned_range"),
        "variance_type={!r} has the network predict a variance as well",
        {"variance_type": "fixed_small"},
    ),
}
# Options that make a step nonlinear.
NONLINEAR_OPTIONS = ("clip_sample", "clip_denoised", "thresholding")
# What pipelines call of a scheduler.
SCHEDULER_METHODS = ("step", "set_timesteps", "scale_model_input", "add_noise", "scale_noise", "set_begin_index")
# What `step` is told by name, and by the loop of the pipelines that have such a scheduler.
MIRRORED = ("old_pred_original_sample", "timestep_back", "prev_timestep")
# What not every scheduler has, and pipelines look for.  `scale_model_input` is not among them: Bria calls it on any class
# but one.
OPTIONAL_METHODS = ("add_noise", "scale_noise", "set_begin_index")
# What `step` is given in every call; all else changes the sampler.
STEP_ARGUMENTS = ("model_output", "timestep", "sample", "generator", "return_dict")
# Schedulers whose step wants a timestep for each sample.
TIMESTEP_PER_SAMPLE = ("DDPMWuerstchenScheduler",)
# Schedulers with the levels of rectified flow and no method that tells them.
RECTIFIED = ("LTXEulerAncestralRFScheduler",)


def is_one_of(thing, names) -> bool:
    """Whether the class of `thing`, or one it is derived from, has one of the names."""
    return any(cls.__name__ in names for cls in type(thing).__mro__)


def refusal(thing, table):
    """(class, reason) if `thing` is of a class in one of the tables of refusals, or derived from it; else None."""
    return next(((cls.__name__, table[cls.__name__]) for cls in type(thing).__mro__ if cls.__name__ in table), None)


# ---------------------------------------------------------------------------------------------------- what a scheduler tells

_ANY = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def step_signature(cls) -> inspect.Signature:
    """What the `step` of a scheduler's class takes; what it passes on to the classes it is derived from among it."""
    found = []
    for base in cls.__mro__:
        if "step" in vars(base):
            own = list(inspect.signature(vars(base)["step"]).parameters.values())[1:]
            found.append({one.name: one for one in own if one.kind not in _ANY})
            if len(found[-1]) == len(own):
                break
    named = dict(found.pop()) if found else {}
    for nearer in reversed(found):  # what only a derived class takes is no positional argument of the others
        more = {name: one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, one in nearer.items() if name not in named}
        named.update(more)
    return inspect.Signature(sorted(named.values(), key=lambda one: one.kind))


def check_methods(scheduler) -> None:
    """Refuse a scheduler whose methods cannot be read: what a copy of it does would be done by the original."""
    name = type(scheduler).__name__
    for method in SCHEDULER_METHODS:
        if callable(vars(scheduler).get(method)):
            raise ValueError(
                f"scheduler: the {method} of this {name} is replaced on the object; derive a class from {name} that "
                "overrides it instead"
            )
    if not {"model_output", "timestep", "sample"} <= step_signature(type(scheduler)).parameters.keys():
        raise ValueError(
            f"scheduler: {name}.step does not name its arguments model_output, timestep and sample; decorate what it is "
            "wrapped in with functools.wraps"
        )


# ---------------------------------------------------------------------------------------------------- what a pipeline tells

_OLD_NAME = re.compile(r"""kwargs\.(?:pop|get)\(\s*["'](\w+)["']""")


@functools.cache
def _old_names(call) -> list[str]:
    """What a call takes out of its **kwargs, by its code: reading that takes milliseconds."""
    return _OLD_NAME.findall(inspect.getsource(inspect.unwrap(call)))


def call_parameters(cls) -> tuple[dict[str, Any], bool]:
    """The names that a call of the class takes, and whether it takes any others."""
    found, any_other = {}, False
    for base in cls.__mro__:
        if "__call__" not in vars(base):
            continue
        call = vars(base)["__call__"]
        own = inspect.signature(call).parameters
        named = {name: one for name, one in own.items() if one.kind is not inspect.Parameter.VAR_KEYWORD}
        stock = base.__module__.startswith("diffusers.")
        if stock and len(named) < len(own):  # it takes names of old times, and ignores all others
            found = {**dict.fromkeys(_old_names(call)), **found}
        found, any_other = {**named, **found}, not stock and len(named) < len(own)
        if len(named) == len(own):
            break
    return found, any_other


def parameters(pipe) -> dict[str, Any]:
    """The parameters of the pipeline's call, by name; those it passes on to the class it is derived from among them."""
    return call_parameters(type(pipe))[0]


def takes_any(pipe) -> bool:
    """Whether the pipeline's call takes names that its code does not tell."""
    return call_parameters(type(pipe))[1]


def slices(pipe) -> bool:
    """Whether the pipeline takes its part of the timesteps itself, as img2img pipelines do."""
    return "strength" in parameters(pipe)


def is_guided(pipe, call) -> bool:
    """Whether the pipeline's last call, with these arguments, has had the network evaluated with and without its prompt."""
    own = getattr(pipe, "do_classifier_free_guidance", None)
    return bool(own) if own is not None else (call.get("true_cfg_scale") or 1) > 1


def control_networks(pipe) -> int:
    """How many ControlNets the pipeline has side by side, each with images of its own; 0 where there are not several."""
    return len(getattr(getattr(pipe, "controlnet", None), "nets", ()))


def takes_references(pipe) -> bool:
    return any(cls.__name__.startswith(REFERENCES) for cls in type(pipe).__mro__)


def modules(pipe) -> list[torch.nn.Module]:
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def drawing_networks(pipe) -> dict[str, torch.nn.Module]:
    """The networks that decide what is drawn: the denoisers, and what they are told by."""
    parts = pipe.components.items()
    return {name: one for name, one in parts if name.startswith(NETWORKS + CONDITIONS) and isinstance(one, torch.nn.Module)}


def _first(pipe, names, default=None):
    return next((one for one in (getattr(pipe, name, None) for name in names) if one is not None), default)


def network(pipe):
    """The network that is evaluated in the loop."""
    if (found := _first(pipe, NETWORKS)) is None:
        raise ValueError(f"pipe: {type(pipe).__name__} has neither a unet nor a transformer")
    return found


def autoencoder(pipe):
    """The pipeline's autoencoder, None if it has none."""
    return _first(pipe, AUTOENCODERS)


def scale_factor(pipe) -> int:
    """Pixels of an image per latent."""
    return int(_first(pipe, SCALE_FACTORS, 8))


def packs(pipe) -> bool:
    """Whether the pipeline's latents are patches in a row, [B, N, C]."""
    return hasattr(pipe, "_pack_latents")


def takes_patches(pipe) -> bool:
    """Whether it takes latents as patches [B, 4 C, h / 2, w / 2] and puts them in a row later, as Flux.2 does."""
    return hasattr(pipe, "_patchify_latents")


def draws_videos(pipe) -> bool:
    """Whether the pipeline's samples are videos: its call says how many, or of how many frames, or goes on from one."""
    known = parameters(pipe)
    return any(name in known for name in VIDEOS) or {"video", "strength"} <= known.keys()


def has_frames(vae) -> bool:
    """Whether an autoencoder encodes videos [B, 3, F, H, W]; one that looks at several frames when it decodes may not."""
    return any(isinstance(module, torch.nn.Conv3d) for module in getattr(vae, "encoder", vae).modules())


def temporal_patch(network) -> int:
    """How many frames of the latents the network takes together."""
    config = getattr(network, "config", {})
    patch = config.get("patch_size")
    return config.get("patch_size_t") or (patch[0] if isinstance(patch, (list, tuple)) and len(patch) == 3 else 1)


def takes_alpha(pipe) -> bool:
    """Whether the pipeline's autoencoder encodes an image's alpha too, as that of Qwen-Image's layers does."""
    config = getattr(autoencoder(pipe), "config", {})
    return 4 in (config.get("in_channels"), config.get("input_channels"))


def latent_channels(vae):
    return next((n for n in (vae.config.get(name) for name in LATENT_CHANNELS) if n), None)


def channels(pipe) -> set[int]:
    """The channels that latents of this pipeline may have: those its autoencoder makes, and those its networks take."""
    found = set()
    for part in modules(pipe):
        config = part.config if isinstance(getattr(part, "config", None), dict) else {}
        encodes = hasattr(part, "encode")
        names = LATENT_CHANNELS if encodes else NETWORK_CHANNELS
        found.update(config.get(name) for name in names)
        if encodes and getattr(pipe, "transformer", None) is not None:  # patches of 2 x 2
            found.update(4 * config[name] for name in names if config.get(name))
    return {n for n in found if isinstance(n, int)}


def check_pipeline(pipe) -> None:
    """Refuse pipelines whose loop is known to be no sampler of its scheduler alone."""
    name = type(pipe).__name__
    if is_one_of(pipe, ("ModularPipeline",)):
        raise ValueError(
            f"pipe: {name} is made of blocks, which cannot be inverted; give the model's DiffusionPipeline, where it has one"
        )
    known = parameters(pipe)
    if (why := refusal(pipe, REFUSED_PIPELINES)) is not None:
        raise ValueError(f"pipe: {why[0]} {why[1]}, which cannot be inverted")
    if getattr(pipe, "scheduler", None) is None:
        raise ValueError(f"pipe: {name} has no scheduler of its own; give the pipelines it is made of")
    if "latents" not in known and "strength" not in known:
        raise ValueError(f"pipe: {name} takes no latents, so nothing can be drawn from the noise that would be found")
    part = _first(pipe, ("unet", "transformer"))
    if "mask_image" in known and part is not None:
        taken = part.config.get("in_channels")
        if taken == (part.config.get("out_channels") or taken):
            raise ValueError(
                f"pipe: {name} with a network that does not take the mask mixes the known part of the image in after each "
                "step, which cannot be inverted; invert with the text-to-image pipeline and give mask_image to generate"
            )
