"""Writes docs/benchmarks.md, docs/applications.md and the table in README.md from the results, so that no number is typed.

python benchmarks/report.py            # after the benchmarks
python benchmarks/report.py --check    # exit with 1 if a page does not show the committed results
"""

import argparse
import json
import re
import sys
import textwrap
from functools import partial
from pathlib import Path

import numpy as np
from common import RESULTS, bootstrap, grouped
from tabulate import tabulate

ROOT = Path(__file__).parent.parent
MARKS = "<!-- made by benchmarks/report.py -->\n", "<!-- end -->\n"
# column: format
FIGURES = {
    "NFE": ("nfe", ".0f"),
    "PSNR to round trip": ("psnr_vae", ".1f"),
    "worst": ("psnr_vae_worst", ".1f"),
    "PSNR to image": ("psnr_image", ".1f"),
    "SSIM to round trip": ("ssim_vae", ".3f"),
    "norm": ("norm", ".2f"),
    "step noise": ("step_noise", ".2f"),
    "kurtosis z": ("kurtosis_z", ".1f"),
    "time": ("seconds_ratio", ".1f"),
}
README_CASES = (
    "turbo Euler 4",
    "base Euler 4",
    "turbo ancestral 4",
    "turbo LCM 4",
    "base DDIM 20 guidance 1",
    "base DDIM 20 guidance 3",
    "base DPM++ 20 guidance 1",
    "base DPM++ 20 guidance 3",
)
# Rows of ours that README leaves out.
ABLATIONS = ("nrinv anderson", "nrinv, no predictor", "nrinv, 1 round", "nrinv x1", "nrinv x5", "nrinv absorb x2")
README_FIGURES = ("NFE", "PSNR to round trip", "worst", "PSNR to image", "norm", "step noise", "kurtosis z")

PIPELINES = """## Whole inversions (`python benchmarks/pipelines.py`)

Real images the embedded models have never seen, inverted through the stock pipeline and drawn again by it, float32.
PSNR in dB and SSIM against the VAE's round trip, which is what the sampler is answerable for, and against the image,
where that round trip itself has the PSNR called ceiling. NFE: network evaluations per image in all, gradient passes
included. Norm: |z_T| / sqrt(D), 1 for natural noise; step noise: the same of the noises a stochastic sampler draws;
kurtosis z: standard errors from natural. Time: seconds per image over those of naive inversion in the same run. `-`:
diverged, or does not apply. `x3`: three evaluations a step. `nrinv` is `solver="auto"`.
"""
SOLVER = """
## One implicit step (`python benchmarks/solver.py`)

log10 of the root mean square residual of one step on the closed-form denoiser after 2 / 4 / 8 evaluations, all
started from the same point. Contractive: an ideal denoiser; expansive: with directions to which it over-reacts.
`--check` holds that no method is ahead of `nrinv auto` by more than 0.1 decade on a contractive problem at 2, 3, 4, 6
or 8 evaluations, and that none converges where it does not.
"""


APPLICATIONS = """# Applications, measured

Made by `benchmarks/report.py` from the JSON files in `benchmarks/results`. Everything on the embedded models
([models.md](models.md)); intervals are half of 95 % by bootstrap.
"""
PATHS = """
## Paths between noises (`python benchmarks/interpolate.py`)

52 points between two noises. Length: of their chain in NAO's metric -log chi_D(|z|) |dz|, each chord integrated at 100
points; exact: that of the geodesic itself. Unevenness: the longest chord over the mean. nao adam: our re-implementation
of the published optimisation, 10,000 iterations; in brackets the iteration at which its own stopping test would have
ended it. Inverted: both ends at 1.08 times the norm of noise, as few-step inversions leave them; inside: 0.9 and 0.95;
across: 0.92 and 1.1.
"""
IMAGES = """
### What is drawn on them

{pairs} pairs of images that the models have never seen, inverted by `turbo` (4 steps, 8 evaluations) and by `base` (DDIM, 20
steps, guidance 1); nine images from one to the other. Of the seven in between: Frechet distance of the scorer's features
to real images (lower is better), agreement with the two captions (mixed as the prompts are), largest step in the
scorer's features over the distance of the two ends (0.125 would be even), and sharpness (mean gradient: what is washed
out has little; that of the images themselves is {real:.4f}).
"""
OTHERS = """
#### Between other pairs

The same between {pairs} other pairs, of these images and others.
"""
UNKNOWN = """
#### Of what the model does not know

The same between {pairs} pairs of images of concepts that neither model has seen, which their captions alone do not draw
(sharpness of the images themselves: {real:.4f}).
"""
IMAGES_READ = """
#### What that says

- Most of what an inversion leaves in a noise is in its low frequencies. `spectral` lets that fade towards the middle and
  keeps the fine ones. Of concepts that the model knows it draws more sharply than geodesic, lerp and nao adam, and
  agrees more with the captions than slerp and variance_preserving, on both models. Pair by pair, no other way is better
  than it in any of the four figures beyond the 95 % interval between the first pairs, which `--check` holds; between
  the other pairs slerp and variance_preserving take smaller largest steps on `turbo`, and nothing else is better.
- The geodesic shortens all frequencies alike, at its first step: it agrees with the captions, and is washed out, as lerp
  is. nao adam minimises the length by the midpoint rule; its points go to and fro between two norms, hence its steps.
- Of concepts that it has not seen, `turbo` has only what the low frequencies of the noise hold. There slerp and
  variance_preserving, which keep them, are clearly better, with half the largest step or less: `method="slerp"`. On
  `base`, whose noises are nearly natural, the ways differ less: geodesic and variance_preserving agree more with the
  captions than spectral, by 0.02, and it is the sharpest.

How `spectral` divides the frequencies, and the norm of its middle, were chosen on pairs of known concepts, among them
these.
"""
RARE = """
## Rare objects (`python benchmarks/rare.py`)

`heldout_concept`: concepts that the student has never seen, three references each; `rare`: those it has seen least, two
withheld references each. Eight drawings each; accuracy: how often the scorer names the concept, among 100.
"""
CORRECTION = """
## The prompt-aware correction (`python benchmarks/correction.py`)

The base model, 20 steps of DDIM, {images} images a row. PSNR in dB of the redraw to the image and to what was inverted
(the decoding of the encoded, or of the corrected latents); cost: what the corrected image has lost against the image
before anything is inverted; kurtosis z: of the noise, in standard errors from natural; edit: drawn with the caption of
another style, cosine of the scorer's features to it, and SSIM to the source.
"""
CORRECTED = """
### Where it helps, and where not

Of real images, at guidance {guidances}:

- The reconstruction does not gain. Uncorrected, the redraw is {targets} dB from what was inverted, so there is little
  left to repair, and the correction (random, radius 1) changes the PSNR to the image by {changes} dB: its cost, and
  no more. What is missing at the highest guidance the solver misses, and it misses it of corrected latents too.
- The noise becomes more natural at low guidance: kurtosis z goes from {before} to {after}.
- The inverted variant changes hardly anything.
- More guidance in the inversion makes longer noises (norm {norms}) and poorer edits (agreement {edits}),
  corrected or not: invert at guidance 1 what is to be edited.
"""


def load(name):
    return json.loads((RESULTS / f"{name}.json").read_text())


def table(header, lines):
    return tabulate(lines, header, tablefmt="github", disable_numparse=True) + "\n"


def pooled(rows):
    """One row a method: the splits' rows averaged by their number of images, the worst of them kept."""
    return [pool(own) for own in grouped(rows, "method").values()]


def pool(rows):
    images = sum(row["images"] for row in rows)
    out = {"method": rows[0]["method"], "images": images}
    for name, _ in [*FIGURES.values(), ("ceiling", "")]:
        values = [row.get(name) for row in rows]
        if None in values:
            out[name] = None
        elif name == "psnr_vae_worst":
            out[name] = min(values)
        else:
            out[name] = sum(value * row["images"] for value, row in zip(values, rows, strict=True)) / images
    return out


def cell(row, column):
    name, form = FIGURES[column]
    return "-" if row[name] is None else format(row[name], form)


def cases(report):
    """{case: rows of its methods}, the edits left out."""
    return grouped([row for row in report["rows"] if "edit" not in row], "case")


def pipelines_page(report):
    text = [PIPELINES]
    for case, rows in cases(report).items():
        pool = pooled(rows)
        columns = [column for column in FIGURES if any(row[FIGURES[column][0]] is not None for row in pool)]
        lines = [[row["method"], *(cell(row, column) for column in columns)] for row in pool]
        text.append(f"\n### {case}: {pool[0]['images']} images, ceiling {pool[0]['ceiling']:.1f} dB\n\n")
        text.append(table(["method", *columns], lines))
    return (
        "".join(text)
        + "".join(
            f"\n![{caption}](../benchmarks/results/{name}.png)\n"
            for name, caption in {
                "few_step": "Four-step samplers: PSNR against evaluations",
                "edits": "Edits: source, reconstruction, edit, edit from naive inversion",
            }.items()
        )
        + edits(report)
    )


def edits(report):
    return "".join(
        f"\nEdits to another style ({row['images']} images, the sheet above): SSIM of the edit to its source "
        f"{row['ssim_edit']:.3f}, from naive inversion {row['ssim_edit_naive']:.3f}.\n"
        for row in report["rows"]
        if "edit" in row
    )


def solver_page(report):
    shown = (2, 4, 8)
    text = SOLVER
    rows = [r for r in report["rows"] if r["rounding"] == "none" and r["sigma"] == 1.6 and r["side"] == "on"]
    for kind, own in grouped(rows, "kind").items():
        lines = [[name, *(residuals(row, shown) for row in each)] for name, each in grouped(own, "method").items()]
        text += f"\n### {kind}\n\n" + table(["method", *(f"kappa {kappa:g}" for kappa in grouped(own, "kappa"))], lines)
    return text + "\n![Residual against evaluations](../benchmarks/results/solver.png)\n"


def residuals(row, shown):
    values = dict(zip(row["nfe"], row["log10_residual"], strict=True))
    return " / ".join("-" if values[nfe] is None else f"{values[nfe]:.1f}" for nfe in shown)


def with_interval(row, name, digits):
    return f"{row[name]:.{digits}f} +- {row[f'{name}_interval']:.{digits}f}"


def paths_page(report):
    rows = [row for row in report["rows"] if row["part"] == "paths"]
    text, lines = PATHS, []
    for (size, where), own in grouped(rows, lambda row: (row["size"], row["ends"])).items():
        adam = next(row for row in own if row["method"] == "nao adam")
        for i, row in enumerate(own):
            faster = f"{adam['seconds'] / row['seconds']:,.0f}" if row["method"] == "geodesic" else ""
            head = [f"{size:,}", where, f"{row['exact']:,.1f}"] if i == 0 else ["", "", ""]
            figures = [f"{row['length']:,.1f}", f"{row['unevenness']:.2f}", f"{row['seconds']:.3g}", faster]
            stopped = f" ({row['stopped']:,})" if row.get("stopped") else ""
            lines.append([*head, row["method"] + stopped, *figures])
    header = ["elements", "ends", "exact", "method", "length", "unevenness", "seconds", "times as fast as adam"]
    text += "\n" + table(header, lines)
    drawn = [row for row in report["rows"] if row["part"] == "images"]
    for name, page in {"known": IMAGES, "known, other pairs": OTHERS, "unknown": UNKNOWN}.items():
        own = [row for row in drawn if row["set"] == name]
        text += page.format(pairs=own[0]["pairs"], real=own[0]["sharpness_of_real"]) + drawn_between(own)
    return text + IMAGES_READ + "\n![Images between images](../benchmarks/results/interpolate.png)\n"


def drawn_between(rows):
    text, figures = "", {"frechet": 4, "agreement": 3, "jump": 3, "sharpness": 4}
    for model, own in grouped(rows, "model").items():
        octaves = ", ".join(f"{norm:.2f}" for norm in own[0]["norm_by_octaves"])
        text += f"\n`{model}`, its noises of norm {own[0]['norm']:.2f} (natural: 1), by octaves {octaves}\n\n"
        text += table(
            ["method", "Frechet distance", "agreement", "largest step", "sharpness"],
            [[row["method"], *(with_interval(row, name, digits) for name, digits in figures.items())] for row in own],
        )
    return text


def rare_page(report):
    text = RARE
    for split, own in grouped(report["rows"], "split").items():
        lines = [
            [
                row["method"],
                f"{100 * row['accuracy']:.0f} % +- {100 * row['accuracy_interval']:.0f}",
                *(f"{row[name]:.2f}" for name in ("similarity", "novelty", "diversity")),
            ]
            for row in own
        ]
        text += f"\n### {split}: {own[0]['concepts']} concepts\n\n"
        text += table(["method", "accuracy", "similarity", "novelty", "diversity"], lines)
        text += gained({row["method"]: row["per_concept"] for row in own if row["method"] != "the references themselves"})
    return text + "\n![References, random seeds, centroid, rare](../benchmarks/results/rare.png)\n"


def gained(accuracies):
    """A line of what each method gains on random seeds, concept by concept."""
    gains = []
    for method, values in accuracies.items():
        if method != "random":
            gap = 100 * (np.array(values) - np.array(accuracies["random"]))
            gains.append(f"{method} {gap.mean():+.0f} +- {bootstrap(gap):.0f}")
    return "\nPoints of accuracy above random seeds, concept by concept: " + ", ".join(gains) + ".\n"


def correction_page(report):
    rows = report["rows"]
    text = CORRECTION.format(images=rows[0]["images"])
    for source, own in grouped(rows, "source").items():
        lines, last = [], None
        for row in own:
            guidance = f"{row['guidance']:g}" if row["guidance"] != last else ""
            last = row["guidance"]
            lines.append(
                [
                    guidance,
                    row["correction"],
                    with_interval(row, "psnr_image", 1),
                    f"{row['psnr_target']:.1f}",
                    f"{row['cost']:.2f}",
                    f"{row['norm']:.3f}",
                    f"{row['kurtosis_z']:.1f}",
                    with_interval(row, "edit_agreement", 3),
                    f"{row['edit_ssim']:.3f}",
                ]
            )
        header = ["guidance", "correction", "PSNR to image", "to target", "cost", "norm", "kurtosis z", "edit", "edit SSIM"]
        text += f"\n### {source[0].upper()}{source[1:]}\n\n" + table(header, lines)
    text += corrected(rows)
    return text + "\n![PSNR to the image against guidance](../benchmarks/results/correction.png)\n"


def corrected(rows):
    """What the table says of real images, in words."""
    real = {(row["guidance"], row["correction"]): row for row in rows if row["source"] == "real images"}
    guidances = list(dict.fromkeys(guidance for guidance, _ in real))
    without, with_it = ([real[g, name] for g in guidances] for name in ("none", "random, radius 1"))

    def series(values, form):
        return ", ".join(format(value, form) for value in values)

    changes = [b["psnr_image"] - a["psnr_image"] for a, b in zip(without, with_it, strict=True)]
    return CORRECTED.format(
        guidances=series(guidances, "g"),
        targets=series([row["psnr_target"] for row in without], ".0f"),
        changes=series(changes, "+.1f"),
        before=series([row["kurtosis_z"] for row in without], ".1f"),
        after=series([row["kurtosis_z"] for row in with_it], ".1f"),
        norms=series([row["norm"] for row in without], ".2f"),
        edits=series([row["edit_agreement"] for row in without], ".2f"),
    )


def machines(reports):
    lines = [[name, f"`{report['command']}`", described(report["machine"])] for name, report in reports.items()]
    return "\n## Made by\n\n" + table(["results", "command", "machine"], lines)


def described(machine):
    return ", ".join(f"{name} {value}" for name, value in machine.items())


def readme_table(report):
    lines = []
    for case, rows in cases(report).items():
        if case not in README_CASES:
            continue
        pool = pooled(rows)
        for i, row in enumerate(select(pool)):
            name = f"{case} (ceiling {row['ceiling']:.1f})" if i == 0 else ""
            lines.append([name, row["method"], *(cell(row, column) for column in README_FIGURES)])
    return table(["model, sampler, steps", "method", *README_FIGURES], lines)


def select(pool):
    """Naive inversion, the best of the published methods that do not cost more than ours twice, and ours."""
    own = [row for row in pool if row["method"].startswith("nrinv")]
    ours = [row for row in own if not row["method"].startswith(ABLATIONS)]
    cost = 2 * max(row["nfe"] for row in ours)
    rivals = [row for row in pool if row not in own and row["method"] != "naive" and row["nfe"] <= cost and row["psnr_vae"]]
    naive = [row for row in pool if row["method"] == "naive"]
    return naive + sorted(rivals, key=lambda row: -row["psnr_vae"])[:1] + ours


def replace_block(text, block):
    start, end = MARKS
    before, rest = text.split(start)
    return before + start + block + end + rest.split(end)[1]


def wrapped(page):
    """A page in lines of at most 100 columns; tables, headings and code stay as they are."""

    def block(text):
        if text.startswith(("|", "#", "!", "<", "```", "    ")) or "\n|" in text:
            return text
        items = re.split(r"\n(?=- )", text)
        fill = partial(textwrap.fill, width=100, break_long_words=False, break_on_hyphens=False)
        return "\n".join(fill(" ".join(one.split()), subsequent_indent="  " * one.startswith("- ")) for one in items)

    return "\n\n".join(map(block, page.rstrip().split("\n\n"))) + "\n"


def pages():
    reports = {"pipelines": load("pipelines"), "solver": load("solver"), "overhead": load("overhead")}
    page = (
        "# Benchmarks\n\nMade by `benchmarks/report.py` from the JSON files in `benchmarks/results`.\n\n"
        + pipelines_page(reports["pipelines"])
        + solver_page(reports["solver"])
        + machines(reports)
    )
    parts = {"interpolate": paths_page, "rare": rare_page, "correction": correction_page}
    applied = {name: load(name) for name in parts if (RESULTS / f"{name}.json").exists()}
    applications = APPLICATIONS + "".join(parts[name](report) for name, report in applied.items()) + machines(applied)
    readme = ROOT / "README.md"
    return {
        ROOT / "docs" / "benchmarks.md": wrapped(page),
        **({ROOT / "docs" / "applications.md": wrapped(applications)} if applied else {}),
        readme: replace_block(readme.read_text(), readme_table(reports["pipelines"])),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if a page is out of date")
    check = parser.parse_args().check
    stale = {path: text for path, text in pages().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"{path.relative_to(ROOT)} does not show benchmarks/results: run python benchmarks/report.py")
        else:
            path.write_text(text)
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())
