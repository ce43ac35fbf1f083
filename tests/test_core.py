"""nrinv._C: tensors in and out, options, failures."""

import gc
import subprocess
import sys
import threading
import weakref

import numpy as np
import pytest
import torch
from helpers import SHAPE, E, drive, numpy_answer, small_sampler, torch_answer

import nrinv
from nrinv import _C, Inversion, Sampler


@pytest.fixture
def target():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


OPTIONS = [
    {},
    {"solver": "fixed_point", "max_nfe": 9},
    {"max_nfe": 12, "depth": 6, "tol": 1e-6},
    {"max_nfe": 1, "rounds": 2},
]


@pytest.mark.parametrize("options", OPTIONS)
def test_tensors_and_arrays_give_the_same(target, options):
    a = drive(Inversion(small_sampler(), target, **options), numpy_answer)
    b = drive(Inversion(small_sampler(), torch.from_numpy(target), **options), torch_answer)
    assert isinstance(a.latents, np.ndarray) and isinstance(b.latents, torch.Tensor)
    np.testing.assert_allclose(b.latents.numpy(), a.latents, atol=1e-5)
    np.testing.assert_array_equal(a.nfe, b.nfe)
    assert a.reasons == b.reasons


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_samples_come_in_the_target_s_dtype_and_the_state_stays_float32(target, dtype):
    inversion = Inversion(small_sampler(), torch.from_numpy(target).to(dtype), max_nfe=8)
    seen = set()

    def answer(request):
        seen.add(request.sample.dtype)
        return torch_answer(request).to(dtype)

    result = drive(inversion, answer)
    assert seen == {dtype}
    assert result.latents.dtype == torch.float32
    assert np.isfinite(result.latents.numpy()).all()


def test_strided_and_channels_last_tensors_are_read_as_they_are(target):
    plain = drive(Inversion(small_sampler(), torch.from_numpy(target)), torch_answer)
    last = torch.from_numpy(target).contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(*SHAPE[:3], 9)
    wide[..., 2:7] = torch.from_numpy(target)
    for given in (last, wide[..., 2:7]):
        assert not given.is_contiguous()
        result = drive(
            Inversion(small_sampler(), given), lambda r: torch_answer(r).contiguous(memory_format=torch.channels_last)
        )
        np.testing.assert_array_equal(result.latents.numpy(), plain.latents.numpy())


def test_a_lazily_negated_view_is_read_as_it_shows(target):
    negated = torch.complex(torch.zeros(SHAPE), torch.from_numpy(target)).conj().imag
    assert negated.is_neg()
    got = drive(Inversion(small_sampler(), negated), torch_answer)
    want = drive(Inversion(small_sampler(), torch.from_numpy(-target)), torch_answer)
    np.testing.assert_array_equal(got.latents.numpy(), want.latents.numpy())


def test_inputs_are_not_changed(target):
    kept, tensor = target.copy(), torch.from_numpy(target)
    outputs = []

    def answer(request):
        outputs.append((torch_answer(request), request.sample))
        outputs[-1] += (outputs[-1][0].clone(), request.sample.clone())
        return outputs[-1][0]

    drive(Inversion(small_sampler(), tensor), answer)
    np.testing.assert_array_equal(target, kept)
    for output, sample, output_then, sample_then in outputs:
        assert torch.equal(output, output_then) and torch.equal(sample, sample_then)


@pytest.mark.parametrize("context", ["inference_mode", "autocast", "medium", "grad", "default_dtype"])
def test_torch_s_modes_do_not_reach_the_solver(target, context):
    want = drive(Inversion(small_sampler(), torch.from_numpy(target), max_nfe=6), torch_answer).latents
    precision = torch.get_float32_matmul_precision()
    manager = {
        "inference_mode": torch.inference_mode(),
        "autocast": torch.autocast("cpu", dtype=torch.bfloat16),
        "grad": torch.enable_grad(),
    }.get(context, torch.no_grad())
    try:
        if context == "medium":
            torch.set_float32_matmul_precision("medium")
        if context == "default_dtype":
            torch.set_default_dtype(torch.float64)
        with manager:
            start = torch.from_numpy(target)
            if context == "grad":
                start.requires_grad_()
            got = drive(Inversion(small_sampler(), start, max_nfe=6), torch_answer).latents
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.set_default_dtype(torch.float32)
    assert torch.equal(got, want) and not got.requires_grad


def test_next_repeats_its_request_until_it_is_answered(target):
    inversion = Inversion(small_sampler(), target)
    first, again = inversion.next(), inversion.next()
    assert first.index == again.index == E - 1 and first.timestep == 0.0 and first.scale == 0.9
    np.testing.assert_array_equal(first.sample, again.sample)
    np.testing.assert_array_equal(first.sample, target)


def test_out_of_order_calls(target):
    inversion = Inversion(small_sampler(), target)
    with pytest.raises(RuntimeError, match="not finished"):
        inversion.result()
    inversion.next()
    inversion.feed(target)
    with pytest.raises(RuntimeError, match="call next"):
        inversion.feed(target)


def test_a_network_that_fails_once_is_forgiven_and_one_that_keeps_failing_is_a_reason(target):
    calls = 0

    def sometimes(bad):
        def answer(request):
            nonlocal calls
            calls += 1
            output = numpy_answer(request)
            if bad(calls):
                output[1] = np.nan
            return output

        return answer

    want = drive(Inversion(small_sampler(), target, max_nfe=10), numpy_answer)
    once = drive(Inversion(small_sampler(), target, max_nfe=10), sometimes(lambda n: n == 5))
    np.testing.assert_allclose(once.latents, want.latents, atol=2e-3)
    assert "non_finite" not in once.reasons
    calls = 0
    always = drive(Inversion(small_sampler(), target, max_nfe=10), sometimes(lambda n: n >= 5))
    assert always.reasons[1] == "non_finite"
    assert np.isfinite(always.latents).all()
    np.testing.assert_array_equal(always.latents[[0, 2]], want.latents[[0, 2]])


def variable_answer(request):
    """`network` by torch, or the product that a cotangent asks for."""
    x = torch.from_numpy(request.scale * np.asarray(request.sample, np.float32)).requires_grad_()
    output = torch.tanh(x + 0.3 * x.roll(1, -1))
    if request.cotangent is None:
        return output.detach().numpy()
    cotangent = torch.from_numpy(np.asarray(request.cotangent, np.float32))
    return request.scale * torch.autograd.grad(output, x, cotangent)[0].numpy()


SOLVERS = ("auto", "anderson", "fixed_point", "newton")
INACTIVE = [
    *({"solver": solver, "max_nfe": 8, "verify": True, "trajectory": True} for solver in SOLVERS),
    *({"solver": solver, "noise": "absorb", "max_nfe": 5, "trajectory": True} for solver in SOLVERS),
    {"max_nfe": 4, "rounds": 4},
    {"solver": "newton", "max_nfe": 8, "lam": 0.0, "verify": True},
]


def absorbing_sampler():
    """Ancestral steps from sigma 4 by halves to 0, variance exploding."""
    sigma = np.array([4.0, 2.0, 1.0, 0.5, 0.0])
    steps = np.zeros((E, 3 * E - 1))
    for j in range(E):
        noise = 0.6 * sigma[j + 1]
        steps[j, j], steps[j, E + j] = 1.0, np.sqrt(sigma[j + 1] ** 2 - noise**2) - sigma[j]
        if noise:
            steps[j, 2 * E + j] = noise
    return Sampler(np.arange(E)[::-1] * 100.0, steps, 1 / np.sqrt(1 + sigma[:E] ** 2), np.stack([np.ones(E + 1), sigma], 1))


@pytest.mark.parametrize("kind", ["numpy", "torch"])
@pytest.mark.parametrize("options", INACTIVE, ids=lambda o: "-".join(f"{v}" for v in o.values()))
def test_rows_of_inactive_samples_do_not_matter(target, kind, options):
    wrap = torch.from_numpy if kind == "torch" else np.asarray
    target[1] *= 30  # saturated
    target[2] = 0
    absorb = options.get("noise") == "absorb"
    form = absorbing_sampler() if absorb else small_sampler()
    rng = np.random.default_rng(1)
    noises = [wrap(rng.standard_normal(SHAPE).astype(np.float32)) for _ in range(form.num_noises)]
    inactive = 0

    def answer(garbage):
        def answer(request):
            nonlocal inactive
            assert request.active.dtype == bool and request.active.shape == SHAPE[:1] and request.active.any()
            output = variable_answer(request)
            inactive += (~request.active).sum()
            if garbage is not None:
                output[~request.active] = garbage
            request.active[:] = True  # a copy
            return wrap(output)

        return answer

    def run(garbage):
        return drive(Inversion(form, wrap(target), noises=noises, **options), answer(garbage))

    honest = run(None)
    assert inactive > 0
    for garbage in (1e30, np.nan):
        littered = run(garbage)
        assert littered.reasons == honest.reasons and littered.evaluations == honest.evaluations
        for name in ("latents", "residuals", "step_nfe", "nfe", "error", "trajectory", "noises"):
            np.testing.assert_array_equal(getattr(littered, name), getattr(honest, name), err_msg=name)


def test_failures_and_refused_mixtures_are_counted(target):
    inversion, calls = Inversion(small_sampler(), target, max_nfe=8, tol=0), 0
    while (request := inversion.next()) is not None:
        output, calls = numpy_answer(request), calls + 1
        output[1] *= np.nan if calls in (2, 11) else 1
        inversion.feed(output)
    result = inversion.result()
    np.testing.assert_array_equal(result.failed, [0, 2, 0])
    assert result.restarts[1] >= 2 and result.restarts.dtype == result.rejected.dtype == np.int64
    assert result.rejected.shape == SHAPE[:1]
    assert result.corrected is None and result.moved is None and result.held is None


def test_names_are_listed():
    assert _C.SOLVERS == SOLVERS and _C.ORDERS == ("reversed", "passes") and _C.NOISES == ("record", "absorb")
    assert _C.PATHS == ("geodesic", "slerp", "lerp", "variance_preserving")
    assert _C.SPACINGS == ("metric", "angle", "euclidean")


def test_a_target_resized_by_its_owner_changes_nothing(target):
    want = drive(Inversion(small_sampler(), target), numpy_answer).latents
    own = target.copy()
    inversion = Inversion(small_sampler(), own)
    own.resize((1, 2), refcheck=False)
    np.testing.assert_array_equal(drive(inversion, numpy_answer).latents, want)
    with pytest.raises(ValueError, match=r"model_output must have the target's shape \(3, 4, 6, 5\), got \(1, 2\)"):
        Inversion(small_sampler(), target).feed(own)
    tensor = torch.from_numpy(target.copy())
    inversion = Inversion(small_sampler(), tensor)
    tensor.resize_(1, 2)
    with pytest.raises(ValueError, match="a resized target must have the target's shape"):
        inversion.next()


def test_lists_are_read_once(target):
    """A sequence that says another length each time, and an iterator."""

    class Liar(list):
        def __len__(self):
            return 1

    noise = np.zeros(SHAPE, np.float32)
    Inversion(small_sampler(2), target, noises=Liar([noise, noise]))
    Inversion(small_sampler(2), target, noises=iter([noise, noise]))
    with pytest.raises(ValueError, match=r"noises must hold 2 tensors.*got 3"):
        Inversion(small_sampler(2), target, noises=Liar([noise] * 3))
    with pytest.raises(TypeError):
        Inversion(small_sampler(2), target, noises=3)


def test_a_cycle_through_the_target_is_collected(target):
    class Holder(np.ndarray):
        pass

    held = target.copy().view(Holder)
    held.inversion = Inversion(small_sampler(), held)
    alive = weakref.ref(held)
    del held
    gc.collect()
    assert alive() is None


BAD_OPTIONS = [
    ({"solver": "newton-like"}, "solver must be one of auto, anderson, fixed_point, newton, got 'newton-like'"),
    ({"max_nfe": 0}, "max_nfe must be at least 1, got 0"),
    ({"depth": 16}, r"depth must be in 0\.\.15, got 16"),
    ({"depth": -1}, r"depth must be in 0\.\.15, got -1"),
    ({"tol": -1.0}, r"tol must be a finite number of at least 0, got -1\.0"),
    ({"tol": float("nan")}, "tol must be a finite number of at least 0, got nan"),
    ({"atol": float("inf")}, "atol must be a finite number of at least 0, got inf"),
    ({"rounds": -1}, "rounds must be at least 0, got -1"),
    ({"lam": -0.1}, r"lam must be a finite number of at least 0, got -0\.1"),
    ({"floor": 0.0}, r"floor must be a finite number above 0, got 0\.0"),
    ({"max_nfe": 2**31 - 1}, "max_nfe must be at most 268435454 with this sampler, got 2147483647"),
    ({"rounds": 2**31 - 1}, "rounds must be at most [0-9]+ with this sampler and max_nfe, got 2147483647"),
    (
        {"correct_from": small_sampler(), "correct_rounds": 2**30},
        "correct_rounds must be at most [0-9]+ with this sampler, got 1073",
    ),
    ({"correct_only": True}, "correct_only needs correct_from"),
    ({"radius": [1.0] * 3}, "radius needs correct_from"),
    ({"draws": [np.zeros(SHAPE, np.float32)]}, "draws must hold 0 tensors.*got 1"),
    ({"correct_from": "ddim"}, "correct_from must be a Sampler"),
    ({"extrapolation": 1.5}, r"extrapolation must be in 0\.\.1, got 1\.5"),
    ({"noises": [np.zeros(SHAPE, np.float32)]}, "noises must hold 0 tensors.*got 1"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_bad_options(target, options, message):
    with pytest.raises(ValueError, match=message):
        Inversion(small_sampler(), target, **options)


def test_bad_tensors(target):
    with pytest.raises(ValueError, match="target must be finite"):
        Inversion(small_sampler(), np.full(SHAPE, np.nan, np.float32))
    with pytest.raises(ValueError, match="target must be a NumPy array or a torch tensor"):
        Inversion(small_sampler(), [1.0, 2.0])
    with pytest.raises(ValueError, match="target must be float16"):
        Inversion(small_sampler(), np.zeros(SHAPE, np.int64))
    with pytest.raises(ValueError, match="target must not be empty"):
        Inversion(small_sampler(), np.zeros((0, 4), np.float32))
    with pytest.raises(ValueError, match="target must have a batch dimension"):
        Inversion(small_sampler(), torch.tensor(1.0))
    with pytest.raises(ValueError, match="target"):
        Inversion(small_sampler(), torch.empty(2, 3, device="meta"))
    with pytest.raises(ValueError, match="target"):
        Inversion(small_sampler(), torch.eye(3).to_sparse())
    with pytest.raises(ValueError, match="sampler must be a Sampler"):
        Inversion("ddim", target)
    inversion = Inversion(small_sampler(), torch.from_numpy(target))
    inversion.next()
    with pytest.raises(ValueError, match=r"model_output must have the target's shape \(3, 4, 6, 5\), got \(3, 4, 5, 6\)"):
        inversion.feed(torch.zeros(3, 4, 5, 6))
    with pytest.raises(ValueError, match="model_output must be a torch tensor"):
        inversion.feed(target)
    inversion.feed(torch.zeros(SHAPE))  # the request still stands after refused answers
    with pytest.raises(ValueError, match="noises must hold 2 tensors"):
        Inversion(small_sampler(2), target)


def test_a_fake_tensor_is_refused():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        fake = torch.empty(2, 3)
    with pytest.raises(ValueError, match="fake and meta tensors"):
        Inversion(small_sampler(), fake)


def test_bad_samplers():
    good = small_sampler()
    steps = good.steps
    steps[0, 3] = 1.0
    with pytest.raises(ValueError, match="steps: step 0 of 4: a step reads a state or a network output that does not"):
        Sampler(good.timesteps, steps, good.inputs)
    steps = good.steps
    steps[2, 2] = np.inf
    with pytest.raises(ValueError, match="steps: step 2 of 4: a coefficient is not finite"):
        Sampler(good.timesteps, steps, good.inputs)
    with pytest.raises(ValueError, match="at least one timestep"):
        Sampler([], np.zeros((0, 0)), [])
    with pytest.raises(ValueError, match="inputs must be a vector of 4"):
        Sampler(good.timesteps, good.steps, [1.0])
    with pytest.raises(ValueError, match="4 rows and at least 8 columns"):
        Sampler(good.timesteps, good.steps[:, :7], good.inputs)


def test_an_inversion_in_use_refuses_another_thread():
    big = np.zeros((8, 4, 128, 128), np.float32)
    inversion = Inversion(small_sampler(), big, max_nfe=50, tol=0)
    inversion.next()
    failures = []

    def hammer():
        for _ in range(200):
            try:
                inversion.next()
            except RuntimeError as error:
                failures.append(str(error))

    threads = [threading.Thread(target=hammer) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(failures) <= {"this Inversion is in use by another thread"}
    inversion.feed(big)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_nothing_leaks(kind):
    target = np.zeros((1, 4, 32, 32), np.float32)
    given, answer = (target, numpy_answer) if kind == "numpy" else (torch.from_numpy(target), torch_answer)

    def once():
        drive(Inversion(small_sampler(), given, rounds=1, verify=True, trajectory=True), answer)
        for bad in (given[:, :, :1], "no tensor"):
            inversion = Inversion(small_sampler(), given)
            inversion.next()
            with pytest.raises(ValueError):
                inversion.feed(bad)

    for _ in range(30):
        once()
    gc.collect()
    before = resident()
    for _ in range(200):
        once()
    gc.collect()
    assert resident() - before < 4 << 20


def test_the_core_works_without_torch_and_diffusers():
    program = """
import sys
sys.modules["torch"] = sys.modules["diffusers"] = None
import numpy as np, nrinv
steps = np.zeros((2, 4)); steps[0, 0] = steps[1, 1] = 1; steps[0, 2] = steps[1, 3] = -0.5
inversion = nrinv.Inversion(nrinv.Sampler([1, 0], steps, [1, 1]), np.ones((2, 3), np.float32), max_nfe=20, tol=1e-6)
while request := inversion.next():
    inversion.feed(0.5 * request.sample)
np.testing.assert_allclose(inversion.result().latents, np.full((2, 3), 0.75**-2), rtol=1e-5)
leveled = nrinv.Sampler([1, 0], steps, [1, 1], [[1, 2], [1, 1], [1, 0]])
assert nrinv.natural_guess(leveled, np.ones((2, 3), np.float32)).shape == (2, 3)
try:
    nrinv.invert
except ImportError as error:
    print(error)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert "nrinv.invert needs" in out.stdout


def test_reasons_are_explained():
    assert set(nrinv.reasons()) == {"running", "tol", "atol", "max_nfe", "stalled", "diverged", "non_finite"}
    assert all(nrinv.reasons().values())


def test_no_module_hides_a_function_of_the_same_name():
    program = "import nrinv.demo, nrinv; nrinv.generate; assert callable(nrinv.invert) and callable(nrinv.load)"
    subprocess.run([sys.executable, "-c", program], check=True)
