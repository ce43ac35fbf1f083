"""Every tiny pipeline and every scheduler: invert, then let the stock pipeline draw."""

import re
from pathlib import Path

import pytest
from zoo import CASES, matrix

PAGE = Path(__file__).parent.parent / "docs" / "support.md"


def assert_reconstructed(outcome, name):
    if name in matrix.REFUSED:
        assert re.search(matrix.REFUSED[name], outcome.refused), outcome
    else:
        assert not outcome.refused and outcome.error <= matrix.TOLERANCES.get(name, matrix.TOLERANCE), outcome


@pytest.mark.parametrize("name", CASES)
def test_the_stock_pipeline_draws_the_image_again(name):
    assert_reconstructed(matrix.reconstruct(name), name)


@pytest.mark.parametrize(("host", "name"), matrix.pairs())
def test_with_every_scheduler(host, name):
    outcome = matrix.reconstruct(host, name)
    if outcome is None:
        pytest.skip("the stock pipeline cannot use this scheduler")
    assert_reconstructed(outcome, name)


def test_the_page_lists_what_is_tested():
    page = PAGE.read_text()
    missing = [name for name in CASES if f"| {name} |" not in page]
    assert not missing, f"{missing}: run python tests/zoo"
    counts = re.search(r"(\d+) pipeline classes in (\d+) configurations, and (\d+) scheduler configurations", page)
    classes, configurations, schedulers = map(int, counts.groups())
    assert classes >= 60 and configurations >= 90 and schedulers >= 80
