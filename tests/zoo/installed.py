"""The classes of diffusers and transformers, under any release.

    from .installed import FluxPipeline

A class that the installed releases do not have raises `Missing` when it is used, not when it is imported: other cases can be
made all the same.
"""

import importlib

import diffusers
import transformers

# Where classes are that the libraries themselves do not export.
ELSEWHERE = {
    "LTX2TextConnectors": "diffusers.pipelines.ltx2.connectors",
    "MCLIPConfig": "diffusers.pipelines.kandinsky.text_encoder",
    "MultilingualCLIP": "diffusers.pipelines.kandinsky.text_encoder",
}


class Missing(ImportError):
    """A class that a case needs is not in the installed releases."""


def existing(name):
    """The class of this name; raises `Missing`."""
    for library in (diffusers, diffusers.schedulers, transformers):  # some schedulers are not exported further
        try:
            return getattr(importlib.import_module(ELSEWHERE[name]) if name in ELSEWHERE else library, name)
        except (AttributeError, ImportError, RuntimeError):  # RuntimeError: a pipeline whose text encoder is missing
            continue
    raise Missing(f"diffusers {diffusers.__version__} and transformers {transformers.__version__} have no {name}")


class _Absent(type):
    def __call__(cls, *args, **kwargs):
        return existing(cls.__name__)

    def __getattr__(cls, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return cls()


def __getattr__(name):
    if name.startswith("_"):
        raise AttributeError(name)
    try:
        return existing(name)
    except Missing:
        return _Absent(name, (), {})
