"""Invert and draw again: every tiny pipeline, and every scheduler in those it can serve.

What is measured is the plumbing.  The image is random latents; the stock pipeline, without anything of nrinv, draws from the
noise that was found, and the relative error of its last state is what the table shows.
"""

from dataclasses import dataclass, replace

import diffusers
import torch

import nrinv

from . import make, run
from .schedulers import SCHEDULERS
from .schedulers import make as make_scheduler

TOLERANCE = 1e-3
SEED = 5
# Enough for the hardest; what is easy ends at tol.  Samplers with memory take more steps: nobody uses them with four, and
# their rounds of correction do not contract there.
FEW = {"num_inference_steps": 4, "max_nfe": 24, "tol": 2e-5}
MORE = {"num_inference_steps": 10, "max_nfe": 1, "tol": 1e-4, "solver": nrinv.Solver(rounds=20, extrapolation=0.5)}
# Fresh noise in states that hardly contract: fewer steps are solved, but not to the tolerance.
LONGER = {"sde-dpmsolver 1": 10, "sde-dpmsolver 1, karras": 10, "sde-dpmsolver++ 3, karras": 20}
# Whole passes of four ancestral steps take many, with a long memory.
OPTIONS = {"Allegro": {"max_nfe": 150, "solver": nrinv.Solver(depth=15)}}
# What is refused rightly: a part of what is said.
REFUSED = {
    **dict.fromkeys(
        (
            "SD, inpainting blended",
            "SD, ControlNet inpainting blended",
            "SD3, inpaint blended",
            "Flux, inpaint blended",
            "Flux, Kontext inpaint blended",
            "Flux, ControlNet inpaint blended",
            "Flux.2, Klein inpaint blended",
        ),
        "mixes the known part of the image in after each step",
    ),
    "SD, panorama": "steps a copy of its scheduler for each view",
    "CogView3, DPM": "step 0 of 10 cannot be inverted: the coefficient of the step's own state is 0",
    "Sana, Sprint": "step 0 of 4 cannot be inverted: the coefficient of the step's own state is 0",
    "CogVideoX, DPM": "step 0 of 10 cannot be inverted: the coefficient of the step's own state is 0",
    "ChronoEdit, temporal reasoning": "changes the latents between its steps",
    "LTX, condition strength": "draws its own noise whatever latents it is given",
    "LTX 2": "steps copies of its scheduler",
    "Cosmos": "steps its scheduler twice for each timestep",
    "JoyImage, edit": "not made of the latents",
    "Text to video, SD": "not made of the latents",
    "Consistency model": "clip_denoised=True is not linear",
    "ddim, sample": "step 3 of 4 cannot be inverted: the coefficient of the step's own state is 0",
    "euler ancestral, zero snr": "step 0 of 4 cannot be inverted: the coefficient of the step's own state is 0",
}
# Where the map itself is rough, what can be had.
TOLERANCES = {"SD, SAG": 5e-2}  # it thresholds an attention map
# One pipeline of each kind stands for the others where schedulers are concerned.
HOSTS = {"epsilon": ("SD", "SDXL"), "v": ("SD, v-prediction",), "flow": ("SD3", "Flux")}


@dataclass(frozen=True)
class Outcome:
    """One row of the table; error: relative, of the stock pipeline's last state; nfe: evaluations of the inversion."""

    name: str
    pipeline: str
    scheduler: str
    steps: int = 0
    order: str = ""
    error: float = float("nan")
    nfe: int = 0
    refused: str = ""


def reconstruct(name, scheduler=None):
    """Invert random latents with a case's pipeline, with another of its schedulers if one is given; the `Outcome`,
    None where the stock pipeline cannot use that scheduler."""
    pipe, call, latents = make(name)
    if scheduler is not None:
        pipe.scheduler = make_scheduler(scheduler)
        if not runs(pipe, call, latents):
            return None
    outcome = Outcome(name, type(pipe).__name__, scheduler or type(pipe.scheduler).__name__)
    image = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    options = dict(MORE if remembers(pipe.scheduler) else FEW)
    options["num_inference_steps"] = LONGER.get(scheduler, options["num_inference_steps"])
    if isinstance(pipe.scheduler, diffusers.DDPMWuerstchenScheduler):  # the first of four steps magnifies its error 40 times
        options["num_inference_steps"] = 10
    options.update(OPTIONS.get(name, {}))
    steps = options["num_inference_steps"] = call.pop("num_inference_steps", options["num_inference_steps"])
    try:
        torch.manual_seed(SEED)
        found = nrinv.invert(pipe, image, generator=seeded(), **options, **call)
    except ValueError as error:
        return replace(outcome, refused=str(error))
    first, last = stock(pipe, call, found.latents, steps)
    want = image if first.shape == image.shape else stock(pipe, call, image, steps)[0]
    error = float((last - want).norm() / want.norm())
    return replace(outcome, steps=steps, order=found.order, error=error, nfe=int(found.nfe[0]))


def remembers(scheduler):
    """Whether a scheduler's steps use older network outputs."""
    try:
        return not nrinv.read_sampler(scheduler, 10).first_order
    except ValueError:  # it wants to know the size of the image; the inversion will say what else there is
        return False


def runs(pipe, call, latents):
    """Whether the stock pipeline can use its scheduler at all."""
    try:
        return bool(torch.isfinite(stock(pipe, call, latents, FEW["num_inference_steps"])[1]).all())
    except (AssertionError, AttributeError, IndexError, NotImplementedError, TypeError, ValueError):
        return False


def seeded():
    return torch.Generator().manual_seed(SEED)


def stock(pipe, call, latents, steps):
    """The first and the last state of a stock run."""
    states = []

    def watch(output, timestep, sample, result):
        states.append(sample if not states else result)

    run(pipe, {**call, "num_inference_steps": steps}, latents, seed=SEED, watch=watch)
    return states[0], states[-1]


def pairs():
    """(pipeline, scheduler) for every scheduler and the pipelines it can serve."""
    return [(host, name) for name, config in SCHEDULERS.items() for host in HOSTS[config.kind]]


def report(outcomes):
    """The page docs/support.md."""
    pipelines = [one for one in outcomes if one.scheduler not in SCHEDULERS]
    served = [one for one in outcomes if one.scheduler in SCHEDULERS]
    inverted = [one for one in pipelines if not one.refused]
    hosts = [host for kind in HOSTS.values() for host in kind]
    lines = [
        "# What is supported",
        "",
        "Generated by `python tests/zoo` from a run with tiny pipelines of random weights (`tests/zoo/`).",
        "Each inverts random latents; then the stock pipeline, without anything of nrinv, draws from the",
        "noise that was found. The error is that of its last state, relative, in float32. It proves that",
        "the parts fit together; random networks flatter every solver. How well and how fast trained models",
        "are inverted is in [benchmarks.md](benchmarks.md).",
        "",
        f"{len({one.pipeline for one in inverted})} pipeline classes in {len(inverted)} configurations, and "
        f"{len({one.scheduler for one in served if not one.refused})} scheduler configurations.",
        "What is not listed is not refused: it is inverted by the same mechanism, and checked by a stock",
        "run if its loop reads its own index or its code is not of diffusers.",
        "",
        "## Pipelines",
        "",
        "order: `reversed` visits the timesteps from the image to the noise, `passes` runs the pipeline's",
        "own loop again and again.",
        "",
        "| configuration | class | scheduler | steps | order | evaluations | error |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {one.name} | {one.pipeline} | {one.scheduler} | {one.steps} | {one.order} | {one.nfe} | {one.error:.0e} |"
        for one in inverted
    ]
    lines += ["", "## Schedulers", "", f"| scheduler | class | {' | '.join(hosts)} |", "|---|---|" + "---|" * len(hosts)]
    for name, config in SCHEDULERS.items():
        cells = {one.name: "refused" if one.refused else f"{one.error:.0e}" for one in served if one.scheduler == name}
        if cells:
            lines.append(f"| {name} | {config.cls} | {' | '.join(cells.get(host, '') for host in hosts)} |")
    refused = {(one.name, one.pipeline, one.refused) for one in pipelines if one.refused}
    refused |= {(one.scheduler, SCHEDULERS[one.scheduler].cls, one.refused) for one in served if one.refused}
    lines += [
        "",
        "## Refused, before the network is evaluated or by what its loop shows",
        "",
        "| | class | why |",
        "|---|---|---|",
    ]
    lines += [f"| {name} | {cls} | {why} |" for name, cls, why in sorted(refused)]
    return "\n".join(lines) + "\n"
