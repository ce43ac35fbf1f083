"""What type checkers have to refuse, each line for the reason that stands behind it."""

from typing import Any

import nrinv


def wrong(pipe: Any, image: Any) -> None:
    nrinv.invert(pipe, image, solvr="auto")  # an unknown name
    nrinv.invert(pipe, image, max_nfe="three")  # a string for a number
    nrinv.invert(pipe, image, solver=3)  # a number for a solver
    nrinv.invert(pipe, image, correct=True, seed=1.5)  # a fraction for a seed
    nrinv.invert(pipe, image, verify="yes")  # a string for a switch
    nrinv.invert(pipe, image, batch_size=None, correct="no")  # a string for a strength
    nrinv.generate(pipe, image.latents, edit_strenght=0.3)  # an unknown name
    nrinv.generate(pipe, 3)  # a number for an inversion
    nrinv.correct(pipe, image, radius="far")  # a string for a number
    nrinv.rare(pipe, [image], "a cat", refine_seed=5)  # an unknown name
    nrinv.interpolate(image, image, methd="slerp")  # an unknown name
    nrinv.Solver(depht=3)  # an unknown name
    nrinv.Solver().depth = 3  # frozen
    nrinv.nosuch  # noqa: B018, no such name
    nrinv.Inversion(1, image)  # no sampler
    nrinv.load("x").latents.nosuch  # noqa: B018, a tensor has no such attribute
