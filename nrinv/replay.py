"""Schedulers that run forward from an inversion: with its noise, along its trajectory, or past a mask."""

import copy
import inspect

import numpy as np
import torch

from .derived import Derived, Done, Left
from .known import slices, step_signature
from .sampler import draw_noises, start_at, with_noise
from .schedule import Schedule


class ReplayScheduler(Derived):
    """The scheduler an inversion was made for, with the noise and the starting point of that inversion.

    scheduler: the stock scheduler.  pipe: the pipeline it will run in; img2img pipelines take their part of the timesteps
    themselves and start from `add_noise`, which returns the inversion's state.  inv: an `InversionOutput`; its `noises`, if
    it has any, are used in place of random ones; a run that was inverted part of the way begins where the inversion ended.
    schedule: where the inversion's states lie in the evaluations of the run, by default in its own; begin: the first of
    these evaluations.  replay: after each evaluation add this share of `inv.defects`; with all of them the stored trajectory
    is met exactly.
    mask [B, ...] of the sample's shape: after each evaluation only its share of the sample is kept, the rest is the stored
    trajectory's.  guide: its `begin(count)` is called when the evaluations of the run are known, its `evaluated(j)` after
    each.  call: the arguments of the pipeline's call, to be told by them whether the schedule is another one.

    If the timesteps that the pipeline sets are not those of `schedule`, its call is `Left` with the `Schedule` that they
    are (not without `call`).

    Raises ValueError if replay is asked of an inversion without defects, or a mask of one without trajectory, or the one or
    the other in a schedule where it has no meaning.
    """

    def __init__(self, scheduler, pipe, inv, *, schedule=None, begin=None, replay=0.0, mask=None, guide=None, call=None):
        if replay and not inv.defects:
            raise ValueError("replay: the inversion holds no defects; make it with invert(..., return_defects=True)")
        if mask is not None and not inv.trajectory:
            raise ValueError(
                "mask_image: the inversion holds no trajectory; make it with invert(..., return_trajectory=True)"
            )
        self._schedule = schedule or Schedule(inv)
        if replay and not self._schedule.own:
            raise ValueError("replay must be 0 with another schedule: the defects are those of the inversion's evaluations")
        self._begin = self._schedule.first if begin is None else begin
        self._latents = self._schedule.state(self._begin)
        self._inv, self._call, self._guide = inv, call, guide
        self._noises = list(inv.noises or [])
        self._replay = float(replay)
        self._stock = scheduler
        self._sliced = slices(pipe)
        self._mask = mask
        super().__init__(with_noise(scheduler, self._draw) if self._noises else copy.deepcopy(scheduler))

    @property
    def latents(self):
        """Where the run starts, as the pipeline's `latents=`."""
        return self._latents

    @property
    def init_noise_sigma(self):
        return 1.0 if self._begin else self._inner.init_noise_sigma

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        if self._call is not None and not self._schedule.fits(self._inner, self._call):
            raise Left(Schedule.of(self._inv, self._inner))
        self.timesteps = start_at(self._inner, 0 if self._sliced else self._begin)
        self._evaluation = 0
        skipped = self._noises and self._begin > self._schedule.first
        self._drawn = self._skipped(*args, **kwargs) if skipped else 0
        if self._guide is not None:
            self._guide.begin(self._schedule.count - self._begin)

    def _skipped(self, *args, **kwargs):
        """How many noises the evaluations that are left out draw."""
        stock = copy.deepcopy(self._stock)
        stock.set_timesteps(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            return len(draw_noises(stock, torch.zeros(1, 1, 1, 1), start=self._schedule.first, stop=self._begin))

    def set_begin_index(self, begin_index=0):
        # A scheduler that is told where to begin, by a pipeline that does not slice, begins where the inversion ended.
        self._inner.set_begin_index(begin_index or (0 if self._sliced else self._begin))

    def _draw(self, shape, *args, device=None, dtype=None, **kwargs):
        if self._drawn >= len(self._noises):
            raise ValueError(f"the inversion holds {len(self._noises)} noises, and the sampler draws more")
        noise = self._noises[self._drawn].to(device=device, dtype=dtype)
        self._drawn += 1
        if tuple(noise.shape) != tuple(shape):
            raise ValueError(f"the inversion's noises have shape {tuple(noise.shape)}, the sampler draws {tuple(shape)}")
        return noise

    def _noisy(self, name, *args, **kwargs):
        given = inspect.signature(getattr(self._inner, name)).bind(*args, **kwargs).arguments
        self._begin_at(given.get("timesteps", given.get("timestep")))
        return super()._noisy(name, *args, **kwargs)

    def _begin_at(self, timestep):
        """An img2img pipeline asks for the state at the timestep where its part begins."""
        if not self._sliced or timestep is None or self._evaluation or not self.entered:
            return
        timestep = float(torch.as_tensor(timestep).reshape(-1)[0])
        places = [k for k, t in enumerate(self._inner.timesteps.tolist()) if t == timestep]
        if not places or self._begin in places:
            return
        told = getattr(self._inner, "_begin_index", None)  # some schedulers visit a timestep twice
        begin = told if told in places else places[0]
        if self._noises:
            raise ValueError(
                f"strength: it begins at evaluation {begin}, the inversion's noises are those from {self._begin} on"
            )
        self._begin, self._latents = begin, self._schedule.state(begin)
        if self._guide is not None:
            self._guide.begin(self._schedule.count - begin)

    def _start_state(self):
        if not self._sliced:
            return None
        if self._evaluation and self._inv.trajectory:  # inpainting pipelines ask again after each step
            return self._schedule.state(self._begin + self._evaluation)
        if self._begin == 0 and "strength" not in self._inv.call:  # made by a pipeline that scales its latents itself
            return self._latents * float(getattr(self._inner, "init_noise_sigma", 1.0))
        return self._latents

    def scale_model_input(self, sample, *args, **kwargs):
        if not hasattr(self._inner, "scale_model_input"):
            return sample
        return self._inner.scale_model_input(sample, *args, **kwargs)

    def step(self, *args, **kwargs):
        self.check_alone()
        output = self._inner.step(*args, **kwargs)
        self.stepped += 1
        sample = self._amend(self._evaluation, output[0])
        self._evaluation += 1
        if self._guide is not None:
            self._guide.evaluated(self._evaluation - 1)
        if isinstance(output, tuple):
            return (sample, *output[1:])
        output.prev_sample = sample
        return output

    def _amend(self, evaluation, sample):
        if self._replay:
            sample = sample + self._replay * self._of_each(self._inv.defects, evaluation).to(sample)
        if self._mask is not None:
            known = self._schedule.state(self._begin + evaluation + 1).to(sample)
            sample = known + self._mask.to(sample) * (sample - known)
        return sample

    def _of_each(self, defects, evaluation):
        place = self._begin - self._schedule.first + evaluation
        if place >= len(defects):
            raise ValueError(f"replay: the inversion holds {len(defects)} defects, and the pipeline evaluates more")
        return defects[place]


class Recorder(ReplayScheduler):
    """A stock run that ends with the last evaluation, its end in `sample`; the state is taken from the step, since what
    pipelines return is laid out differently, or decoded.

    trajectory: keep the run on these E + 1 states, and what each evaluation misses them by in `defects`.
    answers: what the network answers there, E of them; `unlike` says how far from that it answers at most, |difference| over
    |answer|.  The run then goes on to the end of the pipeline's call, which is `output`, and `strayed` says what it does
    beside its steps.
    """

    def __init__(self, scheduler, pipe, inv, *, trajectory=None, answers=None):
        super().__init__(scheduler, pipe, inv)
        self._states, self._answers = trajectory, answers
        self._signature = step_signature(type(scheduler))
        self._count = len(inv.timesteps)
        self.sample, self.output, self.strayed, self.unlike = None, None, None, 0.0

    def set_timesteps(self, *args, **kwargs):
        if self._answers is not None and self.complete:
            self._stray("it sets its timesteps again after its loop")
        super().set_timesteps(*args, **kwargs)
        self.defects = []

    def step(self, *args, **kwargs):
        if self._answers is not None:
            self._compare(self._signature.bind(*args, **kwargs).arguments)
        output = super().step(*args, **kwargs)
        self.sample = output[0]
        if self.complete and self._answers is None:
            raise Left(Done())
        return output

    @property
    def complete(self):
        """Whether all evaluations have been made."""
        return self.sample is not None and self._evaluation == self._count

    def _compare(self, given):
        if self.complete:
            self._stray("it steps its scheduler again after its last timestep")
        if self._evaluation and not torch.equal(given["sample"], self.sample):
            self._stray("it changes the latents between its steps")
        answer = self._answers[self._evaluation].double()
        off = norms(given["model_output"].to(answer) - answer) / norms(answer)
        self.unlike = max(self.unlike, float(np.nan_to_num(off, nan=0.0, posinf=np.inf).max()))

    def _stray(self, why):
        self.strayed = why
        raise Left(Done())

    def returned(self):
        """The pipeline's call has come to its end."""
        if self._evaluation < self._count:
            self.strayed = "its loop ends before the last timestep"

    def _amend(self, evaluation, sample):
        if self._states is None:
            return sample
        target = self._states[evaluation + 1].to(sample)
        self.defects.append(target - sample)
        return target


def norms(x):
    """The norms [B] of x [B, ...], float64."""
    return x.detach().flatten(1).norm(dim=1).double().cpu().numpy()
