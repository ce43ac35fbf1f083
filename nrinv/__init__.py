"""nrinv: the noise from which a diffusers pipeline draws a given image.

    inv = nrinv.invert(pipe, image, prompt)       # the noise, with residuals, costs and reasons
    nrinv.generate(pipe, inv)                     # the image again, by the stock pipeline
    nrinv.generate(pipe, inv, prompt="...")       # edited

`Sampler` and `Inversion` need NumPy only; what drives a pipeline is imported on first use and needs diffusers.
"""

from importlib import import_module

from ._C import Inversion, Request, Result, Sampler, reasons

__version__ = "0.1.0"

_LAZY = {
    "invert": ".pipeline",
    "generate": ".pipeline",
    "correct": ".correction",
    "CorrectionOutput": ".correction",
    "read_sampler": ".sampler",
    "natural_guess": ".sampler",
    "interpolate": ".path",
    "centroid": ".path",
    "path_length": ".path",
    "InverseScheduler": ".scheduler",
    "ReplayScheduler": ".scheduler",
    "InversionOutput": ".inversion",
    "load": ".inversion",
    "encode": ".latents",
    "decode": ".latents",
    "demo_pipeline": ".models",
    "demo_images": ".models",
    "scorer": ".models",
    "rare": ".rare_objects",
    "RareOutput": ".rare_objects",
    "sheet": ".plots",
}

__all__ = ["Inversion", "Request", "Result", "Sampler", "reasons", *_LAZY]


def __getattr__(name):
    if name not in _LAZY:
        raise AttributeError(f"module 'nrinv' has no attribute {name!r}")
    try:
        value = getattr(import_module(_LAZY[name], __name__), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("torch", "diffusers", "transformers", "PIL"):
            raise ImportError(f"nrinv.{name} needs {error.name}: pip install 'nrinv[diffusers]'") from error
        raise
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *__all__})
