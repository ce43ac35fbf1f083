"""Where the states of an inversion lie in the schedule that is drawn: its own, or one of other steps."""

import copy

import numpy as np

from .call import SCHEDULE
from .sampler import read_sampler

# Noise levels as angles: 0 is clean, pi / 2 all noise.  Closer than this they are one; a state that cannot be moved may be
# this far from where it is used, a hundredth of the way from noise to image, which is less than one of 50 steps.
_SAME, _NEAR = 1e-6, np.pi / 200


class Schedule:
    """The evaluations of a drawing, counted from 0, and the state of an inversion before each of them, and at the end.

    inv: an `InversionOutput`.  own: whether these are the inversion's own evaluations.  count: how many there are.
    first: the one before which the inversion's `latents` belong.  order: evaluations per step.
    """

    def __init__(self, inv, order=1):
        self._inv, self.order, self._levels = inv, order, None
        self.own, self.first, self.count = True, inv.start, inv.start + len(inv.timesteps)
        self._timesteps = np.asarray(inv.timesteps)

    @classmethod
    def of(cls, inv, scheduler):
        """The schedule of a scheduler that has its timesteps, other ones than the inversion's.

        Raises ValueError if the inversion's noises belong to its own steps, or if the place of a part-way inversion is
        nowhere in it.
        """
        found = cls(inv, int(getattr(scheduler, "order", 1)))
        sampler = read_sampler(scheduler)
        found.own, found.first, found.count, found._levels = False, 0, len(sampler), sampler.levels
        found._timesteps = _timesteps(scheduler)
        if inv.noises:
            raise ValueError(f"{found._differs()}, and its noises are drawn in its own steps; set inv.noises to None")
        if inv.start:
            starts = found._angles()[: found.count : found.order]
            found.first = int(np.abs(starts - _angles(inv.levels)[0]).argmin()) * found.order
        return found

    def fits(self, scheduler, call):
        """Whether a scheduler with its timesteps, in a call with these arguments, has these evaluations."""
        expected, timesteps = self._timesteps, _timesteps(scheduler)[self.first if self.own else 0 :]
        if len(timesteps) < len(expected):
            return False
        if not np.allclose(timesteps[: len(expected)], expected, rtol=1e-4, atol=1e-6 * np.abs(expected).max()):
            return False
        # A longer one: the loop takes a part of it, as it did before, or the last timestep is only the end of a step.
        return (
            len(timesteps) == len(expected)
            or all(_alike(call.get(name), self._inv.call.get(name)) for name in SCHEDULE)
            or len(read_sampler(copy.deepcopy(scheduler))) == self.count
        )

    def begin(self, share):
        """The evaluation with which the last `share` of the inverted steps begins: whole steps, one at least."""
        count = self.count - self.first
        skip = count - max(1, round(share * count))
        return self.first + skip - skip % self.order

    def state(self, evaluation):
        """The inversion's state [B, ...] before an evaluation; at the end, the inverted latents.

        In another schedule it is the state of the nearest noise level, with its own noise at the level that is due.
        Before evaluation 0 of the inversion's own it is `latents`, as the pipeline takes them.

        Raises ValueError where there is none.
        """
        inv, place = self._inv, evaluation - self.first
        if place == 0 and (self.own or evaluation == 0):
            return inv.latents
        if place < 0 or evaluation > self.count:
            raise ValueError(
                f"strength: evaluation {evaluation} was not inverted, only those from {self.first} to {self.count} were"
            )
        if not inv.trajectory:
            return self._latents(evaluation)
        if self.own or evaluation == self.count:
            return inv.trajectory[place if self.own else -1]
        return self._moved(evaluation)

    def _latents(self, evaluation):
        """The only state there is, of an inversion without trajectory."""
        if evaluation == self.first and abs(self._angles()[evaluation] - _angles(self._inv.levels)[0]) <= _NEAR:
            return self._inv.latents
        where = self._differs() if not self.own else f"strength: it begins at evaluation {evaluation}, not at {self.first}"
        raise ValueError(f"{where}, and the inversion holds no trajectory; make it with invert(..., return_trajectory=True)")

    def _moved(self, evaluation):
        """x_i = a x_j + b x_E, with which S_i z + sigma_i n is made of S_j z + sigma_j n and the end."""
        due, have = self._angles()[evaluation], _angles(self._inv.levels)
        away = np.abs(have[:-1] - due)
        away[np.abs(have[:-1] - have[-1]) <= _SAME] = np.inf  # the end says nothing of the noise
        near = len(away) - 1 - int(away[::-1].argmin())
        states, levels = self._inv.trajectory, self._inv.levels
        if away[near] <= _SAME:
            return states[near]
        a, b = np.linalg.solve(levels[[near, -1]].T, self._levels[evaluation])
        return (float(a) * states[near].float() + float(b) * states[-1].float()).to(states[near].dtype)

    def _angles(self):
        if self._levels is None or self._inv.levels is None:
            raise ValueError(f"{self._differs()}, and the noise levels of both are not known")
        return _angles(self._levels)

    def _differs(self):
        return (
            f"{SCHEDULE[0]}: the inversion's schedule, of {len(self._inv.timesteps)} evaluations, is not the one of this "
            f"call, of {self.count}"
        )


def _timesteps(scheduler):
    return scheduler.timesteps.detach().cpu().double().numpy()


def _angles(levels):
    return np.arctan2(levels[:, 1], levels[:, 0])


def _alike(one, other):
    return one is other or (one is not None and other is not None and np.array_equal(np.asarray(one), np.asarray(other)))
