"""The embedded models are the trained ones, whatever releases of torch, diffusers and transformers are installed."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import nrinv
from nrinv import models

WEIGHTS = {
    "text_encoder": "base/text_encoder/model.safetensors",
    "vae": "base/vae/diffusion_pytorch_model.safetensors",
    "unet": "turbo/unet/diffusion_pytorch_model.safetensors",
    "scorer": "scorer/model.safetensors",
}


def load(part):
    return nrinv.scorer().model if part == "scorer" else getattr(nrinv.demo_pipeline("turbo"), part)


@pytest.mark.parametrize("part", WEIGHTS)
def test_every_weight_is_the_trained_one_and_no_other_is_accepted(part, tmp_path, monkeypatch):
    path = models.HERE / WEIGHTS[part]
    trained = load_file(path)
    # Names differ between releases, values do not.
    values = sorted((tuple(value.shape), float(value.double().sum())) for value in trained.values())
    found = dict(load(part).named_parameters())
    assert all(value.dtype == torch.float32 for value in found.values())
    assert sorted((tuple(value.shape), float(value.detach().double().sum())) for value in found.values()) == values

    for folder in ("base", "turbo", "scorer"):
        for file in (models.HERE / folder).rglob("*.*"):
            link = tmp_path / file.relative_to(models.HERE)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file)
    monkeypatch.setattr(models, "HERE", tmp_path)
    copy = tmp_path / WEIGHTS[part]
    name, value = next((name, value) for name, value in trained.items() if value.ndim == 1)
    for kind, damaged in (("missing", {}), ("unexpected", {name: value, "another.weight": value.clone()})):
        copy.unlink()
        save_file({**{key: one for key, one in trained.items() if key != name}, **damaged}, copy, {"format": "pt"})
        with pytest.raises(RuntimeError, match=rf"{path.parent.name} are not those .*{kind}"):
            load(part)


def test_models_load_in_the_precision_that_is_asked_for():
    pipe = nrinv.demo_pipeline("base", torch_dtype=torch.bfloat16)
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.bfloat16}
