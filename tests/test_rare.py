"""rare: new drawings from the noises of references."""

import numpy as np
import pytest
import torch
from helpers import with_scheduler

import nrinv

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


@pytest.fixture(scope="module")
def scorer():
    return nrinv.scorer()


@pytest.fixture(scope="module")
def references():
    """(images, captions) of one withheld concept."""
    records = nrinv.demo_images("heldout_concept")
    name = records[0].caption.rsplit(", ", 1)[0]
    chosen = [one for one in records if one.caption.rsplit(", ", 1)[0] == name]
    return [one.image for one in chosen], [one.caption for one in chosen]


def test_the_scorer_knows_what_icons_show(scorer, held_out):
    images, captions, pixels = held_out
    scores = scorer.score(pixels, captions)
    assert scores.shape == (len(images), len(captions)) and scores.abs().max() <= 1.0001
    assert (scores.argmax(1) == torch.arange(len(captions))).float().mean() > 0.4  # by chance it would be 0.01
    larger = torch.nn.functional.interpolate(pixels[:2], (128, 128), mode="nearest")
    assert torch.allclose(scorer.image_features(larger), scorer.image_features(pixels[:2]), atol=0.15)
    with pytest.raises(ValueError, match=r"images must be a tensor \[N, 3, H, W\]"):
        scorer.image_features(pixels[0])


def test_drawings_and_what_is_said_of_them(turbo, scorer, references):
    images, captions = references
    out = nrinv.rare(turbo, images, captions[0], 4, reference_prompt=captions, scorer=scorer, **CALL)
    assert len(out.images) == 4 and out.images[0].size == (64, 64) and out.latents.shape == (4, 4, 16, 16)
    assert out.similarity.shape == out.novelty.shape == (4,) and 0 < out.diversity < 2
    assert (out.novelty >= -1e-6).all() and len(out.references.latents) == len(images)
    norms = out.latents.flatten(1).norm(dim=1) / 32
    assert (norms - 1).abs().max() < 0.1
    again = nrinv.rare(turbo, images, captions[0], 4, reference_prompt=captions, scorer=scorer, **CALL)
    assert torch.equal(out.latents, again.latents)
    other = nrinv.rare(turbo, out.references, captions[0], 4, scorer=scorer, seed=1, **CALL)
    assert not torch.allclose(out.latents, other.latents, atol=0.1)
    drawn = turbo(captions[0], latents=out.latents[:1], output_type="pil", **CALL).images[0]
    assert np.abs(np.asarray(drawn, int) - np.asarray(out.images[0], int)).max() <= 1  # a plain call draws it


def test_spread_leads_from_the_references_to_fresh_noise(turbo, scorer, references):
    images, captions = references
    similarity, nearness, inverted = [], [], nrinv.invert(turbo, images, captions, **CALL)
    for spread in (0.0, 0.5, 1.0):
        out = nrinv.rare(turbo, inverted, captions[0], 6, spread=spread, scorer=scorer, **CALL)
        similarity.append(out.similarity.mean())
        flat, known = out.latents.flatten(1), out.references.latents.flatten(1)
        cosines = torch.nn.functional.cosine_similarity(flat[:, None], known[None], dim=2)
        nearness.append(float(cosines.mean()))
    assert nearness[0] > nearness[1] > nearness[2] and abs(nearness[2]) < 0.1
    assert similarity[0] > similarity[2]


def test_seeds_are_refined_by_gradients(turbo, scorer, references):
    images, captions = references
    turbo.unet.requires_grad_(True)  # adapters that another test has loaded leave the network frozen
    inverted = nrinv.invert(turbo, images, captions, **CALL)
    plain, refined = (
        nrinv.rare(turbo, inverted, captions[0], 2, spread=1.0, refine_seeds=steps, scorer=scorer, **CALL)
        for steps in (0, 4)
    )
    assert refined.similarity.mean() > plain.similarity.mean()
    assert torch.allclose(refined.latents.flatten(1).norm(dim=1), plain.latents.flatten(1).norm(dim=1), rtol=1e-4)
    assert not any(p.grad is not None for p in turbo.unet.parameters())
    assert all(p.requires_grad for p in turbo.unet.parameters())


def test_a_scorer_of_the_users_and_none(turbo, references):
    images, captions = references

    class Colour:
        def image_features(self, images):
            return torch.nn.functional.normalize(images.mean((2, 3)), dim=1)

    out = nrinv.rare(turbo, images, captions[0], 2, reference_prompt=captions, scorer=Colour(), **CALL)
    assert out.similarity.min() > 0.9
    none = nrinv.rare(turbo, images, captions[0], 1, reference_prompt=captions, scorer=False, output_type="pt", **CALL)
    assert none.similarity is None and none.images.shape == (1, 3, 64, 64)


def test_a_stochastic_sampler(turbo, references):
    images, captions = references
    with_scheduler(turbo, "EulerAncestralDiscreteScheduler")
    out = nrinv.rare(
        turbo, images, captions[0], 2, reference_prompt=captions, scorer=False, invert_options={"noise": "absorb"}, **CALL
    )
    assert len(out.images) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num": 0}, "num must be a whole number of at least 1, got 0"),
        ({"num": 2.5}, "num must be a whole number of at least 1, got 2.5"),
        ({"spread": -0.1}, r"spread must be in 0..1, got -0.1"),
        ({"spread": float("nan")}, r"spread must be in 0..1"),
        ({"refine_seeds": -1}, "refine_seeds must be a whole number of at least 0"),
        ({"refine_seeds": 2, "scorer": False}, "scorer must be given where refine_seeds is above 0"),
        ({"rate": 0}, "rate must be a finite number above 0, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"scorer": 3}, r"scorer must have image_features\(images\), got int"),
        ({"images": "inverted"}, "images must hold at least 2 references, got 1"),
        ({"images": "one"}, "images must hold at least 2 references, got 1"),
        ({"images": []}, "images must hold at least 2 references, got 0"),
        ({"images": ["nothing.png", "nowhere.png"]}, "cannot be read as an image"),
    ],
)
def test_bad_input(turbo, references, change, message):
    images, captions = references
    given = {"images": images, "num": 2, "scorer": False, **change}
    if given["images"] == "one":
        given["images"] = images[:1]
    if given["images"] == "inverted":
        given["images"] = nrinv.invert(turbo, images[0], captions[0], max_nfe=1, **CALL)
    with pytest.raises(ValueError, match=message):
        nrinv.rare(turbo, given.pop("images"), captions[0], given.pop("num"), **given, **CALL)
