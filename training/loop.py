"""The loop that trains every model: workers, schedule, moving average, checkpoints.

On a GPU there is one worker.  On a CPU there is one for each core, of one thread: small networks run many times slower
when their operators share threads.  All draw their part of each batch, and their gradients are averaged.

Random numbers depend on the seed, the step and the worker alone, so a run that is stopped goes on from its last checkpoint
as if nothing had happened; its checkpoint is build/model/<name>.pt, written after each evaluation.
"""

import math
import os
import time
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from diffusers.training_utils import EMAModel
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim.lr_scheduler import LambdaLR

WORK = Path("build/model")


@dataclass(frozen=True)
class Plan:
    """How to train: steps of `batch` samples; rates of Muon (matrices) and AdamW (all else), both warmed up and then
    lowered along a cosine to a hundredth; `average`, the decay of the moving average that is the result."""

    name: str
    steps: int
    batch: int
    muon_rate: float
    adam_rate: float
    average: float
    warmup: int = 50
    report: int = 50
    evaluate: int = 500
    seed: int = 0


def optimizers(module, plan, outer):
    """Muon (https://kellerjordan.github.io/posts/muon/) for the matrices and convolutions inside a network; AdamW for what
    is left, among it all of `outer`.

    Each worker orthogonalises its share of the matrices.  torch's Muon takes two dimensions alone: a convolution is handed
    to it as a matrix in the same memory.  Returns them and {parameter: that matrix}.
    """
    named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
    inner = {name for name, p in named if p.ndim > 1 and not any(part in name for part in outer)}
    matrices = {p: p.detach().flatten(1) for name, p in named if name in inner}
    rest = [p for name, p in named if name not in inner]
    options = {"lr": plan.muon_rate, "momentum": 0.95, "weight_decay": 0.0}
    muon = ZeroRedundancyOptimizer(list(matrices.values()), torch.optim.Muon, **options)
    return [muon, torch.optim.AdamW(rest, plan.adam_rate, betas=(0.9, 0.99), weight_decay=0.0)], matrices


def average_gradients(module, workers):
    """Replace the gradients by their means over the workers."""
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    if workers > 1:
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for gradient, mean in zip(gradients, (flat / workers).split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))


def schedule(plan, step):
    """What the rates are multiplied by at a step."""
    return min(1, (step + 1) / plan.warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / plan.steps)))


def train(plan, build):
    """Run `plan` on build(device), a task with

        module                 what is trained
        outer                  parts of the names of parameters that Muon is not for
        loss(generator, size)  of a random part of a batch
        evaluate(module)       {name: figure} of the moving average, for the log

    Returns the moving average's state; build must be a function of a module, and what it does the same each time.
    """
    WORK.mkdir(parents=True, exist_ok=True)
    workers = 1 if torch.cuda.is_available() else os.cpu_count()
    store = WORK / f"{plan.name}.store"
    store.unlink(missing_ok=True)
    mp.spawn(_work, (workers, plan, build, str(store.resolve())), nprocs=workers)
    store.unlink(missing_ok=True)
    return result(plan)


def result(plan):
    """The moving average's state of what `plan` has trained."""
    return torch.load(_checkpoint(plan), map_location="cpu")["average"]


def _checkpoint(plan):
    return WORK / f"{plan.name}.pt"


def _work(rank, workers, plan, build, store):
    torch.set_num_threads(max(1, os.cpu_count() // workers))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dist.init_process_group("gloo", f"file://{store}", timedelta(hours=1), workers, rank)
    torch.manual_seed(plan.seed)
    _Run(rank, workers, plan, build(device), device).run()
    dist.barrier()
    dist.destroy_process_group()


class _Run:
    """The part of one worker in a training run."""

    def __init__(self, rank, workers, plan, task, device):
        self.rank, self.workers, self.plan, self.task, self.device = rank, workers, plan, task, device
        self.module = task.module
        self.optimizers, self.matrices = optimizers(self.module, plan, task.outer)
        self.average = EMAModel(self.module.parameters(), plan.average, foreach=True)
        self.averaged = deepcopy(self.module).eval().requires_grad_(False)
        self.first, self.spent, self.began = 0, 0.0, time.time()
        if _checkpoint(plan).exists():
            self._load(torch.load(_checkpoint(plan), map_location=device))
        factor = partial(schedule, plan)
        self.schedules = [LambdaLR(optimizer, factor, self.first - 1) for optimizer in self.optimizers]

    def _load(self, saved):
        self.module.load_state_dict(saved["module"])
        self.averaged.load_state_dict(saved["average"])
        self.average = EMAModel(self.averaged.parameters(), self.plan.average, foreach=True)
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.first, self.spent = saved["step"], saved["seconds"]
        self.average.optimization_step = self.first

    def _save(self, step):
        self.optimizers[0].consolidate_state_dict()
        if self.rank > 0:
            return
        state = {
            "module": self.module.state_dict(),
            "average": self.averaged.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": step,
            "seconds": self.spent + time.time() - self.began,
        }
        new = _checkpoint(self.plan).with_suffix(".new")
        torch.save(state, new)
        new.replace(_checkpoint(self.plan))

    def run(self):
        plan, total, parent = self.plan, 0.0, os.getppid()
        if self.rank == 0:
            count = sum(p.numel() for p in self.module.parameters())
            print(f"{plan.name}: {count:,} parameters, steps {self.first}..{plan.steps}, {self.workers} on {self.device}")
        for done in range(self.first + 1, plan.steps + 1):
            if os.getppid() != parent:  # whoever has started the workers is gone
                return
            total += self._step(done - 1)
            if done % plan.report == 0:
                self._report(done, total / plan.report)
                total = 0.0
            if done % plan.evaluate == 0 or done == plan.steps:
                self._evaluate(done)
                self._save(done)

    def _step(self, step):
        """One step of all optimisers; this worker's loss before it."""
        generator = torch.Generator(self.device).manual_seed((self.plan.seed * 1_000_003 + step) * 64 + self.rank)
        torch.manual_seed(generator.initial_seed())
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.task.loss(generator, self.plan.batch // self.workers)
        loss.backward()
        average_gradients(self.module, self.workers)
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for parameter, matrix in self.matrices.items():
            matrix.grad = parameter.grad.flatten(1)
        for each in [*self.optimizers, *self.schedules]:
            each.step()
        self.module.zero_grad()
        self.average.step(self.module.parameters())
        return loss.item()

    def _report(self, done, loss):
        seconds = time.time() - self.began
        rate = self.plan.batch * (done - self.first) / seconds
        if self.rank == 0:
            print(f"{done} {self.spent + seconds:.0f} s loss {loss:.4f} {rate:.1f} samples/s", flush=True)

    @torch.no_grad()
    def _evaluate(self, done):
        self.average.copy_to(self.averaged.parameters())
        if self.rank == 0:
            figures = self.task.evaluate(self.averaged)
            print(f"-- {done} " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
