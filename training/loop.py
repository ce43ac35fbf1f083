"""The loop that trains every model: workers, schedule, moving average, checkpoints.

On a GPU there is one worker.  On a CPU there is one for each core, of one thread: small networks run many times slower
when their operators share threads.  All draw their part of each batch, and their gradients are averaged.

Random numbers depend on the seed, the step and the worker alone, so a run that is stopped goes on from its last checkpoint
as if nothing had happened; its checkpoint is build/model/<name>.pt.
"""

import math
import os
import time
from copy import deepcopy
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WORK = Path("build/model")
CHECKPOINT_SECONDS = 300


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


class Muon:
    """Muon (K. Jordan, 2024, https://kellerjordan.github.io/posts/muon/): momentum, orthogonalised by five Newton-Schulz
    steps, for the matrices and convolutions inside a network; AdamW for what is left, among it all of `outer`.

    Each worker orthogonalises its share of the matrices.
    """

    def __init__(self, module, muon_rate, adam_rate, outer):
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.matrices = [p for name, p in named if p.ndim > 1 and not any(part in name for part in outer)]
        rest = [p for _, p in named if all(p is not matrix for matrix in self.matrices)]
        self.momenta = [torch.zeros_like(p) for p in self.matrices]
        self.rates = muon_rate, adam_rate
        self.adam = torch.optim.AdamW(rest, adam_rate, betas=(0.9, 0.99), weight_decay=0.0)

    @torch.no_grad()
    def step(self, scale):
        rank, workers = dist.get_rank(), dist.get_world_size()
        updates = [torch.zeros_like(p) for p in self.matrices]
        shares = sorted(range(len(updates)), key=lambda i: self.matrices[i].numel())
        for i, (matrix, momentum) in enumerate(zip(self.matrices, self.momenta, strict=True)):
            momentum.lerp_(matrix.grad, 0.05)
            if shares.index(i) % workers == rank:
                gradient = torch.lerp(matrix.grad, momentum, 0.95).flatten(1)
                updates[i].copy_(orthogonalised(gradient).view_as(matrix))
        share(updates)
        for matrix, update in zip(self.matrices, updates, strict=True):
            rows, columns = matrix.flatten(1).shape
            matrix.sub_(update, alpha=self.rates[0] * scale * max(1, rows / columns) ** 0.5)
        for group in self.adam.param_groups:
            group["lr"] = self.rates[1] * scale
        self.adam.step()

    def state(self):
        return {"momenta": self.momenta, "adam": self.adam.state_dict()}

    def load(self, state):
        for momentum, saved in zip(self.momenta, state["momenta"], strict=True):
            momentum.copy_(saved)
        self.adam.load_state_dict(state["adam"])


def orthogonalised(matrix):
    x = matrix / (matrix.norm() + 1e-7)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if tall else x


def share(tensors):
    """Replace tensors by their sums over the workers."""
    if dist.get_world_size() > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for tensor, summed in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(summed.view_as(tensor))


def schedule(plan, step):
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
    task = build(device)
    module, optimizer = task.module, Muon(task.module, plan.muon_rate, plan.adam_rate, task.outer)
    average = deepcopy(module).eval().requires_grad_(False)
    first, spent = 0, 0.0
    if _checkpoint(plan).exists():
        saved = torch.load(_checkpoint(plan), map_location=device)
        module.load_state_dict(saved["module"])
        average.load_state_dict(saved["average"])
        optimizer.load(saved["optimizer"])
        first, spent = saved["step"], saved["seconds"]
    if rank == 0:
        count = sum(p.numel() for p in module.parameters())
        print(f"{plan.name}: {count:,} parameters, steps {first}..{plan.steps}, {workers} on {device}", flush=True)

    def save(step):
        state = {"module": module.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state()}
        new = _checkpoint(plan).with_suffix(".new")
        torch.save({**state, "step": step, "seconds": spent + time.time() - began}, new)
        new.replace(_checkpoint(plan))

    began = saved_at = time.time()
    total, parent = 0.0, os.getppid()
    for step in range(first, plan.steps):
        if os.getppid() != parent:  # whoever has started the workers is gone
            return
        generator = torch.Generator(device).manual_seed((plan.seed * 1_000_003 + step) * 64 + rank)
        torch.manual_seed(generator.initial_seed())
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = task.loss(generator, plan.batch // workers)
        loss.backward()
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        share(gradients)
        torch._foreach_div_(gradients, workers)
        torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step(schedule(plan, step))
        module.zero_grad()
        total += loss.item()
        if rank > 0:
            continue
        with torch.no_grad():
            decay = min(plan.average, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(average.parameters()), list(module.parameters()), 1 - decay)
        done = step + 1
        if done % plan.report == 0:
            seconds = time.time() - began
            rate = plan.batch * (done - first) / seconds
            print(f"{done} {spent + seconds:.0f} s loss {total / plan.report:.4f} {rate:.1f} samples/s", flush=True)
            total = 0.0
        if done % plan.evaluate == 0 or done == plan.steps:
            with torch.no_grad():
                figures = task.evaluate(average)
            print(f"-- {done} " + ", ".join(f"{name} {value:.4g}" for name, value in figures.items()), flush=True)
        if time.time() - saved_at > CHECKPOINT_SECONDS or done == plan.steps:
            save(done)
            saved_at = time.time()
    dist.barrier()
    dist.destroy_process_group()
