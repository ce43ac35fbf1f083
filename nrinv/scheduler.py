"""Schedulers that take the place of a pipeline's own: one inverts, one replays recorded noise.

A stock pipeline asks its scheduler for timesteps, hands every network output to `step` and goes on from the sample that
comes back.  InverseScheduler answers with the points where the solver wants the network evaluated; the pipeline's own
`__call__` does everything else.  Both are copies of the scheduler they are made from, of a class derived from its class,
so that configuration, signatures and `isinstance` are what the pipeline expects.
"""

import copy
import functools
import inspect

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from diffusers.utils.torch_utils import randn_tensor

from ._C import Inversion
from .sampler import natural_guess, read_sampler, start_at, with_noise

# A sampler this short takes long steps: they need more evaluations, and it can afford them.
FEW_STEPS = 8
FEW_STEPS_MAX_NFE, MAX_NFE = 4, 3
# A sampler that remembers older network outputs: cheap sweeps, corrected; 8 evaluations per step in all.
MULTISTEP_MAX_NFE, MULTISTEP_REFINE = 1, 3
# What `step` is given in every call; all else changes the sampler.
STEP_ARGUMENTS = ("model_output", "timestep", "sample", "generator", "return_dict")


class Finished(BaseException):
    """Ends the pipeline's loop when the inversion is done.  Not an Exception, so that no handler in between takes it."""


def solver_options(sampler, *, max_nfe=None, refine=None, **options):
    """The options of `Inversion` with the defaults filled in that depend on the sampler."""
    if refine is None:
        refine = 0 if sampler.first_order else MULTISTEP_REFINE
    if max_nfe is None:
        if not sampler.first_order:
            max_nfe = MULTISTEP_MAX_NFE
        else:
            max_nfe = FEW_STEPS_MAX_NFE if len(sampler) <= FEW_STEPS else MAX_NFE
    return dict(max_nfe=max_nfe, refine=refine, **options)


def first_evaluation(scheduler, strength):
    """The evaluation at which a run over the last `strength` of the steps begins, as in img2img pipelines."""
    steps = int(scheduler.num_inference_steps)
    return max(steps - min(int(steps * strength), steps), 0) * int(getattr(scheduler, "order", 1))


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

    members = {name: with_signature(name) for name in ("step", "set_timesteps") if name in vars(cls)}
    return type(cls.__name__, (cls, scheduler_class), {**members, "__module__": cls.__module__})


class _Derived:
    """A copy of a scheduler with some of its methods replaced."""

    def __new__(cls, scheduler=None, *args, **kwargs):
        return object.__new__(cls if scheduler is None else _derive(cls, type(scheduler)))

    def __init__(self, inner):
        self._inner = inner
        self.__dict__.update(vars(copy.deepcopy(inner)))

    def set_timesteps(self, *args, **kwargs):
        self._inner.set_timesteps(*args, **kwargs)
        self.__dict__.update(vars(copy.deepcopy(self._inner)))


class InverseScheduler(_Derived):
    """A scheduler under which a pipeline called with `latents=z_0` finds the noise z_T instead of drawing an image.

        pipe.scheduler = nrinv.InverseScheduler(pipe.scheduler)
        noise = pipe(prompt, latents=z_0, output_type="latent").images

    options: those of `Inversion` (`solver`, `max_nfe`, `tol`, `refine`, ...); the defaults of max_nfe and refine depend on
    the sampler.  strength: invert the last part of the steps only.  unwind: leave the pipeline's loop by raising
    `Finished` as soon as the inversion is done, instead of repeating the result until the loop ends.
    latents: z_0, the very tensor the pipeline is given.  When its timesteps are set it is overwritten by the natural guess
    (`natural_guess`, with `seed`) at which the first evaluation is to take place; without it that is z_0 itself.
    solver="newton" needs gradients: run the pipeline's call undecorated, under torch.enable_grad().

    Noise of stochastic schedulers is drawn from the generator given to the pipeline, in the order in which the pipeline
    itself will draw it.  After the call: `result` (see `Result`), `sampler`, `noises`, and `scaled`, whether the pipeline
    multiplies the latents it is given by `init_noise_sigma`.

    Raises ValueError, before the first network evaluation, if the scheduler is not linear, if a step of it cannot be
    inverted, or for an option out of range; after it, if "newton" finds a network without gradient.
    """

    def __init__(self, scheduler, *, strength=1.0, unwind=False, latents=None, seed=0, **options):
        super().__init__(copy.deepcopy(scheduler))
        self._signature = inspect.signature(scheduler.step)
        self._options = options
        self._strength = strength
        self._unwind = unwind
        self._latents, self._seed = latents, seed
        self._target = None if latents is None else latents.detach().clone()
        self._moved = False
        self.result = self.inversion = None

    @property
    def init_noise_sigma(self):
        self.scaled = True
        return 1.0

    @property
    def order(self):
        """Evaluations per step of the pipeline's progress bar."""
        steps = self._inner.num_inference_steps
        return max(1, round(len(self.timesteps) / steps)) if steps else 1

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.start = first_evaluation(self._inner, self._strength)
        if self.start >= len(self._inner.timesteps):
            steps = self._inner.num_inference_steps
            raise ValueError(f"strength must cover at least one of {steps} steps, got {self._strength!r}")
        self.scaled = False
        self.result = self.inversion = None
        self.noises = []
        self._evaluation = 0
        self._read({})
        self._move_to_guess()
        # A dry start of the solver: refuses what cannot be inverted, and knows how long the loop may get.
        dry = np.zeros((1, 1), np.float32)
        longest = self._open(dry, [dry] * self.sampler.num_noises).max_evaluations
        order = torch.arange(len(self.sampler)).flip(0).repeat_interleave(-(-longest // len(self.sampler)))[:longest]
        self.timesteps = start_at(self._inner, self.start)[order.to(self._inner.timesteps.device)]
        self._index = len(self.sampler) - 1

    def _move_to_guess(self):
        guess = None if self._target is None else natural_guess(self.sampler, self._target, self._seed)
        self._moved = guess is not None and self._solver.get("predictor", True)
        if self._moved:
            with torch.no_grad():
                self._latents.copy_(guess)

    def _read(self, step_kwargs):
        self.sampler = read_sampler(self._inner, start=self.start, step_kwargs=step_kwargs)
        self._solver = solver_options(self.sampler, **self._options)

    def scale_model_input(self, sample, timestep=None):
        scale = self.sampler.inputs[self._index]
        return sample if scale == 1 else sample * scale

    def step(self, *args, **kwargs):
        given = self._signature.bind(*args, **kwargs).arguments
        if self.result is None:
            self._advance(given)
        if self.result is None:
            sample = self._sample
        elif self._unwind:
            raise Finished
        else:
            sample = self.result.latents.to(given["sample"].dtype)
        # The second entry stands for the denoised sample that some schedulers return.
        return SchedulerOutput(prev_sample=sample) if given.get("return_dict", True) else (sample, sample)

    def _advance(self, given):
        if self.inversion is None:
            self._begin(given)
        timestep = float(given["timestep"])
        if timestep != self._request.timestep:
            raise RuntimeError(
                f"the pipeline evaluated timestep {timestep} where {self._request.timestep} was due: it does not follow its "
                "scheduler's timesteps and cannot be inverted this way"
            )
        self.inversion.feed(given["model_output"].detach())
        self._evaluation += 1
        self._ask(given)
        if self._request is None:
            self.result = self.inversion.result()
            self.noises = self.noises if self.result.noises is None else self.result.noises

    def _begin(self, given):
        output, parameters = given["model_output"], self._signature.parameters
        options = {name: value for name, value in given.items() if name not in STEP_ARGUMENTS}
        options = {name: value for name, value in options.items() if value != parameters[name].default}
        if options:
            self._read(options)
        place = {"generator": given.get("generator"), "device": output.device, "dtype": output.dtype}
        self.noises = [randn_tensor(output.shape, **place) for _ in range(self.sampler.num_noises)]
        noises = [noise.to(torch.float32) for noise in self.noises]
        target, guess = given["sample"].detach(), None
        # A pipeline that has copied its latents before it set its timesteps evaluates z_0 instead of the guess.
        if self._moved and torch.equal(target, self._latents.detach().to(target)):
            target, guess = self._target.to(target), target
        self.inversion = self._open(target, noises, guess=guess)
        self._ask(given)

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
            self.timesteps[self._evaluation] = self._request.timestep


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


class ReplayScheduler(_Derived):
    """The scheduler an inversion was made for, with the noise and the starting point of that inversion.

    scheduler: the stock scheduler.  inv: an `InversionOutput`; its `noises` are used in place of random ones, and a run
    that was inverted part of the way begins where the inversion ended.  replay: after each evaluation also add what the
    inversion left there (`inv.corrections`), so that the stored trajectory is met exactly.

    Raises ValueError if replay is asked of an inversion without corrections.
    """

    def __init__(self, scheduler, inv, *, replay=False):
        if replay and not inv.corrections:
            raise ValueError("replay: the inversion holds no corrections; make it with invert(..., replay=True)")
        self._noises = list(inv.noises or [])
        self._corrections = list(inv.corrections) if replay else []
        self._start = inv.start
        super().__init__(with_noise(scheduler, self._draw))

    @property
    def init_noise_sigma(self):
        return 1.0 if self._start else self._inner.init_noise_sigma

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.timesteps = start_at(self._inner, self._start)
        self._drawn = self._evaluation = 0

    def _draw(self, shape, *args, device=None, dtype=None, **kwargs):
        if self._drawn >= len(self._noises):
            raise ValueError(f"the inversion holds {len(self._noises)} noises, and the sampler draws more")
        noise = self._noises[self._drawn].to(device=device, dtype=dtype)
        self._drawn += 1
        if tuple(noise.shape) != tuple(shape):
            raise ValueError(f"the inversion's noises have shape {tuple(noise.shape)}, the sampler draws {tuple(shape)}")
        return noise

    def scale_model_input(self, *args, **kwargs):
        return self._inner.scale_model_input(*args, **kwargs)

    def step(self, *args, **kwargs):
        output = self._inner.step(*args, **kwargs)
        sample = self._correct(self._evaluation, output[0])
        self._evaluation += 1
        if isinstance(output, tuple):
            return (sample, *output[1:])
        output.prev_sample = sample
        return output

    def _correct(self, evaluation, sample):
        return sample + self._corrections[evaluation].to(sample) if self._corrections else sample


class CorrectionRecorder(ReplayScheduler):
    """Keeps a run on a stored trajectory, and what each evaluation is off it in `corrections`."""

    def __init__(self, scheduler, inv, trajectory):
        super().__init__(scheduler, inv)
        self._trajectory = trajectory

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.corrections = []

    def _correct(self, evaluation, sample):
        target = self._trajectory[evaluation + 1].to(sample)
        self.corrections.append(target - sample)
        return target
