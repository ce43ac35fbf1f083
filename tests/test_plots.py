"""sheet and plot_residuals."""

import numpy as np
import pytest
import torch
from PIL import Image

import nrinv


def test_every_kind_of_image_goes_into_a_sheet():
    red = np.zeros((8, 8, 3), np.uint8)
    red[..., 0] = 255
    kinds = [
        Image.fromarray(red),
        red,
        red / 255.0,
        torch.from_numpy(red).permute(2, 0, 1),
        torch.from_numpy(red / 255.0).permute(2, 0, 1),
    ]
    picture = nrinv.sheet(kinds, [f"image {i}" for i in range(5)], columns=3)
    assert isinstance(picture, Image.Image) and picture.size == (480, 380)
    colours = np.asarray(picture).reshape(-1, 3)
    assert ((colours == (255, 0, 0)).all(1)).mean() > 0.3
    assert nrinv.sheet({"a": red, "b": red}).size == (320, 190)
    assert nrinv.sheet(torch.rand(3, 3, 8, 8)).size[0] == 480


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        ([], None, "at least one image"),
        ([np.zeros((8, 8, 3))], ["a", "b"], "titles must be 1, one for each image, got 2"),
        ([np.zeros((8, 8))], None, "images must be PIL images"),
    ],
)
def test_bad_sheets(images, titles, message):
    with pytest.raises(ValueError, match=message):
        nrinv.sheet(images, titles)


def test_residuals_are_drawn(turbo, held_out):
    import matplotlib

    matplotlib.use("Agg")
    inv = nrinv.invert(turbo, held_out[0][:2], held_out[1][:2], num_inference_steps=4, guidance_scale=1.0)
    axes = inv.plot_residuals()
    assert len(axes.lines) == 2 and axes.get_yscale() == "log"
    np.testing.assert_allclose(axes.lines[1].get_ydata(), inv.residuals[:, 1])
    assert inv.plot_residuals(axes, "again") is axes and len(axes.lines) == 4
