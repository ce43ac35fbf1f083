"""The house: arrows point down, in C as in Python; nothing is written in two places that could differ."""

import ast
import inspect
import re
from dataclasses import fields
from graphlib import TopologicalSorter
from pathlib import Path

import diffusers
import numpy as np
import pytest

import nrinv
from nrinv import _C, cli

ROOT = Path(__file__).parent.parent
CSRC, PACKAGE = ROOT / "csrc", ROOT / "nrinv"
PHASES = ("sweep.c", "absorb.c", "passes.c", "forward.c", "correct.c")


def c_uses():
    """{file: the files whose functions or constants it uses} of csrc."""
    texts = {path.name: re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL) for path in CSRC.glob("*.c")}
    owner = {}
    for name, text in texts.items():
        for returned, function in re.findall(r"^([^\n;{}]+)\n(\w+)\([^;]*?\)\n\{", text, re.MULTILINE):
            if "static" not in returned.split():
                assert function not in owner, f"{function} is defined in {owner[function]} and {name}"
                owner[function] = name
        owner.update((constant, name) for constant in re.findall(r"^const nri_\w+ (\w+) = ", text, re.MULTILINE))
    assert len(owner) > 60
    words = {name: set(re.findall(r"\b\w+\b", text)) for name, text in texts.items()}
    return {name: {owner[word] for word in used & owner.keys()} - {name} for name, used in words.items()}


def python_uses(folder=PACKAGE):
    """{module: the modules beside it that it imports}, wherever the import stands."""
    uses = {}
    for path in folder.glob("*.py"):
        found = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                found |= {node.module.split(".")[0]} if node.module else {one.name for one in node.names}
        uses[path.stem] = {one for one in found if (folder / f"{one}.py").exists()}
    return uses


def command_line_uses():
    return python_uses(PACKAGE / "cli")


@pytest.mark.parametrize(("uses", "least"), [(c_uses, 20), (python_uses, 20), (command_line_uses, 6)])
def test_arrows_point_down_only(uses, least):
    graph = uses()
    assert len(graph) > least
    tuple(TopologicalSorter(graph).static_order())  # CycleError names a circle


def test_no_phase_knows_another():
    uses = c_uses()
    for phase in PHASES:
        assert not uses[phase] & {*PHASES, "invert.c"}, phase
    assert uses["invert.c"] >= set(PHASES)
    assert [name for name, used in uses.items() if used & set(PHASES)] == ["invert.c"]


def test_who_knows_what():
    for path in CSRC.glob("*.c"):
        text = path.read_text()
        binding = path.name.startswith("py_") or path.name in ("module.c", "error.c")
        assert binding or '"python.h"' not in text, path.name
        assert path.name in ("vec_aten.c", "module.c") or '"aten.h"' not in text, path.name
    assert not list(CSRC.glob("*.cpp")) and not list(CSRC.glob("*.cc"))


def test_special_names_stand_in_one_table():
    """No other module of the front names a pipeline or a scheduler of diffusers as a string."""
    special = {name for name in dir(diffusers) if re.search(r"(Pipeline|Scheduler)$", name)}
    for path in PACKAGE.glob("*.py"):
        named = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert path.stem == "known" or not {one for one in named if isinstance(one, str)} & special, path.name


# ----------------------------------------------------------------------------------------------------- names and defaults


def defaults(function):
    return {
        name: one.default for name, one in inspect.signature(function).parameters.items() if one.default is not one.empty
    }


def inverted(**options):
    """All that an inversion of a small nonlinear problem says, gradients included."""
    sampler = nrinv.read_sampler(diffusers.DDIMScheduler(clip_sample=False), 6)
    rng = np.random.default_rng(0)
    target, drawn = (rng.standard_normal((2, 32)).astype(np.float32) for _ in range(2))
    given = {"correct_from": sampler, "draws": [drawn] * 2, "correct_rounds": 2, **options}
    inversion = _C.Inversion(sampler, target, **given)
    while (request := inversion.next()) is not None:
        x = request.scale * request.sample
        slope = 1 / np.cosh(x) ** 2
        inversion.feed(np.tanh(x) if request.cotangent is None else slope * request.cotangent * np.float32(request.scale))
    return inversion.result()


@pytest.mark.parametrize("solver", _C.SOLVERS)
def test_documented_defaults_are_those_of_the_core(solver):
    """The docstring's signature is text; the defaults are nri_default_options."""
    stated = {name: value for name, value in defaults(_C.Inversion).items() if value is not None and name != "solver"}
    assert len(stated) > 12
    for ours, given in zip(inverted(solver=solver), inverted(solver=solver, **stated), strict=True):
        np.testing.assert_array_equal(ours, given)


def test_a_default_is_the_same_in_c_in_the_stub_in_python_and_on_the_command_line():
    core = defaults(_C.Inversion)
    stub = next(
        node for node in ast.parse((PACKAGE / "_C.pyi").read_text()).body if getattr(node, "name", "") == "Inversion"
    )
    new = next(node for node in stub.body if getattr(node, "name", "") == "__new__")
    written = {
        arg.arg: ast.literal_eval(value) for arg, value in zip(new.args.kwonlyargs, new.args.kw_defaults, strict=True)
    }
    assert written == core
    solver = {one.name: one.default for one in fields(nrinv.Solver)}
    assert solver.pop("name") == core["solver"] == defaults(nrinv.invert)["solver"]
    assert solver.pop("rounds") is None and core["rounds"] == 0  # it depends on the sampler
    assert solver == {name: core[name] for name in solver}
    command = {name: one for name, one in defaults(cli.invert).items() if name in defaults(nrinv.invert)}
    front = defaults(nrinv.invert)
    assert len(command) > 8
    for name, value in command.items():
        if name not in ("prompt", "verify"):  # "" and None are the same prompt; a flag that is not set decides nothing
            assert value == front[name], name


def test_names_of_the_core_are_those_of_the_command_line():
    assert [one.value for one in cli.SolverName] == list(_C.SOLVERS)
    assert [one.value for one in cli.Noise] == list(_C.NOISES)
    assert [one.value for one in cli.Order] == ["auto", *_C.ORDERS]
    assert [one.value for one in cli.Method] == ["spectral", *_C.PATHS]


def test_every_public_name_is_there_and_documented():
    assert set(nrinv.__all__) >= {
        "invert",
        "generate",
        "correct",
        "interpolate",
        "centroid",
        "rare",
        "read_sampler",
        "Solver",
    }
    for name in nrinv.__all__:
        assert getattr(nrinv, name).__doc__, name
    with pytest.raises(AttributeError):
        nrinv.nosuch  # noqa: B018
