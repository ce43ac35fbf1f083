"""The scheduler that takes the place of a pipeline's own while an image is inverted.

A stock pipeline asks its scheduler for timesteps, hands every network output to `step` and goes on from the sample that
comes back.  InverseScheduler answers with the points where the solver wants the network evaluated; the pipeline's own
`__call__` does everything else.

There are two orders of driving a pipeline:

    reversed    its loop visits the timesteps from the image to the noise, each as often as the solver wants
    passes      its loop runs as it always does, again and again; each run evaluates a whole trajectory

The first takes fewer evaluations; the second one is for loops that read their own index or take a slice of the timesteps.
The rounds of the prompt-aware correction come before, in the order of the sampler.
"""

import copy

import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from .derived import Derived, Done, Left, Relayout, Repeat, Slice, Unfollowed
from .known import STEP_ARGUMENTS, slices, step_signature
from .layout import Layout, proportion
from .plan import Plan


class InverseScheduler(Derived):
    """A scheduler under which a pipeline called with `latents=` finds the noise z_T instead of drawing an image.

    A call ends with `Left`, whose outcome says what is to happen next, or it returns: then `returned` says it.  The driver
    repeats the call until the outcome is `Done`, with the `Result` of the machine, or `Unfollowed`.

    scheduler: the pipeline's own.  target: z_0.  latents: the very tensor that the pipeline is given.  When the timesteps
    are set it is overwritten by where the first evaluation is to take place.  task: how to invert.  layout, part: what an
    earlier call has shown of the pipeline's `Layout`, and of the evaluations (start, stop) that its loop takes.

    Noise of stochastic schedulers is drawn from the generator given to the pipeline, in the order in which the pipeline
    itself will draw it.  Afterwards: `plan`, `noises`, `layout`; `fed`, how many evaluations the machine has taken; and, if
    the task says so, `observed`: for each evaluation of the sampler the last sample [B, ...] and what was answered.

    Raises ValueError, before the first network evaluation, for what a `Plan` refuses; after it, if "newton" finds a network
    without gradient, or if the pipeline changes its latents between the steps.
    """

    def __init__(self, scheduler, pipe, target, latents, task, *, layout=None, part=None):
        super().__init__(copy.deepcopy(scheduler))
        self._signature = step_signature(type(scheduler))
        self._pipe, self._target, self._latents, self._task = pipe, target.detach().clone(), latents, task
        self.driving, self._passes, self._part = task.order, task.passes, part
        self.layout, self.machine, self.fed, self.observed = layout, None, 0, {}

    def __deepcopy__(self, memo):
        raise ValueError("pipe: the pipeline steps copies of its scheduler, for several states, and cannot be inverted")

    # ------------------------------------------------------------------------------------------- what the pipeline reads

    @property
    def init_noise_sigma(self):
        self._scaled = True
        return 1.0

    @property
    def order(self):
        """Evaluations per step of the pipeline's progress bar."""
        if self._passes:
            return getattr(self._inner, "order", 1)
        steps = self._inner.num_inference_steps
        return max(1, round(len(self.timesteps) / steps)) if steps else 1

    @property
    def sigmas(self):
        # A loop that reads them takes them by its index, which means nothing in the reversed order.
        if not self._passes and self.machine is not None:
            self.leave("its loop reads the scheduler's sigmas by its own index")
        return self._inner.sigmas

    @sigmas.setter
    def sigmas(self, value):
        self._inner.sigmas = value

    @property
    def active(self):
        """The samples the present evaluation is for, bool [B]; None for all."""
        return None if self.machine is None else self._request.active

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        vars(self).pop("sigmas", None)
        self._evaluation = 0
        if self.machine is None:
            self._prepare()
        self.timesteps = self.plan.timesteps(self._request)

    def scale_model_input(self, sample, timestep=None):
        return sample if self._request.scale == 1 else sample * self._request.scale

    def _start_state(self):
        return self._latents if slices(self._pipe) and self._evaluation == 0 else None

    def step(self, *args, **kwargs):
        self.check_alone()
        given = self._signature.bind(*args, **kwargs).arguments
        self.stepped += 1
        if self.machine is None:
            self._begin(given)
        self._check_due(given)
        if self._task.observe and not self._request.correcting and self._request.cotangent is None:
            self._observe(given["sample"], given["model_output"])
        self.machine.feed(given["model_output"].detach())
        self.fed += 1
        self._evaluation += 1
        self._ask(given)
        if self._passes and self._request.index == 0:
            self._move(self.layout.latents(self._sample, self._target))
            raise Left(Repeat())
        # The second entry stands for the denoised sample that some schedulers return.
        return SchedulerOutput(prev_sample=self._sample) if given.get("return_dict", True) else (self._sample,) * 2

    # ---------------------------------------------------------------------------------------------- what the driver reads

    @property
    def stock_sigma(self):
        """What the pipeline would multiply the latents by that it is given."""
        return float(self._inner.init_noise_sigma) if self._scaled else 1.0

    def returned(self):
        """The outcome of a call of the pipeline that has returned instead of leaving its loop."""
        done = self._evaluation if self.machine is not None else 0
        if not self._passes:
            return Unfollowed("its loop ended before the inversion was done")
        if done == 0:
            return Unfollowed("it never steps its scheduler")
        if self._request.correcting:
            return Unfollowed("its loop takes only some of the timesteps, which cannot be corrected")
        if self._part is not None and self._part[1] is not None:
            return Unfollowed("its loop is not always of the same length")
        return Slice(self.plan.start, self.plan.start + done)

    def leave(self, why):
        """The order does not suit the pipeline: end its call."""
        raise Left(Unfollowed(why))

    # ------------------------------------------------------------------------------------------------------- preparations

    def _prepare(self):
        """Everything that can be known, and refused, before the loop begins."""
        self._scaled = False
        self.plan = Plan(self._inner, self._task, self._part)
        self._request = self.plan.first
        layout = self.layout or Layout()
        self._move(layout.latents(self.plan.first_sample(layout.sample(self._target)), self._target))

    def _move(self, start):
        with torch.no_grad():
            self._latents.copy_(start)

    # ------------------------------------------------------------------------------------------------------ the evaluations

    def _begin(self, given):
        output, parameters, sample = given["model_output"], self._signature.parameters, given["sample"].detach()
        options = {name: value for name, value in given.items() if name not in STEP_ARGUMENTS}
        options = {
            name: value for name, value in options.items() if torch.is_tensor(value) or value != parameters[name].default
        }
        taken = None if self._passes else getattr(self._pipe, "_num_timesteps", None)
        if taken is not None and not self.plan.longest <= taken <= len(self.timesteps):
            self.leave(f"its loop takes {taken} of {len(self.timesteps)} timesteps")
        part = self._find_part(given["timestep"])
        if part is not None or options or self.plan.outdated():
            self._part = part or self._part
            self.plan = Plan(self._inner, self._task, self._part, options)
        if self.layout is None:
            self.layout = self._learn(sample)
        target = self.layout.sample(self._target).to(sample)
        self.machine, self.noises = self.plan.open(target, sample.to(output.dtype), given.get("generator"))
        self._restarted = False
        self._ask(given)

    def _find_part(self, timestep):
        """Which part of the timesteps a loop has taken that begins later than they do; None if it does not."""
        timestep = _number(timestep)
        if not self._passes or timestep == self._request.timestep:
            return None
        places = [k for k, t in enumerate(self._inner.timesteps) if float(t) == timestep]
        if not places or self._request.correcting:
            self.leave(f"it evaluated timestep {timestep}, which its scheduler has not, or not there")
        begin = getattr(self, "_begin_index", None)  # some schedulers visit a timestep twice
        return begin if begin in places else places[0], None

    def _learn(self, sample):
        """The layout, if the sample is the latents the pipeline was given, or these before they were overwritten."""
        for start in (self._latents, self._target):
            scale = proportion(start.detach(), sample)
            if scale is not None:
                return Layout(scale)
        raise Left(Relayout())

    def _check_due(self, given):
        """Whether the network has been evaluated where it was asked to; once, the loop may begin elsewhere."""
        timestep, sample = _number(given["timestep"]), given["sample"]
        if timestep != self._request.timestep:
            self.leave(f"it evaluated timestep {timestep} where {self._request.timestep} was due")
        first = self._evaluation == 0
        due = proportion(self._sample, sample) == 1 if first else torch.equal(sample, self._sample.to(sample.dtype))
        if first and not due and not self._restarted:
            self._restarted = True
            self._move(self.layout.latents(self._sample, self._target))
            raise Left(Repeat())
        if not due:
            raise ValueError(
                "pipe: the pipeline, or a callback, changes the latents between its steps (as 4-channel inpainting "
                "does): that is no longer its scheduler's sampler and cannot be inverted"
            )
        self._restarted = False

    def _observe(self, *seen):
        last = self.observed.setdefault(self._request.index, [one.detach().clone() for one in seen])
        active = self._request.active
        for kept, one in zip(last, seen, strict=True) if active is not None else ():
            kept[active] = one.detach()[active]

    def _ask(self, given):
        """Fetch the next request and tell the pipeline, which is iterating over `timesteps`, where it will be evaluated."""
        self._request = self.machine.next()
        if self._request is not None and self._request.cotangent is not None:
            self.machine.feed(_pull_back(given["model_output"], given["sample"], self._request.cotangent))
            self._request = self.machine.next()
        if self._request is None:
            result = self.machine.result()
            self.noises = result.noises or self.noises
            raise Left(Done(result))
        self._sample = self._request.sample
        self._sample.requires_grad_(self._request.wants_gradient)
        if not self._passes:
            self.timesteps[self._evaluation] = self._request.timestep


def _number(timestep):
    return float(timestep.reshape(-1)[0] if torch.is_tensor(timestep) else timestep)


def _pull_back(model_output, sample, cotangent):
    """J^T v, J the Jacobian of the network's output in the sample; frees the graph."""
    product = None
    if model_output.requires_grad and sample.requires_grad:
        product = torch.autograd.grad(model_output, sample, cotangent.to(model_output), allow_unused=True)[0]
    if product is None:
        raise ValueError(
            "solver: 'newton' needs the gradient of the network's output, which has none (a quantised network, one compiled "
            "without gradients, a call under torch.no_grad or inference_mode); use solver='auto'"
        )
    return product
