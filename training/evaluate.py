"""What the embedded models can do, measured on the package's files, and what they cost: the tables of docs/models.md, of the
model cards and of training/README.md, and the pictures of docs/models.md.

    python training/evaluate.py [--first FOLDER]          # needs build/model for the images of all splits

FOLDER: the models of an earlier edition, `base` and `turbo` in it, to be judged beside these.  Figures are kept in
training/models.json as they are measured; what is there already is not measured again, so delete it after a training run.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import distill
import numpy as np
import torch
import train_base
import train_scorer
import train_vae
from diffusers import (
    DDIMScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionPipeline,
)
from images import load, psnr, save_sheet, unit
from loop import WORK
from skimage.metrics import structural_similarity
from tabulate import tabulate

import nrinv

RESULTS, PICTURES = Path("training/models.json"), Path("docs/images")
PAGES = [Path("docs/models.md"), Path("training/README.md"), *sorted(Path("nrinv/models").glob("*/README.md"))]
SPLITS = ("train", "heldout_pair", "heldout_concept", "rare", "ood_style", "ood_photo")
MOST = 200  # images of a split that are measured
# Of 100 captions the scorer has to find the right one.
CAPTIONS, BATCH = 100, 10
SHOWN = 32
LEVELS = (40, 200, 400, 600, 800, 999)  # timesteps at which the Jacobian is looked at
# Samplers of each model: name, scheduler, steps, guidance.
TRAILING = {"timestep_spacing": "trailing", "steps_offset": 0, "set_alpha_to_one": True}
SAMPLERS = {
    "base": [("DDIM 50, w = 3", DDIMScheduler, {}, 50, 3.0), ("DDIM 20, w = 3", DDIMScheduler, {}, 20, 3.0)],
    "turbo": [
        ("Euler 4", EulerDiscreteScheduler, TRAILING, 4, 1.0),
        ("Euler 2", EulerDiscreteScheduler, TRAILING, 2, 1.0),
        ("Euler 1", EulerDiscreteScheduler, TRAILING, 1, 1.0),
        ("DDIM 4", DDIMScheduler, TRAILING, 4, 1.0),
        ("Euler ancestral 4", EulerAncestralDiscreteScheduler, TRAILING, 4, 1.0),
        ("LCM 4", LCMScheduler, {}, 4, 1.0),
    ],
}


def pipelines(first):
    """{edition: {kind: pipeline}}"""
    found = {"this": {kind: nrinv.demo_pipeline(kind) for kind in ("base", "turbo")}}
    if first:
        found["first"] = {
            kind: StableDiffusionPipeline.from_pretrained(Path(first) / kind, torch_dtype=torch.float32, safety_checker=None)
            for kind in ("base", "turbo")
        }
        for pipe in found["first"].values():
            pipe.set_progress_bar_config(disable=True)
    return found


def some(split):
    records, pixels = load(split)
    every = max(1, len(records) // MOST)
    return records[::every][:MOST], unit(pixels[::every][:MOST])


def captions_of(records, edition):
    """The first edition called the flat style after its set."""
    captions = [r["caption"] for r in records]
    return [c.replace("flat style", "fluent style") for c in captions] if edition == "first" else captions


# ------------------------------------------------------------------------------------------------------- the autoencoder


@torch.no_grad()
def round_trips(pipe):
    vae, found = pipe.vae, {}
    for split in SPLITS:
        _, images = some(split)
        again = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in images.split(20)]).clamp(-1, 1)
        db = psnr(again, images)
        alike = [
            structural_similarity(a.numpy(), b.numpy(), channel_axis=0, data_range=2)
            for a, b in zip(again, images, strict=True)
        ]
        found[split] = {
            "images": len(images),
            "PSNR": float(db.mean()),
            "worst": float(db.min()),
            "SSIM": float(np.mean(alike)),
        }
    return found


@torch.no_grad()
def smoothness(pipe):
    """What noise of 5 % of the latents' deviation does to held-out images; the posterior's own deviation."""
    _, images = some("heldout_pair")
    posteriors = [pipe.vae.encode(part).latent_dist for part in images.split(20)]
    mean, std = (torch.cat([getattr(p, name) for p in posteriors]) for name in ("mean", "std"))
    noise = 0.05 * mean.std() * torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    clean, noisy = (torch.cat([pipe.vae.decode(part).sample for part in z.split(20)]) for z in (mean, mean + noise))
    return {
        "posterior std": float(std.mean() / mean.std()),
        "PSNR to the clean decoding": float(psnr(noisy, clean).mean()),
    }


# --------------------------------------------------------------------------------------------------------- the drawings


def draw(pipe, captions, seed, sampler):
    _, scheduler, config, steps, guidance = sampler
    own = pipe.scheduler
    pipe.scheduler = scheduler.from_config(own.config, **config)
    try:
        images = []
        for i in range(0, len(captions), BATCH):
            part = captions[i : i + BATCH]
            generators = [torch.Generator().manual_seed(1000 * seed + i + k) for k in range(len(part))]
            call = {"num_inference_steps": steps, "guidance_scale": guidance, "height": 64, "width": 64}
            images.append(pipe(part, generator=generators, output_type="pt", **call).images.float())
        return torch.cat(images)
    finally:
        pipe.scheduler = own


def top1(scorer, images, captions):
    scores = scorer.score(images, captions)
    return float((scores.argmax(1) == torch.arange(len(captions))).float().mean())


def chosen_captions(split):
    records, pixels = load(split)
    one_each = {}
    for i, record in enumerate(records):  # one style of each concept: the others would be right answers as well
        if record["share"] == 1 and (record["concept"] not in one_each or hash_of(record) % 3 == 0):
            one_each[record["concept"]] = i
    chosen = sorted(one_each.values())
    chosen = chosen[:: max(1, len(chosen) // CAPTIONS)][:CAPTIONS]
    return [records[i] for i in chosen], unit(pixels[chosen])


def hash_of(record):
    return sum(map(ord, record["caption"]))


def fidelity(pipes, scorer):
    """Top-1 among the captions of `train` and of `heldout_pair`, of real images and of drawings."""
    found = {}
    for split in ("train", "heldout_pair"):
        records, images = chosen_captions(split)
        captions = captions_of(records, "this")
        rows = {"captions": len(captions), "real images": top1(scorer, images / 2 + 0.5, captions)}
        for edition, kinds in pipes.items():
            for kind, pipe in kinds.items():
                for sampler in SAMPLERS[kind] if edition == "this" else SAMPLERS[kind][:1]:
                    name = f"{kind}, {sampler[0]}" + (", first edition" if edition == "first" else "")
                    started = time.process_time()
                    drawn = draw(pipe, captions_of(records, edition), 0, sampler)
                    seconds = (time.process_time() - started) / len(captions)
                    rows[name] = {"top-1": top1(scorer, drawn, captions), "seconds": seconds}
                    print(split, name, rows[name], flush=True)
        found[split] = rows
    return found


def variety(pipes, scorer):
    """How far drawings of one caption are from each other, and from the nearest image the models have learnt."""
    records, _ = chosen_captions("train")
    records = records[::6][:16]
    _, learnt = load("train")
    learnt = unit(learnt)
    known = torch.cat([scorer.image_features(part / 2 + 0.5) for part in learnt.split(64)])
    found = {}
    for kind, pipe in pipes["this"].items():
        sets = torch.stack([draw(pipe, captions_of(records, "this"), seed, SAMPLERS[kind][0]) for seed in range(1, 5)], 1)
        features = torch.stack([scorer.image_features(one) for one in sets])
        alike = features @ features.transpose(1, 2)
        pixels = sets.flatten(0, 1) * 2 - 1
        found[kind] = {
            "diversity": float((1 - (alike.sum((1, 2)) - 4) / 12).mean()),
            **nearest(pixels, features.flatten(0, 1), learnt, known),
        }
    _, images = some("heldout_pair")
    found["held-out images"] = nearest(images, scorer.image_features(images / 2 + 0.5), learnt, known)
    return found


def nearest(pixels, features, learnt, known):
    rms = torch.cdist(pixels.flatten(1), learnt.flatten(1)).amin(1) / pixels[0].numel() ** 0.5
    return {
        "nearest learnt, rms": float(rms.mean()),
        "nearest learnt, 1 - cosine": float((1 - features @ known.T).amin(1).mean()),
    }


# ---------------------------------------------------------------------------------------------------------- the denoiser


@torch.no_grad()
def losses(pipe):
    """Squared error of the predicted noise, guidance 1, on learnt and withheld images, by timestep."""
    found = {}
    for split in ("train", "heldout_pair", "heldout_concept"):
        records, images = some(split)
        scale = pipe.vae.config.scaling_factor
        z = torch.cat([pipe.vae.encode(part).latent_dist.mean for part in images.split(20)]) * scale
        text = pipe.text_encoder(train_base.tokens(pipe.tokenizer, [r["caption"] for r in records]))[0]
        generator = torch.Generator().manual_seed(0)
        found[split] = {}
        for t in LEVELS:
            noise = torch.randn(z.shape, generator=generator)
            noisy = pipe.scheduler.add_noise(z, noise, torch.tensor([t]))
            out = torch.cat([pipe.unet(x, t, c).sample for x, c in zip(noisy.split(50), text.split(50), strict=True)])
            found[split][str(t)] = float((out - noise).pow(2).mean())
    return found


def spectrum(pipe, timestep, image, caption):
    """Singular values of the Jacobian of sigma eps(z) / (d z): 0 where the image is seen, 1 where noise is."""
    unet = pipe.unet.requires_grad_(False)
    alpha = pipe.scheduler.alphas_cumprod[timestep]
    with torch.no_grad():
        text = pipe.text_encoder(train_base.tokens(pipe.tokenizer, [caption]))[0]
        z = pipe.vae.encode(image[None]).latent_dist.mean * pipe.vae.config.scaling_factor
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(1))
    state = pipe.scheduler.add_noise(z, noise, torch.tensor([timestep])).requires_grad_()
    out = unet(state, timestep, text).sample.flatten()
    rows = [torch.autograd.grad(out[i], state, retain_graph=True)[0].flatten() for i in range(len(out))]
    return torch.linalg.svdvals((1 - alpha).sqrt() * torch.stack(rows)).tolist()


def spectra(pipe):
    records, images = some("heldout_pair")
    return {str(t): spectrum(pipe, t, images[0], records[0]["caption"]) for t in LEVELS}


# ----------------------------------------------------------------------------------------------------------------- costs


def costs():
    """What the training has taken, by its checkpoints."""
    found = {}
    for plan in (train_vae.PLAN, train_vae.DECODER, train_base.PLAN, distill.PLAN, train_scorer.PLAN):
        saved = torch.load(WORK / f"{plan.name}.pt", map_location="cpu")
        found[plan.name] = {
            "minutes": saved["seconds"] / 60,
            "steps": saved["step"],
            "samples": saved["step"] * plan.batch,
            "parameters": sum(value.numel() for value in saved["average"].values()),
        }
    times = sorted(part.stat().st_mtime for part in WORK.glob("trajectories_*.pt"))
    found["turbo"]["recording minutes"] = (times[-1] - times[0]) / 60 * len(times) / (len(times) - 1)
    found["machine"] = {"cores": os.cpu_count(), "GPU": torch.cuda.is_available()}
    return found


# ---------------------------------------------------------------------------------------------------------------- report


def plot_spectra(found, path):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    for t, values in found.items():
        axes.plot(np.linspace(0, 1, len(values)), values, label=f"t = {t}")
    axes.set_xlabel("share of the directions")
    axes.set_ylabel(r"singular value of $\sigma\,\partial\epsilon/\partial z$")
    axes.set_ylim(0, 1.6)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def table(head, rows):
    return tabulate(rows, head, tablefmt="github", disable_numparse=True).splitlines()


def fill(page, made):
    """The page with its tables made anew: each stands between <!-- name --> and <!-- end -->."""
    for name, lines in made.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        if not mark:
            continue
        page = "".join([before, f"<!-- {name} -->\n", "\n".join(lines), "\n<!-- end -->", rest.split("<!-- end -->", 1)[1]])
    return page


def percent(share):
    return f"{100 * share:.0f} %"


def tables(found):
    trip, first = found["round trips"]["this"], found["round trips"].get("first")
    both, splits = found["fidelity"], ("train", "heldout_pair")
    names = [name for name in both["train"] if name not in ("captions", "real images")]
    cost, machine = found["costs"], found["costs"]["machine"]
    device = "a GPU" if machine["GPU"] else f"{machine['cores']} CPU cores"
    return {
        "costs": table(
            ["stage", "parameters", "steps", "samples", f"minutes on {device}"],
            [
                [
                    f"`{script}.py`" + (", decoder alone" if name == "decoder" else ""),
                    f"{cost[name]['parameters'] / 1e6:.2f} M",
                    f"{cost[name]['steps']:,}",
                    f"{cost[name]['samples']:,}",
                    f"{cost[name]['minutes']:.0f}"
                    + (f", and {cost[name]['recording minutes']:.0f} for the trajectories" if name == "turbo" else ""),
                ]
                for script, name in (
                    ("train_vae", "vae"),
                    ("train_vae", "decoder"),
                    ("train_base", "base"),
                    ("distill", "turbo"),
                    ("train_scorer", "scorer"),
                )
            ],
        ),
        "round trips": table(
            ["split", "images", "PSNR", "worst", "SSIM", "PSNR, first edition"],
            [
                [
                    split,
                    str(r["images"]),
                    f"{r['PSNR']:.2f}",
                    f"{r['worst']:.2f}",
                    f"{r['SSIM']:.4f}",
                    f"{first[split]['PSNR']:.2f}" if first else "-",
                ]
                for split, r in trip.items()
            ],
        ),
        "smoothness": table(
            ["edition", "posterior std", "PSNR after 5 % noise"],
            [
                [edition, f"{r['posterior std']:.4f}", f"{r['PSNR to the clean decoding']:.1f}"]
                for edition, r in found["smoothness"].items()
            ],
        ),
        "fidelity": table(
            ["", *(f"{split} ({both[split]['captions']} captions)" for split in splits), "CPU seconds an image"],
            [
                ["real images", *(percent(both[split]["real images"]) for split in splits), ""],
                *(
                    [name, *(percent(both[s][name]["top-1"]) for s in splits), f"{both['train'][name]['seconds']:.2f}"]
                    for name in names
                ),
            ],
        ),
        "variety": table(
            ["", "diversity", "nearest learnt image, rms", "nearest learnt image, 1 - cosine"],
            [
                [
                    name,
                    f"{r['diversity']:.3f}" if "diversity" in r else "-",
                    f"{r['nearest learnt, rms']:.3f}",
                    f"{r['nearest learnt, 1 - cosine']:.3f}",
                ]
                for name, r in found["variety"].items()
            ],
        ),
        "losses": table(
            ["split", *(f"t = {t}" for t in LEVELS)],
            [[split, *(f"{r[str(t)]:.4f}" for t in LEVELS)] for split, r in found["losses"].items()],
        ),
    }


def measure(first):
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    pipes, scorer = pipelines(first), nrinv.scorer()

    def once(name, make):
        if name not in found:
            found[name] = make()
            RESULTS.write_text(json.dumps(found, indent=1))
            print(name, "done", flush=True)

    once("costs", costs)
    once("round trips", lambda: {edition: round_trips(kinds["base"]) for edition, kinds in pipes.items()})
    once("smoothness", lambda: {edition: smoothness(kinds["base"]) for edition, kinds in pipes.items()})
    once("losses", lambda: losses(pipes["this"]["base"]))
    once("fidelity", lambda: fidelity(pipes, scorer))
    once("variety", lambda: variety(pipes, scorer))
    once("spectra", lambda: spectra(pipes["this"]["base"]))
    return found, pipes


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--first", help="folder of an earlier edition")
    found, pipes = measure(parser.parse_args().first)
    PICTURES.mkdir(exist_ok=True)
    records, _ = chosen_captions("train")
    for kind, pipe in pipes["this"].items():
        drawn = draw(pipe, captions_of(records[::3][:SHOWN], "this"), 7, SAMPLERS[kind][0]) * 2 - 1
        save_sheet(PICTURES / f"models_{kind}.png", drawn.split(16), zoom=1)
    plot_spectra(found["spectra"], PICTURES / "models_jacobian.png")
    made = tables(found)
    for page in PAGES:
        page.write_text(fill(page.read_text(), made))


if __name__ == "__main__":
    sys.exit(main())
