"""What a user writes: type checkers accept all of it."""

from typing import Any

import numpy as np
import torch

import nrinv
from nrinv import Solver, interpolate, invert


def draw(pipe: Any, image: Any) -> list[Any]:
    inv = nrinv.invert(pipe, image, "a cat", num_inference_steps=4, guidance_scale=0.0, height=512, width=512)
    same = invert(
        pipe,
        [image, image],
        ["a cat", "a dog"],
        solver=Solver("anderson", depth=8, rounds=2),
        max_nfe=3,
        tol=1e-5,
        noise="absorb",
        correct=0.05,
        encode="refined",
        order="passes",
        batch_size=1,
        seed=1,
        verify=True,
        return_trajectory=True,
        return_defects=True,
        negative_prompt="blurred",
        control_guidance_end=0.8,
        callback_on_step_end=print,
    )
    latents: torch.Tensor = inv.latents
    residuals: np.ndarray | None = same.residuals
    norm, z_score = inv.stats["norm"]
    a, b = same.split()
    path: nrinv.InversionOutput = interpolate(a, b, 9, method="slerp", pipe=pipe)
    points: torch.Tensor = interpolate(latents, latents, 5)
    corrected: nrinv.CorrectionOutput = nrinv.correct(pipe, image, "a cat", strength=0.1, rounds=1)
    more: nrinv.RareOutput = nrinv.rare(pipe, [image, image], "a cat", num=8, spread=0.5, num_inference_steps=4)
    inv.save("x.safetensors")
    loaded: nrinv.InversionOutput = nrinv.load("x.safetensors")
    images: list[Any] = nrinv.generate(pipe, path, "a dog", edit_strength=0.6, guidance_scale=2.0, replay=1.0).images
    return [*images, residuals, norm, z_score, points, corrected, more, loaded]


def by_hand(target: np.ndarray) -> np.ndarray:
    sampler = nrinv.Sampler([1.0], [[1.0, 1.0]], [1.0])
    inversion = nrinv.Inversion(sampler, target, solver="anderson", max_nfe=4, rounds=1)
    while (request := inversion.next()) is not None:
        inversion.feed(request.scale * request.sample)
    result: nrinv.Result = inversion.result()
    return result.residuals


class Naive:
    """A method of one's own."""

    predictor = False

    def open(self, sampler: nrinv.Sampler, target: Any, **given: Any) -> Any:
        return nrinv.Inversion(sampler, target, noises=given["noises"], solver="fixed_point", max_nfe=1)


def naive(pipe: Any, image: Any) -> nrinv.InversionOutput:
    return nrinv.invert(pipe, image, "a cat", solver=Naive())
