"""What an inversion will ask of a pipeline: the sampler as it is read, the machine, and the timesteps to be visited."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .layout import proportion
from .sampler import draw_noises, first_evaluation, read_sampler, start_at
from .solver import natural_guess


@dataclass(frozen=True)
class Correction:
    """The prompt-aware correction of what is inverted.

    strength: the share of the steps that a round takes, at least one of them.  radius: in multiples of the autoencoder's own
    error, or None; [B] norms for a `Plan`.  noise: "random", drawn with `seed`, the same for each image; or "inverted".
    only: the inversion stops there.  The defaults are those of `correct`.
    """

    strength: float
    rounds: int = 2
    radius: float | np.ndarray | None = 2.0
    noise: str = "random"
    seed: int = 0
    only: bool = False

    def draws(self, target):
        """The noise of each round, like the target; None if it is found by inverting."""
        if self.noise == "inverted":
            return None
        shape = tuple(target.shape[1:])
        drawn = [np.random.default_rng((self.seed, i)).standard_normal(shape, np.float32) for i in range(self.rounds)]
        if isinstance(target, np.ndarray):
            return [np.broadcast_to(one, target.shape).copy() for one in drawn]
        return [torch.from_numpy(one).to(target).expand(target.shape) for one in drawn]


@dataclass(frozen=True)
class Task:
    """How a batch is to be inverted.

    solver: `open(sampler, target, ...)` makes the machine; given: its further options.  order: "reversed" or "passes".
    strength: invert the last part of the steps only.  seed: of the natural guess.  correction: what is done before, or None.
    observe: keep where the network was evaluated last, and what it answered.
    """

    solver: Any
    given: dict
    order: str = "reversed"
    strength: float = 1.0
    seed: int = 0
    correction: Correction | None = None
    observe: bool = False

    @property
    def passes(self):
        return self.order == "passes"


class Plan:
    """A task, for a scheduler with timesteps.

    part: the evaluations (start, stop) that the pipeline's loop takes, if an earlier call has shown that.
    sampler, tail: of the inversion, and of the rounds of its correction; both begin at an evaluation: start, correct_start.
    longest: how many evaluations there may be.  first: the first request, but for its sample.

    Raises ValueError if the scheduler is not linear, if a step of it cannot be inverted, or for an option out of range.
    """

    def __init__(self, scheduler, task, part=None, step_kwargs=None):
        self._scheduler, self._task, self._step_kwargs = scheduler, task, step_kwargs or {}
        self._own = first_evaluation(scheduler, task.strength)
        self.start, self.stop = part or (self._own, None)
        self.part = part
        if self.start >= len(scheduler.timesteps):
            steps = scheduler.num_inference_steps
            raise ValueError(f"strength must cover at least one of {steps} steps, got {task.strength!r}")
        self._sigmas = copy.deepcopy(getattr(scheduler, "sigmas", None))
        self.sampler = self._read(self.start, self.stop)
        if task.correction is not None:
            self._read_tail(task.correction)
        dry, rounds = np.zeros((1, 1), np.float32), task.correction.rounds if task.correction is not None else 0
        correct_noises = [dry] * rounds * self.tail.num_noises if rounds else []
        rehearsal = self._open(dry, [dry] * self.sampler.num_noises, correct_noises)
        self.longest, self.first = rehearsal.max_evaluations, rehearsal.next()

    def _read(self, start, stop=None):
        return read_sampler(self._scheduler, start=start, stop=stop, step_kwargs=self._step_kwargs)

    def _read_tail(self, correction):
        scheduler, steps = self._scheduler, self._scheduler.num_inference_steps
        order = int(getattr(scheduler, "order", 1))
        last = (int(steps) - 1) * order if steps else len(scheduler.timesteps) - 1  # at least one step
        self.correct_start = min(first_evaluation(scheduler, correction.strength), last)
        self.tail = self._read(self.correct_start)
        if correction.noise == "random" and self.tail.levels is None:
            raise ValueError(
                f"scheduler: {type(scheduler).__name__} does not tell how much noise its steps start from; use "
                "noise='inverted'"
            )

    def outdated(self):
        """Whether the scheduler is not any more as it was read: Cosmos changes its sigmas in place."""
        before, now = self._sigmas, getattr(self._scheduler, "sigmas", None)
        if before is None:
            return False
        return len(before) != len(now) or bool((torch.as_tensor(before) != torch.as_tensor(now)).any())

    def guess(self, target):
        """Where the first step is to start; None: at the target itself."""
        if self._task.passes or not self._task.solver.predictor:  # passes were seen to do as well without, or better
            return None
        return natural_guess(self.sampler, target, self._task.seed)

    def first_sample(self, target):
        """The sample of the first evaluation."""
        if self.first.correcting:
            draws = self._task.correction.draws(target)
            if draws is None:
                return target
            signal, sigma = self.tail.levels[0]
            return signal * target + sigma * draws[0]
        if self._task.passes:
            return target / self.sampler.states[-1][0]
        guess = self.guess(target)
        return target if guess is None else guess

    def timesteps(self, request):
        """The timesteps of the next call of the pipeline, which begins with a request; as far as they can be told before."""
        scheduler = self._scheduler
        if self._task.passes:
            return start_at(scheduler, self.correct_start if request.correcting else self._own)
        stock = start_at(scheduler, self._own)
        # Some schedulers end with a timestep that is only the end of the last step; their pipelines leave it out.
        ends = len(stock) - len(self.sampler) if self.part is None else 0
        places = torch.cat([self._places(), torch.full((ends,), self._own)])
        timesteps = scheduler.timesteps[places.to(stock.device)]
        timesteps[0] = request.timestep
        return timesteps

    def _places(self):
        """The evaluations in the reversed order, as places in the scheduler's timesteps."""
        own, rounds, correction = torch.arange(len(self.sampler)) + self.start, torch.arange(0), self._task.correction
        if correction is not None:
            rounds = torch.arange(len(self.tail)) + self.correct_start
            rounds = rounds if correction.noise == "random" else torch.cat([rounds.flip(0), rounds])
            rounds = rounds.repeat(correction.rounds)
        left = self.longest - len(rounds)
        return torch.cat([rounds, own.flip(0).repeat_interleave(-(-left // len(own)))[:left]])

    def open(self, target, sample, generator):
        """(machine, noises): the inversion of `target`, and what its steps draw for samples like `sample`.

        sample: where the network has just been evaluated, as the pipeline hands it to its scheduler.
        """

        def draw(start, stop=None):
            return draw_noises(
                self._scheduler, sample, start=start, stop=stop, generator=generator, step_kwargs=self._step_kwargs
            )

        correction, guess = self._task.correction, self.guess(target)
        rounds = range(correction.rounds if correction is not None else 0)
        correct_noises = [noise.float() for _ in rounds for noise in draw(self.correct_start)]
        noises = draw(self.start, self.stop)
        if guess is not None and proportion(guess, sample) == 1:
            guess = sample  # as the pipeline's precision has rounded it
        radius = correction.radius if correction is not None else None
        return self._open(target, [noise.float() for noise in noises], correct_noises, guess, radius), noises

    def _open(self, target, noises, correct_noises, guess=None, radius=None):
        task, more = self._task, {}
        if (correction := task.correction) is not None:
            more = {
                "correct_from": self.tail,
                "correct_rounds": correction.rounds,
                "correct_only": correction.only,
                "draws": correction.draws(target),
                "correct_noises": correct_noises,
                "radius": radius,
            }
        return task.solver.open(self.sampler, target, noises=noises, guess=guess, order=task.order, **more, **task.given)
