"""Saved inversions: nothing is lost on the way, and foreign files are refused."""

import copy
import dataclasses
import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image
from safetensors.torch import save_file

import nrinv
from nrinv import files

_made = []


@pytest.fixture
def inversion(turbo, held_out):
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "negative_prompt": "blurred"}
    if not _made:
        _made.append(nrinv.invert(turbo, held_out[0][:2], held_out[1][:2], return_trajectory=True, **call))
    return copy.deepcopy(_made[0])


def test_everything_comes_back(turbo, inversion, tmp_path):
    inversion.save(tmp_path / "x.safetensors")
    loaded = nrinv.load(tmp_path / "x.safetensors")
    for field in dataclasses.fields(inversion):
        a, b = getattr(inversion, field.name), getattr(loaded, field.name)
        if field.name == "trajectory":
            assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
        elif isinstance(a, torch.Tensor):
            assert torch.equal(a, b) and a.dtype == b.dtype
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b)
        elif field.name == "scheduler_config":
            assert json.loads(json.dumps(a)) == b
        else:
            assert a == b, field.name
    drawn = [nrinv.generate(turbo, one, output_type="latent").images for one in (inversion, loaded)]
    assert torch.equal(*drawn)


def test_tensors_among_the_call_s_arguments(turbo, held_out, tmp_path):
    embeds = torch.randn(1, 16, turbo.text_encoder.config.hidden_size, generator=torch.Generator().manual_seed(0))
    inv = nrinv.invert(turbo, held_out[0][0], prompt_embeds=embeds, num_inference_steps=4, guidance_scale=1.0)
    inv.save(tmp_path / "x.safetensors")
    loaded = nrinv.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.call["prompt_embeds"], embeds) and loaded.prompt is None


def test_what_cannot_be_saved_is_named(inversion, tmp_path):
    inversion.call["cross_attention_kwargs"] = {"scale": object()}
    with pytest.raises(ValueError, match="call: argument 'cross_attention_kwargs' cannot be saved: object is neither"):
        inversion.save(tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


class Own:
    """Neither numbers nor JSON."""


deep, within = [], []
for _ in range(70):
    deep = [deep]
within.append(within)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (Own(), "Own is neither a tensor, an image nor JSON"),
        ({"masks": [torch.ones(2), {"a": Own}]}, "type is neither"),
        ({1: "a"}, "the key 1 is no string"),
        ({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, "two of its entries are called 'call.x.a.b'"),
        (np.array(["a"]), "can't convert np.ndarray"),
        (torch.ones(3).to_sparse(), "must have its numbers in memory"),
        (torch.ones(3, device="meta"), "must have its numbers in memory"),
        (torch.ones(3, dtype=torch.complex128), "files have no torch.complex128"),
        ("\ud800", None),
        ({"\ud800": np.ones(1)}, "surrogates not allowed"),
        (deep, "nested deeper than 64 levels"),
        (within, "nested too deeply, or in itself"),
    ],
    ids=[
        *("object", "class", "number as key", "colliding names", "texts", "sparse", "meta"),
        *("complex", "half a character", "half a character as key", "deep", "in itself"),
    ],
)
def test_what_cannot_be_saved_is_known_before(inversion, tmp_path, value, reason):
    call, path = {"guidance_scale": 1.0, "callback_on_step_end": Own(), "x": value}, tmp_path / "x.safetensors"
    inversion.call["x"] = value
    if reason is None:
        files.check_arguments(call)
        inversion.save(path)
        assert nrinv.load(path).call["x"] == value
        return
    for fails in (lambda: files.check_arguments(call), lambda: inversion.save(path)):
        with pytest.raises(ValueError, match="call: argument 'x' cannot be saved: .*" + reason):
            fails()
    assert not list(tmp_path.iterdir())


def test_every_kind_of_argument_comes_back(inversion, tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (3, 5, 4), dtype=np.uint8))
    given = {
        "flags": {"a": [True, None, 1, 0.5, "x", float("inf")], "b": {}, "c": ()},
        "images": [image, image.convert("L"), image.convert("I"), image.convert("F"), image.convert("1").convert("I;16")],
        "arrays": [rng.integers(0, 9, (2, 2), dtype=kind) for kind in (np.uint8, np.int16, np.uint16, np.int64)],
        "tensors": {"half": torch.ones(2).half(), "flags": torch.ones(2) > 0, "none": torch.ones(0, 2)},
        "number": np.float32(0.5),
    }
    inversion.call.update(given)
    inversion.save(tmp_path / "x.safetensors")
    call = nrinv.load(tmp_path / "x.safetensors").call
    assert call["flags"] == {**given["flags"], "c": []} and call["number"] == 0.5
    for a, b in zip(given["images"], call["images"], strict=True):
        assert a.mode == b.mode and a.tobytes() == b.tobytes()
    for a, b in zip(given["arrays"], call["arrays"], strict=True):
        assert a.dtype == b.dtype and (a == b).all()
    for name, one in given["tensors"].items():
        assert call["tensors"][name].equal(one) and call["tensors"][name].dtype == one.dtype


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"latents": torch.full((2, 4, 16, 16), torch.nan)}, "latents must hold finite numbers"),
        ({"timesteps": None}, "timesteps is missing"),
        ({"start": -1}, "start: -1 is less than the minimum of 0"),
        ({"reasons": ["tol"]}, "reasons must be 2"),
        ({"scheduler": "UNet2DModel"}, "scheduler: 'UNet2DModel' is not the name of a scheduler"),
        ({"scheduler_config": {"a": Own()}}, "Own is neither"),
    ],
)
def test_what_could_not_be_read_is_not_written(inversion, tmp_path, changed, reason):
    with pytest.raises(ValueError, match="the inversion cannot be saved: " + reason):
        dataclasses.replace(inversion, **changed).save(tmp_path / "x.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_sample_that_met_nan_does_not_cost_the_others(turbo, held_out, tmp_path):
    """Its defects are NaN; a scheduler of one's own is kept by its name."""

    class Mine(DDIMScheduler):
        """Not of diffusers."""

    def spoil(module, given, output):
        return (torch.cat([output[0][:1], torch.full_like(output[0][1:], torch.nan)]),)

    turbo.scheduler = Mine.from_config(turbo.scheduler.config, clip_sample=False)
    hook = turbo.unet.register_forward_hook(spoil)
    try:
        inv = nrinv.invert(
            turbo, held_out[0][:2], held_out[1][:2], num_inference_steps=3, guidance_scale=1.0, return_defects=True
        )
    finally:
        hook.remove()
    assert inv.reasons[1] == "non_finite" and inv.defects[0][1].isnan().all()
    inv.save(tmp_path / "x.safetensors")
    loaded = nrinv.load(tmp_path / "x.safetensors")
    assert torch.equal(loaded.defects[0][0], inv.defects[0][0]) and loaded.defects[0][1].isnan().all()
    assert torch.equal(loaded.latents, inv.latents) and loaded.scheduler == "Mine"


def test_the_digest_is_that_of_the_file_with_zeros_in_its_place(inversion, tmp_path):
    inversion.save(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    digest = header["__metadata__"]["sha256"]
    assert hashlib.sha256(data.replace(digest.encode(), b"0" * 64, 1)).hexdigest() == digest


def test_the_page_shows_the_schema():
    page = (Path(__file__).parent.parent / "docs" / "files.md").read_text()
    shown = page.split("```json\n")[1].split("```")[0]
    assert json.loads(shown) == nrinv.inversion.schema()


# ---------------------------------------------------------------------------------------------------------- the file system


def test_the_mode_is_the_umask_s_and_a_file_s_own_stays(inversion, tmp_path):
    path = tmp_path / "x.safetensors"
    for mask, mode in ((0o027, 0o640), (0o022, 0o644)):
        before = os.umask(mask)
        try:
            inversion.save(path)
        finally:
            os.umask(before)
        assert path.stat().st_mode & 0o777 == mode
        path.unlink()
    path.touch(0o600)
    path.chmod(0o604)
    inversion.save(path)
    assert path.stat().st_mode & 0o777 == 0o604


def test_what_a_symbolic_link_points_to_is_written(inversion, tmp_path):
    (tmp_path / "folder").mkdir()
    link, target = tmp_path / "link", tmp_path / "folder" / "x.safetensors"
    link.symlink_to("folder/x.safetensors")
    for _ in range(2):  # nothing there yet, and something
        inversion.save(link)
        assert link.is_symlink() and target.is_file() and not target.is_symlink()
        assert torch.equal(nrinv.load(link).latents, inversion.latents)
    assert sorted(one.name for one in (tmp_path / "folder").iterdir()) == ["x.safetensors"]


@pytest.mark.parametrize("how", ["write", "fsync", "replace", "interrupt"])
def test_a_full_disk_leaves_the_file_that_was_there(inversion, tmp_path, monkeypatch, how):
    path, kind = tmp_path / "x.safetensors", KeyboardInterrupt if how == "interrupt" else OSError

    def fails(*_):
        raise KeyboardInterrupt if how == "interrupt" else OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def opens(*given, **named):
        file = open(*given, **named)
        if "x" not in given[1]:
            return file
        file.write(b"half")

        class Full:
            writelines = staticmethod(fails)
            fileno = file.fileno

            def __enter__(self):
                return self

            def __exit__(self, *_):
                file.close()

        return Full()

    inversion.save(path)
    was = path.read_bytes()
    if how == "write":
        monkeypatch.setattr(files, "open", opens, raising=False)
    else:
        monkeypatch.setattr(files.os, "replace" if how == "replace" else "fsync", fails)
    with pytest.raises(kind) as caught:
        inversion.save(path)
    assert kind is not OSError or caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    assert [one.name for one in tmp_path.iterdir()] == [path.name] and path.read_bytes() == was


def test_where_nothing_can_be_written(inversion, tmp_path):
    with pytest.raises(FileNotFoundError):
        inversion.save(tmp_path / "nowhere" / "x.safetensors")
    with pytest.raises(IsADirectoryError):
        inversion.save(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        inversion.save(tmp_path / "file" / "x.safetensors")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
    with pytest.raises(OSError, match="No space left on device"):
        inversion.save("/dev/full")
    inversion.save("/dev/null")
    assert not Path("/dev/null").is_file()


def test_where_nothing_can_be_read(inversion, tmp_path):
    for path in (tmp_path, "/dev/zero", tmp_path / "nothing"):
        with pytest.raises(ValueError, match="cannot be read as a saved inversion: there is no such file"):
            nrinv.load(path)
    inversion.save(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"device: .*nowhere"):
        nrinv.load(tmp_path / "x.safetensors", device="nowhere")


def test_a_file_that_the_file_system_does_not_give_is_an_oserror(inversion, tmp_path, monkeypatch):
    inversion.save(tmp_path / "x.safetensors")

    def fails(self):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(files.Path, "read_bytes", fails)
    with pytest.raises(OSError, match="Input/output error"):
        nrinv.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "foreign", "gutted"])
def test_foreign_and_broken_files_are_refused(inversion, tmp_path, kind):
    path = tmp_path / "x.safetensors"
    if kind == "truncated":
        inversion.save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("hello")
    elif kind == "foreign":
        save_file({"weight": torch.zeros(3)}, str(path))
    elif kind == "gutted":
        save_file({"weight": torch.zeros(3)}, str(path), metadata={"format": "nrinv-inversion-1", "nrinv": "{}"})
    with pytest.raises(ValueError, match=r"path: '.*x\.safetensors'"):
        nrinv.load(path)
