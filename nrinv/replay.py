"""Schedulers that run forward from an inversion: with its noise, along its trajectory, or past a mask."""

import copy

import numpy as np
import torch

from .derived import Derived, Done, Left
from .known import slices, step_signature
from .sampler import draw_noises, start_at, with_noise


class ReplayScheduler(Derived):
    """The scheduler an inversion was made for, with the noise and the starting point of that inversion.

    scheduler: the stock scheduler.  pipe: the pipeline it will run in; img2img pipelines take their part of the timesteps
    themselves and start from `add_noise`, which returns the inversion's state.  inv: an `InversionOutput`; its `noises` are
    used in place of random ones, and a run that was inverted part of the way begins where the inversion ended.
    skip: evaluations that are left out at the beginning, whose end the stored trajectory has.  replay: after each evaluation
    add this share of `inv.defects`; with all of them the stored trajectory is met exactly.
    mask [B, ...] of the sample's shape: after each evaluation only its share of the sample is kept, the rest is the stored
    trajectory's.  evaluated(j): called after each evaluation.

    Raises ValueError if replay is asked of an inversion without defects, or a mask of one without trajectory.
    """

    def __init__(self, scheduler, pipe, inv, *, skip=0, replay=0.0, mask=None, evaluated=None):
        if replay and not inv.defects:
            raise ValueError("replay: the inversion holds no defects; make it with invert(..., return_defects=True)")
        if mask is not None and not inv.trajectory:
            raise ValueError(
                "mask_image: the inversion holds no trajectory; make it with invert(..., return_trajectory=True)"
            )
        self._latents = inv.trajectory[skip] if skip else inv.latents
        self._noises = list(inv.noises or [])
        self._replay = float(replay)
        self._defects = list(inv.defects[skip:]) if replay else []
        self._trajectory = list(inv.trajectory[skip:]) if inv.trajectory else []
        self._whole, self._start = inv.start, inv.start + skip
        self._stock = scheduler
        self._evaluated = evaluated
        self._sliced = slices(pipe)
        self._mask = mask
        super().__init__(with_noise(scheduler, self._draw))

    @property
    def init_noise_sigma(self):
        return 1.0 if self._start else self._inner.init_noise_sigma

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.timesteps = start_at(self._inner, 0 if self._sliced else self._start)
        self._evaluation = 0
        self._drawn = self._skipped(*args, **kwargs) if self._noises and self._start > self._whole else 0

    def _skipped(self, *args, **kwargs):
        """How many noises the evaluations that are left out draw."""
        stock = copy.deepcopy(self._stock)
        stock.set_timesteps(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            return len(draw_noises(stock, torch.zeros(1, 1, 1, 1), start=self._whole, stop=self._start))

    def set_begin_index(self, begin_index=0):
        # A scheduler that is told where to begin, by a pipeline that does not slice, begins where the inversion ended.
        self._inner.set_begin_index(begin_index or (0 if self._sliced else self._start))

    def _draw(self, shape, *args, device=None, dtype=None, **kwargs):
        if self._drawn >= len(self._noises):
            raise ValueError(f"the inversion holds {len(self._noises)} noises, and the sampler draws more")
        noise = self._noises[self._drawn].to(device=device, dtype=dtype)
        self._drawn += 1
        if tuple(noise.shape) != tuple(shape):
            raise ValueError(f"the inversion's noises have shape {tuple(noise.shape)}, the sampler draws {tuple(shape)}")
        return noise

    def _start_state(self):
        if not self._sliced:
            return None
        # Inpainting pipelines ask again after each step.
        return self._trajectory[self._evaluation] if self._evaluation and self._trajectory else self._latents

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
        if self._evaluated is not None:
            self._evaluated(self._evaluation - 1)
        if isinstance(output, tuple):
            return (sample, *output[1:])
        output.prev_sample = sample
        return output

    def _amend(self, evaluation, sample):
        if self._defects:
            sample = sample + self._replay * self._defects[evaluation].to(sample)
        if self._mask is not None:
            known = self._trajectory[evaluation + 1].to(sample)
            sample = known + self._mask.to(sample) * (sample - known)
        return sample


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
        if self._answers is not None and self.sample is not None and self._evaluation == self._count:
            self._stray("it sets its timesteps again after its loop")
        super().set_timesteps(*args, **kwargs)
        self.defects = []

    def step(self, *args, **kwargs):
        if self._answers is not None:
            self._compare(self._signature.bind(*args, **kwargs).arguments)
        output = super().step(*args, **kwargs)
        self.sample = output[0]
        if self._evaluation == self._count and self._answers is None:
            raise Left(Done())
        return output

    def _compare(self, given):
        if self._evaluation == self._count:
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
