"""One implicit step z = f(z) on closed-form problems: residual against network evaluations (NFE), for every method.

The network is the exact denoiser D of a Gaussian mixture (tests/mixture.py), in float64, its output in float32; the step
leads from noise level sigma to (1 - kappa) sigma,

    m(z) = (z - D(z)) / sigma        s = z - kappa sigma m(z)        f(z) = s + kappa sigma m(z)

    contractive   D as it is: f' has its eigenvalues near 0 along the data and at kappa across it
    expansive     D + sum_i a tanh(4 <q_i, z> / a) q_i with 24 orthonormal q_i: eigenvalues down to -4 kappa, and fixed-point
                  iterations that never settle, as seen on guided few-step models
    on, off       s made from z* = x0 + sigma n, x0 drawn from the mixture; off: s plus white noise of rms 0.5,
                  twice the deviation of the data in its smallest components; there is no z* then
    fp16, bf16    m times 1 + u e(z), e a hash of z that is uniform in -1..1: a network in half precision

A residual is |f(z) - z| / sqrt(D) at the answer, by an evaluation that is not counted.  Each method starts from s and has
nfe evaluations; a vector-Jacobian product counts as one.  Means of log10 over the samples.

    python benchmarks/solver.py            # prints tables, writes results/solver.json and results/solver.png

With --model and --images the steps are those of a diffusers pipeline, at natural noisy images, and the pipeline evaluates
the network; methods that need its gradient or one sample at a time are left out, and only --out is written.
"""

import itertools
import math
import os
import sys
from dataclasses import dataclass

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from common import RESULTS, grouped, own_model, parsed, parser, write
from matplotlib import pyplot
from peers import METHODS, Step, fixed_point, request_at, result_of
from rich.console import Console
from rich.table import Table
from scipy import optimize
from torchdeq.solver.anderson import anderson_solver

import nrinv

BUDGETS = (1, 2, 3, 4, 6, 8, 12)
DIMENSION, COMPONENTS, BATCH = 1024, 24, 8
DIRECTIONS, SLOPE = 24, 4.0
OFF = 0.5
ROUNDING = {"none": 0.0, "fp16": 2.0**-11, "bf16": 2.0**-8}
KAPPAS = {"contractive": (0.1, 0.3, 0.6, 0.85, 0.92, 1.0), "expansive": (0.3, 0.6, 0.85)}
# Options of nrinv.Inversion; `newton` is the paper's method, its gradient passes counted as evaluations.
OURS = {
    "nrinv auto": {},
    "nrinv anderson": {"solver": "anderson"},
    "nrinv newton": {"solver": "newton"},
    "nrinv newton, lam 0": {"solver": "newton", "lam": 0.0},
}
REFERENCE = "nrinv auto"

SHOWN, CHECKED = (2, 4, 8), (2, 3, 4, 6, 8)
MARGIN, CONVERGED = 0.1, -3.0
# Residuals below this many times |s| / sqrt(D) are float32's, not a method's, and are taken to be this large.
RESOLUTION = 2.0**-23


@dataclass(frozen=True)
class Case:
    kind: str
    side: str
    sigma: float
    kappa: float
    rounding: str

    @property
    def group(self):
        return f"{self.kind} {self.side}, sigma {self.sigma:g}, rounding {self.rounding}"


def cases(quick):
    sigmas = (1.6,) if quick else (1.6, 4.0)
    for kind, sides in (("contractive", ("on", "off")), ("expansive", ("on",))):
        for side, sigma, kappa in itertools.product(sides, sigmas, KAPPAS[kind]):
            yield Case(kind, side, sigma, kappa, "none")
        for rounding, kappa in itertools.product(() if quick else ("fp16", "bf16"), KAPPAS[kind]):
            yield Case(kind, "on", 1.6, kappa, rounding)


class Problem:
    """One case with its network, m(z) float32 [B, D], and right-hand side, `state` float32 [B, D]."""

    def __init__(self, case):
        rng = np.random.default_rng(0)
        variance = np.arange(1, DIMENSION + 1) ** -1.2
        variance /= variance.mean()
        means = np.zeros((COMPONENTS, DIMENSION))
        means[:, :16] = rng.standard_normal((COMPONENTS, 16)) * np.sqrt(variance[:16])
        directions = np.linalg.qr(rng.standard_normal((DIMENSION, DIRECTIONS)))[0].T
        x0 = means[rng.integers(COMPONENTS, size=BATCH)] + rng.standard_normal((BATCH, DIMENSION)) * np.sqrt(variance)
        noise, off = rng.standard_normal((2, BATCH, DIMENSION))

        self.case, self.b = case, -case.kappa * case.sigma
        self.roundoff = ROUNDING[case.rounding]
        total = torch.from_numpy(variance + case.sigma**2)
        self.means, self.directions = torch.from_numpy(means), torch.from_numpy(directions)
        self.gain = 1 - case.sigma**2 / total
        self.weights = self.means / total
        self.biases = -0.5 * (self.means * self.weights).sum(1)
        self.amplitude = 8 * math.sqrt(1 + case.sigma**2)
        z = torch.from_numpy(x0 + case.sigma * noise)
        state = z + self.b * self.exact(z) + (OFF * torch.from_numpy(off) if case.side == "off" else 0)
        self.state = state.float()

    def exact(self, z):
        """m(z) of the closed form, float64."""
        weight = torch.softmax(z @ self.weights.T + self.biases, dim=1)
        denoised = self.gain * z + (1 - self.gain) * (weight @ self.means)
        if self.case.kind == "expansive":
            response = self.amplitude * torch.tanh(SLOPE / self.amplitude * (z @ self.directions.T))
            denoised = denoised + response @ self.directions
        return (z - denoised) / self.case.sigma

    def network(self, z):
        output = self.exact(z.double())
        if self.roundoff:
            output = output * (1 + self.roundoff * noise_of(z.detach()))
        return output.float()

    def f(self, z):
        return self.state - self.b * self.network(z)

    def log_residual(self, z):
        """Mean over the samples of log10 rms(f(z) - z); None if one is not finite."""
        size = self.state.square().mean(1).sqrt()
        rms = (self.f(z) - z).double().square().mean(1).sqrt()
        mean = float(torch.maximum(rms, RESOLUTION * size).log10().mean())
        return round(mean, 4) if math.isfinite(mean) else None


def noise_of(z):
    """A hash of every element and its neighbour, uniform in -1..1: as rounding, it changes with the last digit."""
    z = z.double()
    return 2 * torch.frac((torch.sin(z * 12.9898 + z.roll(1, 1) * 78.233) * 43758.5453).abs()) - 1


def run_peer(method, problem, nfe):
    """The answer of a method of peers.py and what it used."""
    # Neither the first nor the last step of a run: some methods treat those otherwise.
    step = Step(problem.state, 1.0, problem.b, 0, 1, problem.case.kappa, max(problem.roundoff, 2.0**-24))
    solver = method(step, nfe)
    point, used = next(solver), 0
    while True:
        used += 1
        try:
            point = solver.send(problem.f(point))
        except StopIteration as end:
            return end.value, used


def run_nrinv(options, problem, nfe):
    """The answer of nrinv.Inversion on a sampler of this one step and what it used, on average."""
    sigma, kappa = problem.case.sigma, problem.case.kappa
    levels = [[1.0, sigma], [1.0, sigma * (1 - kappa)]]
    sampler = nrinv.Sampler([1.0], [[1.0, problem.b]], [1.0], levels)
    inversion = nrinv.Inversion(sampler, problem.state, max_nfe=nfe, tol=0, predictor=False, **options)
    pullback = None
    while request := inversion.next():
        if request.cotangent is not None:
            inversion.feed(pullback(request.cotangent)[0])
        elif request.wants_gradient:
            output, pullback = torch.func.vjp(lambda z, scale=request.scale: problem.network(scale * z), request.sample)
            inversion.feed(output)
        else:
            inversion.feed(problem.network(request.scale * request.sample))
    result = inversion.result()
    return result.latents, float(result.nfe.mean())


class Spent(BaseException):
    """Ends a solver that has used its evaluations.  Not an Exception, so that no handler of its own takes it."""


class Counter:
    """f for `nfe` evaluations; the point at which the next one would take place is the answer."""

    def __init__(self, f, nfe):
        self.f, self.left = f, nfe

    def __call__(self, z):
        self.answer = z.copy() if isinstance(z, np.ndarray) else z.clone()
        if not self.left:
            raise Spent
        self.left -= 1
        return self.f(z)


def run_torchdeq(problem, nfe):
    """torchdeq's Anderson solver with its defaults (depth 6, ridge 1e-4)."""
    counter = Counter(problem.f, nfe)
    try:
        anderson_solver(counter, problem.state, max_iter=nfe + 2, tol=0.0)
    except (Spent, torch.linalg.LinAlgError):
        pass
    return counter.answer, nfe


def run_scipy(problem, nfe):
    """scipy.optimize.anderson (depth 5, ridge 1e-4), from the Jacobian -1 of f(z) - z, for every sample by itself.

    Without its line search, which makes no difference on contractive problems and loses evaluations on expansive ones.
    """
    answers = []
    for b in range(BATCH):

        def residual(z, b=b):
            point = torch.from_numpy(z).float()[None]
            return (problem.state[b : b + 1] - problem.b * problem.network(point) - point)[0].double().numpy()

        counter = Counter(residual, nfe)
        try:
            start = problem.state[b].double().numpy()
            optimize.anderson(counter, start, alpha=1, line_search=None, maxiter=nfe + 1, f_tol=1e-300)
        except (Spent, optimize.NoConvergence, ValueError):
            pass
        answers.append(torch.from_numpy(counter.answer).float())
    return torch.stack(answers), nfe


class OneEvaluation:
    """Has `nrinv.invert`, as its `solver`, evaluate the network once: at evaluation j, at what is to be inverted."""

    predictor = False

    def __init__(self, j):
        self.j, self.outputs = j, []

    def open(self, sampler, target, **given):
        return _OneEvaluation(request_at(sampler, self.j, torch.as_tensor(target)), len(sampler), self.outputs)


class _OneEvaluation:
    max_evaluations = 1

    def __init__(self, request, steps, outputs):
        self._request, self._steps, self._outputs = request, steps, outputs

    def next(self):
        return None if self._outputs else self._request

    def feed(self, model_output, /):
        self._outputs.append(model_output)

    def result(self):
        """What has been given, and the one evaluation."""
        step_nfe = np.zeros(self._steps, np.int64)
        step_nfe[self._request.index] = 1
        latents = self._request.sample
        return result_of(latents, np.full((self._steps, len(latents)), np.nan), step_nfe)


class ModelProblem:
    """Step j of a pipeline's sampler as s = z* + b m(z*), z* the noisy images of its level."""

    def __init__(self, work, j):
        sampler, (signal, sigma) = work.sampler, work.sampler.levels[j]
        row, E = sampler.steps[j], len(sampler)
        self.work, self.j, self.b = work, j, float(row[E + j] / row[j])
        noise = np.random.default_rng(j).standard_normal(tuple(work.latents.shape), dtype=np.float32)
        z = signal * work.latents + sigma * torch.from_numpy(noise).to(work.latents)
        self.state = (z + self.b * self.network(z)).float()
        precision = str(work.latents.dtype).removeprefix("torch.")
        kappa = round(abs(self.b) / sigma, 3)
        self.case = Case(work.case.name, f"step {j}", float(sigma), kappa, precision)
        self.roundoff = torch.finfo(work.latents.dtype).eps / 2

    def network(self, z):
        """m(z) as the stock pipeline evaluates it."""
        work, solver = self.work, OneEvaluation(self.j)
        call = {"order": "reversed", "verify": False, **work.arguments}
        nrinv.invert(work.pipe, z.to(work.latents), work.captions, solver=solver, **call)
        return solver.outputs[0].float()

    f, log_residual = Problem.f, Problem.log_residual


def model_problems(arguments):
    """The steps of the pipeline's sampler; of a long one, the noisiest and the cleanest."""
    from pipelines import own_work

    work = own_work(arguments)
    if not work.sampler.first_order or work.sampler.levels is None:
        raise SystemExit("--model: its scheduler remembers older outputs or tells no levels; use DDIM or Euler")
    steps = range(len(work.sampler))
    yield from (ModelProblem(work, j) for j in (steps if len(steps) <= 8 else [0, len(steps) // 2, *steps[-4:]]))


def contenders():
    """{method: function (problem, nfe) -> answer [B, D], evaluations used}."""

    def bind(run, what):
        return lambda problem, nfe: run(what, problem, nfe)

    return {
        **{name: bind(run_nrinv, options) for name, options in OURS.items()},
        "naive": lambda problem, nfe: run_peer(fixed_point, problem, 1),
        **{name: bind(run_peer, method) for name, method in METHODS.items()},
        "scipy anderson": run_scipy,
        "torchdeq anderson": run_torchdeq,
    }


def measure(problem, methods):
    """One row for each method, with a list over BUDGETS of what it used and what it reached."""
    case = problem.case
    start = problem.log_residual(problem.state)
    for name, run in methods.items():
        answers = [run(problem, nfe) for nfe in BUDGETS]
        yield {
            **vars(case),
            "method": name,
            "log10_start": start,
            "nfe": BUDGETS,
            "used": [used for _, used in answers],
            "log10_residual": [problem.log_residual(answer) for answer, _ in answers],
        }


def reached(row):
    """{nfe: log10 residual}, inf where a method diverged."""
    return {n: math.inf if v is None else v for n, v in zip(row["nfe"], row["log10_residual"], strict=True)}


def case_of(row):
    return Case(*(row[name] for name in Case.__dataclass_fields__))


def show(rows):
    console = Console(width=150)
    for group, members in grouped(rows, lambda row: case_of(row).group).items():
        kappas = list(grouped(members, "kappa"))
        title = f"{group}: log10 rms residual after {', '.join(map(str, SHOWN))} NFE"
        table = Table("method", *(f"kappa {kappa:g}" for kappa in kappas), title=title)
        for method, own in grouped(members, "method").items():
            table.add_row(method, *(cell(reached(row)) for row in own))
        console.print(table)


def cell(values):
    return " ".join(" div." if math.isinf(values[nfe]) else f"{values[nfe]:5.2f}" for nfe in SHOWN)


def violations(rows):
    """(case, nfe, method, decades by which it is ahead) wherever the reference is not the best, or does not converge."""
    for case, members in grouped(rows, case_of).items():
        reference = next(row for row in members if row["method"] == REFERENCE)
        own, start = reached(reference), reference["log10_start"]
        for row, nfe in itertools.product(members, BUDGETS):
            other = reached(row)[nfe]
            if case.kind == "contractive":
                violated = case.rounding == "none" and nfe in CHECKED and own[nfe] - other > MARGIN
            else:
                violated = nfe == BUDGETS[-1] and other - start < CONVERGED <= own[nfe] - start
            if violated:
                yield case, nfe, row["method"], own[nfe] - other


def show_violations(found):
    table = Table("problem", "kappa", "NFE", "method", "ahead, decades", title="Not the best")
    for case, nfe, method, ahead in found:
        table.add_row(case.group, f"{case.kappa:g}", str(nfe), method, f"{ahead:.2f}")
    Console(width=150).print(table if found else "no method is ahead of nrinv")


def plot(rows, path):
    """Residual against NFE: a panel for each kappa, a line of panels for each of some groups."""
    drawn = [row for row in rows if row["sigma"] == 1.6 and row["side"] == "on" and row["rounding"] != "fp16"]
    methods, groups = list(grouped(rows, "method")), grouped(drawn, lambda row: case_of(row).group)
    columns = max(len(kappas) for kappas in KAPPAS.values())
    figure, axes = pyplot.subplots(len(groups), columns, figsize=(2.1 * columns, 2 * len(groups)), squeeze=False)
    for line, (group, members) in zip(axes, groups.items(), strict=True):
        panels = grouped(members, "kappa")
        for axis, (kappa, panel) in zip(line, panels.items(), strict=False):
            draw(axis, panel, methods)
            axis.set_title(f"kappa {kappa:g}", fontsize=7)
        for axis in line[len(panels) :]:
            axis.set_axis_off()
        line[0].set_ylabel(group.replace(", ", "\n"), fontsize=6)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=8, fontsize=7)
    figure.suptitle("log10 rms residual of one implicit step against network evaluations", fontsize=9)
    figure.tight_layout(rect=(0, 0.25 / len(groups), 1, 0.99))
    figure.savefig(path, dpi=80)


def draw(axis, panel, methods):
    colors, top = pyplot.get_cmap("tab10").colors, panel[0]["log10_start"] + 0.5
    for row in panel:
        values = [min(value, top) for value in reached(row).values()]
        width, order = (2.5, 2) if row["method"] in OURS else (0.9, 3)
        cycle, color = divmod(methods.index(row["method"]), len(colors))
        look = {"lw": width, "zorder": order, "color": colors[color], "ls": ("-", "--")[cycle]}
        axis.plot(row["nfe"], values, label=row["method"], **look)
    axis.set_xticks(BUDGETS)
    axis.tick_params(labelsize=6)


def main():
    command = parser(__doc__, "solver")
    command.add_argument("--check", action="store_true", help="exit with 1 if a method is ahead of nrinv's")
    own_model(command, "with a first-order scheduler", 4)
    arguments = parsed(command)
    torch.set_num_threads(1)
    methods = contenders()
    if arguments.model:
        methods = {name: run for name, run in methods.items() if name != "scipy anderson" and "newton" not in name}
        problems = model_problems(arguments)
    else:
        problems = (Problem(case) for case in cases(arguments.quick))
    rows = [row for problem in problems for row in measure(problem, methods)]
    show(rows)
    found = list(violations(rows))
    show_violations(found)
    if arguments.model and arguments.out == RESULTS / "solver.json":
        return 0
    write(rows, arguments.out)
    if not arguments.model:
        plot(rows, arguments.out.with_suffix(".png"))
    return 1 if arguments.check and found else 0


if __name__ == "__main__":
    sys.exit(main())
