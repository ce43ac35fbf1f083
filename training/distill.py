"""Few-step student: each quarter of the base model's guided trajectory as one step without guidance.

    python training/distill.py          # needs build/model/base; writes build/model/turbo

The teacher draws images from random noise with DDIM in 12 steps at guidance 3; its states at timesteps 999, 749, 499, 249
and at the end are kept.  The student learns to step from each to the next (as in progressive distillation, arXiv 2202.00512,
with the truncated SNR weight of its section 4), which DDIM and Euler with trailing timesteps then do.
"""

import sys
from pathlib import Path

import torch
import torch.multiprocessing as mp
from diffusers import DDIMScheduler, EulerDiscreteScheduler, StableDiffusionPipeline
from images import NOISE_SCHEDULE, load, save_sheet
from loop import WORK, Plan, train
from train_base import SHOWN, tokens

TEACHER_STEPS, STUDENT_STEPS, GUIDANCE = 12, 4, 3.0
TRAJECTORIES, BATCH = 3072, 64
PLAN = Plan("turbo", steps=800, batch=64, muon_rate=0.004, adam_rate=4e-4, average=0.99, warmup=20)
ALPHAS = DDIMScheduler(**NOISE_SCHEDULE).alphas_cumprod
# Timesteps of the teacher, 999 to 82; the student visits every third.
TIMESTEPS = [round(1000 - k * 1000 / TEACHER_STEPS) - 1 for k in range(TEACHER_STEPS)]
EVERY = TEACHER_STEPS // STUDENT_STEPS


def level(k):
    """(signal, noise) before the teacher's step k; the clean end after the last."""
    alpha = ALPHAS[TIMESTEPS[k]] if k < TEACHER_STEPS else torch.tensor(1.0)
    return alpha.sqrt(), (1 - alpha).sqrt()


def teacher():
    """(unet, embeddings of the training captions [N, T, C], of the empty caption [1, T, C], share [N])"""
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "base", safety_checker=None)
    records, _ = load("train")
    with torch.no_grad():
        ids = tokens(pipe.tokenizer, [*(r["caption"] for r in records), ""])
        embeddings = torch.cat([pipe.text_encoder(part)[0] for part in ids.split(64)])
    share = torch.tensor([r["share"] for r in records])
    return pipe.unet.requires_grad_(False), embeddings[:-1], embeddings[-1:], share


@torch.no_grad()
def trajectory(unet, embedding, empty, state):
    """The states at which the student steps, and the end: [B, STUDENT_STEPS + 1, 4, 16, 16]."""
    kept = []
    for k, timestep in enumerate(TIMESTEPS):
        if k % EVERY == 0:
            kept.append(state)
        both = unet(torch.cat([state, state]), timestep, torch.cat([empty.expand_as(embedding), embedding])).sample
        plain, prompted = both.chunk(2)
        noise = plain + GUIDANCE * (prompted - plain)
        (signal, sigma), (next_signal, next_sigma) = level(k), level(k + 1)
        state = next_signal * (state - sigma * noise) / signal + next_sigma * noise
    return torch.stack([*kept, state], 1)


def _part(part):
    return WORK / f"trajectories_{part:03d}.pt"


def _record(rank, workers, device):
    torch.set_num_threads(1)
    unet, embeddings, empty, share = teacher()
    unet, embeddings, empty = unet.to(device), embeddings.to(device), empty.to(device)
    for part in range(rank, TRAJECTORIES // BATCH, workers):
        if not _part(part).exists():
            generator = torch.Generator().manual_seed(part)
            chosen = torch.multinomial(share, BATCH, replacement=True, generator=generator)
            noise = torch.randn(BATCH, 4, 16, 16, generator=generator).to(device)
            states = trajectory(unet, embeddings[chosen.to(device)], empty, noise)
            new = Path(f"{_part(part)}.new")
            torch.save((states.cpu(), chosen), new)
            new.rename(_part(part))


def record():
    """Keep trajectories of the teacher in build/model; what is there already is not made again."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    workers = 1 if device == "cuda" else mp.cpu_count()
    mp.spawn(_record, (workers, device), nprocs=workers)


def recorded():
    """(states [N, STUDENT_STEPS + 1, 4, 16, 16], captions [N])"""
    parts = [torch.load(_part(part)) for part in range(TRAJECTORIES // BATCH)]
    return [torch.cat(each) for each in zip(*parts, strict=True)]


class Task:
    outer = ("conv_in", "conv_out", "time_emb")

    def __init__(self, device):
        unet, embeddings, _, _ = teacher()
        states, chosen = recorded()
        self.module = unet.requires_grad_(True).to(device)
        self.embeddings = embeddings.to(device)
        # The last trajectories are not learnt from.
        held = len(states) // 32
        self.states, self.chosen = states[:-held].to(device), chosen[:-held].to(device)
        self.heldout = states[-held:].to(device), chosen[-held:].to(device)
        levels = torch.tensor([level(k) for k in range(0, TEACHER_STEPS + 1, EVERY)], device=device)
        self.signal, self.sigma = levels.T
        self.timesteps = torch.tensor(TIMESTEPS[::EVERY], device=device)

    def step_loss(self, module, states, chosen, k):
        """Error of the image that each step is heading for."""
        rows = torch.arange(len(k), device=k.device)
        state, target = states[rows, k], states[rows, k + 1]
        signal, sigma, next_signal, next_sigma = (
            x.view(-1, 1, 1, 1) for x in (self.signal[k], self.sigma[k], self.signal[k + 1], self.sigma[k + 1])
        )
        noise = module(state, self.timesteps[k], self.embeddings[chosen]).sample.float()
        image = (state - sigma * noise) / signal
        ratio = next_sigma / sigma
        wanted = (target - ratio * state) / (next_signal - ratio * signal)
        weight = (self.signal[k] / self.sigma[k]).pow(2).clamp(0.3, 5)
        return (weight * (image - wanted).pow(2).flatten(1).mean(1)).mean()

    def loss(self, generator, size):
        device = generator.device
        chosen = torch.randint(len(self.states), (size,), generator=generator, device=device)
        k = torch.randint(STUDENT_STEPS, (size,), generator=generator, device=device)
        return self.step_loss(self.module, self.states[chosen], self.chosen[chosen], k)

    def evaluate(self, module):
        states, chosen = self.heldout
        return {
            f"step {k}": self.step_loss(module, states, chosen, torch.full((len(states),), k, device=states.device))
            for k in range(STUDENT_STEPS)
        }


def turbo_scheduler():
    return EulerDiscreteScheduler(**NOISE_SCHEDULE, timestep_spacing="trailing")


def main():
    record()
    pipe = StableDiffusionPipeline.from_pretrained(WORK / "base", safety_checker=None)
    pipe.unet.load_state_dict(train(PLAN, Task))
    pipe.scheduler = turbo_scheduler()
    pipe.save_pretrained(WORK / "turbo")
    call = {"num_inference_steps": STUDENT_STEPS, "guidance_scale": 1.0, "height": 64, "width": 64, "output_type": "pt"}
    generators = [torch.Generator().manual_seed(seed) for seed in range(len(SHOWN))]
    save_sheet(WORK / "turbo.png", [2 * pipe(SHOWN, generator=generators, **call).images - 1])


if __name__ == "__main__":
    sys.exit(main())
