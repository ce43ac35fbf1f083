"""Every tiny pipeline and every scheduler: invert, then let the stock pipeline draw."""

import re
from pathlib import Path

import pytest
from zoo import CASES, matrix

PAGE = Path(__file__).parent.parent / "docs" / "support.md"


def assert_reconstructed(outcome, expected):
    if expected is not None:
        assert re.search(expected, outcome.refused), outcome
    else:
        assert not outcome.refused and outcome.error <= matrix.TOLERANCE, outcome


@pytest.mark.parametrize("name", CASES)
def test_the_stock_pipeline_draws_the_image_again(name):
    assert_reconstructed(matrix.reconstruct(name), matrix.REFUSED.get(name))


@pytest.mark.parametrize(("host", "name"), matrix.pairs())
def test_with_every_scheduler(host, name):
    outcome = matrix.reconstruct(host, name)
    if outcome is None:
        pytest.skip("the stock pipeline cannot use this scheduler")
    assert_reconstructed(outcome, matrix.REFUSED.get(name))


def test_the_page_lists_what_is_tested():
    page = PAGE.read_text()
    missing = [name for name in CASES if f"| {name} |" not in page]
    missing += [name for host, name in matrix.pairs() if f"| {name} |" not in page and name not in matrix.UNUSABLE]
    assert not missing, f"{missing}: run python tests/zoo"
