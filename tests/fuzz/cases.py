"""Inputs of every kind, and what must hold of them: each function is one case, drawn from a `random.Random`.

A case ends well, or with the exceptions that the interface promises.  test_fuzz.py draws a few by hypothesis, which finds
the smallest case that fails.  Many are drawn by `python tests/fuzz/cases.py NAME COUNT [SEED]`, or `... all SECONDS`, which
names the seed of one that fails.
"""

import json
import random
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nrinv
from nrinv.images import read_images, read_mask

sys.path.insert(0, str(Path(__file__).parent.parent / "attacks"))
import hostile

MOST_REQUESTS = 60
NUMBERS = [0, 1, -1, 0.5, 2.0, -0.0, 1e-4, 1e-320, 1e-40, 1e18, 3e38, 1e39, 1e300, np.nan, np.inf, -np.inf]
WHOLE = [0, 1, 2, 3, 4, 15, 16, 1000, -1, 2**31 - 1, 2**31, -(2**31), 2**62, 2**63, 2**100]
JUNK = [None, True, "", "x", "NaN", b"x", "\0", "\ud800", (), [], {}, [None], [[1], [1, 2]], object(), int, 1j, ...]
TORCH_DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.bool, torch.complex64]
NUMPY_DTYPES = ["f4", "f8", "f2", ">f4", ">f8", "g", "i4", "u1", "?", "c8", "O", "U3", "f4,f4", "M8[s]"]


def rarely(r, times=12):
    return r.randrange(times) == 0


def number(r):
    return r.choice(NUMBERS) if rarely(r, 3) else r.uniform(-2, 2)


def anything(r):
    return r.choice([*NUMBERS, *WHOLE, *JUNK])


# ------------------------------------------------------------------------------------------------------------------ tensors


def numpy_array(r, shape, dtype=None, plain=False):
    """An array of this shape, in one of the ways that NumPy can lay it out."""
    dtype = dtype or ("f4" if plain or rarely(r, 2) else r.choice(NUMPY_DTYPES))
    values = np.sin(np.arange(int(np.prod(shape)), dtype=np.float64) * 1.7).reshape(shape)
    if not plain and rarely(r) and values.size:
        values.flat[r.randrange(values.size)] = number(r)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        try:
            out = values.astype(dtype)
        except (TypeError, ValueError):
            out = np.zeros(shape, dtype)
    how = r.randrange(10)
    if how == 0:
        out = np.asfortranarray(out)
    elif how == 1:
        out = np.repeat(out, 2, axis=-1)[..., ::2] if out.ndim else out
    elif how == 2:
        out = out[::-1] if out.ndim else out
    elif how == 3:
        out = np.broadcast_to(out[:1], shape) if out.ndim and len(out) else out
    elif how == 4:
        out.flags.writeable = False
    elif how == 5:
        out = np.ma.masked_array(out)
    return out


def torch_tensor(r, shape, plain=False):
    dtype = torch.float32 if plain or rarely(r, 2) else r.choice(TORCH_DTYPES)
    out = torch.from_numpy(
        np.array(numpy_array(r, shape, "f8", plain), copy=True, order="C", subok=False).reshape(shape)
    ).to(dtype)
    how = r.randrange(12)
    if how == 0 and out.ndim > 1:
        out = out.transpose(0, -1).contiguous().transpose(0, -1)
    elif how == 1 and out.ndim and len(out):
        out = out[:1].expand(shape)
    elif how == 2 and out.is_floating_point():
        out = out.requires_grad_()
    elif how == 3 and not plain:
        out = r.choice([out.to("meta"), out.to_sparse() if out.ndim else out])
    elif how == 4:
        out = torch._neg_view(out) if out.dtype != torch.bool else out
    return out


def some_shape(r):
    return tuple(r.choice([0, 1, 1, 2, 3, 4]) for _ in range(r.randrange(5)))


def tensor(r, shape, kind):
    """Mostly one that fits; else of another shape, of the other kind, or none."""
    if rarely(r, 30):
        return anything(r)
    shape = some_shape(r) if rarely(r, 30) else shape
    kind = r.choice(["numpy", "torch"]) if rarely(r, 30) else kind
    out = (torch_tensor if kind == "torch" else numpy_array)(r, shape, plain=not rarely(r, 6))
    return out.tolist() if rarely(r, 60) and kind == "numpy" else out


# ------------------------------------------------------------------------------------------------------------------ binding


def sampler(r):
    steps, noises = r.randint(1, 4), r.randrange(3)
    rows = np.zeros((steps, 2 * steps + noises))
    for j in range(steps):
        rows[j, j], rows[j, steps + j] = 1.02, -0.3
        if noises and j < steps - 1:
            rows[j, 2 * steps + j % noises] = 0.2
        if j and rarely(r, 3):
            rows[j, r.randrange(j)] = r.uniform(-0.3, 0.3)
            rows[j, steps + r.randrange(j)] = r.uniform(-0.3, 0.3)
    if rarely(r, 8):
        rows.flat[r.randrange(rows.size)] = number(r)
    sigma = np.linspace(2, 0, steps + 1)
    given = [np.arange(steps)[::-1] * 100.0, rows, np.full(steps, 0.8)]
    levels = np.stack([np.ones(steps + 1), sigma], 1) if rarely(r, 2) else None
    if rarely(r, 25):
        given[r.randrange(3)] = anything(r) if rarely(r, 2) else numpy_array(r, some_shape(r))
    if rarely(r, 25):
        levels = anything(r) if rarely(r, 2) else numpy_array(r, some_shape(r))
    found = nrinv.Sampler(*given, levels)
    for name in ("timesteps", "inputs", "steps", "states", "levels", "num_noises", "first_order", "singular"):
        getattr(found, name)
    return found


class _Changing(list):
    """A list whose length is another each time that it is asked for."""

    def __len__(self):
        return random.randrange(5)


def options(r, found, tail, shape, kind):
    def tensors(count):
        many = [tensor(r, shape, kind) for _ in range(count if not rarely(r, 20) else r.randrange(5))]
        return _Changing(many) if rarely(r, 30) else many if not rarely(r, 30) else anything(r)

    out = {}
    choices = {
        "solver": lambda: r.choice(nrinv._C.SOLVERS),
        "order": lambda: r.choice(nrinv._C.ORDERS),
        "noise": lambda: r.choice(nrinv._C.NOISES),
        "max_nfe": lambda: r.randint(1, 8),
        "depth": lambda: r.randint(0, 15),
        "tol": lambda: 10.0 ** -r.randrange(12),
        "atol": lambda: r.choice([0.0, 1e-3]),
        "rounds": lambda: r.randrange(3),
        "lam": lambda: r.uniform(0, 1),
        "floor": lambda: r.uniform(0.1, 1),
        "extrapolation": lambda: r.uniform(0, 1),
        "predictor": lambda: r.choice([True, False]),
        "verify": lambda: r.choice([True, False]),
        "trajectory": lambda: r.choice([True, False]),
        "guess": lambda: tensor(r, shape, kind),
    }
    for name, choose in choices.items():
        if rarely(r, 3):
            out[name] = anything(r) if rarely(r, 25) else choose()
    if found.num_noises or rarely(r, 20):
        out["noises"] = tensors(found.num_noises)
    if tail is not None:
        rounds = out["correct_rounds"] = r.randint(1, 3)
        out["correct_from"] = anything(r) if rarely(r, 20) else tail
        out["correct_only"] = r.choice([True, False])
        if rarely(r, 2):
            out["draws"] = tensors(rounds)
        if tail.num_noises:
            out["correct_noises"] = tensors(rounds * tail.num_noises)
        if rarely(r, 3):
            out["radius"] = anything(r) if rarely(r, 10) else np.full(shape[0] if shape else 1, abs(number(r)))
    return out


def finite(x):
    return bool(np.isfinite(x.float().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)).all())


def answer(r, request, shape, kind):
    if rarely(r, 25):
        return tensor(r, shape, kind)
    x = request.sample if request.cotangent is None else request.cotangent
    x = x.detach().double().numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)
    y = np.tanh(request.scale * x)
    if rarely(r, 15):
        y.flat[r.randrange(y.size)] = number(r)
    return torch.from_numpy(y) if kind == "torch" else y


def binding(r):
    """A Sampler, and an Inversion that is driven for a while, by right and by wrong calls."""
    try:
        found, tail = sampler(r), sampler(r) if rarely(r, 4) else None
        kind = "torch" if rarely(r, 4) else "numpy"
        shape = tuple(r.randint(1, 3) for _ in range(r.randint(1, 4)))
        target = tensor(r, shape, kind)
        inversion = nrinv.Inversion(found, target, **options(r, found, tail, shape, kind))
    except (ValueError, TypeError):
        return
    bound, asked = inversion.max_evaluations, 0
    while asked < MOST_REQUESTS:
        if isinstance(target, np.ndarray) and rarely(r, 40) and target.flags.owndata and target.flags.writeable:
            target.resize(some_shape(r), refcheck=False)
        try:
            if rarely(r, 20):
                getattr(inversion, r.choice(["result", "next"]))()
            request = inversion.next()
            if request is None:
                break
            inversion.feed(answer(r, request, shape, kind))
            asked += 1
        except (ValueError, TypeError, RuntimeError):
            if rarely(r, 3):
                return
    else:
        return
    assert asked <= 2 * bound, (asked, bound)
    try:
        result = inversion.result()
    except ValueError:  # the target has been resized
        return
    assert finite(result.latents)
    good = [reason != "non_finite" for reason in result.reasons]
    assert "running" not in result.reasons
    assert result.corrected is None or finite(result.corrected)
    assert finite(result.residuals[:, good]) or result.corrected is not None


def paths(r):
    """Points and centroids of arrays."""
    kind = r.choice(["numpy", "torch"])
    shape = (r.randint(1, 2), r.randint(2, 30))
    a, b, direction = (tensor(r, shape, kind) for _ in range(3))
    try:
        if rarely(r, 2):
            fractions = anything(r) if rarely(r, 10) else [r.uniform(-0.02, 1.02) for _ in range(3)]
            method, spacing = r.choice([*nrinv._C.PATHS, "x"]), r.choice(nrinv._C.SPACINGS)
            points, length = nrinv._C.interpolate(a, b, fractions, direction, method=method, spacing=spacing)
            assert method != "geodesic" or finite(length)
        else:
            shares = anything(r) if rarely(r, 10) else [number(r) for _ in range(2)]
            points = [nrinv._C.centroid([a, b], shares)]
    except (ValueError, TypeError):
        return
    assert all(finite(x.detach() if isinstance(x, torch.Tensor) else x) for x in points)


# -------------------------------------------------------------------------------------------------------------------- files

_good = {}


def good_file(folder):
    if not _good:
        hostile.inversion().save(folder / "good")
        _good["data"] = (folder / "good").read_bytes()
    return _good["data"]


def changed_bytes(r, data):
    data = bytearray(data)
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(data) + 1)
        end = min(len(data), at + r.choice([0, 1, 1, 1, 8, 100]))
        data[at:end] = r.choice([b"", r.randbytes(end - at), bytes(end - at), data[:end][-50:], b"[" * r.choice([1, 1000])])
        if not data:
            break
    return bytes(data)


def some_json(r, depth=3):
    kind = r.randrange(8)
    if kind == 0 and depth:
        return [some_json(r, depth - 1) for _ in range(r.randrange(4))]
    if kind == 1 and depth:
        return {r.choice(["json", "dict", "tuple", "tensor", "image", "a", ""]): some_json(r, depth - 1) for _ in range(2)}
    return r.choice([*NUMBERS, *WHOLE, None, True, "", "x", "latents", "DDIMScheduler", "\ud800", "nrinv"])


def place(r, root):
    """A dictionary or list in `root`, and a key of it."""
    while True:
        keys = sorted(root, key=str) if isinstance(root, dict) else range(len(root))
        key = r.choice(keys)
        if not isinstance(root[key], (dict, list)) or not root[key] or rarely(r, 4):
            return root, key
        root = root[key]


def changed_json(r, value):
    for _ in range(r.randint(1, 3)):
        root, key = place(r, value)
        if rarely(r, 4) and len(root) > 1:
            del root[key]
        else:
            root[key] = some_json(r)
    return value


def changed_file(r, data):
    """A file that is damaged; or whose digest is right although its header, its metadata or its numbers are not."""
    how = r.randrange(4)
    if how == 0:
        return changed_bytes(r, data)
    header, body = hostile.parts(data)
    if how == 1:
        body = changed_bytes(r, body)
    elif how == 2:
        own = header["__metadata__"]
        own["nrinv"] = json.dumps(changed_json(r, json.loads(own["nrinv"])))
    else:
        own = header.pop("__metadata__")
        header = changed_json(r, header)
        header["__metadata__"] = own
    return hostile.signed(header, body)


_folder = tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None)


def load(r):
    """A file that is loaded, or refused with a ValueError; what is loaded is whole."""
    path = Path(_folder.name) / "x.safetensors"
    path.write_bytes(changed_file(r, good_file(Path(_folder.name))))
    try:
        loaded = nrinv.load(path)
    except ValueError:
        return
    repr(loaded)
    assert finite(loaded.latents)
    for one in loaded.split():
        assert len(one.latents) == 1


# ------------------------------------------------------------------------------------------------------------------- images


def picture(r):
    kind = r.randrange(5)
    size = (r.choice([1, 2, 8, 16, 33]), r.choice([1, 2, 8, 16]))
    if kind == 0:
        mode = r.choice(["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "PA", "I;16", "La"])
        return Image.new(mode, size, r.choice([0, 1])) if mode not in ("La",) else Image.new("LA", size).convert("La")
    if kind == 1:
        return anything(r)
    shape = r.choice([(*size, 3), size, (3, *size), (1, 3, *size), (*size, 4), (*size, 1), (4, *size), some_shape(r)])
    if kind == 2:
        return torch_tensor(r, shape)
    out = numpy_array(r, shape)
    if rarely(r, 3):
        with np.errstate(all="ignore"):
            out = np.abs(np.nan_to_num(out.astype("f4"))).astype("u1") if out.dtype.kind in "fiu" else out
    return out


def images(r, pipe):
    """A picture and a mask that are read into their range, or refused."""
    given = [picture(r) for _ in range(r.randint(1, 2))] if rarely(r, 4) else picture(r)
    size = {name: r.choice([8, 16, 64]) for name in ("height", "width") if rarely(r, 6)}
    try:
        pixels = read_images(pipe, given, **size)
        assert torch.is_tensor(pixels) and torch.isfinite(pixels).all()
        assert pixels.shape[1] != 3 or (pixels.min() >= -1 and pixels.max() <= 1)
    except (ValueError, TypeError):
        pass
    try:
        mask = read_mask(picture(r))
        assert mask.ndim == 4 and mask.min() >= 0 and mask.max() <= 1
    except (ValueError, TypeError):
        pass


# -------------------------------------------------------------------------------------------------------------------- calls


def call_arguments(r):
    choices = {
        "num_inference_steps": lambda: r.randint(1, 3),
        "guidance_scale": lambda: r.choice([0.0, 1.0, 2.0]),
        "solver": lambda: r.choice(nrinv._C.SOLVERS[:3]),
        "max_nfe": lambda: r.randint(1, 2),
        "tol": lambda: r.choice([None, 1e-2, 0.0]),
        "noise": lambda: r.choice(nrinv._C.NOISES),
        "order": lambda: r.choice(["auto", *nrinv._C.ORDERS]),
        "batch_size": lambda: r.choice([None, 1, 2]),
        "seed": lambda: r.randrange(9),
        "verify": lambda: r.choice([None, True, False]),
        "return_trajectory": lambda: r.choice([True, False]),
        "strength": lambda: r.choice([1.0, 0.5]),
        "correct": lambda: r.choice([0.0, 0.5]),
        "negative_prompt": lambda: r.choice(["", "red", ["red"]]),
        "num_images_per_prompt": lambda: r.choice([1, 2]),
    }
    plain = {"num_inference_steps": 2, "guidance_scale": 1.0, "max_nfe": 1}
    drawn = {name: anything(r) if rarely(r, 10) else choose() for name, choose in choices.items() if rarely(r, 4)}
    return {**plain, **drawn}


def calls(r, pipe):
    """An inversion of the smallest image, and a drawing from it."""
    latents = torch.sin(torch.arange(256.0)).reshape(1, 4, 8, 8)
    given = call_arguments(r)
    if isinstance(given["num_inference_steps"], int) and given["num_inference_steps"] > 1000:
        return  # schedulers take as many steps as they are asked for
    prompt = anything(r) if rarely(r, 8) else "a cat"
    scheduler = pipe.scheduler
    try:
        inv = nrinv.invert(pipe, tensor(r, (1, 4, 8, 8), "torch") if rarely(r, 4) else latents, prompt, **given)
        assert inv.latents.isfinite().all() or "non_finite" in inv.reasons
        drawn = nrinv.generate(pipe, inv, output_type="latent")
        assert drawn.images.isfinite().all() or "non_finite" in inv.reasons
    except (ValueError, TypeError):
        pass
    assert pipe.scheduler is scheduler


CASES = {"binding": binding, "paths": paths, "load": load, "images": images, "calls": calls}
NEEDS_PIPELINE = ("images", "calls")


def pipeline_for(name):
    return (nrinv.demo_pipeline("turbo"),) if name in NEEDS_PIPELINE else ()


def draw(name, seed, more):
    try:
        CASES[name](random.Random(seed), *more)
    except BaseException:
        print(f"{name}: seed {seed} fails", flush=True)
        raise


def main(what, number, seed=None):
    """`number` cases of one kind, from a seed on; or of all kinds for `number` seconds, from other seeds each time."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    first = time.time_ns() if seed is None else int(seed)
    for name in CASES if what == "all" else [what]:
        more, count, end = pipeline_for(name), 0, time.monotonic() + int(number) / len(CASES)
        while time.monotonic() < end if what == "all" else count < int(number):
            draw(name, first + count, more)
            count += 1
        print(f"{name}: {count} cases, from seed {first} on", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
