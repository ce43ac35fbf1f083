"""Pictures of what was found: sheets of images, residuals."""

import io
from typing import Any

import numpy as np
import torch
from PIL import Image


def sheet(images: Any, titles: list[str] | None = None, *, columns: int | None = None, size: float = 1.6) -> Image.Image:
    """Images side by side, with titles, as one PIL image.

    images: a list, or {title: image}, of PIL images, arrays [H, W, 3] or tensors [3, H, W] (uint8, or floats in 0..1); a
    tensor [N, 3, H, W] or an array [N, H, W, 3].  titles: one for each, or None.  columns: default all in one row, up to 8.
    size: inches of an image, at 100 dots an inch.

    Raises ValueError if there is no image, or not one title for each.
    """
    from matplotlib.figure import Figure

    if isinstance(images, dict):
        images, titles = list(images.values()), list(images)
    pictures = [_pixels(one) for one in images]
    if not pictures:
        raise ValueError("images must hold at least one image")
    if titles is not None and len(titles) != len(pictures):
        raise ValueError(f"titles must be {len(pictures)}, one for each image, got {len(titles)}")
    columns = columns or min(len(pictures), 8)
    rows = -(-len(pictures) // columns)
    height = size + (0.3 if titles is not None else 0.05)
    figure = Figure(figsize=(size * columns, height * rows), dpi=100, layout="constrained")
    for i, axes in enumerate(np.ravel(figure.subplots(rows, columns, squeeze=False))):
        axes.axis("off")
        if i < len(pictures):
            axes.imshow(pictures[i], interpolation="nearest")
            if titles is not None:
                axes.set_title(titles[i], fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer)
    with Image.open(buffer) as picture:
        return picture.convert("RGB")


def _pixels(image):
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, torch.Tensor):
        image = image.detach().float().cpu().numpy() if image.is_floating_point() else image.cpu().numpy()
        image = image[0] if image.ndim == 4 and len(image) == 1 else image
        image = np.moveaxis(image, 0, -1)
    image = np.asarray(image)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(f"images must be PIL images, arrays [H, W, 3] or tensors [3, H, W], got shape {image.shape}")
    return np.clip(image, 0, 1) if image.dtype.kind == "f" else image


def plot_residuals(inversion, axes=None, label=None):
    """The relative residual of every step of an inversion over its timesteps, each image a line; returns the axes."""
    if axes is None:
        from matplotlib import pyplot

        axes = pyplot.subplots(figsize=(6, 3.6), layout="constrained")[1]
    for i, line in enumerate(inversion.residuals.T):
        alone = inversion.residuals.shape[1] == 1
        name = label if label is not None else f"{inversion.nfe[i]} NFE" if alone else f"image {i}, {inversion.nfe[i]} NFE"
        axes.semilogy(inversion.timesteps, line, "o-", markersize=3, label=name)
    axes.set(xlabel="timestep", ylabel="|f(z) - z| / |z|")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    return axes
