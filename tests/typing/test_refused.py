"""Type checkers refuse every line of refused.py that has to be refused, and no other."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
REFUSED = HERE / "refused.py"
# Attributes of a tensor: mypy is not shown torch, see pyproject.toml.
ONLY_PYRIGHT = ("a tensor has no such attribute",)


def expected(*but):
    return {
        n
        for n, line in enumerate(REFUSED.read_text().splitlines(), 1)
        if "  # " in line and not any(reason in line for reason in but)
    }


def run(*command):
    return subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, cwd=HERE.parent.parent).stdout


def test_pyright():
    pytest.importorskip("pyright", reason="make check installs it")
    found = json.loads(run("pyright", "--outputjson", "--pythonpath", sys.executable, str(REFUSED)))
    lines = {one["range"]["start"]["line"] + 1 for one in found["generalDiagnostics"] if one["severity"] != "information"}
    assert lines == expected()


def test_mypy():
    pytest.importorskip("mypy", reason="make check installs it")
    lines = {int(n) for n in re.findall(r"refused\.py:(\d+): error", run("mypy", str(REFUSED)))}
    assert lines == expected(*ONLY_PYRIGHT)


def test_every_name_that_a_pipeline_takes_is_accepted():
    """nrinv/arguments.pyi, beside what diffusers has."""
    import diffusers

    import nrinv
    from nrinv.known import call_parameters

    tree = ast.parse((HERE.parent.parent / "nrinv" / "arguments.pyi").read_text())
    stated = {one.value for one in ast.walk(tree) if isinstance(one, ast.Constant) and isinstance(one.value, str)}
    stated |= {one.target.id for one in ast.walk(tree) if isinstance(one, ast.AnnAssign)}
    taken = set()
    for name in dir(diffusers):
        cls = getattr(diffusers, name, None) if name.endswith("Pipeline") else None
        if isinstance(cls, type) and issubclass(cls, diffusers.DiffusionPipeline):
            taken |= {*call_parameters(cls)[0]} if {"latents", "strength"} & {*call_parameters(cls)[0]} else set()
    assert len(taken) > 300
    own = {*inspect.signature(nrinv.invert).parameters, *inspect.signature(nrinv.generate).parameters}
    assert not taken - stated - own - {"self", "args", "latents", "return_dict"}
