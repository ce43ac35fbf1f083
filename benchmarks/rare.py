"""Rare objects: do drawings from the noises of a few references show what the prompt names, and are they new?

Concepts that the embedded model has never seen (`heldout_concept`: three references each) and those it has seen least
(`rare`: two withheld references each). Every method draws the same prompt; the scorer says whether a drawing shows the
concept, among all these concepts and as many others.

    random         fresh seeds
    sdedit s       image to image from the references at strength s (arXiv 2108.01073)
    centroid       the centroid of the inverted references' noises, alone
    rare s         nrinv.rare with spread s
    refined        fresh seeds and gradient steps through the sampler (SeedSelect, arXiv 2304.14530)
    rare refined   nrinv.rare with the same

    accuracy                       share of the drawings whose concept the scorer names
    similarity, novelty, diversity see nrinv.RareOutput

The interval is half of 95 % by bootstrap over concepts; several seeds each.

    python benchmarks/rare.py            # writes results/rare.json and results/rare.png
    python benchmarks/rare.py --check    # exit with 1 unless accuracy is above random seeds by more than the interval
"""

import os
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import bootstrap, grouped, parser, write
from diffusers import StableDiffusionImg2ImgPipeline
from pipelines import to_pixels

import nrinv

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}
DRAWINGS, SEEDS, STYLE = 8, (0, 1, 2), "noto"
STEPS, RATE = 5, 0.05


def concepts(split):
    """{name: references}"""
    found = grouped(nrinv.demo_images(split), lambda one: one.caption.rsplit(", ", 1)[0])
    return {name: refs for name, refs in found.items() if len(refs) >= 2}


class Judge:
    def __init__(self, scorer, names):
        self.scorer, self.names = scorer, names
        self.texts = scorer.text_features([f"{name}, {STYLE} style" for name in names])

    def figures(self, name, drawings, references):
        seen, known = self.scorer.image_features(drawings), self.scorer.image_features(references)
        right = (seen @ self.texts.T).argmax(1) == self.names.index(name)
        mean = torch.nn.functional.normalize(known.mean(0), dim=0)
        pairs, count = 1 - seen @ seen.T, len(seen)
        return {
            "accuracy": float(right.float().mean()),
            "similarity": float((seen @ mean).mean()),
            "novelty": float((1 - (seen @ known.T).amax(1)).mean()),
            "diversity": float(pairs.sum() / (count * (count - 1))),
        }


def draw_random(pipe, prompt, seed):
    generators = [torch.Generator().manual_seed(100 * seed + i) for i in range(DRAWINGS)]
    return pipe([prompt] * DRAWINGS, generator=generators, output_type="pt", **CALL).images.float()


def sdedit(pipe, prompt, references, strength, seed):
    other = StableDiffusionImg2ImgPipeline(**pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    images = [references[i % len(references)].image for i in range(DRAWINGS)]
    generators = [torch.Generator().manual_seed(100 * seed + i) for i in range(DRAWINGS)]
    return other([prompt] * DRAWINGS, image=images, strength=strength, generator=generators, output_type="pt", **CALL).images


def methods(pipe, prompt, references, inverted, scorer, seed):
    def rare(scorer=False, **options):
        options = {"scorer": scorer, "seed": seed, "output_type": "pt", **options}
        return nrinv.rare(pipe, inverted, prompt, DRAWINGS, **options, **CALL).images.float()

    yield "random", lambda: draw_random(pipe, prompt, seed)
    for strength in (0.5, 0.75):
        yield f"sdedit {strength}", lambda s=strength: sdedit(pipe, prompt, references, s, seed).float()
    yield "centroid", lambda: centroid(pipe, prompt, inverted)
    for spread in (0.2, 0.4, 0.6):
        yield f"rare {spread}", lambda s=spread: rare(spread=s)
    refine = {"scorer": scorer, "refine_seeds": STEPS, "rate": RATE}
    yield "refined", lambda: rare(spread=1.0, **refine)
    yield "rare refined", lambda: rare(spread=0.4, **refine)


def centroid(pipe, prompt, inverted):
    middle = nrinv.centroid(inverted)
    return pipe(prompt, latents=middle, output_type="pt", **CALL).images.float().repeat(2, 1, 1, 1)


def measure(quick):
    pipe, scorer = nrinv.demo_pipeline("turbo"), nrinv.scorer()
    splits = {split: concepts(split) for split in ("heldout_concept", "rare")}
    others = [one.caption.rsplit(", ", 1)[0] for one in nrinv.demo_images("heldout_pair")]
    names = list(dict.fromkeys([*(n for found in splits.values() for n in found), *others]))[:100]
    judge, rows, shown = Judge(scorer, names), [], {}
    for split, found in splits.items():
        found = dict(list(found.items())[:3]) if quick else found
        pictures = {name: to_pixels([one.image for one in references]) for name, references in found.items()}
        real = [judge.figures(name, known, known) for name, known in pictures.items()]
        figures = {}
        for name, references in found.items():
            prompt, known = f"{name}, {STYLE} style", pictures[name]
            images, captions = [one.image for one in references], [one.caption for one in references]
            inverted = nrinv.invert(pipe, images, captions, max_nfe=8, **CALL)
            for seed in SEEDS[:1] if quick else SEEDS:
                for method, run in methods(pipe, prompt, references, inverted, scorer, seed):
                    if seed > 0 and method in ("refined", "rare refined", "centroid"):
                        continue  # they take most of the time, or draw the same again
                    drawings = run()
                    figures.setdefault(method, {}).setdefault(name, []).append(judge.figures(name, drawings, known))
                    if seed == 0:
                        shown.setdefault((split, name), {"references": known})[method] = drawings
            print(split, name, {m: round(v[name][0]["accuracy"], 2) for m, v in figures.items()}, flush=True)
        rows.append(summary(split, "the references themselves", {n: [r] for n, r in zip(found, real, strict=True)}))
        rows += [summary(split, method, values) for method, values in figures.items()]
    return rows, shown


def summary(split, method, values):
    row = {"split": split, "method": method, "concepts": len(values)}
    for figure in ("accuracy", "similarity", "novelty", "diversity"):
        means = [float(np.nanmean([one[figure] for one in each])) for each in values.values()]
        row[figure] = float(np.nanmean(means))
        if figure == "accuracy":
            row["accuracy_interval"] = bootstrap(means)
            row["per_concept"] = means
    return row


def save_sheet(shown, path, count=6):
    pictures, titles = [], []
    for (_, name), sets in list(shown.items())[:: max(1, len(shown) // count)][:count]:
        for method in ("references", "random", "centroid", "rare 0.4"):
            pictures += list(sets[method][:2])
            titles += [f"{name}\n{method}" if i == 0 else "" for i in range(2)]
    nrinv.sheet(pictures, titles, columns=8, size=1.0).save(path)


def violations(rows):
    for split, members in grouped(rows, "split").items():
        own = {row["method"]: row for row in members}
        gap = np.array(own["rare 0.4"]["per_concept"]) - np.array(own["random"]["per_concept"])
        if gap.mean() <= bootstrap(gap):
            yield f"{split}: accuracy {own['rare 0.4']['accuracy']:.2f}, random seeds {own['random']['accuracy']:.2f}"


def main():
    command = parser(__doc__, "rare")
    command.add_argument("--check", action="store_true")
    arguments = command.parse_args()
    torch.set_num_threads(1)
    rows, shown = measure(arguments.quick)
    write(rows, arguments.out)
    save_sheet(shown, arguments.out.with_suffix(".png"))
    for row in rows:
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in row.items() if k != "per_concept"})
    ahead = list(violations(rows)) if arguments.check else []
    print(*ahead, sep="\n")
    return 1 if ahead else 0


if __name__ == "__main__":
    sys.exit(main())
