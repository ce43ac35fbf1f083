"""The scheduler that takes the place of a pipeline's own while an image is inverted.

A stock pipeline asks its scheduler for timesteps, hands every network output to `step` and goes on from the sample that
comes back.  InverseScheduler answers with the points where the solver wants the network evaluated; the pipeline's own
`__call__` does everything else.  It is a copy of the scheduler it is made from, of a class derived from its class, so that
configuration, signatures and `isinstance` are what the pipeline expects.

There are two orders of driving a pipeline:

    reversed    its loop visits the timesteps from the image to the noise, each as often as the solver wants
    passes      its loop runs as it always does, again and again; each run evaluates a whole trajectory

The first takes fewer evaluations; the second one is for loops that read their own index or take a slice of the timesteps.
"""

import copy
import functools
import inspect
import math

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput

from ._C import Inversion
from .sampler import draw_noises, natural_guess, read_sampler, start_at

ORDERS = ("auto", "reversed", "passes")
# A sampler this short takes long steps: they need more evaluations, and it can afford them.
FEW_STEPS = 8
FEW_STEPS_MAX_NFE, MAX_NFE = 4, 3
# A sampler that remembers older network outputs: cheap sweeps, corrected; 8 evaluations per step in all.
MULTISTEP_MAX_NFE, MULTISTEP_REFINE = 1, 3
# Whole passes move all states at once, and what one step learns takes a pass to reach the next.
PASSES_MAX_NFE = 20
# What not every scheduler has.  `scale_model_input` is not among them: Bria calls it on any class but one.
OPTIONAL_METHODS = ("add_noise", "scale_noise", "set_begin_index")
# What `step` is given in every call; all else changes the sampler.
STEP_ARGUMENTS = ("model_output", "timestep", "sample", "generator", "return_dict")


class Finished(BaseException):
    """Ends the pipeline's loop before its time.  Not an Exception, so that no handler in between takes it."""


def solver_options(sampler, *, order="reversed", max_nfe=None, refine=None, **options):
    """The options of `Inversion` with the defaults filled in that depend on the sampler and the order."""
    if order == "passes":
        # Passes know all of a sampler's memory and need no rounds of correction: these are as many passes.
        if refine:
            max_nfe = (refine + 1) * ((max_nfe or MULTISTEP_MAX_NFE) + 1)
        return dict(order=order, max_nfe=max_nfe or PASSES_MAX_NFE, refine=0, **options)
    if refine is None:
        refine = 0 if sampler.first_order else MULTISTEP_REFINE
    if max_nfe is None:
        if not sampler.first_order:
            max_nfe = MULTISTEP_MAX_NFE
        else:
            max_nfe = FEW_STEPS_MAX_NFE if len(sampler) <= FEW_STEPS else MAX_NFE
    return dict(order=order, max_nfe=max_nfe, refine=refine, **options)


def first_evaluation(scheduler, strength):
    """The evaluation at which a run over the last `strength` of the steps begins, as in img2img pipelines."""
    if strength == 1:  # some schedulers with timesteps of the user's own do not know how many steps they are
        return 0
    steps = int(scheduler.num_inference_steps)
    return max(steps - min(int(steps * strength), steps), 0) * int(getattr(scheduler, "order", 1))


def closeness(dtype):
    """How far apart two vectors may be, relative to their norms, that differ by rounding to dtype alone."""
    return max(4 * torch.finfo(dtype).eps, 1e-5)


def proportion(start, sample):
    """c with sample = c start up to rounding, exactly 1 where it is that; None if there is none."""
    if start.shape != sample.shape:
        return None
    if torch.equal(start, sample.to(start.dtype)):
        return 1.0
    a, b = start.detach().flatten().double(), sample.detach().flatten().double()
    c = float(a @ b / (a @ a)) if float(a @ a) > 0 else 0.0
    limit = closeness(sample.dtype)
    if not c > 0 or float((b - c * a).norm()) > limit * float(b.norm()):
        return None
    return 1.0 if abs(c - 1) <= limit else c


class Layout:
    """How a pipeline turns its `latents=` [B, ...] into the sample [B, ...] its scheduler steps: scale, pick, reorder.

    index: for each element of the sample its place in the latents; None if all are in place.
    """

    def __init__(self, scale=1.0, index=None, shape=None):
        self.scale, self.index, self.shape = scale, index, shape

    def sample(self, latents):
        """The sample that `latents` would be at the end of the loop, where nothing is scaled."""
        if self.index is None:
            return latents
        picked = latents.flatten(1)[:, self.index.to(latents.device)]
        return picked.reshape(latents.shape[0], *self.shape)

    def latents(self, sample, like):
        """`latents=` from which the loop starts at `sample`; what it does not step is that of `like`."""
        sample = sample / self.scale
        if self.index is None:
            return sample.to(like)
        whole = like.detach().clone()
        whole.view(whole.shape[0], -1)[:, self.index.to(whole.device)] = sample.flatten(1).to(whole)
        return whole


def _absent(name):
    def lookup(self):
        raise AttributeError(name)

    return property(lookup)


@functools.cache
def _derive(cls, scheduler_class):
    """`cls` on top of scheduler_class, with the latter's signatures: pipelines look at them to decide what to pass."""

    def with_signature(name):
        method = getattr(cls, name)

        @functools.wraps(method)
        def call(self, *args, **kwargs):
            return method(self, *args, **kwargs)

        call.__signature__ = inspect.signature(getattr(scheduler_class, name))
        return call

    members = {name: with_signature(name) for name in ("step", "set_timesteps") if hasattr(cls, name)}
    # Pipelines also look at which methods there are.
    members.update({name: _absent(name) for name in OPTIONAL_METHODS if not hasattr(scheduler_class, name)})
    return type(cls.__name__, (cls, scheduler_class), {**members, "__module__": cls.__module__})


class Derived:
    """A copy of a scheduler with some of its methods replaced."""

    def __new__(cls, scheduler=None, *args, **kwargs):
        return object.__new__(cls if scheduler is None else _derive(cls, type(scheduler)))

    def __init__(self, inner):
        self._inner = inner
        self.__dict__.update(vars(copy.deepcopy(inner)))

    def set_timesteps(self, *args, **kwargs):
        self._inner.set_timesteps(*args, **kwargs)
        self.__dict__.update(vars(copy.deepcopy(self._inner)))


class InverseScheduler(Derived):
    """A scheduler under which a pipeline called with `latents=z_0` finds the noise z_T instead of drawing an image.

        pipe.scheduler = nrinv.InverseScheduler(pipe.scheduler)
        noise = pipe(prompt, latents=z_0, output_type="latent").images

    options: those of `Inversion` (`solver`, `max_nfe`, `tol`, `refine`, ...); the defaults of max_nfe and refine depend on
    the sampler.  strength: invert the last part of the steps only.
    solver="newton" needs gradients: run the pipeline's call undecorated, under torch.enable_grad().

    latents: z_0, the very tensor the pipeline is given.  When its timesteps are set it is overwritten by the natural guess
    (`natural_guess`, with `seed`) at which the first evaluation is to take place; without it that is z_0 itself.

    unwind: whoever calls the pipeline, with `latents`, takes `Finished`, which leaves the loop, and repeats the call until
    there is a `result`, or it is `unfollowed`; `call_ended` is for calls that return.  order: "reversed" or, with unwind,
    "passes".  layout: what is known of the pipeline's `Layout`.  sliced: the pipeline takes its part of the timesteps itself
    and starts from `add_noise`, as img2img pipelines do.

    Noise of stochastic schedulers is drawn from the generator given to the pipeline, in the order in which the pipeline
    itself will draw it.  After the call: `result` (see `Result`), `sampler`, `noises`, and `scaled`, whether the pipeline
    multiplies the latents it is given by `init_noise_sigma`.

    Raises ValueError, before the first network evaluation, if the scheduler is not linear, if a step of it cannot be
    inverted, or for an option out of range; after it, if "newton" finds a network without gradient, or if the pipeline
    changes its latents between the steps.
    """

    def __init__(
        self,
        scheduler,
        *,
        strength=1.0,
        order="reversed",
        unwind=False,
        sliced=False,
        latents=None,
        layout=None,
        seed=0,
        **options,
    ):
        super().__init__(copy.deepcopy(scheduler))
        self._signature = inspect.signature(scheduler.step)
        self._options = {"order": order, **options}
        self.driving, self._passes = order, order == "passes"
        self._strength = strength
        self._unwind = unwind
        self._sliced = sliced
        self._seed = seed
        self._target = None if latents is None else latents.detach().clone()
        self._latents = latents
        self._slice = None
        self.layout = layout
        self.result = self.inversion = self.unfollowed = None
        self.unlaid = False
        self.loop_length = lambda: None  # how many timesteps the loop takes, if the driver can know
        self.spent = 0  # evaluations that were of no use

    def __deepcopy__(self, memo):
        if self._unwind:
            raise ValueError("pipe: the pipeline steps copies of its scheduler, for several states, and cannot be inverted")
        if "sampler" in vars(self):
            memo[id(self.sampler)] = self.sampler  # never changes; both may read it
        clone = object.__new__(type(self))
        vars(clone).update(copy.deepcopy(vars(self), memo))
        return clone

    # ------------------------------------------------------------------------------------------- what the pipeline reads

    @property
    def init_noise_sigma(self):
        self.scaled = True
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
        if self._unwind and not self._passes and self.inversion is not None and self.result is None:
            self.leave("its loop reads the scheduler's sigmas by its own index")
        return self._inner.sigmas

    @sigmas.setter
    def sigmas(self, value):
        self._inner.sigmas = value

    @property
    def active(self):
        """The samples the present evaluation is for, bool [B]; None for all."""
        return None if self.inversion is None or self._request is None else getattr(self._request, "active", None)

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        vars(self).pop("sigmas", None)
        self._evaluation = 0
        if self.result is not None:  # by hand: the next image
            self.result = self.inversion = None
        if self.inversion is None:
            self._prepare()
        self.timesteps = self._order_timesteps()

    def scale_model_input(self, sample, timestep=None):
        scale = self.sampler.inputs[self._index]
        return sample if scale == 1 else sample * scale

    def add_noise(self, original_samples, *args, **kwargs):
        if not self._starts():
            return self._inner.add_noise(original_samples, *args, **kwargs)
        return self._inject(original_samples)

    def scale_noise(self, sample, *args, **kwargs):
        return self._inject(sample) if self._starts() else self._inner.scale_noise(sample, *args, **kwargs)

    def _starts(self):
        """Whether noise is asked for by an img2img pipeline that is about to begin its loop there."""
        return self._sliced and self._evaluation == 0

    def _inject(self, sample):
        return self._latents.detach().reshape(sample.shape).to(sample)

    def step(self, *args, **kwargs):
        given = self._signature.bind(*args, **kwargs).arguments
        if self.result is None:
            self._advance(given)
        sample = self._sample if self.result is None else self.result.latents.to(given["sample"].dtype)
        if self._unwind and (self.result is not None or (self._passes and self._evaluation == len(self.sampler))):
            raise Finished
        # The second entry stands for the denoised sample that some schedulers return.
        return SchedulerOutput(prev_sample=sample) if given.get("return_dict", True) else (sample, sample)

    # ---------------------------------------------------------------------------------------------- what the driver reads

    def call_ended(self):
        """The pipeline's call has returned without `Finished`."""
        done = self._evaluation if self.inversion is not None else 0
        if not self._passes:
            self.unfollowed = "its loop ended before the inversion was done"
        elif done == 0:
            self.unfollowed = "it never steps its scheduler"
        elif self._slice is not None and self._slice[1] is not None:
            self.unfollowed = "its loop is not always of the same length"
        else:  # it takes only some of the timesteps
            self.spent += done
            self._slice = (self.start, self.start + done)
            self.inversion = None

    def leave(self, why):
        """The order does not suit the pipeline: end its call, if there is a driver that can repeat it."""
        if not self._unwind:
            raise RuntimeError(f"the pipeline cannot be inverted by hand, {why}: use nrinv.invert")
        self.unfollowed = why
        raise Finished

    # ------------------------------------------------------------------------------------------------------- preparations

    def _prepare(self):
        own = first_evaluation(self._inner, self._strength)
        self._own = own
        self.start, self.stop = self._slice or (own, None)
        if self.start >= len(self._inner.timesteps):
            steps = self._inner.num_inference_steps
            raise ValueError(f"strength must cover at least one of {steps} steps, got {self._strength!r}")
        self.scaled = False
        self.noises = []
        self._request = None
        self._read({})
        self._longest = self._rehearse()
        self._index = int(self._expected()[0])
        if self._latents is not None:
            layout = self.layout or Layout()
            self._move(layout.latents(self._first(layout.sample(self._target)), self._target))

    def _rehearse(self):
        """How many evaluations there may be; refuses what cannot be inverted."""
        dry = np.zeros((1, 1), np.float32)
        return self._open(dry, [dry] * self.sampler.num_noises).max_evaluations

    def _expected(self):
        """The steps of the evaluations, as far as they can be told before."""
        steps = torch.arange(len(self.sampler))
        if self._passes:
            return steps
        return steps.flip(0).repeat_interleave(-(-self._longest // len(self.sampler)))[: self._longest]

    def _first(self, target):
        """The sample of the first evaluation."""
        if self._passes:
            return target / self.sampler.states[-1][0]
        guess = self._guess(target)
        return target if guess is None else guess

    def _order_timesteps(self):
        stock = start_at(self._inner, self._own)
        if self._passes:
            return stock
        order = self._expected()
        # Some schedulers end with a timestep that is only the end of the last step; their pipelines leave it out.
        ends = len(stock) - len(self.sampler) if self._slice is None else 0
        self._iterated = self._longest
        order = torch.cat([order, order.new_zeros(ends)])
        timesteps = stock[order.to(stock.device)]
        if self.inversion is not None:
            timesteps[0] = self._request.timestep
        return timesteps

    def _guess(self, target):
        """Where the first step is to start; None: at the target itself."""
        if self._passes or not self._solver.get("predictor", True):  # passes were seen to do as well without, or better
            return None
        return natural_guess(self.sampler, target, self._seed)

    def _move(self, start):
        with torch.no_grad():
            self._latents.copy_(start)

    def _read(self, step_kwargs):
        self._step_kwargs = step_kwargs
        self._sigmas = copy.deepcopy(getattr(self._inner, "sigmas", None))
        self.sampler = read_sampler(self._inner, start=self.start, stop=self.stop, step_kwargs=step_kwargs)
        self._solver = solver_options(self.sampler, **self._options)

    # ------------------------------------------------------------------------------------------------------ the evaluations

    def _advance(self, given):
        if self.inversion is None:
            self._begin(given)
        timestep = _number(given["timestep"])
        if timestep != self._request.timestep:
            self.leave(f"it evaluated timestep {timestep} where {self._request.timestep} was due")
        if not self._is_due(given["sample"]):
            if self._evaluation > 0 or not self._unwind or self._restarted:
                raise ValueError(
                    "pipe: the pipeline, or a callback, changes the latents between its steps (as 4-channel inpainting "
                    "does): that is no longer its scheduler's sampler and cannot be inverted"
                )
            self._restarted = True
            self.spent += 1
            self._move(self.layout.latents(self._sample, self._target))
            raise Finished
        self._restarted = False
        self.inversion.feed(given["model_output"].detach())
        self._evaluation += 1
        self._ask(given)
        if self._request is None:
            self.result = self.inversion.result()
            self.noises = getattr(self.result, "noises", None) or self.noises
        elif self._passes and self._evaluation == len(self.sampler):
            self._move(self.layout.latents(self._sample, self._target))

    def _is_due(self, sample):
        """Whether the network has been evaluated where it was asked to."""
        if self._evaluation == 0:
            return proportion(self._sample, sample) == 1
        return torch.equal(sample, self._sample.to(sample.dtype))

    def _begin(self, given):
        output, parameters, sample = given["model_output"], self._signature.parameters, given["sample"].detach()
        options = {name: value for name, value in given.items() if name not in STEP_ARGUMENTS}
        options = {
            name: value for name, value in options.items() if torch.is_tensor(value) or value != parameters[name].default
        }
        taken = None if self._passes else self.loop_length()
        if taken is not None and not self._iterated <= taken <= len(self.timesteps):
            self.leave(f"its loop takes {taken} of {len(self.timesteps)} timesteps")
        self._find_slice(given["timestep"])
        if options or not _same(self._sigmas, getattr(self._inner, "sigmas", None)):  # Cosmos changes them in place
            self._read(options)
        if self.layout is None:
            self.layout = self._learn(sample)
        self.noises = self._draw(sample.to(output.dtype), given.get("generator"))
        target = sample if self._target is None else self.layout.sample(self._target).to(sample)
        guess = None if self._target is None else self._guess(target)
        if guess is not None and proportion(guess, sample) == 1:
            guess = sample
        elif not self._unwind:  # a pipeline that has copied its latents before it set its timesteps
            guess = None
        self.inversion = self._open(target, [noise.to(torch.float32) for noise in self.noises], guess=guess)
        self._restarted = False
        self._ask(given)

    def _draw(self, sample, generator):
        """The noises that the sampler will draw."""
        return draw_noises(
            self._inner, sample, start=self.start, stop=self.stop, generator=generator, step_kwargs=self._step_kwargs
        )

    def _find_slice(self, timestep):
        """A loop that begins later than the scheduler's timesteps do has taken a slice of them."""
        timestep = _number(timestep)
        if not self._passes or timestep == self.sampler.timesteps[0]:
            return
        places = [k for k, t in enumerate(self._inner.timesteps) if float(t) == timestep]
        if not places:
            self.leave(f"it evaluated timestep {timestep}, which its scheduler has not")
        begin = getattr(self, "_begin_index", None)  # some schedulers visit a timestep twice
        self.start = begin if begin in places else places[0]
        self._slice = (self.start, None)
        self._read(self._step_kwargs)

    def _learn(self, sample):
        """The layout, if the sample is the latents the pipeline was given, or these before they were overwritten."""
        if self._target is None:
            return Layout()
        for start in (self._latents, self._target):
            scale = proportion(start.detach(), sample)
            if scale is not None:
                return Layout(scale)
        self.unlaid = True
        raise Finished

    def _open(self, target, noises, **options):
        return Inversion(self.sampler, target, noises=noises, **options, **self._solver)

    def _ask(self, given):
        """Fetch the next request and tell the pipeline, which is iterating over `timesteps`, where it will be evaluated."""
        self._request = self.inversion.next()
        if self._request is not None and self._request.cotangent is not None:
            self.inversion.feed(_pull_back(given["model_output"], given["sample"], self._request.cotangent))
            self._request = self.inversion.next()
        if self._request is not None:
            self._sample, self._index = self._request.sample, self._request.index
            self._sample.requires_grad_(self._request.wants_gradient)
            if not self._passes:
                self.timesteps[self._evaluation] = self._request.timestep


def _number(timestep):
    return float(timestep.reshape(-1)[0] if torch.is_tensor(timestep) else timestep)


def _same(a, b):
    return a is None or (len(a) == len(b) and bool((torch.as_tensor(a) == torch.as_tensor(b)).all()))


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


class LayoutProbe(Derived):
    """A scheduler that sees what a pipeline makes of its `latents=` and leaves the loop at the first step."""

    def __init__(self, scheduler, latents):
        super().__init__(copy.deepcopy(scheduler))
        self.latents, self.sample = latents, None

    @property
    def init_noise_sigma(self):
        return 1.0

    def scale_model_input(self, sample, timestep=None):
        return sample

    def add_noise(self, original_samples, *args, **kwargs):
        return self.latents.reshape(original_samples.shape).to(original_samples)

    scale_noise = add_noise

    def step(self, *args, **kwargs):
        self.sample = inspect.signature(self._inner.step).bind(*args, **kwargs).arguments["sample"].detach()
        raise Finished


def learn_layout(scheduler, latents, call):
    """The `Layout` of a pipeline that reorders `latents` [B, ...]; call(scheduler, latents) runs it until `Finished`.

    Each element is given its own number, in as many digits, and calls, as the dtype can tell apart.
    Raises ValueError if the sample the pipeline steps is not made of these numbers.
    """
    count, batch = latents[0].numel(), latents.shape[0]
    base = int(2 / torch.finfo(latents.dtype).eps)
    index = torch.zeros(1, dtype=torch.int64)
    for digit in range(max(1, math.ceil(math.log(count, base)))):
        codes = (torch.arange(count) // base**digit % base).reshape(1, *latents.shape[1:])
        codes = codes.expand(batch, *latents.shape[1:]).to(latents).contiguous()
        probe = LayoutProbe(scheduler, codes)
        call(probe, codes)
        found = None if probe.sample is None else probe.sample.double().cpu()
        if found is None or found.shape[0] != batch or bool((found != found.round()).any() | (found < 0).any()):
            raise ValueError(
                "pipe: the sample its scheduler steps is not made of the latents it is given alone, which cannot be inverted"
            )
        index = index + found[0].flatten().long() * base**digit
    if int(index.max()) >= count or len(index.unique()) != len(index):
        raise ValueError("pipe: its scheduler does not step each of the latents once, which cannot be inverted")
    return Layout(index=index, shape=tuple(found.shape[1:]))
