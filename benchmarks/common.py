"""What the benchmarks share: intervals, groups of rows, command lines and the files of results."""

import argparse
import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

import cpuinfo
import numpy as np
import torch
from scipy import stats

import nrinv

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "numpy", "scipy", "diffusers", "torchdeq")


def bootstrap(values):
    """Half the 95 % interval of the mean of values [N], N at least 2."""
    options = {"n_resamples": 2000, "method": "percentile", "rng": np.random.default_rng(0)}
    low, high = stats.bootstrap([values], np.mean, **options).confidence_interval
    return float(high - low) / 2


def grouped(rows, key):
    """{key(row): [row]} in the order of first appearance; key: a function, or the name of a column."""
    groups = {}
    for row in rows:
        groups.setdefault(row[key] if isinstance(key, str) else key(row), []).append(row)
    return groups


def parser(doc, name):
    """The command line of the benchmark that writes results/<name>.json."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--quick", action="store_true", help="a small part of it")
    found.add_argument("--out", type=Path, default=RESULTS / f"{name}.json", help="pictures go beside it")
    return found


def own_model(command, which, steps):
    """Arguments to measure a model of the user's own."""
    command.add_argument("--model", help=f"a diffusers pipeline {which}: a folder or an id, turbo, base")
    command.add_argument("--images", type=Path, help="its images; captions in captions.json {file: caption} or file names")
    command.add_argument("--steps", type=int, default=steps)
    command.add_argument("--guidance", type=float, default=1.0)
    command.add_argument("--size", type=int, help="pixels the images are resized to; default the shortest side of all")


def parsed(command):
    arguments = command.parse_args()
    if bool(arguments.model) != bool(arguments.images):
        command.error("--model and --images go together")
    return arguments


def machine():
    versions = {"nrinv": nrinv.__version__, **{name: version(name) for name in PACKAGES}}
    cpu = cpuinfo.get_cpu_info().get("brand_raw", platform.machine())
    return {"python": platform.python_version(), **versions, "cpu": cpu, "threads": torch.get_num_threads()}


def write(rows, path, **more):
    """JSON of the command, the machine, `more`, and the rows, a line each: indented they take several times the space."""
    command = " ".join([f"python benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    head = json.dumps({"command": command, "machine": machine(), **more}, allow_nan=False)
    lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')
