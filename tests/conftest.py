import os
from importlib.metadata import version
from pathlib import Path

# Before torch is imported: small networks run many times slower when every operator starts threads.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
import zoo.installed
from diffusers.utils import logging as diffusers_logging
from packaging.version import Version
from transformers.utils import logging as transformers_logging

import nrinv

torch.set_num_threads(1)
diffusers_logging.set_verbosity_error()
transformers_logging.set_verbosity_error()
transformers_logging.disable_progress_bar()


# Whether the installed releases are those that the tests were written for, or newer.
_lines = (Path(__file__).parents[1] / "constraints.txt").read_text().split()
_pins = dict(line.split("==") for line in _lines if "==" in line)
CURRENT = all(Version(version(name)) >= Version(_pins[name]) for name in ("diffusers", "transformers"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    try:
        return (yield)
    except zoo.installed.Missing as error:
        if CURRENT:
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def _pipelines():
    return {kind: nrinv.demo_pipeline(kind) for kind in ("turbo", "base")}


@pytest.fixture
def turbo(_pipelines):
    """The embedded few-step student with its own scheduler, whatever the test before did."""
    return _fresh(_pipelines["turbo"])


@pytest.fixture
def base(_pipelines):
    return _fresh(_pipelines["base"])


_own = {}


def _fresh(pipe):
    pipe.scheduler = _own.setdefault(id(pipe), pipe.scheduler)
    return pipe


@pytest.fixture(scope="session")
def held_out():
    """(images, captions, pixels [B, 3, 64, 64]) the models have never seen, of every style."""
    records = nrinv.demo_images("heldout_pair")[::3]
    pixels = np.stack([np.asarray(one.image) for one in records]).astype(np.float32) / 255
    return (
        [one.image for one in records],
        [one.caption for one in records],
        torch.from_numpy(pixels).permute(0, 3, 1, 2),
    )
