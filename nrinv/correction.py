"""Prompt-aware correction of an encoded image, driven through the stock pipeline."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ._C import Correction
from .driver import Driver, check_pipeline, check_prompts, check_whole
from .host import reads_index, slices
from .latents import decode, encode_pixels, has_autoencoder, is_latents, psnr, read_images
from .scheduler import ORDERS, InverseScheduler

NOISES = ("random", "inverted")


@dataclass
class CorrectionOutput(BaseOutput):
    """An encoded image, moved to where the pipeline draws it for a prompt.

    latents [B, ...]: as `pipe(latents=...)` takes them, in its dtype.
    moved [B]: |corrected - encoded| / |encoded|.  held [B]: whether the trust radius has held the last round back.
    failed [B]: whether a round returned NaN and was left out.
    cost [B]: PSNR in dB that the decoded image has lost against the image; NaN where latents were given.
    nfe: network evaluations for each image.
    """

    latents: torch.Tensor
    moved: np.ndarray | None = None
    held: np.ndarray | None = None
    failed: np.ndarray | None = None
    cost: np.ndarray | None = None
    nfe: int = 0


class CorrectingScheduler(InverseScheduler):
    """A scheduler under which a pipeline called with `latents=z_0` runs the rounds of a `Correction`.

    strength: the share of the steps that a round takes, at least one of them.  rounds, radius [B]: of `Correction`.
    noise: "random", drawn with `seed`, the same for each image; or "inverted".  order "passes": a call for each round.
    """

    def __init__(self, scheduler, *, strength, rounds, noise, radius, seed, **driving):
        super().__init__(scheduler, strength=strength, seed=seed, **driving)
        self._rounds, self._noise, self._radius = rounds, noise, radius

    def _read(self, step_kwargs):
        super()._read(step_kwargs)
        if self._noise == "random" and self.sampler.levels is None:
            raise ValueError(
                f"scheduler: {type(self._inner).__name__} does not tell how much noise its steps start from; use "
                "noise='inverted'"
            )

    def _rehearse(self):
        dry = np.zeros((1, 1), np.float32)
        return self._open(dry, [dry] * self._rounds * self.sampler.num_noises, radius=None).max_evaluations

    def _expected(self):
        steps = torch.arange(len(self.sampler))
        if self._passes:
            return steps
        steps = steps if self._noise == "random" else torch.cat([steps.flip(0), steps])
        return steps.repeat(self._rounds)

    def _guess(self, target):
        return None

    def _draws(self, target):
        """The noise of each round; None if it is found by inverting."""
        if self._noise == "inverted":
            return None
        shape = tuple(target.shape[1:])
        drawn = [np.random.default_rng((self._seed, i)).standard_normal(shape, np.float32) for i in range(self._rounds)]
        if isinstance(target, np.ndarray):
            return [np.broadcast_to(one, target.shape).copy() for one in drawn]
        return [torch.from_numpy(one).to(target).expand(target.shape) for one in drawn]

    def _first(self, target):
        draws = self._draws(target)
        if draws is None:
            return target
        signal, sigma = self.sampler.levels[0]
        return signal * target + sigma * draws[0]

    def _draw(self, sample, generator):
        draw = super()._draw
        return [noise for _ in range(self._rounds) for noise in draw(sample, generator)]

    def _open(self, target, noises, guess=None, **options):
        options = {"radius": self._radius, **options}
        return Correction(self.sampler, target, draws=self._draws(target), noises=noises, rounds=self._rounds, **options)


class Correcting(Driver):
    """One batch on its way to its correction."""

    def run(self, order, **options):
        if order == "auto":
            order = "passes" if reads_index(self.pipe) else "reversed"
        if order == "passes" and options["noise"] == "inverted":
            raise ValueError(
                "noise='inverted' visits the timesteps backwards: not with order='passes', nor with loops that may read "
                "their own index; use noise='random'"
            )
        steps = self.call.get("num_inference_steps")
        strength = min(1.0, max(self.strength, (1 + 1e-9) / steps)) if steps else self.strength  # at least one step

        def make(latents, layout):
            return CorrectingScheduler(
                self.pipe.scheduler,
                strength=strength,
                order=order,
                unwind=True,
                latents=latents,
                layout=layout,
                **options,
            )

        scheduler = self.drive(make)
        if scheduler.unfollowed:
            raise ValueError(f"pipe: {self.name}: its latents cannot be corrected: {scheduler.unfollowed}")
        result = scheduler.result
        return CorrectionOutput(
            latents=scheduler.layout.latents(result.latents, self.target),
            moved=result.moved,
            held=result.held,
            failed=result.failed,
            nfe=result.evaluations + self.spent,
        )


@torch.no_grad()
def round_trip_error(pipe, latents, height, width):
    """|encode(decode(z)) - z| of each of the latents, [B] float64: what the autoencoder itself cannot tell apart.

    Raises ValueError for pipelines without an autoencoder of images.
    """
    if (latents.ndim == 5 and latents.shape[2] > 1) or not has_autoencoder(pipe):
        raise ValueError(f"radius must be None: {type(pipe).__name__} has no autoencoder of images to measure it by")
    again = encode_pixels(pipe, decode(pipe, latents, height=height, width=width) * 2 - 1)
    return (again.float() - latents.float()).flatten(1).norm(dim=1).double().cpu().numpy()


def check_correction(pipe, strength, rounds, radius, noise, seed, order="auto"):
    if not 0 < strength <= 1:
        raise ValueError(f"strength must be above 0 and at most 1, got {strength!r}")
    check_whole("rounds", rounds, 1)
    check_whole("seed", seed, 0)
    if radius is not None and not (radius >= 0 and np.isfinite(radius)):
        raise ValueError(f"radius must be None or a finite number of at least 0, got {radius!r}")
    if noise not in NOISES:
        raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    if slices(pipe):
        raise ValueError(f"pipe: {type(pipe).__name__} takes a part of the steps itself; give the text-to-image pipeline")


@torch.no_grad()
def correct(
    pipe,
    image,
    /,
    prompt=None,
    *,
    strength=0.05,
    rounds=2,
    radius=2.0,
    noise="random",
    seed=0,
    num_inference_steps=None,
    guidance_scale=None,
    generator=None,
    order="auto",
    **pipe_kwargs,
):
    """Move an encoded image to where `pipe` draws it for its prompt; returns a `CorrectionOutput`.

    An image's latents come from an autoencoder that knows neither prompt nor guidance, and the pipeline may not draw them
    from any noise.  Each round adds the noise of the last `strength` of the steps and denoises it with the prompt and the
    guidance: what Samuel et al. call the prompt-aware adjustment of the encoding (arXiv 2312.12540v2, figure 3).  What is
    to be inverted then is the corrected image; how it differs from the image is in the output.

    pipe, image, prompt, num_inference_steps, guidance_scale, generator, **pipe_kwargs: as `invert` takes them; guidance and
    steps are those that the image will be drawn with.
    strength: above 0, at most 1; 0.05 are 2 of 50 steps.  At least one step is taken.  rounds: at least 1.
    radius: how far an image may be moved, in multiples of the autoencoder's own error |encode(decode(z)) - z|; None: as far
    as it goes.
    noise: "random" draws it with `seed`, "inverted" inverts the steps instead, one evaluation each, and draws nothing.
    order: "auto", "reversed" (one call of the pipeline) or "passes" (one for each round, for loops that read their index).

    Raises ValueError naming the argument for bad input, and for what cannot be inverted.
    """
    check_pipeline(pipe)
    check_correction(pipe, strength, rounds, radius, noise, seed, order)
    pipe_kwargs.pop("output_type", None)
    pixels = read_images(pipe, image, height=pipe_kwargs.get("height"), width=pipe_kwargs.get("width"))
    check_prompts(prompt, pipe_kwargs, pixels.shape[0])
    given = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    call = {**{name: value for name, value in given.items() if value is not None}, **pipe_kwargs}
    size = (None, None) if is_latents(pipe, pixels) else pixels.shape[-2:]
    correcting = Correcting(pipe, encode_pixels(pipe, pixels), image, prompt, call, generator, strength, size)
    return run_correction(correcting, pixels, rounds=rounds, radius=radius, noise=noise, seed=seed, order=order)


def run_correction(correcting, pixels, *, radius, order="auto", **options):
    """`correct` for a prepared call; pixels: what `read_images` returned."""
    pipe, encoded = correcting.pipe, correcting.target
    height, width = correcting.call.get("height"), correcting.call.get("width")
    limit = None if radius is None else radius * round_trip_error(pipe, encoded, height, width)
    out = correcting.run(order, radius=limit, **options)
    out.cost = np.full(len(encoded), np.nan)
    if not is_latents(pipe, pixels):
        image = (pixels.float() + 1) / 2
        before, after = (
            psnr(decode(pipe, z, height=height, width=width).cpu(), image.cpu()) for z in (encoded, out.latents)
        )
        out.cost = np.array(before) - np.array(after)
    return out
