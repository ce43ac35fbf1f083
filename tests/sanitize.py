"""Builds the extension with AddressSanitizer and UBSan in a scratch folder and drives it with NumPy arrays.

Run by `make check`.  NumPy only: torch's own libraries are not built for the sanitizers.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
PROGRAM = """
import numpy as np
from nrinv import Inversion, Sampler

rng = np.random.default_rng(0)
E, K = 5, 2
steps = np.zeros((E, 2 * E + K))
for j in range(E):
    steps[j, j], steps[j, E + j] = 1.05, -0.4
    steps[j, 2 * E + j % K] = 0.1
    if j:
        steps[j, j - 1], steps[j, E + j - 1] = -0.05, 0.1
sampler = Sampler(np.arange(E), steps, np.ones(E))
ROUNDS = {"rounds": 3, "max_nfe": 1, "trajectory": True}
PASSES = {"order": "passes", "max_nfe": 4, "verify": True, "trajectory": True}
for options in ({}, ROUNDS, PASSES, {"solver": "fixed_point", "verify": True}, {"depth": 0}):
    for bad_call in (None, 3, 9):
        target = rng.standard_normal((70, 3, 7)).astype(rng.choice(["f2", "f4", "f8"]))
        noises = [rng.standard_normal(target.shape) for _ in range(K)]
        inversion = Inversion(sampler, target, noises=noises, **options)
        call = 0
        while request := inversion.next():
            call += 1
            assert request.active.shape == (70,)
            output = np.tanh(request.sample)
            if call == bad_call:
                output[::3] = np.nan
            inversion.feed(output)
        assert np.isfinite(inversion.result().latents).all()
levels = [[1.0, 1.0], [1.0, 0.5], [1.0, 0.0]]
tail = Sampler([1.0, 0.0], [[1.0, 0.0, -0.5, 0.0], [0.0, 1.0, 0.0, -0.5]], [1.0, 1.0], levels)
for draws in (None, [target, -target]):
    for only in (False, True):
        options = {"correct_from": tail, "draws": draws, "radius": np.full(70, 0.5), "correct_only": only}
        inversion = Inversion(sampler, target, noises=noises, guess=target, **options)
        while request := inversion.next():
            inversion.feed(np.tanh(request.sample))
        assert np.isfinite(inversion.result().latents).all()
HUGE = ({"max_nfe": 2**31 - 1}, {"rounds": 2**31 - 1}, {"correct_from": tail, "correct_rounds": 2**30})
for bad in (*HUGE, {"max_nfe": 0}, {"solver": "x"}, {"noises": []}, {"tol": -1.0}):
    try:
        Inversion(sampler, target, **{"noises": noises, **bad})
    except ValueError:
        continue
    raise SystemExit(f"{bad} was accepted")
print("sanitized extension: ok")
"""


def main():
    compiler = os.environ.get("CC", "gcc")
    asan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    with tempfile.TemporaryDirectory() as scratch:
        package = Path(scratch) / "nrinv"
        package.mkdir()
        for name in ("__init__.py", "__init__.pyi"):
            shutil.copy(ROOT / "nrinv" / name, package)
        build = ["build_ext", "--build-lib", scratch, "--build-temp", f"{scratch}/temp"]
        environment = {**os.environ, "NRINV_SANITIZE": "1"}
        subprocess.run([sys.executable, "setup.py", "-q", *build], cwd=ROOT, env=environment, check=True)
        # Leaks are looked for in the C tests: the interpreter itself leaves memory behind at exit.
        environment.update(LD_PRELOAD=asan, ASAN_OPTIONS="detect_leaks=0", PYTHONPATH=scratch, PYTHONMALLOC="malloc")
        subprocess.run([sys.executable, "-c", PROGRAM], cwd=scratch, env=environment, check=True)


if __name__ == "__main__":
    main()
