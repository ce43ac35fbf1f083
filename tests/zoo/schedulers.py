"""Configurations of diffusers' schedulers that are read as linear samplers, and those that are refused.

scheduler = make("dpm++2m, karras")             as from the hub, without timesteps
scheduler = prepare("flow, dynamic", 10)        with its timesteps set, as the pipelines of such a scheduler do
"""

from dataclasses import dataclass, field

import diffusers
import numpy as np
from mixture import BETAS
from packaging.version import Version

from . import installed

V = {"prediction_type": "v_prediction"}
TRAILING = {"timestep_spacing": "trailing"}
ZERO_SNR = {**V, **TRAILING, "rescale_betas_zero_snr": True}
# What the spacings of sigmas are called in every scheduler that has them.
KARRAS, EXPONENTIAL, BETA = ({f"use_{name}_sigmas": True} for name in ("karras", "exponential", "beta"))
FLOW_SIGMAS = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}


@dataclass(frozen=True)
class Config:
    """cls(**config) with set_timesteps(n, **timesteps) and step(..., **step_kwargs).

    kind: "epsilon", "v" or "flow", what the network predicts, or what comes nearest to it.  stochastic: it draws noise.
    steps: the n to try.  since: the release of diffusers from which on it is so.
    """

    cls: str
    config: dict
    kind: str = "epsilon"
    stochastic: bool = False
    steps: tuple = (4, 10)
    timesteps: dict = field(default_factory=dict)
    step_kwargs: dict = field(default_factory=dict)
    since: str = "0"


SCHEDULERS = {}


def _add(name, cls, *configs, betas=True, stochastic=False, steps=(4, 10), timesteps=None, step_kwargs=None, since="0"):
    config = {**(BETAS if betas else {})}
    for one in configs:
        config.update(one)
    kind = {"v_prediction": "v", "flow_prediction": "flow"}.get(config.get("prediction_type"), "epsilon")
    kind = "flow" if cls.startswith(("Flow", "LTX", "MiniMax", "Helios")) else kind
    kind = "v" if cls.startswith(("IPNDM", "SCM")) else kind
    if {"timesteps", "sigmas"} & set(timesteps or {}):
        steps = steps[:1]
    if name in SCHEDULERS:
        raise ValueError(f"two configurations are called {name!r}")
    SCHEDULERS[name] = Config(cls, config, kind, stochastic, steps, timesteps or {}, step_kwargs or {}, since)


def _diffusion():
    plain = {"clip_sample": False}
    cls = "DDIMScheduler"
    _add("ddim, leading", cls, plain, {"set_alpha_to_one": False, "steps_offset": 1}, steps=(2, 4, 10, 20))
    _add("ddim, trailing", cls, plain, TRAILING)
    _add("ddim, linspace", cls, plain, {"timestep_spacing": "linspace"})
    _add("ddim, v", cls, plain, V)
    _add("ddim, zero snr", cls, plain, ZERO_SNR)
    _add("ddim, sample", cls, plain, {"prediction_type": "sample"})
    _add("ddim, eta", cls, plain, stochastic=True, step_kwargs={"eta": 1.0})
    _add("ddim, eta 0.5, v", cls, plain, V, stochastic=True, step_kwargs={"eta": 0.5})
    _add("ddim, cosine betas", cls, plain, {"beta_schedule": "squaredcos_cap_v2"})
    _add("ddim, parallel", "DDIMParallelScheduler", plain)
    _add("ddim, inverse", "DDIMInverseScheduler", plain)
    for variance in ("fixed_small", "fixed_large", "fixed_small_log"):
        _add(f"ddpm, {variance}", "DDPMScheduler", plain, {"variance_type": variance}, stochastic=True)
    _add("ddpm, trailing, v", "DDPMScheduler", plain, TRAILING, V, stochastic=True)
    _add("ddpm, cosine betas", "DDPMScheduler", plain, {"beta_schedule": "squaredcos_cap_v2"}, stochastic=True)
    _add(
        "ddpm, custom timesteps",
        "DDPMScheduler",
        plain,
        stochastic=True,
        steps=(4,),
        timesteps={"timesteps": [999, 700, 310, 40]},
    )
    _add("ddpm, parallel", "DDPMParallelScheduler", plain, stochastic=True)
    _add("pndm", "PNDMScheduler", {"skip_prk_steps": True, "steps_offset": 1}, steps=(2, 4, 10, 20))
    _add("pndm, v", "PNDMScheduler", {"skip_prk_steps": True}, V)
    _add("pndm, prk", "PNDMScheduler", {"skip_prk_steps": False}, steps=(4, 10))
    _add("lcm", "LCMScheduler", stochastic=True, steps=(2, 4, 10))
    _add("lcm, one step", "LCMScheduler", steps=(1,))
    _add("lcm, v", "LCMScheduler", V, stochastic=True)
    _add("tcd", "TCDScheduler", stochastic=True)
    _add("tcd, clips of no effect", "TCDScheduler", {"clip_sample": True, "thresholding": True}, stochastic=True)
    _add("tcd, eta 0", "TCDScheduler", step_kwargs={"eta": 0.0})
    _add("tcd, eta 1", "TCDScheduler", stochastic=True, step_kwargs={"eta": 1.0})
    _add("unclip", "UnCLIPScheduler", {"clip_sample": False, "num_train_timesteps": 1000}, betas=False, stochastic=True)
    _add("wuerstchen", "DDPMWuerstchenScheduler", betas=False, stochastic=True)
    _add("consistency decoder", "ConsistencyDecoderScheduler", betas=False, stochastic=True, steps=(2,))
    _add("consistency", "CMStochasticIterativeScheduler", {"clip_denoised": False}, betas=False, stochastic=True)
    _add("consistency, one step", "CMStochasticIterativeScheduler", {"clip_denoised": False}, betas=False, steps=(1,))
    _add("ipndm", "IPNDMScheduler", betas=False, steps=(2, 4, 10, 20))
    _add("scm", "SCMScheduler", betas=False, stochastic=True, steps=(2,))
    several = {"intermediate_timesteps": None}
    _add("scm, any steps", "SCMScheduler", betas=False, stochastic=True, timesteps=several)
    video = {
        "clip_sample": False,
        "timestep_spacing": "trailing",
        "rescale_betas_zero_snr": True,
        "snr_shift_scale": 3.0,
        **V,
    }
    _add("cogvideox ddim", "CogVideoXDDIMScheduler", video)
    _add("cogvideox ddim, eta", "CogVideoXDDIMScheduler", video, step_kwargs={"eta": 1.0})
    _add("cogvideox dpm", "CogVideoXDPMScheduler", video, stochastic=True)


def _sigmas():
    spacings = {"karras": KARRAS, "exponential": EXPONENTIAL, "beta": BETA}
    cls = "EulerDiscreteScheduler"
    _add("euler", cls, steps=(2, 4, 10, 20))
    _add("euler, trailing", cls, TRAILING)
    _add("euler, leading", cls, {"timestep_spacing": "leading", "steps_offset": 1})
    _add("euler, sigma_min", cls, {"final_sigmas_type": "sigma_min"})
    _add("euler, v", cls, V)
    _add("euler, zero snr", cls, ZERO_SNR)
    _add("euler, continuous", cls, {"timestep_type": "continuous", "sigma_min": 0.002, "sigma_max": 700.0, **V}, KARRAS)
    _add("euler, log_linear", cls, {"interpolation_type": "log_linear"})
    _add("euler, custom sigmas", cls, timesteps={"sigmas": [14.6, 6.5, 2.0, 0.7, 0.0]})
    _add("euler, custom timesteps", cls, timesteps={"timesteps": [999, 845, 730, 310]})
    _add("euler, churn", cls, stochastic=True, step_kwargs={"s_churn": 2.0, "s_noise": 1.01})
    for name, cls, configs, drawn in (
        ("euler", "EulerDiscreteScheduler", spacings, False),
        ("heun", "HeunDiscreteScheduler", {None: {}, "trailing": TRAILING, "v": V, **spacings}, False),
        ("kdpm2", "KDPM2DiscreteScheduler", {None: {}, "trailing": TRAILING, "v": V, **spacings}, False),
        ("kdpm2 ancestral", "KDPM2AncestralDiscreteScheduler", {None: {}, "v": V, **spacings}, True),
        ("lms", "LMSDiscreteScheduler", {None: {}, "trailing": TRAILING, "v": V, **spacings}, False),
        ("dpm sde", "DPMSolverSDEScheduler", {None: {}, "v": V, "trailing": TRAILING, **spacings}, True),
        (
            "euler ancestral",
            "EulerAncestralDiscreteScheduler",
            {None: {}, "trailing": TRAILING, "v": V, "zero snr": ZERO_SNR},
            True,
        ),
    ):
        for label, config in configs.items():
            _add(name + (f", {label}" if label else ""), cls, config, stochastic=drawn)
    _add(
        "heun, custom timesteps",
        "HeunDiscreteScheduler",
        timesteps={"timesteps": [999, 700, 310, 40]},
    )
    _add("dpm sde, seeded", "DPMSolverSDEScheduler", {"noise_sampler_seed": 5}, KARRAS, stochastic=True)
    _add("lms, order 2", "LMSDiscreteScheduler", step_kwargs={"order": 2})
    edm = {"sigma_min": 0.002, "sigma_max": 80.0}
    _add("edm euler", "EDMEulerScheduler", edm, betas=False)
    _add("edm euler, exponential", "EDMEulerScheduler", edm, {"sigma_schedule": "exponential"}, betas=False)
    _add("edm euler, v", "EDMEulerScheduler", edm, V, betas=False)
    _add("edm euler, churn", "EDMEulerScheduler", edm, betas=False, stochastic=True, step_kwargs={"s_churn": 2.0})
    for order in (1, 2, 3):
        for algorithm, drawn in (("dpmsolver++", False), ("sde-dpmsolver++", True)):
            if order == 3 and drawn:  # diffusers has none
                continue
            config = {"solver_order": order, "algorithm_type": algorithm}
            _add(f"edm {algorithm} {order}", "EDMDPMSolverMultistepScheduler", edm, config, betas=False, stochastic=drawn)
    for order in (1, 2):
        cosine = {"solver_order": order, "sigma_min": 0.3, "sigma_max": 500.0, **V}
        _add(f"cosine dpm {order}", "CosineDPMSolverMultistepScheduler", cosine, betas=False, stochastic=True)
    _add(
        "cosine dpm 2, exponential",
        "CosineDPMSolverMultistepScheduler",
        {**cosine, "sigma_schedule": "exponential"},
        betas=False,
        stochastic=True,
    )


def _solvers():
    cls = "DPMSolverMultistepScheduler"
    for order in (1, 2, 3):
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"):
            if order == 3 and algorithm == "sde-dpmsolver":  # diffusers has none
                continue
            config = {
                "solver_order": order,
                "algorithm_type": algorithm,
                "final_sigmas_type": "zero" if "++" in algorithm else "sigma_min",
            }
            steps = (4, 10, 20) if algorithm == "dpmsolver++" else (4, 10)
            drawn = algorithm.startswith("sde")
            for label, more in {None: {}, "karras": KARRAS}.items():
                name = f"{algorithm} {order}" + (f", {label}" if label else "")
                _add(name, cls, config, more, stochastic=drawn, steps=steps)
    two = {"solver_order": 2, "algorithm_type": "dpmsolver++"}
    sde = {**two, "algorithm_type": "sde-dpmsolver++"}
    for name, more in (
        ("exponential", EXPONENTIAL),
        ("beta", BETA),
        ("lu", {"use_lu_lambdas": True}),
        ("euler at final", {"euler_at_final": True}),
        ("sigma_min", {"final_sigmas_type": "sigma_min"}),
        ("heun", {"solver_type": "heun"}),
        ("trailing", TRAILING),
        ("leading", {"timestep_spacing": "leading", "steps_offset": 1}),
        ("v", V),
        ("zero snr", ZERO_SNR),
        ("flow", FLOW_SIGMAS),
        ("full order", {"lower_order_final": False, "final_sigmas_type": "sigma_min"}),
        ("karras, euler at final", {**KARRAS, "euler_at_final": True}),
        ("lambda clipped", {"lambda_min_clipped": -5.1, "variance_type": None}),
    ):
        _add(f"dpm++2m, {name}", cls, two, more)
    for name, more in (
        ("exponential", EXPONENTIAL),
        ("heun", {"solver_type": "heun"}),
        ("lu", {"use_lu_lambdas": True}),
        ("flow", FLOW_SIGMAS),
        ("euler at final", {"euler_at_final": True}),
    ):
        _add(f"dpm++2m sde, {name}", cls, sde, more, stochastic=True)
    dynamic = {**FLOW_SIGMAS, "use_dynamic_shifting": True, "time_shift_type": "exponential"}
    _add("dpm++2m, flow, dynamic", cls, two, dynamic, timesteps={"mu": 0.8})
    _add("dpm++2m, custom timesteps", cls, two, timesteps={"timesteps": [999, 845, 730, 310, 50]})
    _add("dpm++2m, inverse", "DPMSolverMultistepInverseScheduler", two)
    cls = "DPMSolverSinglestepScheduler"
    for order in (1, 2, 3):
        for algorithm in ("dpmsolver", "dpmsolver++", "sde-dpmsolver++"):
            config = {"solver_order": order, "algorithm_type": algorithm, "lower_order_final": True}
            config["final_sigmas_type"] = "zero" if algorithm == "dpmsolver++" else "sigma_min"
            if order == 3 and algorithm.startswith("sde"):
                continue
            _add(f"singlestep {algorithm} {order}", cls, config, stochastic=algorithm.startswith("sde"))
    _add("singlestep, karras", cls, {"solver_order": 2, "lower_order_final": True}, KARRAS)
    _add("singlestep, flow", cls, {"solver_order": 2, "lower_order_final": True}, FLOW_SIGMAS)
    for order in (1, 2, 3):
        _add(f"deis {order}", "DEISMultistepScheduler", {"solver_order": order})
        _add(
            f"sa solver {order}", "SASolverScheduler", {"predictor_order": order, "corrector_order": order}, stochastic=True
        )
        for solver in ("bh1", "bh2"):
            # With "zero" the last step of bh1 is NaN.
            config = {"solver_order": order, "solver_type": solver}
            config["final_sigmas_type"] = "sigma_min" if solver == "bh1" else "zero"
            _add(f"unipc {order} {solver}", "UniPCMultistepScheduler", config, steps=(4, 10, 20))
    _add("deis, karras", "DEISMultistepScheduler", KARRAS)
    _add("deis, flow", "DEISMultistepScheduler", FLOW_SIGMAS)
    _add("sa solver, karras", "SASolverScheduler", KARRAS, stochastic=True)
    _add("sa solver, epsilon", "SASolverScheduler", {"algorithm_type": "noise_prediction"}, stochastic=True)
    cls = "UniPCMultistepScheduler"
    for name, more in (
        ("karras", KARRAS),
        ("exponential", EXPONENTIAL),
        ("beta", BETA),
        ("v", V),
        ("trailing", TRAILING),
        ("sigma_min", {"final_sigmas_type": "sigma_min"}),
        ("no corrector", {"disable_corrector": [0, 1]}),
        ("predict epsilon", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
        ("flow", FLOW_SIGMAS),
        ("flow, order 3", {**FLOW_SIGMAS, "solver_order": 3}),
    ):
        _add(f"unipc, {name}", cls, more)
    _add("unipc, flow, custom sigmas", cls, FLOW_SIGMAS, timesteps={"sigmas": np.linspace(1, 0.05, 10)}, since="0.37")


def _flow():
    cls = "FlowMatchEulerDiscreteScheduler"
    shift = {"shift": 3.0}
    dynamic = {"use_dynamic_shifting": True}
    _add("flow euler", cls, shift, betas=False, steps=(1, 2, 4, 10, 20))
    _add("flow euler, shift 1", cls, betas=False)
    _add("flow euler, custom sigmas", cls, shift, betas=False, timesteps={"sigmas": np.linspace(1, 0.1, 10)})
    _add("flow euler, dynamic", cls, dynamic, betas=False, timesteps={"mu": 0.8})
    _add("flow euler, dynamic, linear", cls, dynamic, {"time_shift_type": "linear"}, betas=False, timesteps={"mu": 2.0})
    _add("flow euler, dynamic, terminal", cls, dynamic, {"shift_terminal": 0.1}, betas=False, timesteps={"mu": 0.8})
    _add("flow euler, terminal", cls, shift, {"shift_terminal": 0.02}, betas=False)
    for name, spacing in (("karras", KARRAS), ("exponential", EXPONENTIAL), ("beta", BETA)):
        _add(f"flow euler, {name}", cls, shift, spacing, betas=False)
    _add("flow euler, inverted", cls, {"invert_sigmas": True}, betas=False)
    # Earlier releases draw its noise without the generator.
    drawn = {"stochastic_sampling": True}
    _add("flow euler, stochastic", cls, shift, drawn, betas=False, stochastic=True, since="0.39")
    _add("flow heun", "FlowMatchHeunDiscreteScheduler", shift, betas=False, steps=(2, 4, 10, 20))
    churn = {"s_churn": 2.0}
    _add("flow heun, churn", "FlowMatchHeunDiscreteScheduler", shift, betas=False, stochastic=True, step_kwargs=churn)
    _add("flow lcm", "FlowMatchLCMScheduler", shift, betas=False, stochastic=True)
    _add("flow lcm, dynamic", "FlowMatchLCMScheduler", dynamic, betas=False, stochastic=True, timesteps={"mu": 0.8})
    _add("flow map", "FlowMapEulerDiscreteScheduler", {"shift": 5.0}, betas=False)
    _add("ltx ancestral", "LTXEulerAncestralRFScheduler", betas=False, stochastic=True)
    _add("ltx ancestral, eta 0", "LTXEulerAncestralRFScheduler", {"eta": 0.0}, betas=False)
    sigmas = {"sigmas": [1.0, 0.9, 0.7, 0.4, 0.0]}
    _add("ltx ancestral, custom sigmas", "LTXEulerAncestralRFScheduler", betas=False, stochastic=True, timesteps=sigmas)
    _add("minimax h3", "MiniMaxH3Scheduler", betas=False)
    for solver in ("euler", "unipc"):
        one_stage = {"stages": 1, "stage_range": [0, 1], "scheduler_type": solver, "use_flow_sigmas": True, "shift": 3.0}
        _add(f"helios, one stage, {solver}", "HeliosScheduler", one_stage, betas=False)


_TOKENS = "discrete tokens: only pipelines with continuous latents"
_UNCLIPPED = {"clip_sample": False}
# name: class, configuration, what the message of the refusal has to say
REFUSED = {
    "ddim, clipped": ("DDIMScheduler", BETAS, r"DDIMScheduler with clip_sample=True is not linear.*clip_sample=False"),
    "ddim, thresholded": (
        "DDIMScheduler",
        {**BETAS, **_UNCLIPPED, "thresholding": True, "sample_max_value": 2.0},
        r"DDIMScheduler with thresholding=True is not linear.*thresholding=False",
    ),
    "ddim, both": (
        "DDIMScheduler",
        {**BETAS, "thresholding": True},
        r"clip_sample=True and thresholding=True is not linear.*clip_sample=False, thresholding=False",
    ),
    "ddim parallel, clipped": (
        "DDIMParallelScheduler",
        {},
        "DDIMParallelScheduler with clip_sample=True.*clip_sample=False",
    ),
    "ddim inverse, clipped": ("DDIMInverseScheduler", {}, "DDIMInverseScheduler with clip_sample=True.*clip_sample=False"),
    "ddpm, clipped": ("DDPMScheduler", BETAS, "DDPMScheduler with clip_sample=True is not linear.*clip_sample=False"),
    "ddpm, learned variance": (
        "DDPMScheduler",
        {**BETAS, **_UNCLIPPED, "variance_type": "learned_range"},
        "variance_type='learned_range' has the network predict a variance.*variance_type='fixed_small'",
    ),
    "ddpm, NaN": (
        "DDPMScheduler",
        {**BETAS, **_UNCLIPPED, "variance_type": "fixed_large_log"},
        "DDPMScheduler cannot be inverted: step 0 of 4 returns NaN",
    ),
    "lcm, clipped": (
        "LCMScheduler",
        {**BETAS, "clip_sample": True},
        "LCMScheduler with clip_sample=True.*clip_sample=False",
    ),
    "lcm, thresholded": ("LCMScheduler", {**BETAS, "thresholding": True}, "LCMScheduler with thresholding=True"),
    "heun, clipped": ("HeunDiscreteScheduler", {"clip_sample": True}, "HeunDiscreteScheduler with clip_sample=True"),
    "unclip, clipped": ("UnCLIPScheduler", {}, "UnCLIPScheduler with clip_sample=True is not linear.*clip_sample=False"),
    "consistency, clipped": (
        "CMStochasticIterativeScheduler",
        {},
        "CMStochasticIterativeScheduler with clip_denoised=True is not linear.*clip_denoised=False",
    ),
    **{
        f"{cls}, thresholded": (cls, {**BETAS, "thresholding": True}, f"{cls} with thresholding=True is not linear.*=False")
        for cls in (
            "DEISMultistepScheduler",
            "DPMSolverMultistepInverseScheduler",
            "DPMSolverMultistepScheduler",
            "DPMSolverSinglestepScheduler",
            "SASolverScheduler",
            "UniPCMultistepScheduler",
        )
    },
    "dpm++2m, learned variance": (
        "DPMSolverMultistepScheduler",
        {**BETAS, "variance_type": "learned_range"},
        "variance_type='learned_range' has the network predict a variance",
    ),
    "unipc, bh1 to zero": (
        "UniPCMultistepScheduler",
        {**BETAS, "solver_type": "bh1"},
        "UniPCMultistepScheduler cannot be inverted: step 3 of 4 returns NaN or infinity.*use DDIMScheduler",
    ),
    "flow lcm, scales": (
        "FlowMatchLCMScheduler",
        {"scale_factors": [0.5, 0.7, 1.0]},
        "scale_factors changes the size of its sample.*scale_factors=None",
    ),
    "flow euler, dynamic without mu": (
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True},
        r"FlowMatchEulerDiscreteScheduler.set_timesteps\(4\) raised ValueError.*set its timesteps yourself",
    ),
    "scm, four steps": (
        "SCMScheduler",
        {},
        r"SCMScheduler.set_timesteps\(4\) raised ValueError.*set its timesteps yourself",
    ),
    "consistency decoder, four steps": ("ConsistencyDecoderScheduler", {}, r"set_timesteps\(4\) raised ValueError"),
    "helios": ("HeliosScheduler", {}, "HeliosScheduler with stages=3 starts anew.*stages=1"),
    "helios dmd": ("HeliosDMDScheduler", {}, "given its noises and levels by its pipeline; use FlowMatchEulerDiscrete"),
    "karras ve": ("KarrasVeScheduler", {}, "perturb the sample and correct the step; use EulerDiscreteScheduler"),
    "sde ve": ("ScoreSdeVeScheduler", {}, "ScoreSdeVeScheduler cannot be inverted: it corrects.*use DDIMScheduler"),
    "sde vp": ("ScoreSdeVpScheduler", {}, "ScoreSdeVpScheduler cannot be inverted: it has no step.*use DDIMScheduler"),
    "repaint": ("RePaintScheduler", {}, "mixes a known image into each step; use DDIMScheduler"),
    "piflow": ("PiflowScheduler", {}, "a policy made of many predictions.*use FlowMatchEulerDiscreteScheduler"),
    "proteina": (
        "RFD4ProteinaScheduler",
        {"schedule_mode": "log", "noise_mode": "tan", "tsr_k": 1.0, "tsr_sigma": 1.0},
        "the tokens of a mask, of two modalities.*use FlowMatchEulerDiscreteScheduler",
    ),
    "amused": ("AmusedScheduler", {"mask_token_id": 9}, _TOKENS),
    "block refinement": ("BlockRefinementScheduler", {}, _TOKENS),
    "discrete ddim": ("DiscreteDDIMScheduler", {}, _TOKENS),
    "entropy bound": ("EntropyBoundScheduler", {}, _TOKENS),
    "vq diffusion": ("VQDiffusionScheduler", {"num_vec_classes": 10}, _TOKENS),
}

_diffusion()
_sigmas()
_solvers()
_flow()


def make(name, **extra):
    """The scheduler, without timesteps; `extra` goes into its configuration."""
    one = SCHEDULERS[name]
    if Version(diffusers.__version__) < Version(one.since):
        raise installed.Missing(f"{name}: from diffusers {one.since} on")
    return getattr(installed, one.cls)(**{**one.config, **extra})


def prepare(name, steps=None):
    """The scheduler with its timesteps set; their number is that of a configuration with timesteps or sigmas of its own."""
    one, scheduler = SCHEDULERS[name], make(name)
    if "timesteps" in one.timesteps or isinstance(one.timesteps.get("sigmas"), list):
        scheduler.set_timesteps(**one.timesteps)
    elif "sigmas" in one.timesteps:
        scheduler.set_timesteps(len(one.timesteps["sigmas"]), **one.timesteps)
    else:
        scheduler.set_timesteps(steps or one.steps[0], **one.timesteps)
    return scheduler
