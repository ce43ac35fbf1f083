"""A few cases of every kind, drawn by hypothesis, which finds the smallest that fails.  `make fuzz` draws many."""

import cases
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# Seconds each.
FEW = {"binding": 200, "paths": 100, "load": 60, "images": 60, "calls": 6}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", cases.CASES)
def test_inputs_of_every_kind(name, turbo):
    more = (turbo,) if name in cases.NEEDS_PIPELINE else ()

    @settings(max_examples=FEW[name], deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(r=st.randoms(use_true_random=False))
    def draw(r):
        cases.CASES[name](r, *more)

    draw()
