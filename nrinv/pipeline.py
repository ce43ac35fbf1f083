"""Invert an image with a stock diffusers pipeline, and draw from the noise that was found."""

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from . import _C
from .autoencoder import decode, encode_pixels, encode_source, mask_like
from .call import COPIES, SCHEDULE, Call, is_prompt, known_names
from .derived import Left, Returned, Unfollowed
from .driver import Driver, stock_scheduler
from .evidence import followed, key, remember
from .fingerprint import difference, fingerprint
from .images import frames_of, psnr, read_arguments, read_source
from .inversion import InversionOutput, concatenate
from .known import autoencoder, check_pipeline, is_guided, network, parameters, slices
from .layout import closeness, proportion
from .loops import guides_each_step, reads_index
from .plan import Correction, Task
from .replay import Recorder, ReplayScheduler, norms
from .schedule import Schedule
from .session import RandomState, exclusively, kept_processors, replaced, without_gradients
from .solver import Method, Solver, as_solver

if TYPE_CHECKING:
    from typing import Unpack

    from .arguments import GenerateArguments, InvertArguments

ORDERS = ("auto", *_C.ORDERS)
CORRECTION_NOISES = ("random", "inverted")
# What an inversion says just as the machine has found it.
_FOUND = (
    "residuals",
    "step_nfe",
    "nfe",
    "restarts",
    "rejected",
    "failed",
    "reasons",
    "error",
    "measured",
    "trajectory",
    "moved",
)
# Rounds of encode="refined": where the embedded autoencoder comes nearest to 28 images that it has not seen, in dB 30.9
# at 0, 32.2 at 1, 32.5 at 2, 32.8 at 4, 32.9 at 8, 32.6 at 16, 32.2 at 32.
REFINED = 8
# A residual that float32 can reach everywhere.
_TOL = 1e-4
# The estimated error is 0.9 to 1.5 times the measured one (26 images, 20 steps of DDIM and 4 and 8 of Euler) as long as no
# step stretches a difference of states more than this.  Under guidance errors grow in directions that no evaluation has
# seen: it was down to 0.06 times the measured one, at any stretch.
_GROWTH = 1.8
# A network that answers so much otherwise, relative to the answer, is another map; a batch of another size rounds otherwise.
_ROUNDING = 1e-3


def check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")


def _check_choice(name, value, choices):
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_share(name, value):
    if not 0 < value <= 1:
        raise ValueError(f"{name} must be above 0 and at most 1, got {value!r}")


# ------------------------------------------------------------------------------------------------------------------- invert


@known_names
@without_gradients
@exclusively
def invert(
    pipe: Any,
    image: Any = None,
    /,
    prompt: str | list[str] | None = None,
    *,
    latents: Any = None,
    value_range: tuple[float, float] | None = None,
    background: Any = "white",
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: Any = None,
    strength: float = 1.0,
    solver: str | Solver | Method = "auto",
    max_nfe: int | None = None,
    tol: float | None = None,
    noise: str = "record",
    correct: float = 0.0,
    encode: str | int = "mode",
    order: str = "auto",
    batch_size: int | None = None,
    seed: int = 0,
    verify: bool | None = None,
    return_trajectory: bool = False,
    return_defects: bool = False,
    **pipe_kwargs: "Unpack[InvertArguments]",
) -> InversionOutput:
    """Find the noise from which `pipe` draws `image`; returns an `InversionOutput` whose first field is `latents`.

    pipe: a diffusers pipeline, used as it is and left as it was: scheduler, configuration, hooks, also after an exception.
    image: see `nrinv.encode`; B images, or videos, are inverted together, each with its own stopping.  It is given by
    position: `image=` is the pipeline's own argument of that name (the control image of a ControlNet), unless the pipeline
    has none.  A video says how many frames are drawn (`num_frames`).
    prompt: one for all or one for each image; None is the empty prompt, unless `prompt_embeds` are given.
    latents: what is to be inverted, if it is encoded already, in the place of `image`.
    value_range, background: what the numbers of `image` are in, and the colour behind its alpha; see `nrinv.encode`.
    num_inference_steps, guidance_scale (default: the pipeline's own), generator, **pipe_kwargs: passed to the pipeline's
    call (`negative_prompt`, `prompt_embeds`, `num_images_per_prompt`, `callback_on_step_end` ...).  Its images and masks may
    be paths, and are read as `image` and as `generate`'s `mask_image`.  Callbacks run once an evaluation.
    strength: invert the last part of the steps only, above 0 and at most 1; `generate` goes on from there.
    batch_size: invert at most so many images together (default: all).  A batch takes the memory of a stock call and, in
    float32, about 30 latents an image with the default depth; in whole passes 18 more for each evaluation of the sampler.
    Noises, and the trajectory if it is kept, come on top.  Samples that are done leave the network's batch.

    solver: a name, a `Solver` with its options, or a method of one's own (`nrinv.solver.Method`).
    max_nfe: network evaluations a step, on average; default 4 up to 8 steps, 3 beyond, 1 where the scheduler needs rounds of
    defect correction (a larger number makes more of them), 20 in whole passes.
    tol: a step ends at a relative residual of tol; None is 1e-4, or half the distance of two numbers of the network's dtype
    if that is more: no residual can fall below what rounding leaves.
    noise: "record" draws the noise of a stochastic scheduler from `generator` in the pipeline's own order; "absorb" draws
    the states instead and lets the noises take up what the steps leave (`noises`, which `generate` replays): few-step
    stochastic samplers then reconstruct well from natural noise.
    correct: strength of the prompt-aware correction of the encoded image, see `nrinv.correct`; 0 is none, 0.05 are 2 of 50
    steps.  What is inverted then is `corrected`, and the image again is drawn with its errors taken away and the correction
    put in.
    encode: "mode", the mode of the autoencoder's posterior; or rounds of z + encode(x) - encode(decode(z)) after that, a
    number, or "refined", which are 8: what is decoded comes nearer to the image, and the noise gets less natural.
    order: "reversed" visits the timesteps from the image to the noise, each as often as the solver wants; "passes" runs the
    pipeline's loop as it is, `max_nfe` times, and improves the whole trajectory after each; "auto" is reversed, and passes
    where the loop turns out to need its own order, or to take a slice of the timesteps.
    seed: of the natural noisy image that the first step starts from; other seeds find other noises of the same image.
    verify: None, evidence decides, at one evaluation per step each: where anything could make the stock run another map (a
    loop that reads its own index; a callback, hook, processor, module or scheduler method that is none of the libraries'), a
    stock run at the states that were evaluated has to answer alike, or the next order is tried; where the error cannot be
    estimated well, a stock run from the noise measures it.  What was found of a call is remembered.  True, always measure
    `error`; False, no stock run.
    return_trajectory: keep all states.  return_defects: record what a stock run misses (`defects`), for an exact
    `generate(..., replay=1)`; costs one evaluation per step, and leaves noise and figures as they are.

    Raises TypeError for a name that neither nrinv nor the pipeline knows, ValueError naming the argument for bad input and
    for a scheduler or a pipeline that cannot be inverted, before the network is evaluated wherever that can be known;
    RuntimeError if a callback interrupts the pipeline.  Running out of evaluations, or a network that returns NaN, is no
    exception but a reason in the output.
    """
    solver, rounds = as_solver(solver), _encoding_rounds(encode)
    if image is None and "image" not in parameters(pipe):
        image = pipe_kwargs.pop("image", None)
    _check_options(pipe, strength, num_inference_steps, seed, order, batch_size)
    correction = Correction(correct)
    if correct:
        _check_correction(pipe, correction)
    given = {"prompt": prompt, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    reading = {"latents": latents, "value_range": value_range, "background": background}
    source, call = _read(pipe, image, reading, given, pipe_kwargs, strength)
    found = []
    for samples, part in call.split(batch_size):
        target = encode_source(pipe, source[samples], rounds)
        several = isinstance(generator, (list, tuple)) and len(generator) == len(source)
        driver = Driver(pipe, target, part, generator[samples] if several else generator, source.size)
        options = {"max_nfe": max_nfe, "noise": noise, "tol": tol}
        if tol is None:
            options["tol"] = max(_TOL, torch.finfo(target.dtype).eps / 2)
        task = Task(solver, options, strength=1.0 if slices(pipe) else strength, seed=seed)
        if correct:  # the autoencoder's own error is that of its plain encoding
            plain = encode_source(pipe, source[samples]) if rounds else target
            task = replace(task, correction=_with_radii(correction, driver, plain))
        out = _find(driver, task, order, verify, return_trajectory, return_defects)
        if correct:
            out = replace(out, psnr_loss=_psnr_loss(driver, source[samples], out.corrected))
        found.append(out)
    whole = found[0] if len(found) == 1 else concatenate(found, prompt, call)
    return replace(whole, networks=fingerprint(pipe))


def _encoding_rounds(encode):
    rounds = {"mode": 0, "refined": REFINED}.get(encode, encode) if isinstance(encode, str) else encode
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 0:
        raise ValueError(f"encode must be 'mode', 'refined' or a number of rounds of at least 0, got {encode!r}")
    return rounds


def _check_options(pipe, strength, num_inference_steps, seed, order, batch_size):
    _check_share("strength", strength)
    if num_inference_steps is not None and num_inference_steps < 1:
        raise ValueError(f"num_inference_steps must be at least 1, got {num_inference_steps!r}")
    check_whole("seed", seed, 0)
    _check_choice("order", order, ORDERS)
    if batch_size is not None:
        check_whole("batch_size", batch_size, 1)
    check_pipeline(pipe)


def _read(pipe, image, reading, given, pipe_kwargs, strength=1.0):
    """(what is to be inverted, the pipeline's call as it will be kept too)."""
    size = {name: pipe_kwargs.get(name) for name in ("height", "width")}
    source = read_source(pipe, image, **reading, **size, checked=True)
    arguments = {name: value for name, value in given.items() if value is not None or name == "prompt"}
    own = {name: value for name, value in pipe_kwargs.items() if name != "output_type"}
    arguments.update(read_arguments(pipe, own, source.size))
    if source.frames is not None:
        arguments.update(frames_of(pipe, source.frames, arguments))
    if slices(pipe):
        name = "video" if "video" in parameters(pipe) else "image"
        arguments = {name: source.image, **arguments, "strength": strength}
    return source, Call.of(pipe, arguments, len(source))


def _find(driver, task, order, verify, return_trajectory, return_defects):
    """The inversion in the first order that suits the pipeline."""
    call = key(driver.pipe, driver.call, driver.doubts, order, task.solver, task.strength, bool(task.correction))
    before = followed(call) if verify is None else None
    check = bool(driver.doubts) and before is None and (verify is None or (verify and order == "auto"))
    why = None
    for which in (before,) if before is not None else driver.orders(order):
        given = {**task.given, "trajectory": return_trajectory or return_defects}
        doubtful = bool(driver.doubts) and order == "auto" and which == "reversed"
        this = replace(task, order=which, given=given, observe=check)
        outcome, scheduler = driver.drive(this, doubtful=doubtful)
        if isinstance(outcome, Unfollowed):
            why = outcome.why
            continue
        out, corrected, defects = _output(driver, scheduler, outcome.result), outcome.result.corrected, None
        end = scheduler.layout.sample(driver.target) if corrected is None else corrected  # of a stock run from the noise
        if check and (why := _strays(driver, scheduler, out, end)) is not None:
            continue
        if check:
            remember(call, which)
        if return_defects:  # with rounds the trajectory is that of a forward run, which ends beside the image
            defects = _stock_run(driver, out, trajectory=[*out.trajectory[:-1], end]).defects
        if verify or (verify is None and _is_unsure(driver, scheduler, outcome.result)):
            error = _relative(_stock_run(driver, out).sample, end)
            out = replace(out, error=error, measured=np.isfinite(error))
        return replace(
            out,
            trajectory=out.trajectory if return_trajectory else None,
            defects=defects,
            nfe=out.nfe + driver.evaluations - scheduler.fed,
        )
    because = f", because of {', '.join(one.what for one in driver.doubts)}" if driver.doubts else ""
    raise ValueError(f"pipe: {driver.name} cannot be inverted: {why}{because}")


def _is_unsure(driver, scheduler, result):
    """Whether the error of a sample may be far from its estimate."""
    one_step, guided = len(scheduler.plan.sampler) == 1, is_guided(driver.pipe, driver.call)
    told = result.measured | (((result.growth <= _GROWTH) | one_step) & np.isfinite(result.error) & (not guided))
    return not all(sure or reason == "non_finite" for sure, reason in zip(told, result.reasons, strict=True))


def _output(driver, scheduler, result):
    """What a machine has found, in the terms of the pipeline."""
    layout, plan, pipe, target = scheduler.layout, scheduler.plan, driver.pipe, driver.target
    return InversionOutput(
        latents=_as_latents(driver, scheduler, result.latents),
        noises=[noise.to(target.dtype) for noise in scheduler.noises] or None,
        timesteps=plan.sampler.timesteps,
        levels=plan.sampler.levels,
        start=plan.start,
        corrected=None if result.corrected is None else layout.latents(result.corrected, target),
        order=scheduler.driving,
        prompt=driver.call.get("prompt"),
        call=driver.call.like({**driver.call.kept(), **_drawn_from(driver)}),
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        scheduler_config=dict(pipe.scheduler.config),
        **{name: getattr(result, name) for name in _FOUND},
    )


def _as_latents(driver, scheduler, state):
    """What the pipeline is to be given as `latents=` for its loop to begin at a state."""
    sigma = scheduler.stock_sigma if scheduler.plan.start == 0 else 1.0
    return scheduler.layout.latents(state / sigma, driver.target).to(driver.target.dtype)


def _drawn_from(driver):
    """What the pipeline's own draws came from, if it made any."""
    generator = driver.random.drawn(driver.pipe._execution_device)
    return {} if generator is None else {"generator": generator}


def _stock_run(driver, out, **options):
    recorder = Recorder(stock_scheduler(driver.pipe, out), driver.pipe, out, **options)
    try:
        outcome = driver.run(recorder, out.latents.to(driver.pipe._execution_device))
    except Exception:
        if not recorder.complete:
            raise
        driver.pipe.maybe_free_model_hooks()
        return recorder  # not every pipeline has latents for its output: it is as if it had been left
    if isinstance(outcome, Returned):
        recorder.returned()
        recorder.output = outcome.output[0]
    return recorder


def _relative(sample, end):
    end = end.float()
    return norms(sample.to(end) - end) / norms(end)


def _strays(driver, scheduler, out, end):
    """What a stock run along the states that were evaluated does otherwise than the inversion has seen; None if nothing."""
    seen = [scheduler.observed.get(j) for j in range(len(out.timesteps))]
    if None in seen or "non_finite" in out.reasons:  # nothing to compare
        return None
    states = [sample for sample, _ in seen]
    first = _as_latents(driver, scheduler, states[0])
    along = _stock_run(
        driver, replace(out, latents=first), trajectory=[*states, end], answers=[answer for _, answer in seen]
    )
    rounding = max(_ROUNDING, 4 * closeness(driver.target.dtype))
    output, given = along.output, scheduler.layout.latents(end, driver.target)  # other layouts cannot be compared
    if torch.is_tensor(output) and output.shape == given.shape and proportion(given, output) != 1:
        return "it changes the latents before its first step, or after its last one"
    return along.strayed or ("its network answers otherwise in a stock run" if along.unlike > rounding else None)


# ----------------------------------------------------------------------------------------------------------------- generate


@known_names
@exclusively
def generate(
    pipe: Any,
    inv: InversionOutput,
    prompt: str | list[str] | None = None,
    *,
    edit_strength: float = 1.0,
    replay: float = 0.0,
    mask_image: Any = None,
    **pipe_kwargs: "Unpack[GenerateArguments]",
) -> Any:
    """Draw from an inversion's noise with the stock pipeline: the image again, or with another `prompt` an edit of it.

    pipe: the pipeline; if its scheduler is not the one the inversion was made with, that one is used for this call.  An
    img2img or inpainting pipeline goes on from a part-way inversion (`invert(..., strength=...)`, best with
    return_trajectory=True for inpainting); its `image` may be left out.  Whatever precision and device the inversion has,
    the pipeline is given its own.
    inv: an `InversionOutput`.  prompt: default the inversion's own; several for an inversion of one image are so many
    drawings from its noise, and so are several `prompt_embeds`.  **pipe_kwargs override `inv.call`;
    images and masks among them may be paths, and are read as `nrinv.encode` and `mask_image` say.
    num_inference_steps, timesteps, sigmas: may be others than the inversion's.  What is needed of its trajectory is then the
    state of the nearest noise level, at the level that is due.
    num_images_per_prompt: draw each image so many times; without a stochastic part of the pipeline's own they are alike.
    generator: default one like the inversion's, from which the pipeline draws the same again; it is not the caller's.
    guidance_scale: a number; or one for each evaluation that is made, at least 1, for pipelines that read it in every step.
    edit_strength: the share of the inverted steps that is drawn anew, above 0; the rest is the stored trajectory's, which
    keeps more of the image.  Below 1 it needs `invert(..., return_trajectory=True)`.
    strength: of an img2img pipeline, the share of all steps; another than the inversion's needs its trajectory.
    replay: the share, in 0..1, of the recorded defects that is added; 1 makes the reconstruction exact, and is no longer the
    noise's own drawing.  Above 0 it needs `invert(..., return_defects=True)`.
    mask_image: PIL image or path, drawn in grey or in alpha, or array or tensor [H, W], white where the image may change;
    elsewhere each step returns to the stored trajectory.  Needs `invert(..., return_trajectory=True)`; an inpainting
    pipeline uses its own `mask_image`.
    Returns the pipeline's own output (`.images`).

    Warns (UserWarning) where the pipeline's networks are not those the inversion was made with.
    Raises TypeError for a name that neither nrinv nor the pipeline knows, ValueError if there are neither one nor B prompts
    (for one image, any number), for numbers out of range, if there are no defects to replay or no trajectory to start or to
    mask with, and for another schedule with noises or defects, which belong to the inversion's own, or with a part-way
    inversion that has no trajectory and no such level.
    """
    _check_share("edit_strength", edit_strength)
    if edit_strength != 1 and pipe_kwargs.get("strength") is not None:
        raise ValueError(f"edit_strength must be 1 where strength is given, got {edit_strength!r}")
    if not 0 <= replay <= 1:
        raise ValueError(f"replay must be a share in 0..1, got {replay!r}")
    if (networks := difference(inv.networks or {}, fingerprint(pipe))) is not None:
        made, present = networks
        changed = f"the inversion was made with {made}, this pipeline has {present}"
        warnings.warn(f"inv: {changed}: it may draw another image", stacklevel=4)
    if mask_image is not None and "mask_image" in parameters(pipe):
        pipe_kwargs["mask_image"], mask_image = mask_image, None
    size = [pipe_kwargs.get(name) or inv.call.get(name) for name in ("height", "width")]
    inv, call = _samples(inv, prompt, read_arguments(pipe, pipe_kwargs, size))
    call = call.to(pipe._execution_device, network(pipe).dtype)
    if call.get("generator") is not None and pipe_kwargs.get("generator") is None:
        call["generator"] = _fresh(call["generator"])
    mask = None if mask_image is None else _mask(pipe, mask_image, inv)
    guide = _guide(pipe, call)
    stock, random = stock_scheduler(pipe, inv), RandomState(call.get("generator"))
    schedule = Schedule(inv, int(getattr(stock, "order", 1)))
    plain = not (inv.noises or inv.start or edit_strength < 1 or replay or slices(pipe) or mask is not None or guide)
    while True:
        begin = _begin(inv, schedule, edit_strength)
        options = {"schedule": schedule, "begin": begin, "replay": replay, "mask": mask, "guide": guide, "call": call}
        scheduler = stock if plain else ReplayScheduler(stock, pipe, inv, **options)
        latents = (inv.latents if plain else scheduler.latents).to(pipe._execution_device, network(pipe).dtype)
        own = {"latents": latents}
        if slices(pipe):
            strength = _strength(pipe, call, inv, schedule, begin, pipe_kwargs.get("strength"))
            own |= {"image": latents if call.get("image") is None else call["image"], "strength": strength}
        try:
            with replaced(pipe, scheduler=scheduler), kept_processors(pipe):
                return pipe(**call.like({**call, **own}).for_pipeline(pipe))
        except Left as left:  # the schedule is another one
            pipe.maybe_free_model_hooks()
            random.restore()
            if not schedule.own:
                raise ValueError(f"pipe: {type(pipe).__name__} sets different timesteps in calls that are alike") from None
            schedule = left.outcome


def _samples(inv, prompt, given):
    """(inversion, call) of all images that are drawn, one for each prompt and copy."""
    copies, given = given.get(COPIES), {name: value for name, value in given.items() if name != COPIES}
    if copies is not None:
        check_whole(COPIES, copies, 1)
    if copies == inv.whole_call.copies:
        copies = None
    elif copies is not None and inv.whole_call.copies > 1:
        inv = inv.take(range(len(inv.latents)))
    embeds = [value for name, value in given.items() if name.endswith("prompt_embeds") and torch.is_tensor(value)]
    lists = [value for name, value in given.items() if is_prompt(name) and isinstance(value, (list, tuple))]
    several = [len(one) for one in (prompt, *embeds, *lists) if one is not None and not isinstance(one, str)]
    if len(inv.latents) == 1 and max(several, default=1) > 1:
        inv = inv.take([0] * max(several))
    call = inv.whole_call
    if prompt is not None or any(not name.startswith("negative") for name in given if name.endswith("prompt_embeds")):
        call = call.with_prompt(prompt)
    call = call.like({**call, **given})
    call.check_prompt(call.get("prompt"))
    call.check_embeds()
    if copies is not None:
        rows = [i for i in range(call.batch) for _ in range(copies)]
        inv, call = inv.take(rows), call.part(rows)
    return inv, call.spread()


def _fresh(generator):
    """A copy of a stored generator, or of a list of them."""
    if isinstance(generator, (list, tuple)):
        return [one.clone_state() for one in generator]
    return None if generator is None else generator.clone_state()


def _begin(inv, schedule, edit_strength):
    """The evaluation with which an edit begins."""
    if edit_strength == 1:
        return schedule.first
    if not inv.trajectory:
        raise ValueError(
            "edit_strength: the inversion holds no trajectory; make it with invert(..., return_trajectory=True)"
        )
    if inv.trajectory[0].shape != inv.latents.shape:
        raise ValueError("edit_strength must be 1: the pipeline lays its states out otherwise than its latents")
    return schedule.begin(edit_strength)


def _mask(pipe, mask_image, inv):
    if inv.trajectory and inv.trajectory[0].shape != inv.latents.shape:
        raise ValueError(f"mask_image: {type(pipe).__name__} reorders its latents, so that a mask cannot be laid over them")
    return mask_like(pipe, mask_image, inv.latents, inv.call.get("height"), inv.call.get("width"))


class _Guide:
    """Sets the guidance of each evaluation."""

    def __init__(self, pipe, scales):
        self._pipe, self._given, self._scales = pipe, scales, [float(one) for one in scales]
        if max(self._scales, default=1) > 1:  # at 1 pipelines do without the empty prompt, and cannot do otherwise later
            self._scales = [max(one, 1 + 1e-6) if one >= 1 else one for one in self._scales]

    def begin(self, evaluations):
        if len(self._scales) != evaluations or not all(one >= 1 and np.isfinite(one) for one in self._scales):
            raise ValueError(
                f"guidance_scale must be a number, or {evaluations} of at least 1, one an evaluation, got {self._given!r}"
            )
        self._pipe._guidance_scale = self._scales[0]

    def evaluated(self, j):
        self._pipe._guidance_scale = self._scales[min(j + 1, len(self._scales) - 1)]


def _guide(pipe, call):
    """What sets the guidance of the next evaluation, where there is one for each; `call` gets the largest."""
    scale = call.get("guidance_scale")
    if scale is None or np.ndim(scale) == 0:
        return None
    if not guides_each_step(type(pipe)):
        raise ValueError(f"guidance_scale must be a number: {type(pipe).__name__} does not read it in each step")
    guide = _Guide(pipe, scale)
    call["guidance_scale"] = max([float(one) for one in scale], default=1.0)
    return guide


def _strength(pipe, call, inv, schedule, begin, given):
    """The share of the steps that is drawn, in the middle of the values that give that many."""
    if given is not None:
        return given
    if begin == inv.start and schedule.own and call.get("strength") is not None:
        return call["strength"]
    own = [call.get(name) for name in SCHEDULE[1:]]
    steps = next((len(one) for one in own if one is not None), None) or call.get(SCHEDULE[0])
    if steps is None:
        default = getattr(parameters(pipe).get(SCHEDULE[0]), "default", None)
        steps = default if isinstance(default, int) else -(-schedule.count // schedule.order)
    return min(1.0, (steps - begin / schedule.order + 0.5) / steps) if begin else 1.0


# ------------------------------------------------------------------------------------------------------------------ correct


@dataclass
class CorrectionOutput(BaseOutput):
    """An encoded image, moved to where the pipeline draws it for a prompt.

    latents [B, ...]: as `pipe(latents=...)` takes them, in its dtype.
    moved [B]: |corrected - encoded| / |encoded|.  held [B]: whether the trust radius has held the last round back.
    failed [B]: whether a round returned NaN and was left out.
    psnr_loss [B]: PSNR in dB that the decoded image has lost against the image; NaN where latents were given.
    nfe: network evaluations for each image.
    """

    latents: torch.Tensor
    moved: np.ndarray | None = None
    held: np.ndarray | None = None
    failed: np.ndarray | None = None
    psnr_loss: np.ndarray | None = None
    nfe: int = 0


@known_names
@without_gradients
@exclusively
def correct(
    pipe: Any,
    image: Any = None,
    /,
    prompt: str | list[str] | None = None,
    *,
    latents: Any = None,
    value_range: tuple[float, float] | None = None,
    background: Any = "white",
    strength: float = 0.05,
    rounds: int = 2,
    radius: float | None = 2.0,
    noise: str = "random",
    seed: int = 0,
    num_inference_steps: int | None = None,
    guidance_scale: float | None = None,
    generator: Any = None,
    order: str = "auto",
    **pipe_kwargs: "Unpack[InvertArguments]",
) -> CorrectionOutput:
    """Move an encoded image to where `pipe` draws it for its prompt; returns a `CorrectionOutput`.

    An image's latents come from an autoencoder that knows neither prompt nor guidance, and the pipeline may not draw them
    from any noise.  Each round adds the noise of the last `strength` of the steps and denoises it with the prompt and the
    guidance: what Samuel et al. call the prompt-aware adjustment of the encoding (arXiv 2312.12540v2, figure 3).  What is
    to be inverted then is the corrected image; how it differs from the image is in the output.  It is an inversion that
    stops before its first step.

    pipe, image, prompt, latents, value_range, background, num_inference_steps, guidance_scale, generator, **pipe_kwargs: as
    `invert` takes them; guidance and steps are those that the image will be drawn with.
    strength: above 0, at most 1; 0.05 are 2 of 50 steps.  At least one step is taken.  rounds: at least 1.
    radius: how far an image may be moved, in multiples of the autoencoder's own error |encode(decode(z)) - z|; None: as far
    as it goes.
    noise: "random" draws it with `seed`, "inverted" inverts the steps instead, one evaluation each, and draws nothing.
    order: "auto", "reversed" (one call of the pipeline) or "passes" (one for each round, for loops that read their index).

    Raises TypeError for a name that neither nrinv nor the pipeline knows, ValueError naming the argument for bad input, and
    for what cannot be inverted.
    """
    check_pipeline(pipe)
    correction = Correction(strength, rounds, radius, noise, seed, only=True)
    _check_correction(pipe, correction, order)
    given = {"prompt": prompt, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    reading = {"latents": latents, "value_range": value_range, "background": background}
    source, call = _read(pipe, image, reading, given, pipe_kwargs)
    driver = Driver(pipe, encode_source(pipe, source), call, generator, source.size)
    correction = _with_radii(correction, driver, driver.target)
    order = order if order != "auto" else "passes" if reads_index(type(pipe)) else "reversed"
    if order == "passes" and noise == "inverted":
        raise ValueError(
            "noise='inverted' visits the timesteps backwards: not with order='passes', nor with loops that may read "
            "their own index; use noise='random'"
        )
    outcome, scheduler = driver.drive(Task(Solver(predictor=False), {}, order=order, correction=correction))
    if isinstance(outcome, Unfollowed):
        raise ValueError(f"pipe: {driver.name}: its latents cannot be corrected: {outcome.why}")
    result = outcome.result
    corrected = scheduler.layout.latents(result.corrected, driver.target)
    return CorrectionOutput(
        latents=corrected,
        moved=result.moved,
        held=result.held,
        failed=result.failed > 0,
        psnr_loss=_psnr_loss(driver, source, corrected),
        nfe=result.evaluations + driver.evaluations - scheduler.fed,
    )


def _check_correction(pipe, given, order="auto"):
    _check_share("strength", given.strength)
    check_whole("rounds", given.rounds, 1)
    check_whole("seed", given.seed, 0)
    if given.radius is not None and not (given.radius >= 0 and np.isfinite(given.radius)):
        raise ValueError(f"radius must be None or a finite number of at least 0, got {given.radius!r}")
    _check_choice("noise", given.noise, CORRECTION_NOISES)
    _check_choice("order", order, ORDERS)
    if slices(pipe):
        raise ValueError(f"pipe: {type(pipe).__name__} takes a part of the steps itself; give the text-to-image pipeline")


def _with_radii(correction, driver, encoded):
    """The correction with its radius as norms [B], in multiples of the autoencoder's error in what is encoded."""
    if correction.radius is None:
        return correction
    own = round_trip_error(driver.pipe, encoded, driver.call.get("height"), driver.call.get("width"))
    return replace(correction, radius=correction.radius * own)


def round_trip_error(pipe, latents, height, width):
    """|encode(decode(z)) - z| of each of the latents, [B] float64: what the autoencoder itself cannot tell apart.

    Raises ValueError for pipelines without an autoencoder.
    """
    if autoencoder(pipe) is None:
        raise ValueError(f"radius must be None: {type(pipe).__name__} has no autoencoder to measure it by")
    again = encode_pixels(pipe, decode(pipe, latents, height=height, width=width) * 2 - 1)
    return norms(again.float() - latents.float())


def _psnr_loss(driver, source, corrected):
    """[B] dB that the correction costs the decoded image; NaN where latents were given."""
    pipe, call = driver.pipe, driver.call
    if source.encoded:
        return np.full(len(source), np.nan)
    image, size = ((source.tensor.float() + 1) / 2).cpu(), {"height": call.get("height"), "width": call.get("width")}
    before, after = (psnr(decode(pipe, z, **size).cpu(), image) for z in (driver.target, corrected))
    return np.array(before) - np.array(after)
