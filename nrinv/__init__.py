"""nrinv: the noise from which a diffusers pipeline draws a given image.

    inv = nrinv.invert(pipe, image, prompt)       # the noise, with residuals, costs and reasons
    nrinv.generate(pipe, inv)                     # the image again, by the stock pipeline
    nrinv.generate(pipe, inv, prompt="...")       # edited

`Sampler` and `Inversion` need NumPy only; what drives a pipeline is imported on first use and needs diffusers.  The names
and where they come from stand in __init__.pyi, which type checkers read too.
"""

import lazy_loader

__version__ = "0.1.0"

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name):
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] in ("torch", "diffusers", "transformers", "PIL"):
            raise ImportError(f"nrinv.{name} needs {error.name}: pip install 'nrinv[diffusers]'") from error
        raise
