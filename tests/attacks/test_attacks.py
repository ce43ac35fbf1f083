"""What is no saved inversion is refused as such: with a ValueError that says why, and nothing else."""

import itertools
import json
import re

import hostile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load, save

import nrinv
from nrinv import files


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("good") / "x.safetensors"
    hostile.inversion().save(path)
    return path.read_bytes()


def opened(data):
    return load(data), json.loads(hostile.parts(data)[0]["__metadata__"]["nrinv"])


def refused(path, reason):
    with pytest.raises(ValueError, match=r"path: '.*x\.safetensors' cannot be read as a saved inversion: .*" + reason):
        nrinv.load(path)


@pytest.mark.parametrize("name", hostile.FIELDS)
def test_fields_that_do_not_belong_together(good, tmp_path, name):
    change, reason = hostile.FIELDS[name]
    tensors, metadata = opened(good)
    other = change(tensors, metadata)
    text = other if isinstance(other, str) else json.dumps(metadata)
    files.write(tmp_path / "x.safetensors", tensors, text)
    refused(tmp_path / "x.safetensors", re.escape(reason))


@pytest.mark.parametrize("name", hostile.BYTES)
def test_bytes_that_are_none_of_ours(good, tmp_path, name):
    change, reason = hostile.BYTES[name]
    (tmp_path / "x.safetensors").write_bytes(change(good))
    refused(tmp_path / "x.safetensors", re.escape(reason))


def first_format(good, change=lambda metadata: metadata, **more):
    """A file as version 0.1.0 has written it, which has no digest."""
    tensors, metadata = opened(good)
    old = {"defects": "corrections", "moved": "correction_size", "psnr_loss": "correction_cost"}
    own = {}
    for name, one in tensors.items():
        head, dot, tail = name.partition(".")
        if head not in ("restarts", "rejected", "failed") and not name.startswith(("call.image", "call.cross")):
            own[old.get(head, head) + dot + tail] = one
    metadata["call"] = {"num_inference_steps": 3, "negative_prompt": ["blurred", ""]}
    own.update(more)
    return save(own, {"format": files.FIRST_FORMAT, "nrinv": json.dumps(change(metadata))})


def test_the_first_format_still_loads(good, tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(first_format(good))
    loaded, tensors = nrinv.load(path), opened(good)[0]
    assert loaded.latents.equal(tensors["latents"]) and loaded.defects[2].equal(tensors["defects.2"])
    assert list(loaded.moved) == [0.1, 0.2] and loaded.restarts is None
    assert loaded.call["negative_prompt"] == ["blurred", ""] and loaded.call["prompt_embeds"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("change", "more", "reason"),
    [
        (lambda metadata: [], {}, "call is no dictionary"),
        (lambda metadata: {**metadata, "call": []}, {}, "call is no dictionary"),
        (lambda metadata: {**metadata, "call": None}, {}, "call is no dictionary"),
        (lambda metadata: {**metadata, "start": -1}, {}, "start: -1 is less than"),
        (lambda metadata: {**metadata, "scheduler": "UNet2DModel"}, {}, "is not the name of a scheduler"),
        (lambda metadata: {"call": {}}, {}, "is a required property"),
        (lambda metadata: metadata, {"latents": hostile.spoiled(float("nan"))}, "latents must hold finite numbers"),
        (lambda metadata: metadata, {"defects.0": lambda z: z}, "two tensors are called 'defects.0'"),
        (lambda metadata: metadata, {"weight": lambda z: z}, "nothing has a tensor 'weight'"),
    ],
)
def test_what_applies_to_the_first_format(good, tmp_path, change, more, reason):
    latents = opened(good)[0]["latents"]
    data = first_format(good, change, **{name: make(latents) for name, make in more.items()})
    (tmp_path / "x.safetensors").write_bytes(data)
    refused(tmp_path / "x.safetensors", reason)


def test_every_flipped_bit_is_found(tmp_path):
    """Each bit of each byte of a file, its header and its numbers."""
    path = tmp_path / "x.safetensors"
    hostile.smallest().save(path)
    good = path.read_bytes()
    assert nrinv.load(path).latents.equal(hostile.smallest().latents)
    for at, bit in itertools.product(range(len(good)), range(8)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 1 << bit]) + good[at + 1 :])
        try:
            nrinv.load(path)
        except ValueError:
            continue
        raise AssertionError(f"bit {bit} of byte {at} of {len(good)}")


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(), part, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(value=_json, choose=st.randoms(use_true_random=False))
def test_any_json_in_any_place_is_read_or_refused(good, tmp_path_factory, value, choose):
    """Nothing but ValueError: no KeyError, no AttributeError, no RecursionError."""
    tensors, metadata = opened(good)
    place, key = metadata, choose.choice(sorted(metadata))
    while isinstance(place[key], (dict, list)) and place[key] and choose.random() < 0.8:
        place = place[key]
        key = choose.choice(sorted(place)) if isinstance(place, dict) else choose.randrange(len(place))
    place[key] = value
    path = tmp_path_factory.mktemp("any") / "x.safetensors"
    files.write(path, tensors, json.dumps(metadata))
    try:
        loaded = nrinv.load(path)
    except ValueError:
        return
    repr(loaded)
    loaded.split()
    loaded.save(path)
