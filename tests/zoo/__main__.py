"""Run the whole matrix and write docs/support.md: python tests/zoo"""

import sys
import warnings
from pathlib import Path

import diffusers
import torch

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

from zoo import CASES, matrix  # noqa: E402

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    outcomes = []
    for name, scheduler in [*((name, None) for name in CASES), *matrix.pairs()]:
        outcome = matrix.reconstruct(name, scheduler)
        if outcome is not None:
            outcomes.append(outcome)
            print(
                f"{name} | {outcome.scheduler} | {outcome.order} | {outcome.error:.1e} | {outcome.nfe} | {outcome.refused}"
            )
    (TESTS.parent / "docs" / "support.md").write_text(matrix.report(outcomes))
