"""Builds nrinv._C: one C11 extension for the limited API, linking neither libtorch nor CUDA.

Environment: NRINV_SANITIZE=1 (AddressSanitizer and UBSan), NRINV_DEBUG=1 (-O0 -g), NRINV_COVERAGE=1 (gcov).
"""

import os
from glob import glob

import numpy
from setuptools import Extension, setup


def switch(name):
    return os.environ.get(name, "0") not in ("", "0")


compile_args = ["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0", "-O3"]
link_args = ["-s"]
macros = [
    ("_POSIX_C_SOURCE", "200809L"),
    ("Py_LIMITED_API", "0x030B0000"),
    ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
]
if switch("NRINV_DEBUG") or switch("NRINV_SANITIZE") or switch("NRINV_COVERAGE"):
    compile_args[-2:] = ["-g", "-O0"]
    link_args = []
if switch("NRINV_SANITIZE"):
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    compile_args += flags
    link_args += flags
    macros.append(("NRI_NO_CLONES", None))
if switch("NRINV_COVERAGE"):
    compile_args.append("--coverage")
    link_args.append("--coverage")

setup(
    ext_modules=[
        Extension(
            "nrinv._C",
            sorted(glob("csrc/*.c")),
            include_dirs=["csrc", numpy.get_include()],
            depends=sorted(glob("csrc/*.h")),
            define_macros=macros,
            extra_compile_args=compile_args,
            extra_link_args=link_args,
            libraries=["m", "dl"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
