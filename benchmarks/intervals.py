"""Confidence intervals of the benchmarks."""

import numpy as np


def bootstrap(values, seed=0, times=2000):
    """Half the 95 % interval of the mean of values [N]."""
    values = np.asarray(values)
    picks = np.random.default_rng(seed).integers(0, len(values), (times, len(values)))
    low, high = np.percentile(values[picks].mean(1), [2.5, 97.5])
    return float(high - low) / 2
