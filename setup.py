"""Builds nrinv._C: one C11 extension, linking neither libtorch nor CUDA.

For the limited API: one wheel for CPython 3.11 and all later ones.  Free-threaded CPython has no limited API and gets a
wheel of its own for each version.

Environment: NRINV_SANITIZE=1 (AddressSanitizer and UBSan), NRINV_DEBUG=1 (-O0 -g), NRINV_COVERAGE=1 (gcov).
"""

import os
import sysconfig
from glob import glob

import numpy
from setuptools import Extension, setup


def switch(name):
    return os.environ.get(name, "0") not in ("", "0")


compile_args = ["-std=c11", "-Wall", "-Wextra", "-fvisibility=hidden", "-g0", "-O3"]
link_args = ["-s"]
macros = [
    ("_POSIX_C_SOURCE", "200809L"),
    ("NPY_TARGET_VERSION", "NPY_1_25_API_VERSION"),
]
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")
if limited:
    macros.append(("Py_LIMITED_API", "0x030B0000"))
if switch("NRINV_DEBUG") or switch("NRINV_SANITIZE") or switch("NRINV_COVERAGE"):
    compile_args[-2:] = ["-g", "-O0"]
    link_args = []
if switch("NRINV_SANITIZE"):
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer"]
    # CPython's own flags have -fwrapv, under which no signed overflow is one; the last flag wins.
    compile_args += [*flags, "-fno-wrapv"]
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
            py_limited_api=limited,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
