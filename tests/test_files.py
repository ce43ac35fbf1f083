"""Saved inversions: nothing is lost on the way, and foreign files are refused."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import nrinv


@pytest.fixture
def inversion(turbo, held_out):
    call = {"num_inference_steps": 4, "guidance_scale": 1.0, "negative_prompt": "blurred"}
    return nrinv.invert(turbo, held_out[0][:2], held_out[1][:2], return_trajectory=True, **call)


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
