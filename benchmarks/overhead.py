"""What the solver costs beside the network: one `feed` + `next` of `nrinv.Inversion` on one thread.

A cost is the time from having a network output to knowing the next sample.  For nrinv that is `feed` + `next`; for
torchdeq and scipy the time between two calls of the function they solve, which leaves out the function itself for all
alike.  All solvers get the same linear map, whose spectrum keeps them busy for as many evaluations as a step is given,
with tol 0; only evaluations with a full history count.  The references are single calls, warm, under the same clock:

    read      the 2 (depth + 1) vectors of the history, contiguous float32, read once by torch.sum
    dot       the same by torch.dot of their first half with their second: in cache the fastest read there is
    add       torch.add of two states into a third
    UNet      one evaluation of the embedded turbo UNet at [1, 4, 16, 16]

Rounds are interleaved and every figure is the smallest of all rounds: compare within one run only.
"""

import math
import os
import sys
from time import perf_counter_ns
from timeit import repeat

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy as np
import torch
from common import parser, write
from scipy.optimize import NoConvergence, anderson
from tabulate import tabulate
from torchdeq.solver.anderson import anderson_solver

import nrinv

DEPTH = 3
STEPS, NFE = 6, 16
UNET_SHAPE = (1, 4, 16, 16)
SHAPES = (UNET_SHAPE, (1, 4, 64, 64), (1, 16, 128, 128), (8, 4, 128, 128))
MAX_READS, MAX_UNET = 3.0, 0.02


class Map:
    """f_j(z) = w_j + d (z - w_j) with d in 0..0.95, the fixed points w_j of neighbouring steps apart from each other."""

    def __init__(self, shape):
        rng = np.random.default_rng(0)
        self.d = rng.uniform(0, 0.95, shape).astype(np.float32)
        self.points = rng.standard_normal((2, *shape)).astype(np.float32)

    def model_output(self, j, z):
        """m with f_j(z) = s_{j+1} + m: what a network would have returned."""
        point, before = self.points[j % 2], self.points[(j + 1) % 2]
        return self.d * (z - point) + (point - before)


def time_nrinv(problem, torch_vectors):
    """Nanoseconds of `feed` + `next`, of evaluations that find a full history and do not end a step."""
    wrap, unwrap = (torch.from_numpy, torch.Tensor.numpy) if torch_vectors else (np.asarray, np.asarray)
    sampler = nrinv.Sampler(np.arange(STEPS, 0, -1.0), np.hstack([np.eye(STEPS), -np.eye(STEPS)]), np.ones(STEPS))
    target = wrap(problem.points[STEPS % 2].copy())
    inversion = nrinv.Inversion(sampler, target, solver="anderson", depth=DEPTH, max_nfe=NFE, tol=0)
    times, k, request = [], 0, inversion.next()
    while request is not None:
        output = wrap(problem.model_output(request.index, unwrap(request.sample)))
        start = perf_counter_ns()
        inversion.feed(output)
        request = inversion.next()
        times.append(perf_counter_ns() - start)
        k += 1
    result = inversion.result()
    if set(result.reasons) != {"max_nfe"} or (result.step_nfe != NFE).any():
        raise RuntimeError(f"the solver did not stay in its steady state: {result.reasons}, {result.step_nfe.tolist()}")
    return [t for i, t in enumerate(times) if DEPTH < i % NFE < NFE - 1]


class Gaps:
    """Wraps a function and records the nanoseconds from each return to the next call."""

    def __init__(self, function):
        self.function, self.times, self.returned = function, [], None

    def __call__(self, z):
        if self.returned is not None:
            self.times.append(perf_counter_ns() - self.returned)
        out = self.function(z)
        self.returned = perf_counter_ns()
        return out

    def steady(self):
        return self.times[DEPTH + 1 :]


def time_torchdeq(problem):
    point, d = torch.from_numpy(problem.points[0]), torch.from_numpy(problem.d)
    gaps = Gaps(lambda z: point + d * (z - point))
    with torch.no_grad():
        anderson_solver(gaps, torch.from_numpy(problem.points[1].copy()), max_iter=NFE, tol=0.0, m=DEPTH)
    return gaps.steady()


def time_scipy(problem):
    point, d = problem.points[0].astype(np.float64), problem.d.astype(np.float64)
    gaps = Gaps(lambda z: (d - 1) * (z - point))
    try:
        # alpha=1 starts from the Jacobian -1 of f(z) - z, and without a line search an iteration is one evaluation.
        anderson(gaps, problem.points[1], alpha=1, M=DEPTH, line_search=None, maxiter=NFE, f_tol=1e-300)
    except NoConvergence:
        pass
    return gaps.steady()


def clock(function, calls):
    """Nanoseconds of each of some calls."""
    return [1e9 * seconds for seconds in repeat(function, number=1, repeat=calls)]


def contenders(shape):
    """name -> function that returns nanoseconds of single passes."""
    problem, size, calls = Map(shape), math.prod(shape), STEPS * NFE
    history = torch.randn(2, (DEPTH + 1) * size)
    first, second = history
    a, b, out = torch.randn(shape), torch.randn(shape), torch.empty(shape)
    return {
        "host": lambda: time_nrinv(problem, False),
        "aten": lambda: time_nrinv(problem, True),
        "read": lambda: clock(lambda: torch.sum(history), calls),
        "dot": lambda: clock(lambda: torch.dot(first, second), calls),
        "add": lambda: clock(lambda: torch.add(a, b, out=out), calls),
        "torchdeq": lambda: time_torchdeq(problem),
        "scipy": lambda: time_scipy(problem),
    }


def unet_contender():
    pipe = nrinv.demo_pipeline("turbo")
    unet, text = pipe.unet.eval(), pipe.text_encoder.config
    sample, embeds = torch.randn(UNET_SHAPE), torch.randn(1, text.max_position_embeddings, text.hidden_size)

    def evaluate():
        with torch.no_grad():
            unet(sample, 500, encoder_hidden_states=embeds)

    return {"unet": lambda: clock(evaluate, 10)}


def measure(shape, rounds):
    """Microseconds of every contender, the smallest of all rounds."""
    functions = contenders(shape) | (unet_contender() if shape == UNET_SHAPE else {})
    best = dict.fromkeys(functions, math.inf)
    for _ in range(rounds):
        for name, function in functions.items():
            best[name] = min(best[name], *function())
    return {name: t / 1000 for name, t in best.items()}


def report(shape, micros):
    """One record per kind of vector."""
    references = {name: t for name, t in micros.items() if name not in ("host", "aten")}
    return [
        {
            "shape": list(shape),
            "vectors": kind,
            "feed_next_us": micros[kind],
            "reference_us": references,
            "ratio": {name: micros[kind] / t for name, t in references.items()},
        }
        for kind in ("host", "aten")
    ]


def missed(records):
    """The targets that are not met, in words."""
    for r in records:
        where = f"{r['vectors']} {r['shape']}"
        if r["vectors"] == "host" and r["ratio"]["read"] > MAX_READS:
            yield f"{where}: {r['ratio']['read']:.2f} times reading the history once, at most {MAX_READS} wanted"
        if r["vectors"] == "aten" and r["ratio"].get("unet", 0) >= MAX_UNET:
            yield f"{where}: {r['ratio']['unet']:.2%} of a UNet evaluation, less than {MAX_UNET:.0%} wanted"
        if r["ratio"]["torchdeq"] >= 1:
            yield f"{where}: {r['ratio']['torchdeq']:.2f} times torchdeq's Anderson, less than 1 wanted"


def table(records):
    """The report as text; ratios are feed + next over the reference."""
    head = ("shape", "vectors", "feed+next us", "/ read", "/ dot", "/ add", "/ torchdeq", "/ scipy", "% of UNet")
    rows = []
    for r in records:
        ratio = r["ratio"]
        cells = [f"{ratio[name]:.2f}" for name in ("read", "dot", "add", "torchdeq", "scipy")]
        unet = f"{100 * ratio['unet']:.2f}" if "unet" in ratio else ""
        rows.append((str(r["shape"]), r["vectors"], f"{r['feed_next_us']:.1f}", *cells, unet))
    alignment = ["left"] * 2 + ["right"] * (len(head) - 2)
    return tabulate(rows, head, tablefmt="plain", disable_numparse=True, colalign=alignment)


NOTES = {
    "read": f"torch.sum of the history: 2 (depth + 1) = {2 * (DEPTH + 1)} contiguous float32 vectors, each read once",
    "dot": "torch.dot of the two halves of the same: the fastest read in cache; no target",
    "add": "torch.add of two states into a third",
    "torchdeq": f"torchdeq anderson_solver, m={DEPTH} (keeps {DEPTH} pairs, nrinv {DEPTH + 1}), between two evaluations",
    "scipy": f"scipy.optimize.anderson, M={DEPTH}, no line search, in float64, the batch as one vector; the same",
    "unet": "one evaluation of the embedded turbo UNet",
}


def main():
    command = parser(__doc__, "overhead")
    command.add_argument("--check", action="store_true", help="exit with 1 if a target is missed")
    args = command.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rounds = 5 if args.quick else 40
    records = [record for shape in SHAPES for record in report(shape, measure(shape, rounds))]
    misses = list(missed(records))
    print(table(records))
    print(f"\nOne thread, smallest of {rounds} interleaved rounds; Anderson, depth {DEPTH}, full history.  Ratios to")
    print("\n".join(f"    {name:10}{note}" for name, note in NOTES.items()))
    print("\n".join(f"missed: {miss}" for miss in misses) or "all targets met")
    write(records, args.out, depth=DEPTH, rounds=rounds, notes=NOTES, missed=misses)
    return 1 if args.check and misses else 0


if __name__ == "__main__":
    sys.exit(main())
