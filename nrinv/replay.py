"""Schedulers that run forward from an inversion: with its noise, along its trajectory, or past a mask."""

import copy

import torch

from .sampler import draw_noises, start_at, with_noise
from .scheduler import Derived, Finished


class ReplayScheduler(Derived):
    """The scheduler an inversion was made for, with the noise and the starting point of that inversion.

    scheduler: the stock scheduler.  inv: an `InversionOutput`; its `noises` are used in place of random ones, and a run
    that was inverted part of the way begins where the inversion ended.  replay: after each evaluation also add what the
    inversion left there (`inv.corrections`), so that the stored trajectory is met exactly.  sliced: the pipeline takes its
    part of the timesteps itself, as img2img pipelines do; these start from `add_noise`, which returns the inversion's state.
    mask [B, ...] of the sample's shape: after each evaluation only its share of the sample is kept, the rest is the stored
    trajectory's.

    Raises ValueError if replay is asked of an inversion without corrections, or a mask of one without trajectory.
    """

    def __init__(self, scheduler, inv, *, skip=0, replay=0.0, sliced=False, mask=None, evaluated=None):
        if replay and not inv.corrections:
            raise ValueError("replay: the inversion holds no corrections; make it with invert(..., replay=True)")
        if mask is not None and not inv.trajectory:
            raise ValueError(
                "mask_image: the inversion holds no trajectory; make it with invert(..., return_trajectory=True)"
            )
        self._latents = inv.trajectory[skip] if skip else inv.latents
        self._noises = list(inv.noises or [])
        self._replay = float(replay)
        self._corrections = list(inv.corrections[skip:]) if replay else []
        self._trajectory = list(inv.trajectory[skip:]) if inv.trajectory else []
        self._whole, self._start = inv.start, inv.start + skip
        self._stock = scheduler
        self._evaluated = evaluated
        self._sliced = sliced
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

    def add_noise(self, original_samples, *args, **kwargs):
        if not self._sliced:
            return self._inner.add_noise(original_samples, *args, **kwargs)
        return self._inject(original_samples)

    def scale_noise(self, sample, *args, **kwargs):
        if not self._sliced:
            return self._inner.scale_noise(sample, *args, **kwargs)
        return self._inject(sample)

    def _inject(self, sample):
        """Where the loop starts; for inpainting pipelines, which ask again after each step, the stored state there."""
        state = self._trajectory[self._evaluation] if self._evaluation and self._trajectory else self._latents
        return state.reshape(sample.shape).to(sample)

    def scale_model_input(self, sample, *args, **kwargs):
        if not hasattr(self._inner, "scale_model_input"):
            return sample
        return self._inner.scale_model_input(sample, *args, **kwargs)

    def step(self, *args, **kwargs):
        output = self._inner.step(*args, **kwargs)
        sample = self._correct(self._evaluation, output[0])
        self._evaluation += 1
        if self._evaluated is not None:
            self._evaluated(self._evaluation - 1)
        if isinstance(output, tuple):
            return (sample, *output[1:])
        output.prev_sample = sample
        return output

    def _correct(self, evaluation, sample):
        if self._corrections:
            sample = sample + self._replay * self._corrections[evaluation].to(sample)
        if self._mask is not None:
            known = self._trajectory[evaluation + 1].to(sample)
            sample = known + self._mask.to(sample) * (sample - known)
        return sample


class Recorder(ReplayScheduler):
    """A stock run that ends with the last evaluation, its end in `sample`; the state is taken from the step, since what
    pipelines return is laid out differently, or decoded.

    trajectory: keep the run on these E + 1 states, and what each evaluation is off them in `corrections`.
    """

    def __init__(self, scheduler, inv, *, trajectory=None, **options):
        super().__init__(scheduler, inv, **options)
        self._states = trajectory
        self._count = len(inv.timesteps)
        self.sample = None

    def set_timesteps(self, *args, **kwargs):
        super().set_timesteps(*args, **kwargs)
        self.corrections = []

    def step(self, *args, **kwargs):
        output = super().step(*args, **kwargs)
        self.sample = output[0]
        if self._evaluation == self._count:
            raise Finished
        return output

    def _correct(self, evaluation, sample):
        if self._states is None:
            return sample
        target = self._states[evaluation + 1].to(sample)
        self.corrections.append(target - sample)
        return target

    def missed(self):
        """max over samples and evaluations of |correction| / |state|, as [E] tensors per evaluation."""
        return torch.stack(
            [
                c.flatten(1).norm(dim=1) / s.flatten(1).norm(dim=1)
                for c, s in zip(self.corrections, self._states[1:], strict=True)
            ]
        )
