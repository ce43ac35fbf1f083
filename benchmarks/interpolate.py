"""Paths between noises: how long they are, how long they take, and what is drawn on the way between real images.

    paths     points between two noises, ends on the shell and off it: the length of their chain in NAO's metric
              -log chi_D(|z|) |dz|, each chord integrated at 100 points (the midpoint rule that NAO itself minimises can be
              cheated by one long chord); the longest chord over the mean; seconds
    images    between inverted images the model has never seen: of what is drawn in between, Frechet distance of the
              scorer's features to real images, agreement with the captions, largest step over the distance of the ends,
              sharpness; between 32 pairs of concepts it has seen, 42 other pairs of the same images and others, and 30 of
              concepts that it has not seen

nao adam: our plain re-implementation of the published optimisation (arXiv 2306.08687): Adam, rate 0.01, from the chord plus
uniform noise / 100, 10,000 iterations. Its own stopping test (ten changes of the loss in a row below 0.001) is not obeyed,
but noted: `stopped` is the iteration at which it would have ended, 0 if never.

    python benchmarks/interpolate.py            # writes results/interpolate.json and results/interpolate.png
    python benchmarks/interpolate.py --quick    # small vectors and few pairs
    python benchmarks/interpolate.py --part images    # these alone; of the other part the rows are kept
    python benchmarks/interpolate.py --check    # exit with 1 if any path is shorter than the geodesic, if that is not 1,000
                                                # times as fast as nao adam, or if what spectral draws is worse than what
                                                # any other draws between the 32 pairs, pair by pair
"""

import json
import math
import os
import sys
import time
from itertools import pairwise, product

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from common import bootstrap, parser, write
from pipelines import to_pixels
from scipy.linalg import sqrtm

import nrinv
from nrinv.spectral import octave_norms

POINTS, PARTS, ITERATIONS = 52, 100, 10_000
SIZES, QUICK_SIZES = (1024, 16384, 262144), (1024,)
# Norms of the two ends, in those of noise.
ENDS = {"on the shell": (None, None), "inverted": (1.08, 1.08), "inside": (0.9, 0.95), "across": (0.92, 1.1)}
METHODS = ("geodesic", "slerp", "lerp", "variance_preserving")
OURS = "spectral"  # of images; vectors have no frequencies
# Of few steps the noises found are longer than natural ones; of many, without guidance, they are not.
MODELS = {
    "turbo": {"num_inference_steps": 4, "guidance_scale": 1.0, "max_nfe": 8},
    "base": {"num_inference_steps": 20, "guidance_scale": 1.0},
}
PAIRS, BETWEEN = 32, 9
# Split, number of pairs (all that it has), seed of their order; the second shows what of the first is its choice of pairs.
SETS = {
    "known": ("heldout_pair", PAIRS, None),
    "known, other pairs": ("heldout_pair", None, 11),
    "unknown": ("heldout_concept", None, None),
}


def weight(norms, size):
    """-log of the density of the norm of `size` normal numbers, float64; the direct formula has no digits left."""
    m = math.sqrt(size - 1)
    peak = -((size - 1) * math.log(m) - m * m / 2 - (size / 2 - 1) * math.log(2) - math.lgamma(size / 2))
    u = (norms - m) / m
    return peak - (size - 1) * (torch.log1p(u) - u - u * u / 2)


def chain(points):
    """(length, longest chord over the mean) of points [n, D]."""
    points = points.double()
    t = (torch.arange(PARTS, dtype=torch.float64) + 0.5) / PARTS
    total, chords = 0.0, []
    for a, b in pairwise(points):
        # |a + t (b - a)| from three products, not from 100 vectors
        chord = b - a
        norms = (a @ a + 2 * t * (a @ chord) + t * t * (chord @ chord)).sqrt()
        chords.append(float(chord.norm()))
        total += float(weight(norms, len(a)).mean()) * chords[-1]
    return total, max(chords) / (sum(chords) / len(chords))


def nao_adam(a, b, count, iterations=ITERATIONS):
    """(points [count, D], stopped) by the published optimisation; a, b [D].

    The loss is a function of the squares of chords and of sums of neighbours. Differentiated by them alone, the rest of the
    chain rule is one product with a tridiagonal matrix: several times as fast as autograd through the vectors.
    """
    inner = count - 2
    points = torch.lerp(a, b, torch.linspace(0, 1, count)[:, None])
    points[1:-1] += torch.rand(inner, len(a), generator=torch.Generator().manual_seed(0)) / 100
    x = points[1:-1].detach().requires_grad_()  # the same memory
    optimizer, limit = torch.optim.Adam([x], lr=0.01, fused=True), 2 * float((a - b).norm()) / inner
    last, calm, stopped = math.inf, 0, 0
    for done in range(1, iterations + 1):
        norms = squares(points)
        chords2 = squares(points[1:] - points[:-1]).requires_grad_()
        sums2 = (2 * (norms[1:] + norms[:-1]) - chords2.detach()).requires_grad_()
        chords = chords2.sqrt()
        loss = (chords * weight(sums2.sqrt() / 2, len(a))).sum() + (chords - limit).relu().sum()
        by_chord, by_sum = torch.autograd.grad(loss, (chords2, sums2))
        around, beside = 2 * (by_sum + by_chord), 2 * (by_sum - by_chord)
        chain_rule = torch.zeros(count, count, dtype=torch.float64)
        chain_rule.diagonal()[:-1] += around
        chain_rule.diagonal()[1:] += around
        chain_rule.diagonal(1).copy_(beside)
        chain_rule.diagonal(-1).copy_(beside)
        x.grad = chain_rule[1:-1].float() @ points
        optimizer.step()
        calm = calm + 1 if abs(loss.item() - last) < 1e-3 else 0
        stopped = stopped or (done if calm == 10 else 0)
        last = loss.item()
    return points, stopped


def squares(x):
    """|x|^2 of each row, float64: summed in parts, so that float32 keeps its digits."""
    return x.view(len(x), -1, 256).pow(2).sum(2).double().sum(1)


def ends(size, norms, seed=0):
    generator = torch.Generator().manual_seed(seed)
    found = torch.randn(2, size, generator=generator)
    for one, norm in zip(found, norms, strict=True):
        if norm is not None:
            one *= norm * size**0.5 / one.norm()
    return found


def paths(sizes):
    rows = []
    for size in sizes:
        for where, norms in ENDS.items():
            if size > 100_000 and where in ("inside", "across"):
                continue  # an hour each, by Adam
            a, b = ends(size, norms)
            common = {"part": "paths", "size": size, "ends": where}
            for method in METHODS:
                nrinv.interpolate(a[None], b[None], 3, method=method)
                seconds = []
                for _ in range(3):
                    started = time.perf_counter()
                    points = nrinv.interpolate(a[None], b[None], POINTS, method=method)[:, 0]
                    seconds.append(time.perf_counter() - started)
                rows.append({**common, "method": method, "seconds": min(seconds), **measured(points)})
            started = time.perf_counter()
            points, stopped = nao_adam(a, b, POINTS)
            seconds = time.perf_counter() - started
            rows.append({**common, "method": "nao adam", "seconds": seconds, "stopped": stopped, **measured(points)})
            exact = float(nrinv.path_length(a[None], b[None])[0])
            for row in rows[-len(METHODS) - 1 :]:
                row["exact"] = exact
                print(*(f"{row[k]:.4g}" if isinstance(row[k], float) else row[k] for k in row if k != "part"), flush=True)
    return rows


def measured(points):
    length, unevenness = chain(points)
    return {"length": length, "unevenness": unevenness}


# ---------------------------------------------------------------------------------------------------------------- images


def frechet(x, y):
    """The Frechet distance of two sets of features [N, F], as Gaussians."""
    x, y = x.double().numpy(), y.double().numpy()
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    root = sqrtm(cx @ cy)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(cx + cy - 2 * root.real))


def drawn_between(pipe, pair, method, adam=False):
    path = nrinv.interpolate(*pair, BETWEEN, method="lerp" if adam else method, pipe=pipe)
    if adam:
        a, b = (one.latents.flatten() for one in pair)
        path.latents = nao_adam(a, b, BETWEEN)[0].view_as(path.latents)
    return nrinv.generate(pipe, path, output_type="pt").images.float()


def images(model, chosen, most):
    pipe, scorer, call = nrinv.demo_pipeline(model), nrinv.scorer(), MODELS[model]
    split, count, seed = SETS[chosen]
    records = nrinv.demo_images(split)
    if seed is not None:
        records = [records[i] for i in np.random.default_rng(seed).permutation(len(records))]
    count = min(count or len(records) // 2, most)
    records = records[: 2 * count]
    inv = nrinv.invert(pipe, [one.image for one in records], [one.caption for one in records], batch_size=16, **call).split()
    pairs = [(inv[i], inv[i + count]) for i in range(count)]
    captions = [(records[i].caption, records[i + count].caption) for i in range(count)]
    others = [name for name in ("train", "heldout_concept", "rare", "heldout_pair") if name != split]
    known = scorer.image_features(to_pixels([one.image for name in others for one in nrinv.demo_images(name)]))
    ends = torch.cat([one.latents for one in inv]).float()
    common = {
        "part": "images",
        "model": model,
        "set": chosen,
        "pairs": count,
        "norm": float(ends.square().mean().sqrt()),
        "norm_by_octaves": octave_norms(ends).square().mean(1).sqrt().tolist(),
        "sharpness_of_real": float(sharpness(to_pixels([one.image for one in records])).mean()),
    }
    rows = []
    for method in (OURS, *METHODS, "nao adam"):
        sets = torch.stack([drawn_between(pipe, pair, method, method == "nao adam") for pair in pairs])
        features = torch.stack([scorer.image_features(one) for one in sets])
        texts = torch.stack([scorer.text_features(pair) for pair in captions])
        cosines = features @ texts.transpose(1, 2)
        t = torch.linspace(0, 1, BETWEEN)
        of_pairs = {
            "agreement": ((1 - t) * cosines[..., 0] + t * cosines[..., 1])[:, 1:-1].mean(1),
            # Over the mean step, a way that goes to and fro would be the most even: all its steps are long.
            "jump": distance(features[:, 1:], features[:, :-1]).amax(1) / distance(features[:, 0], features[:, -1]),
            "sharpness": sharpness(sets[:, 1:-1].flatten(0, 1)).view(count, -1).mean(1),
        }
        rows.append({**common, "method": method, "frechet": frechet(features[:, 1:-1].flatten(0, 1), known)})
        # Frechet distance is of a set, not of a pair: its interval by leaving pairs out at random
        rng = np.random.default_rng(0)
        halves = [frechet(features[rng.integers(0, count, count), 1:-1].flatten(0, 1), known) for _ in range(40)]
        rows[-1]["frechet_interval"] = 1.96 * float(np.std(halves))
        for name, values in of_pairs.items():
            rows[-1] |= {name: float(values.mean()), f"{name}_interval": bootstrap(values.numpy())}
        print({k: v for k, v in rows[-1].items() if not k.endswith("interval")}, flush=True)
        rows[-1]["per_pair"] = {name: values.tolist() for name, values in of_pairs.items()}
    return rows, pipe, pairs


def distance(x, y):
    return 1 - torch.nn.functional.cosine_similarity(x, y, dim=-1)


def sharpness(x):
    """Mean gradient of images [N, 3, H, W]: what a washed-out image has little of."""
    return (x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))) / 2


def save_strips(pipe, pairs, path, shown=3):
    strips, titles = [], []
    for pair in pairs[:shown]:
        for method in (OURS, "geodesic", "slerp"):
            strips += list(drawn_between(pipe, pair, method))
            titles += [method if i == 0 else "" for i in range(BETWEEN)]
    nrinv.sheet(strips, titles, columns=BETWEEN, size=0.9).save(path)


def violations(rows):
    """What --check holds."""
    of_paths = [row for row in rows if row["part"] == "paths"]
    geodesics = {(row["size"], row["ends"]): row for row in of_paths if row["method"] == "geodesic"}
    for row in of_paths:
        ours = geodesics[row["size"], row["ends"]]
        if row["length"] < ours["length"] * (1 - 1e-6):
            yield f"{row['method']}, {row['size']} elements, {row['ends']}: {row['length']:.2f} against {ours['length']:.2f}"
        if row["method"] == "nao adam" and row["seconds"] < 1000 * ours["seconds"]:
            yield f"{row['size']} elements, {row['ends']}: {row['seconds'] / ours['seconds']:.0f} times as fast"
    for model in MODELS:
        drawn = {row["method"]: row for row in rows if (row.get("model"), row.get("set")) == (model, "known")}
        ours = drawn.get(OURS)
        for name, row in drawn.items():
            for figure, better in (("agreement", 1), ("jump", -1), ("sharpness", 1)):
                gap = better * (np.array(ours["per_pair"][figure]) - np.array(row["per_pair"][figure]))
                if gap.mean() < -bootstrap(gap) - 1e-9:
                    yield f"{model}, {name}: {figure} {row[figure]:.4f} against {ours[figure]:.4f}"
            if row["frechet"] < ours["frechet"] - ours["frechet_interval"]:
                yield f"{model}, {name}: Frechet distance {row['frechet']:.4f} against {ours['frechet']:.4f}"


def main():
    command = parser(__doc__, "interpolate")
    command.add_argument("--check", action="store_true")
    command.add_argument("--part", choices=("images", "paths"))
    arguments = command.parse_args()
    torch.set_num_threads(1)
    rows = []
    if arguments.part and arguments.out.exists():
        rows = [row for row in json.loads(arguments.out.read_text())["rows"] if row["part"] != arguments.part]
    if arguments.part != "paths":
        for model, chosen in product(MODELS, SETS):
            drawn, pipe, pairs = images(model, chosen, 4 if arguments.quick else math.inf)
            rows += drawn
            write(rows, arguments.out)
            if (model, chosen) == ("turbo", "known"):
                save_strips(pipe, pairs, arguments.out.with_suffix(".png"))
    if arguments.part != "images":
        rows += paths(QUICK_SIZES if arguments.quick else SIZES)
        write(rows, arguments.out)
    ahead = list(violations(rows)) if arguments.check else []
    print(*ahead, sep="\n")
    return 1 if ahead else 0


if __name__ == "__main__":
    sys.exit(main())
