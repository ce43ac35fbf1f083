"""The C core by its own tests, what the extension links, and our prototypes of libtorch beside torch's headers."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CSRC = ROOT / "csrc"
SYSTEM = re.compile(r"(libc|libm|libdl|ld-linux.*|ld64|libpthread)\.so\.\d+")


def program(*names):
    """The first of `names` that is installed; a missing one skips the test by name."""
    for name in names:
        if path := shutil.which(name):
            return path
    pytest.skip(f"needs one of {', '.join(names)}, and none is on PATH")


def run(*command, cwd=ROOT):
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})


def test_core(tmp_path):
    cc = program("cc", "gcc", "clang")
    made = run(program("make"), "-C", "tests/c", "test", f"BUILD={tmp_path}", f"CC={cc}")
    assert made.returncode == 0, made.stdout + made.stderr
    assert re.search(r"^all +\d+ checks, 0 failed$", made.stdout, re.MULTILINE), made.stdout


def test_extension_links_only_the_system():
    from nrinv import _C

    listed = run(program("readelf"), "-d", _C.__file__)
    assert listed.returncode == 0, listed.stderr
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listed.stdout)
    assert needed
    sanitizers = "NRINV_SANITIZE" in os.environ
    foreign = [name for name in needed if not SYSTEM.fullmatch(name) and not (sanitizers and "san.so" in name)]
    assert not foreign, f"{_C.__file__} needs {', '.join(foreign)}"


def torch_shim():
    import torch

    return (Path(torch.__file__).parent / "include/torch/csrc/stable/c/shim.h").read_text()


@pytest.fixture(scope="module")
def conforms():
    """Compile tests/conform.cpp against torch's headers and the csrc given."""
    compiler = program("g++", "clang++", "c++")
    torch = pytest.importorskip("torch")
    headers = Path(torch.__file__).parent / "include"
    if not (headers / "ATen" / "dlpack.h").exists():
        pytest.skip(f"this torch comes without headers in {headers}")

    def compile_(csrc):
        flags = ["-std=c++17", "-fsyntax-only", "-w", f"-I{headers}", f"-I{csrc}"]
        return run(compiler, *flags, str(ROOT / "tests" / "conform.cpp"))

    return compile_


def test_prototypes_are_those_of_torch(conforms):
    compiled = conforms(CSRC)
    assert compiled.returncode == 0, compiled.stderr


@pytest.mark.parametrize(
    ("header", "right", "wrong"),
    [
        (
            "aten.h",
            "copy_, (AtenTensorHandle, AtenTensorHandle, int32_t)",
            "copy_, (AtenTensorHandle, AtenTensorHandle)",
        ),
        ("aten.h", "X(int32_t, aoti_torch_dtype_float16", "X(int64_t, aoti_torch_dtype_float16"),
        ("aten.h", "get_what_without_backtrace, (void)", "get_what_without_backtrace, (int)"),
        ("aten.h", "typedef uint64_t StableIValue", "typedef int64_t StableIValue"),
        ("dlpack.h", "int64_t *shape, *strides;", "int64_t *strides; int32_t *shape, more;"),
        ("dlpack.h", "void *allocate, *from_py, *to_py;", "void *allocate, *from_py;"),
        ("dlpack.h", "NRI_DL_ROCM = 10", "NRI_DL_ROCM = 9"),
    ],
)
def test_a_drifted_prototype_does_not_compile(conforms, tmp_path, header, right, wrong):
    for name in ("aten.h", "dlpack.h"):
        shutil.copy(CSRC / name, tmp_path)
    text = (tmp_path / header).read_text()
    assert right in text
    (tmp_path / header).write_text(text.replace(right, wrong))
    compiled = conforms(tmp_path)
    if "without_backtrace" in right and "without_backtrace" not in torch_shim():
        pytest.skip("this torch is older than the function")
    assert compiled.returncode != 0
