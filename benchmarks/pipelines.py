"""Inversion of real images through the stock pipeline: error, naturalness and cost, for nrinv and published methods.

The embedded models have not seen the images: of "heldout_pair" they know the concept and the style, of "heldout_concept"
not the concept.  Every method runs through the same stock pipeline, which then draws the image again from its noise.

    NFE             network evaluations per image in all; products with the Jacobian count as one each
    PSNR, SSIM      of the redraw against the VAE's own round trip (what the sampler is answerable for) and the image
    ceiling         PSNR of the VAE's round trip against the image
    norm            |z_T| / sqrt(D), 1 for natural noise
    kurtosis, autocorrelation   mean |z-score| of the noise's excess kurtosis and of its neighbours' correlation
    step noise      rms of the noises a stochastic scheduler draws, as far as it uses them; 1 if natural
    seconds         per image, and relative to the naive method of the case

Peers start from the state, as their papers do.  If a method's answer is not finite for some image, it has no PSNR.

    python benchmarks/pipelines.py                              # all cases; writes results/pipelines.json and plots
    python benchmarks/pipelines.py --quick --case turbo         # few images, few methods, one model
    python benchmarks/pipelines.py --model DIR_OR_ID --images FOLDER --steps 20 --guidance 3 --out mine.json
"""

import json
import logging
import os
import sys
import time
import warnings
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import matplotlib

matplotlib.use("Agg")
import numpy as np
import torch
from common import grouped, own_model, parsed, parser, write
from diffusers.image_processor import VaeImageProcessor
from matplotlib import pyplot
from peers import METHODS, PeerSolver
from PIL import Image
from rich.console import Console
from rich.table import Table
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import nrinv

SUFFIXES = (".png", ".jpg", ".jpeg")
FEW_STEPS = 8
# Images of each split: in few steps, and in many, where more would take most of the time.
MANY = {"heldout_pair": 16, "heldout_concept": 8}
FEW_IMAGES = {"heldout_pair": 8, "heldout_concept": 4}
BUDGETS = (8, 12, 20)
CHECKED = ("turbo Euler 4", "base Euler 4")
STYLES = ("noto style", "flat style")
QUICK = ("naive", "fixed point x2", "AIDI Anderson x2", "AIDI Anderson x5", "nrinv x2", "nrinv x4", "nrinv absorb x4")
QUICK = (*QUICK, "nrinv (default)")


@dataclass(frozen=True)
class Method:
    """How to call `nrinv.invert`; family: the line of a plot that it belongs to."""

    family: str
    options: dict


@dataclass(frozen=True)
class Case:
    """One model under one scheduler; scheduler None is the model's own."""

    name: str
    model: str
    scheduler: str | None
    steps: int
    guidance: float
    config: dict = field(default_factory=dict)


TRAILING = {"timestep_spacing": "trailing"}
CASES = [
    Case("turbo Euler 4", "turbo", "EulerDiscreteScheduler", 4, 1.0, TRAILING),
    Case("base Euler 4", "base", "EulerDiscreteScheduler", 4, 1.0, TRAILING),
    Case("turbo ancestral 4", "turbo", "EulerAncestralDiscreteScheduler", 4, 1.0, TRAILING),
    Case("turbo LCM 4", "turbo", "LCMScheduler", 4, 1.0, {"original_inference_steps": 50}),
    *(
        Case(f"base {name} {steps} guidance {guidance:g}", "base", scheduler, steps, guidance)
        for name, scheduler, steps in (
            ("DDIM", "DDIMScheduler", 20),
            ("DPM++", "DPMSolverMultistepScheduler", 20),
            ("DDIM", "DDIMScheduler", 50),
        )
        for guidance in (1.0, 3.0)
    ),
]


def peer(name, nfe):
    return {"solver": PeerSolver(METHODS[name], nfe)}


def peers(name, *budgets):
    return {f"{name} x{n}": Method(name, peer(name, n)) for n in budgets}


def ours(label, *budgets, **options):
    return {f"{label} x{n}": Method(label, {"max_nfe": n, **options}) for n in budgets}


NAIVE = {"naive": Method("naive", peer("fixed point", 1))}
DEFAULT = {"nrinv (default)": Method("nrinv", {})}
# Two iterations of the paper's method: an evaluation and a gradient each, and the last evaluation.
NEWTON = {"scalar Newton": Method("scalar Newton", {"solver": nrinv.Solver("newton", predictor=False), "max_nfe": 5})}
FEW = {
    **NAIVE,
    **peers("fixed point", 2, 3, 5, 10),
    **peers("AIDI-E", 2, 4),
    **peers("AIDI Anderson", 2, 3, 4, 5, 8),
    **peers("ReNoise", 3, 10),
    **peers("sign step", 2),
    **peers("ExactDPM", 55),
    **peers("Broyden", 2, 4),
    **NEWTON,
    **ours("nrinv", 2, 3, 4, 5, 8),
    **ours("nrinv anderson", 2, 3, 4, solver="anderson"),
    **ours("nrinv, no predictor", 4, solver=nrinv.Solver(predictor=False)),
}
STOCHASTIC = {
    **NAIVE,
    **peers("fixed point", 2, 5),
    **peers("AIDI Anderson", 6),
    **peers("sign step", 2),
    **ours("nrinv", 2, 3, 4),
    **ours("nrinv absorb", 2, 3, 4, noise="absorb"),
}
LONG = {
    **NAIVE,
    **peers("fixed point", 2),
    **peers("AIDI-E", 2),
    **peers("AIDI Anderson", 2),
    **peers("sign step", 2),
    **ours("nrinv", 1, 2),
    **DEFAULT,
}
# On yet longer samplers these would take most of the time.
MORE = {
    **peers("AIDI Anderson", 3, 5),
    **peers("ReNoise", 3),
    **peers("Broyden", 2),
    **NEWTON,
    **ours("nrinv anderson", 2, 3, solver="anderson"),
    **ours("nrinv, no predictor", 3, solver=nrinv.Solver(predictor=False)),
}
MULTISTEP = {**NAIVE, **DEFAULT, "nrinv, 1 round": Method("nrinv", {"solver": nrinv.Solver(rounds=1)})}


def methods_of(case, sampler, quick):
    """The methods that are worth comparing on a sampler, by name."""
    if sampler.num_noises:
        methods = STOCHASTIC
    elif not sampler.first_order:
        methods = MULTISTEP
    elif case.steps <= FEW_STEPS:
        methods = FEW
    else:
        methods = LONG if case.steps > 20 else {**LONG, **MORE}
    return {name: method for name, method in methods.items() if not quick or name in QUICK}


@dataclass
class Work:
    """A case with all that its methods have in common."""

    case: Case
    pipe: object
    captions: list
    splits: np.ndarray
    pixels: torch.Tensor

    def __post_init__(self):
        if self.case.scheduler:
            cls = getattr(diffusers, self.case.scheduler)
            self.pipe.scheduler = cls.from_config(self.pipe.scheduler.config, **self.case.config)
        self.latents = nrinv.encode(self.pipe, self.pixels)
        self.round_trip = nrinv.decode(self.pipe, self.latents).cpu()
        self.sampler = nrinv.read_sampler(self.pipe.scheduler, self.case.steps)
        self.arguments = {"num_inference_steps": self.case.steps, "guidance_scale": self.case.guidance}

    def invert(self, method, count=None):
        """The inversion of the first `count` images, and how long it took."""
        # what is drawn is compared here: no stock run measures it once more
        options, latents = {"verify": False, **method.options}, self.latents[:count]
        if self.sampler.num_noises:
            options["generator"] = torch.Generator().manual_seed(0)
        start = time.perf_counter()
        inv = nrinv.invert(self.pipe, latents, self.captions[:count], **self.arguments, **options)
        return inv, time.perf_counter() - start

    def draw(self, inv, prompt=None):
        return nrinv.generate(self.pipe, inv, prompt, output_type="pt").images.float().cpu()


def of_pairs(metric, a, b, **options):
    """A metric of skimage for each pair of images [B, 3, H, W] in 0..1."""
    pairs = zip(a.numpy(), b.numpy(), strict=True)
    return np.array([metric(x, y, data_range=1, **options) for x, y in pairs])


psnr = partial(of_pairs, peak_signal_noise_ratio)
ssim = partial(of_pairs, structural_similarity, channel_axis=0)


def step_noise(work, inv):
    """[B]: rms of the noises that have a weight in some step."""
    used = work.sampler.steps[:, 2 * len(work.sampler) :].any(0)
    noises = [noise for noise, counts in zip(inv.noises or [], used, strict=True) if counts]
    return torch.stack(noises).transpose(0, 1).flatten(1).square().mean(1).sqrt().cpu().numpy() if noises else None


def figures(work, method):
    """{figure: one number for each image}."""
    inv, seconds = work.invert(method)
    drawn, count = work.draw(inv), len(work.captions)
    stats = inv.stats
    found = {
        "nfe": np.asarray(inv.nfe),
        "psnr_vae": psnr(drawn, work.round_trip),
        "psnr_image": psnr(drawn, work.pixels),
        "ceiling": psnr(work.round_trip, work.pixels),
        "ssim_vae": ssim(drawn, work.round_trip),
        "ssim_image": ssim(drawn, work.pixels),
        "norm": stats["norm"][0],
        "kurtosis_z": np.abs(stats["excess_kurtosis"][1]),
        "autocorrelation_z": np.abs(stats["autocorrelation"][1]),
        "seconds": np.full(count, seconds / count),
    }
    noise = step_noise(work, inv)
    return found if noise is None else {**found, "step_noise": noise}


def mean(values):
    return round(float(np.mean(values)), 4) if np.isfinite(values).all() else None


def rows_of(work, name, method):
    """A row for each split."""
    found, case = figures(work, method), work.case
    for split in dict.fromkeys(work.splits):
        own = {key: values[work.splits == split] for key, values in found.items()}
        head = {"case": case.name, "model": case.model, "scheduler": type(work.pipe.scheduler).__name__}
        yield {
            **head,
            **work.arguments,
            "split": split,
            "images": int((work.splits == split).sum()),
            "method": name,
            "family": method.family,
            **{key: mean(values) for key, values in own.items()},
            "psnr_vae_worst": round(float(own["psnr_vae"].min()), 4) if np.isfinite(own["psnr_vae"]).all() else None,
            "diverged": int((~np.isfinite(own["psnr_vae"])).sum()),
        }


def measure(work, quick):
    """All rows of a case; the first method is the naive one."""
    methods = methods_of(work.case, work.sampler, quick)
    work.invert(NAIVE["naive"], 2)  # the first call of a process is slower
    rows = [row for name, method in methods.items() for row in rows_of(work, name, method)]
    for row in rows:
        row["seconds_ratio"] = round(row["seconds"] / rows[0]["seconds"], 2)
    return rows


def demo_work(case, quick):
    counts = MANY if case.steps <= FEW_STEPS and not quick else FEW_IMAGES
    records = [one for split, count in counts.items() for one in spread(nrinv.demo_images(split), count)]
    captions, splits = [one.caption for one in records], np.array([one.split for one in records])
    return Work(case, nrinv.demo_pipeline(case.model), captions, splits, to_pixels([one.image for one in records]))


def spread(records, count):
    """`count` of the records, of all styles: they are ordered by them."""
    return records[:: len(records) // count][:count]


def to_pixels(images):
    """PIL images as a tensor [N, 3, H, W] in 0..1."""
    return VaeImageProcessor.numpy_to_pt(VaeImageProcessor.pil_to_numpy(images)).contiguous()


def load_pipeline(model):
    embedded = model in ("turbo", "base")
    pipe = nrinv.demo_pipeline(model) if embedded else diffusers.DiffusionPipeline.from_pretrained(model)
    return pipe.to("cuda") if torch.cuda.is_available() else pipe


def own_work(arguments):
    """The case of --model, --images."""
    pipe = load_pipeline(arguments.model)
    pipe.set_progress_bar_config(disable=True)
    paths = sorted(path for path in arguments.images.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise SystemExit(f"--images: {arguments.images} holds no {', '.join(SUFFIXES)}")
    paths = paths[:4] if arguments.quick else paths
    file = arguments.images / "captions.json"
    named = json.loads(file.read_text()) if file.exists() else {}
    captions = [named.get(path.name, path.stem.replace("_", " ")) for path in paths]
    images = [Image.open(path).convert("RGB") for path in paths]
    size = arguments.size or min(min(image.size) for image in images) // 8 * 8
    name = f"{Path(arguments.model).name} {arguments.steps} guidance {arguments.guidance:g}"
    case = Case(name, Path(arguments.model).name, None, arguments.steps, arguments.guidance)
    pixels = to_pixels([image.resize((size, size), Image.Resampling.LANCZOS) for image in images])
    return Work(case, pipe, captions, np.array([arguments.images.name] * len(paths)), pixels)


COLUMNS = {
    "nfe": ".1f",
    "psnr_vae": ".2f",
    "psnr_vae_worst": ".2f",
    "psnr_image": ".2f",
    "ssim_vae": ".3f",
    "ssim_image": ".3f",
    "norm": ".3f",
    "kurtosis_z": ".1f",
    "autocorrelation_z": ".1f",
    "step_noise": ".3f",
    "seconds": ".3f",
    "seconds_ratio": ".1f",
}


def show(rows):
    """A table for each split of a case."""
    for split, own in grouped(rows, "split").items():
        columns = [name for name in COLUMNS if name in own[0]]
        title = f"{own[0]['case']}, {own[0]['images']} x {split}, VAE ceiling {own[0]['ceiling']:.2f} dB"
        table = Table("method", *(name.replace("_", " ").replace("autocorrelation", "autocorr.") for name in columns))
        table.title = title
        for row in own:
            cells = ("div." if row[name] is None else format(row[name], COLUMNS[name]) for name in columns)
            table.add_row(row["method"], *cells)
        Console(width=180).print(table)


def violations(rows):
    """(case, split, budget, method's row, nrinv's) where a published method is ahead with noise no less natural."""
    rows = [row for row in rows if row["case"] in CHECKED and row["psnr_vae"] is not None]
    for (case, split), members in grouped(rows, lambda row: (row["case"], row["split"])).items():
        for budget in BUDGETS:
            own = [r for r in members if r["nfe"] <= budget + 0.01]
            reference = max((r for r in own if r["family"] == "nrinv"), key=lambda r: r["nfe"], default=None)
            for row in own:
                if reference is None or row["family"].startswith("nrinv") or row["psnr_vae"] <= reference["psnr_vae"]:
                    continue
                if abs(row["norm"] - 1) <= abs(reference["norm"] - 1):
                    yield case, split, budget, row, reference


def show_violations(found):
    table = Table("case", "split", "NFE <=", "method", "PSNR", "norm", "nrinv", "PSNR", "norm", title="Ahead of nrinv")
    for case, split, budget, *pair in found:
        cells = [text for row in pair for text in (row["method"], f"{row['psnr_vae']:.2f}", f"{row['norm']:.3f}")]
        table.add_row(case, split, str(budget), *cells)
    Console(width=150).print(table if found else "no published method is ahead of nrinv's at the budgets checked")


def plot_few_step(rows, path):
    """PSNR against NFE: a panel for each few-step case, a line for each method."""
    rows = [r for r in rows if r["num_inference_steps"] <= FEW_STEPS and r["psnr_vae"] is not None]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    if not cases:
        return
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = pyplot.subplots(1, len(cases), figsize=(3.4 * len(cases), 4), squeeze=False)
    for axis, case in zip(axes[0], cases, strict=True):
        own = [row for row in rows if row["case"] == case]
        own = [row for row in own if row["split"] == own[0]["split"]]
        for i, family in enumerate(families):
            points = sorted((row["nfe"], row["psnr_vae"]) for row in own if row["family"] == family)
            ours = family.startswith("nrinv")
            look = {"lw": 2.2 if ours else 0.9, "marker": "o" if ours else "s", "ms": 4 if ours else 3}
            axis.plot(
                *zip(*points or [(np.nan, np.nan)], strict=True),
                label=family,
                color=f"C{i % 10}",
                ls="-" if i < 10 else "--",
                **look,
            )
        axis.set_xscale("log")
        axis.set_xticks([4, 8, 16, 32, 64, 220], [4, 8, 16, 32, 64, 220])
        axis.minorticks_off()
        axis.set_title(f"{case}, {own[0]['split']}", fontsize=8)
        axis.set_xlabel("network evaluations per image", fontsize=8)
    axes[0, 0].set_ylabel("PSNR against the VAE's round trip, dB", fontsize=8)
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncol=7, fontsize=7)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(path, dpi=80)


def other_style(caption):
    before, after = STYLES if caption.endswith(STYLES[0]) else STYLES[::-1]
    return caption.removesuffix(before) + after


def edits(work, path, count=6):
    """Edits to the other style: a sheet of them, and a row of how much of the source they keep."""
    prompts = [other_style(caption) for caption in work.captions[:count]]
    source = work.pixels[:count]
    inv, naive = (work.invert(method, count)[0] for method in (Method("nrinv", {}), NAIVE["naive"]))
    edit, naive_edit = work.draw(inv, prompts), work.draw(naive, prompts)
    columns = {"source": source, "reconstruction": work.draw(inv), "edit": edit, "naive's edit": naive_edit}
    pictures = [image for row in zip(*columns.values(), strict=True) for image in row]
    titles = [*columns, *[""] * (len(pictures) - len(columns))]
    for i, prompt in enumerate(prompts):
        titles[4 * i + 2] = prompt.replace(", ", ",\n")
    nrinv.sheet(pictures, titles, columns=4, size=1.5).save(path)
    kept = {"ssim_edit": mean(ssim(edit, source)), "ssim_edit_naive": mean(ssim(naive_edit, source))}
    return {"case": work.case.name, "split": str(work.splits[0]), "images": len(source), "edit": True, **kept}


def parse():
    command = parser(__doc__, "pipelines")
    command.add_argument("--case", default="", help="only the cases with this in their names")
    command.add_argument("--check", action="store_true", help="exit with 1 if a published method is ahead on 4 Euler steps")
    own_model(command, "and its own scheduler", 20)
    return parsed(command)


def works(arguments):
    if arguments.model:
        yield own_work(arguments)
        return
    for case in CASES:
        if arguments.case in case.name:
            yield demo_work(case, arguments.quick)


def main():
    arguments = parse()
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    rows, edited, start = [], [], time.perf_counter()
    folder = arguments.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    for work in works(arguments):
        found = measure(work, arguments.quick)
        show(found)
        rows += found
        if work.case.name == CHECKED[0]:
            edited.append(edits(work, folder / "edits.png"))
            print("edits, SSIM to the source: nrinv {ssim_edit}, naive {ssim_edit_naive}".format(**edited[0]))
        print(f"{time.perf_counter() - start:.0f} s", flush=True)
    write(rows + edited, arguments.out)
    plot_few_step(rows, folder / "few_step.png")
    if not arguments.check:
        return 0
    ahead = list(violations(rows))
    show_violations(ahead)
    return 1 if ahead else 0


if __name__ == "__main__":
    sys.exit(main())
