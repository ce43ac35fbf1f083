"""The extension by itself, with NumPy alone: many threads, and interpreters other than the first.

Free-threaded Python runs it without the packages that the other tests need: pytest --noconftest tests/test_extension.py
"""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from nrinv import _C, Inversion, Sampler

E, K, THREADS = 4, 2, 8
SHAPE = (2, 500)


def new_sampler():
    steps = np.zeros((E, 2 * E + K))
    for j in range(E):
        steps[j, j], steps[j, E + j], steps[j, 2 * E + j % K] = 1.05, -0.4, 0.1
    return Sampler(np.arange(E)[::-1] * 100.0, steps, np.full(E, 0.9))


@pytest.fixture(scope="module")
def sampler():
    return new_sampler()


def opened(sampler, seed):
    rng = np.random.default_rng(seed)
    target, *noises = rng.standard_normal((1 + K, *SHAPE), dtype=np.float32)
    return Inversion(sampler, target, noises=noises, verify=True)


def network(request):
    return np.tanh(request.scale * request.sample)


def inverted(sampler, seed):
    inversion = opened(sampler, seed)
    while request := inversion.next():
        inversion.feed(network(request))
    return inversion.result()


def in_threads(work):
    barrier = threading.Barrier(THREADS)

    def one(number):
        barrier.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(one, range(THREADS)))


def test_threads_with_inversions_of_their_own(sampler):
    alone = [inverted(sampler, seed) for seed in range(10)]

    def work(number):
        return [(seed, inverted(sampler, seed)) for seed in np.roll(range(10), number)]

    for results in in_threads(work):
        for seed, found in results:
            assert np.array_equal(found.latents, alone[seed].latents) and np.array_equal(found.error, alone[seed].error)


def test_threads_with_one_inversion(sampler):
    """Each call is done, or refused as a whole: every answer that was taken is one evaluation."""
    for seed in range(20):
        inversion = opened(sampler, seed)

        def work(number, inversion=inversion):
            taken, refused, done = 0, set(), False
            while not done:
                try:
                    request = inversion.next()
                    done = request is None
                    if not done:
                        inversion.feed(network(request))
                        taken += 1
                except RuntimeError as error:
                    refused.add(str(error))
            return taken, refused

        found = in_threads(work)
        result = inversion.result()
        assert result.evaluations == sum(taken for taken, _ in found)
        assert np.isfinite(result.latents).all()
        allowed = {"this Inversion is in use by another thread", "feed needs a request: call next() first"}
        assert set().union(*(refused for _, refused in found)) <= allowed


OTHER = f"""
import importlib.machinery, importlib.util
loader = importlib.machinery.ExtensionFileLoader("nrinv._C", {_C.__file__!r})
spec = importlib.util.spec_from_file_location("nrinv._C", {_C.__file__!r}, loader=loader)
try:
    importlib.util.module_from_spec(spec)
    loader.exec_module(importlib.util.module_from_spec(spec))
except ImportError:
    pass
else:
    raise SystemError("it was loaded")
"""


def test_another_interpreter_is_refused():
    """NumPy belongs to the first interpreter, and so do we: an ImportError, and the first one goes on.

    In a process of its own: once there was another interpreter, Python's check of the GIL answers yes to everything, and
    torch refuses to differentiate.
    """
    name = "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    program = f"""
import sys
sys.path[:0] = {sys.path!r}
import {name} as interpreters
import numpy as np
from test_extension import inverted, new_sampler
before = inverted(new_sampler(), 0).latents
for _ in range(2):
    other = interpreters.create()
    failure = (interpreters.exec if hasattr(interpreters, "exec") else interpreters.run_string)(other, {OTHER!r})
    assert failure is None, failure
    interpreters.destroy(other)
assert np.array_equal(inverted(new_sampler(), 0).latents, before)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="this Python always has a GIL: needs 3.13 or later")
def test_the_gil_stays_as_it_is():
    """Where Python has none, importing the extension does not bring it back."""
    import sysconfig

    assert sys._is_gil_enabled() != bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
