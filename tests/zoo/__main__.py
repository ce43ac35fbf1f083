"""Run the whole matrix and write docs/support.md: python tests/zoo"""

import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import diffusers
import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from zoo import CASES, matrix  # noqa: E402


def prepare():
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)


def main():
    work = [*((name, None) for name in CASES), *matrix.pairs()]
    with ProcessPoolExecutor(initializer=prepare) as pool:
        outcomes = []
        for (name, _), outcome in zip(work, pool.map(matrix.reconstruct, *zip(*work, strict=True)), strict=True):
            if outcome is not None:
                outcomes.append(outcome)
                print(name, outcome.scheduler, outcome.order, f"{outcome.error:.1e}", outcome.refused, sep=" | ", flush=True)
    (TESTS.parent / "docs" / "support.md").write_text(matrix.report(outcomes))


if __name__ == "__main__":
    main()
