"""Which argument of a pipeline's call belongs to whom: alone, and in every way that a batch is taken apart and kept."""

import json

import numpy as np
import pytest
import torch
import zoo
from PIL import Image
from safetensors import safe_open

import nrinv
from nrinv.call import Call
from nrinv.known import parameters, takes_any

STEPS = {"num_inference_steps": 2, "max_nfe": 8}


def edges(seed):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8))


def as_tensor(images):
    return torch.stack([torch.from_numpy(np.asarray(one)).permute(2, 0, 1).float() / 255 for one in images])


def contents(path):
    with safe_open(path, "np") as file:
        return json.loads(file.metadata()["nrinv"]), {name: file.get_tensor(name).tobytes() for name in file.keys()}


# -------------------------------------------------------------------------------------------------------------- one owner


@pytest.mark.parametrize(
    ("name", "value", "second"),
    [
        ("prompt", ["a", "b", "c"], "b"),
        ("prompt", "a", "a"),
        ("negative_prompt", ["", "x", ""], "x"),
        ("prompt_embeds", torch.arange(6.0).view(3, 1, 2), torch.tensor([[[2.0, 3.0]]])),
        ("pooled_prompt_embeds", torch.arange(6.0).view(3, 2), torch.tensor([[2.0, 3.0]])),
        ("image_embeds", torch.arange(6.0).view(3, 2), torch.tensor([[2.0, 3.0]])),
        ("image", torch.zeros(3, 8, 8), torch.zeros(3, 8, 8)),  # one image, as high as the batch is long
        ("image", [1, 2, 3], [2]),
        ("control_image", np.arange(3).reshape(3, 1, 1, 1), np.array([[[[1]]]])),
        ("mask_image", [1, 2], [1, 2]),
        ("ip_adapter_image", [1, 2, 3], [1, 2, 3]),  # one for each adapter
        ("sigmas", [3.0, 2.0, 1.0], [3.0, 2.0, 1.0]),
        ("num_images_per_prompt", 1, 1),
    ],
)
def test_what_belongs_to_the_second_of_three_images(name, value, second):
    found = Call({name: value}, batch=3).part(range(1, 2))
    assert found.batch == 1
    assert type(found[name]) is type(second) and np.all(np.asarray(found[name]) == np.asarray(second))


def test_several_control_networks_have_images_of_their_own():
    nested = Call({"image": [["a0", "b0"], ["a1", "b1"]]}, batch=2, nets=2)  # as diffusers wants lists: for each prompt
    assert nested.part(range(1, 2))["image"] == [["a1", "b1"]]
    tensors = [torch.arange(2.0).view(2, 1, 1, 1), torch.arange(2.0, 4.0).view(2, 1, 1, 1)]
    assert [float(x) for x in Call({"image": tensors}, batch=2, nets=2).part(range(1, 2))["image"]] == [1, 3]
    assert Call({"image": ["a", "b"]}, batch=2, nets=2).part(range(1, 2))["image"] == ["a", "b"]


def test_references_belong_to_every_image():
    assert Call({"image": ["a", "b"]}, batch=2, shared=True).part(range(1))["image"] == ["a", "b"]


def test_copies_of_a_prompt_become_images_of_their_own():
    call = Call({"prompt": ["a", "b"], "num_images_per_prompt": 2}, batch=4)
    assert [part["prompt"] for _, part in call.split(1)] == ["a", "a", "b", "b"]
    assert call.part(range(1, 3)) == {"prompt": ["a", "b"], "num_images_per_prompt": 1}
    assert call.with_prompt(["c", "d", "e", "f"])["prompt"] == ["c", "d", "e", "f"]


def test_one_prompt_is_spread_and_callbacks_are_not_kept():
    call = Call(
        {"prompt": "a", "prompt_embeds": torch.ones(1, 2), "callback_on_step_end": print, "callback_steps": 1}, batch=3
    )
    assert call.spread()["prompt"] == ["a"] * 3 and call.spread()["prompt_embeds"].shape == (3, 2)
    assert call.kept() == {"prompt_embeds": call["prompt_embeds"]}
    assert call.with_prompt("b").keys() == {"prompt", "callback_on_step_end", "callback_steps"}


def test_what_calls_take():
    class Own:
        def __call__(self, prompt, latents=None):
            """Nothing but these."""

    class Open(Own):
        def __call__(self, strange=None, **kwargs):
            return super().__call__(**kwargs)

    class Wide:
        def __call__(self, **kwargs):
            """Anything."""

    assert set(parameters(Own())) == {"self", "prompt", "latents"} and not takes_any(Own())
    assert {"strange", "prompt", "latents"} <= set(parameters(Open())) and not takes_any(Open())
    assert takes_any(Wide())
    pipe, _, _ = zoo.make("SD")  # its **kwargs are two names of old times
    assert not takes_any(pipe) and {"callback", "callback_steps"} <= set(parameters(pipe))


# ------------------------------------------------------------------------------------------------------ two control images


@pytest.mark.parametrize("nets", [1, 2])
@pytest.mark.parametrize("how", ["images", "tensor"])
def test_every_way_of_taking_a_batch_apart_draws_what_the_whole_draws(tmp_path, nets, how):
    """batch_size=1, split(), a callback, save, load, generate: in every combination."""
    pipe, call, latents = zoo.make("SD, ControlNet" if nets == 1 else "SD, two ControlNets")
    target = torch.randn(2, *latents.shape[1:], generator=torch.Generator().manual_seed(2))
    call = {name: one.repeat(2, 1, 1) if "embeds" in name else one for name, one in call.items()}
    control = [[edges(i), edges(i + 2)] for i in range(nets)]
    if how == "tensor":
        call["image"] = [as_tensor(one) for one in control] if nets == 2 else as_tensor(control[0])
    else:
        call["image"] = [list(one) for one in zip(*control, strict=True)] if nets == 2 else control[0]
    seen = []

    def callback(pipe, i, t, values):
        seen.append(i)
        return values

    whole = nrinv.invert(pipe, target, **STEPS, **call)
    want = nrinv.generate(pipe, whole, output_type="latent").images
    assert (want - target).norm() / target.norm() < 1e-2
    if how == "images":  # the control images do matter
        other = nrinv.generate(pipe, whole, output_type="latent", image=call["image"][::-1]).images
        assert (other - want).norm() > 1e-3
    for batch_size in (None, 1):
        for more in ({}, {"callback_on_step_end": callback}):
            inv = nrinv.invert(pipe, target, batch_size=batch_size, **STEPS, **call, **more)
            assert torch.allclose(inv.latents, whole.latents, atol=1e-4)
            assert inv.call.keys() == whole.call.keys()
            path = tmp_path / f"{batch_size}{len(more)}.safetensors"
            inv.save(path)
            loaded = nrinv.load(path)
            for one in (inv, loaded):
                assert torch.allclose(nrinv.generate(pipe, one, output_type="latent").images, want, atol=1e-4)
            for i, (part, same) in enumerate(zip(inv.split(), loaded.split(), strict=True)):
                drawn = nrinv.generate(pipe, part, output_type="latent").images
                assert torch.allclose(drawn, want[i : i + 1], atol=1e-4)
                first, second = path.with_suffix(f".{i}"), path.with_suffix(f".{i} loaded")
                part.save(first)
                same.save(second)
                assert contents(first) == contents(second)
                assert torch.equal(nrinv.generate(pipe, nrinv.load(first), output_type="latent").images, drawn)
    assert seen
