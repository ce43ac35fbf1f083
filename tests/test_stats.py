"""InversionOutput.stats: white noise passes, and each kind of unnatural noise shows in the figure made for it."""

import numpy as np
import pytest
import torch

from nrinv import InversionOutput

SHAPE = (200, 4, 16, 16)


def white():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def test_white_noise_has_standard_normal_scores():
    stats = InversionOutput(latents=white()).stats
    assert set(stats) == {"norm", "mean", "skew", "excess_kurtosis", "autocorrelation"}
    for name, (value, score) in stats.items():
        assert value.shape == score.shape == (SHAPE[0],)
        assert abs(score.mean()) < 0.35, name
        assert 0.8 < score.std() < 1.2, name


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("norm", lambda z: 1.2 * z),
        ("mean", lambda z: z + 0.3),
        ("skew", lambda z: torch.where(z > 0, 2 * z, z)),
        ("excess_kurtosis", lambda z: z * z.abs().sqrt()),
        ("autocorrelation", lambda z: (z + 0.5 * z.roll(1, -1)) / 1.25**0.5),
    ],
)
def test_each_figure_sees_what_it_is_for(name, spoil):
    _, score = InversionOutput(latents=spoil(white())).stats[name]
    assert score.min() > 4


def test_the_values_of_a_known_pattern():
    board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)[None, None]
    stats = {name: value[0] for name, (value, _) in InversionOutput(latents=board).stats.items()}
    assert stats["norm"] == pytest.approx(1)
    assert stats["mean"] == stats["skew"] == pytest.approx(0)
    assert stats["excess_kurtosis"] == pytest.approx(-2)
    assert stats["autocorrelation"] == pytest.approx(-1)
    assert np.isfinite(list(stats.values())).all()
