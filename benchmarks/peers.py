"""Published inversion methods, each written from its paper's equations, on the same interface as nrinv's own solver.

A method is a generator that solves one implicit step z = f(z): it yields the point to be evaluated, is sent f there, and
returns its answer.  `nfe` is how often it may ask.  What it may know of the step is a `Step`.

`PeerInversion` runs a method over all steps of a sampler, with the `next`, `feed`, `result` of `nrinv.Inversion`, so that
the stock pipeline, or any loop, evaluates the network for it as it does for nrinv; `PeerSolver` is what hands it to
`nrinv.invert`.

Tensors are [B, ...]; residuals r = f(z) - z; every decision is made per sample.
"""

import functools
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch


@dataclass
class Step:
    """s_{j+1} = A s_j + b m(s_j) + noise, to be solved for s_j:  f(z) = (s_{j+1} - noise - b m(z)) / A.

    state [B, ...]: s_{j+1}, where methods without a better guess start.  A, b: floats.  index: j; last: E - 1.
    kappa: slope of f off the model's manifold, 1 - sigma_{j+1} / sigma_j, where it is known.  rounding: unit roundoff of the
    network.
    """

    state: torch.Tensor
    A: float
    b: float
    index: int
    last: int
    kappa: float | None = None
    rounding: float = 2.0**-24


def dot(a, b):
    """Inner products of each sample, [B, 1, ...]."""
    return (a * b).flatten(1).sum(1).view(-1, *[1] * (a.ndim - 1))


def fixed_point(step, nfe):
    """z <- f(z).  With nfe = 1: naive (DDIM) inversion."""
    z = step.state
    for _ in range(nfe):
        z = yield z
    return z


def over_relaxed(step, nfe):
    """z <- z + beta r with beta = 2 / (2 - kappa), the best constant where f' has its eigenvalues in [0, kappa]."""
    if step.kappa is None:
        raise ValueError("over_relaxed needs the kappa of the step")
    beta, z = 2 / (2 - step.kappa), step.state
    for _ in range(nfe):
        f = yield z
        z = z + beta * (f - z)
    return z


def aidi_e(step, nfe):
    """AIDI-E: z <- (f(z_k) + f(z_{k-1})) / 2.  Z. Pan et al., ICCV 2023, arXiv 2309.04907.

    f(z_{k-1}) is kept, not evaluated again.
    """
    before = yield step.state
    z = before
    for _ in range(nfe - 1):
        f = yield z
        z, before = (f + before) / 2, f
    return z


def aidi_anderson(step, nfe, depth=3):
    """AIDI-A: Anderson acceleration of type II, z <- f - dF gamma with gamma = argmin |r - dR gamma|, depth 3.

    Z. Pan et al., ICCV 2023, arXiv 2309.04907.  As theirs, by the inverse of the Gram matrix, with neither ridge nor
    safeguard; where there is no inverse, the plain step.
    """
    z, points, values = step.state, [], []
    for _ in range(nfe):
        f = yield z
        points, values = [*points[-depth:], z], [*values[-depth:], f]
        z = _mix(points, values) if len(values) > 1 else f
    return z


def _mix(points, values):
    f = torch.stack(values, 1).flatten(2).double()
    r = f - torch.stack(points, 1).flatten(2).double()
    df, dr = f.diff(dim=1), r.diff(dim=1)
    inverse, _ = torch.linalg.inv_ex(dr @ dr.mT)
    gamma = inverse @ (dr @ r[:, -1:].mT)
    gamma = torch.where(gamma.isfinite().all(1, keepdim=True), gamma, 0)
    mixed = f[:, -1] - (gamma.mT @ df).squeeze(1)
    return mixed.to(values[-1].dtype).view_as(values[-1])


def renoise(step, nfe):
    """ReNoise: fixed-point iterations, then a step with the mean of late network outputs.

    D. Garibi et al., ECCV 2024, arXiv 2403.14602.  Published for SDXL-turbo in 4 steps: 9 renoising iterations, that is 10
    evaluations of a step, of whose outputs 8 and 9 are averaged; at the cleanest step outputs 0..4, from 5 iterations (the
    output of the last is not used, and is not evaluated here).  Generalised: the last quarter of nfe evaluations, which for
    10 is the published pair, at least one; at the cleanest step the first five.  f is affine in the output, so that f of a
    mean output is the mean of f.  Left out: the edit losses, which need gradients and cost PSNR, and the noise correction,
    which changes the sampler.
    """
    cleanest = step.index == step.last > 0
    count = min(nfe, 5) if cleanest else nfe
    late = count if cleanest else max(1, round(nfe / 4))
    z, values = step.state, []
    for _ in range(count):
        z = yield z
        values = [*values, z][-late:]
    return torch.stack(values).mean(0)


def sign_step(step, nfe):
    """What the public code of RNRI/GNRI does: z <- z + mean|r| sign(r), answering the f of the smallest mean|r|.

    D. Samuel et al., arXiv 2312.12540.  The code evaluates the network without a gradient, so that its Newton step has the
    gradient -sign(r) (the printed one has the network's in it).  Published: nfe = 2.  Left out: its prior, which has no
    gradient either.
    """
    z = answer = step.state
    least = torch.full_like(dot(z, z), torch.inf)
    for _ in range(nfe):
        f = yield z
        r = f - z
        size = dot(r.abs(), torch.ones_like(r)) / r[0].numel()
        answer, least = torch.where(size < least, f, answer), torch.minimum(size, least)
        z = z + size * r.sign()
    return answer


def exact_dpm(step, nfe, rho=0.5, warm_up=20, patience=20, tol=1e-3):
    """ExactDPM's forward-step method: z <- z - rho (s'(z) - s'), s'(z) the sampler's step from z, from the naive answer on.

    S. Hong et al., CVPR 2024, arXiv 2311.18387.  Published for first order: rho 0.5, growing from 0 over 20 evaluations,
    halved when |s'(z) - s'|^2 has not fallen (by 1e-4 of it) for more than 20; the end when that is below 1e-3; at most 500.
    warm_up=1: without the growth.
    """
    z = yield step.state
    best = torch.full_like(dot(z, z), torch.inf)
    bad, rate, done = torch.zeros_like(best), torch.full_like(best, rho), torch.zeros_like(best, dtype=torch.bool)
    for k in range(nfe - 1):
        f = yield z
        change = step.A * (f - z)
        loss = dot(change, change)
        done |= loss < tol
        if done.all():
            break
        growing = min(1.0, (k + 1) / warm_up)
        z = torch.where(done, z, z + growing * (rate if growing == 1 else rho) * change)
        better = loss < best * (1 - 1e-4)
        best, bad = torch.where(better, loss, best), torch.where(better, 0, bad + 1)
        rate, bad = torch.where(bad > patience, rate / 2, rate), torch.where(bad > patience, 0, bad)
    return z


def broyden(step, nfe):
    """Broyden's "good" method: z <- z - H r, H from -I by rank-one updates.  C. G. Broyden, Math. Comp. 19 (1965) 577."""
    z, left, right = step.state, [], []
    before = None
    for _ in range(nfe):
        f = yield z
        r = f - z
        if before is not None:
            dz, dr = z - before[0], r - before[1]
            row = _apply(right, left, dz)
            slope = dot(row, dr)
            column = (dz - _apply(left, right, dr)) / slope
            left.append(torch.where(slope == 0, 0, column))
            right.append(row)
        before = z, r
        z = z - _apply(left, right, r)
    return z


def _apply(left, right, x):
    """(-I + sum_i left_i right_i^T) x."""
    return sum((u * dot(v, x) for u, v in zip(left, right, strict=True)), -x)


def per_sample(method):
    """The batched method that runs the generator `method(step, z, nfe)` for every sample, evaluating them together."""

    @functools.wraps(method)
    def batched(step, nfe):
        solvers = [method(step, z, nfe) for z in step.state]
        points = [next(solver) for solver in solvers]
        busy = set(range(len(solvers)))
        while busy:
            f = yield torch.stack(points)
            for b in list(busy):
                try:
                    points[b] = solvers[b].send(f[b])
                except StopIteration as end:
                    points[b] = end.value
                    busy.remove(b)
        return torch.stack(points)

    return batched


@per_sample
def newton_gmres(step, z, nfe):
    """Newton's method for r(z) = 0, the linear systems by GMRES with finite differences; z one sample.

    D. A. Knoll, D. E. Keyes, J. Comput. Phys. 193 (2004) 357.  Differences over sqrt(rounding) |z|; forcing terms by
    S. C. Eisenstat, H. F. Walker, SIAM J. Sci. Comput. 17 (1996) 16, choice 2, from 0.3; steps halved until |r| falls.  When
    the evaluations run out, the answer is the best of the Krylov space there is; of an empty one, f.
    """
    f, left, eta = (yield z), nfe - 1, 0.3
    while left and (norm := (f - z).norm()) > 0:
        s, left = yield from _gmres(z, f, eta, left, step.rounding**0.5 * z.norm())
        if not left:
            return z + s
        t, accepted = 2.0, False
        while left and not accepted:
            t, left = t / 2, left - 1
            value = yield z + t * s
            new = (value - z - t * s).norm()
            accepted = bool(new <= (1 - 1e-4 * t * (1 - eta)) * norm)
        if not accepted:
            return z + t / 2 * s
        z, f, eta = z + t * s, value, _forcing(eta, float(new / norm))
    return f


def _forcing(eta, ratio):
    new = 0.9 * ratio**2
    if 0.9 * eta**2 > 0.1:
        new = max(new, 0.9 * eta**2)
    return min(max(new, 1e-4), 0.9)


def _gmres(z, f, eta, left, size):
    """s with |r - (I - f') s| <= eta |r|, or what the evaluations left allow, and how many are left after it.

    size: the length of the differences.
    """
    r = f - z
    basis, columns = [r / r.norm()], []
    while left:
        v, left = basis[-1], left - 1
        w = v - ((yield z + size * v) - f) / size
        column = []
        for u in basis:
            column.append(float((u * w).sum()))
            w = w - column[-1] * u
        column.append(float(w.norm()))
        columns.append(column)
        y, error = _least_squares(columns)
        if error <= eta or column[-1] == 0:
            break
        basis.append(w / w.norm())
    return r.norm() * sum(c * u for c, u in zip(y, basis, strict=False)), left


def _least_squares(columns):
    """argmin_y |H y - e_1| and the minimum; columns: of the Hessenberg matrix H, each with its subdiagonal entry last."""
    h = np.zeros((len(columns) + 1, len(columns)))
    for k, column in enumerate(columns):
        h[: k + 2, k] = column
    one = np.eye(len(h))[0]
    y = np.linalg.lstsq(h, one, rcond=None)[0]
    return y.tolist(), float(np.linalg.norm(h @ y - one))


METHODS = {
    "fixed point": fixed_point,
    "over-relaxed": over_relaxed,
    "AIDI-E": aidi_e,
    "AIDI Anderson": aidi_anderson,
    "ReNoise": renoise,
    "sign step": sign_step,
    "ExactDPM": exact_dpm,
    "forward step": functools.partial(exact_dpm, warm_up=1),
    "Broyden": broyden,
    "Newton-GMRES": newton_gmres,
}


Request = namedtuple("Request", "index timestep sample scale wants_gradient cotangent active correcting")
Result = namedtuple(
    "Result",
    "latents residuals step_nfe nfe reasons error measured growth evaluations trajectory noises restarts rejected failed "
    "corrected moved held",
)


def request_at(sampler, j, sample):
    """A request to evaluate all of `sample` [B, ...] at evaluation j of a `nrinv.Sampler`."""
    active = np.ones(len(sample), bool)
    return Request(j, float(sampler.timesteps[j]), sample, float(sampler.inputs[j]), False, None, active, False)


def result_of(latents, residuals, step_nfe):
    """A result in which each sample took step_nfe [E] evaluations of the steps; latents [B, ...], residuals [E, B]."""
    B, evaluations = len(latents), int(step_nfe.sum())
    none = dict.fromkeys(("trajectory", "noises", "corrected", "moved", "held"))
    counts = {name: np.zeros(B, step_nfe.dtype) for name in ("restarts", "rejected", "failed")}
    return Result(
        latents=latents,
        residuals=residuals,
        step_nfe=np.repeat(step_nfe[:, None], B, 1),
        nfe=np.full(B, evaluations),
        reasons=["max_nfe"] * B,
        error=np.full(B, np.nan),
        measured=np.zeros(B, bool),
        growth=np.full(B, np.nan),
        evaluations=evaluations,
        **counts,
        **none,
    )


@dataclass(frozen=True)
class PeerSolver:
    """A method as `nrinv.invert` takes it for `solver`.  nfe: evaluations of a step it may use at most.

    predictor: no, the papers start from the state.  What else `open` is given, tolerance and budget, is nrinv's own.
    """

    method: Callable
    nfe: int
    predictor: ClassVar[bool] = False

    def open(self, sampler, target, *, noises=None, **given):
        return PeerInversion(sampler, target, self.method, self.nfe, noises=noises)


class PeerInversion:
    """A method run over the steps j = E - 1 .. 0 of a sampler; `next`, `feed` and `result` as of `nrinv.Inversion`.

    sampler: a `nrinv.Sampler`.  target [B, ...]: z_0.  method: a generator function (step, nfe).  nfe: evaluations of a
    step it may use at most.  noises: one [B, ...] for each of the sampler's draws.  extrapolation: 0, as in the papers: a
    sampler with memory gets the present output in place of those it has not seen; otherwise nrinv's rho.

    Residuals are |f(z) - z| / |z| at the last evaluation of each step.
    """

    def __init__(self, sampler, target, method, nfe, noises=None, extrapolation=0.0):
        self._sampler, self._method, self._max_nfe, self._extrapolation = sampler, method, nfe, extrapolation
        self._state = torch.as_tensor(target).to(torch.float32)
        self._noises = [torch.as_tensor(noise).to(self._state) for noise in noises or []]
        if len(self._noises) != sampler.num_noises:
            raise ValueError(f"the sampler draws {sampler.num_noises} noises, got {len(self._noises)}")
        self._rows = way_back(sampler)
        self._count = len(sampler)
        self._residuals = np.full((self._count, len(self._state)), np.nan)
        self._step_nfe = np.zeros(self._count, np.int64)
        self._output = None
        self.max_evaluations = self._count * nfe
        self._begin(self._count - 1)

    def _begin(self, j):
        """Start the method on step j, or be done with j = -1."""
        self._j, self._point = j, None
        if j < 0:
            return
        E, row, behind = self._count, self._rows[j], np.arange(j, -1, -1)
        weights, rho = row[E : E + j + 1], self._extrapolation if self._output is not None else 0.0
        b, h = weights @ (1 + rho * behind), -rho * (weights @ behind)
        state = self._state - sum(c * n for c, n in zip(row[2 * E :], self._noises, strict=True))
        if h:
            state = state - h * self._output
        self._known = state / row[j]
        self._step = Step(self._state, float(row[j]), float(b), j, E - 1)
        self._solver = self._method(self._step, self._max_nfe)
        self._point = next(self._solver)

    def next(self):
        """The evaluation that is due, as a `Request`; None when the inversion is done."""
        if self._j < 0:
            return None
        return request_at(self._sampler, self._j, self._point)

    def feed(self, model_output, /):
        """Hand in the network's output [B, ...] at the point asked for."""
        z, j, self._output = self._point, self._j, model_output.to(self._state)
        f = self._known - self._step.b / self._step.A * self._output
        self._residuals[j] = ((f - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).cpu()
        self._step_nfe[j] += 1
        try:
            self._point = self._solver.send(f)
        except StopIteration as end:
            self._state = end.value
            self._begin(j - 1)

    def result(self):
        """A `Result`, with the fields of nrinv's."""
        if self._j >= 0:
            raise RuntimeError("the inversion is not done: feed what next asks for until it is None")
        return result_of(self._state, self._residuals, self._step_nfe)


def way_back(sampler):
    """[E, 2 E + K]: row j gives s_{j+1} from s_j, outputs 0..j and noises; states before s_j are eliminated in order."""
    rows = np.array(sampler.steps, dtype=np.float64)
    for j in range(len(rows)):
        for k in range(j):
            factor = rows[j, k] / rows[k, k]
            rows[j] -= factor * rows[k]
            rows[j, k + 1] += factor
    return rows
