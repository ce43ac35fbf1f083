"""generate: another number of steps, another model, several drawings from one noise, generators, precision."""

import copy
import json
import warnings
from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
import zoo
from helpers import distance, with_scheduler

import nrinv
from nrinv import files
from nrinv.call import Call
from nrinv.fingerprint import difference, fingerprint

FEW = {"num_inference_steps": 4, "guidance_scale": 1.0}
STEPS = {"num_inference_steps": 8, "guidance_scale": 1.5}
KEPT = np.zeros((64, 64), np.float32)  # a mask under which nothing may change


def drawn(pipe, inv, *args, **options):
    return nrinv.generate(pipe, inv, *args, output_type="latent", **options).images


def img2img(pipe):
    other = diffusers.StableDiffusionImg2ImgPipeline(**pipe.components)
    other.set_progress_bar_config(disable=True)
    return other


_kept = {}


def inverted(pipe, held_out, count=1, **options):
    """Made once for all tests that ask for the same."""
    key = (id(pipe), type(pipe.scheduler).__name__, count, repr(options))
    if key not in _kept:
        _kept[key] = nrinv.invert(pipe, held_out[0][:count], held_out[1][:count], **options)
    return _kept[key]


def whole(pipe, held_out, name="DDIMScheduler"):
    return inverted(with_scheduler(pipe, name), held_out, return_trajectory=True, max_nfe=3, **STEPS)


class Inputs:
    """What a pipeline's network is given in its first evaluation, the conditional half of it, and how often it is called."""

    def __init__(self, pipe):
        self.first, self.timestep, self.count = None, None, 0
        self._hook = pipe.unet.register_forward_pre_hook(self._see, with_kwargs=True)

    def _see(self, module, args, kwargs):
        self.count += 1
        if self.first is None:
            self.first, self.timestep = args[0][-1:].clone(), int(args[1])

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self._hook.remove()


# ------------------------------------------------------------------------------------------------ another number of steps


@pytest.mark.parametrize("name", ["DDIMScheduler", "EulerDiscreteScheduler"])
def test_with_other_steps_the_image_stays_outside_the_mask_and_comes_back_from_the_middle(base, held_out, name):
    inv = whole(base, held_out, name)
    for steps in (2, 5, 16):
        assert torch.equal(drawn(base, inv, mask_image=KEPT, num_inference_steps=steps), inv.trajectory[-1])
    back = drawn(base, inv, edit_strength=0.5, num_inference_steps=16)
    assert distance(back, inv.trajectory[-1]) < 0.05
    assert distance(back, inv.trajectory[-1]) < 0.6 * distance(drawn(base, inv, num_inference_steps=16), inv.trajectory[-1])


@pytest.mark.parametrize(("steps", "share"), [(4, 0.5), (5, 0.6), (16, 0.3)])
def test_the_state_of_the_nearest_level_is_brought_to_the_level_that_is_due(base, held_out, steps, share):
    """Against S z_0 + sigma n in double: n of the state whose level is nearest, levels from alphas_cumprod."""
    inv = whole(base, held_out)
    levels = base.scheduler.alphas_cumprod.double() ** 0.5
    with Inputs(base) as seen:
        drawn(base, inv, edit_strength=share, num_inference_steps=steps)
    assert seen.count == round(share * steps)
    signals = levels[torch.as_tensor(inv.timesteps).long()]
    due = levels[seen.timestep]
    near = int((signals.arccos() - due.arccos()).abs().argmin())
    z, x = inv.trajectory[-1].double(), inv.trajectory[near].double()
    noise = (x - signals[near] * z) / (1 - signals[near] ** 2) ** 0.5
    expected = due * z + (1 - due**2) ** 0.5 * noise
    assert distance(seen.first.double(), expected) < 1e-5
    if steps == 4:  # every second one of the 8
        assert torch.equal(seen.first, inv.trajectory[list(inv.timesteps).index(seen.timestep)])


def test_timesteps_of_ones_own_are_another_schedule(base, held_out):
    inv = whole(base, held_out, "EulerDiscreteScheduler")
    same = drawn(base, inv, timesteps=[int(t) for t in inv.timesteps], edit_strength=0.5)
    assert distance(same, inv.trajectory[-1]) < 0.01
    other = drawn(base, inv, timesteps=[850, 500, 320, 100], mask_image=KEPT)
    assert torch.equal(other, inv.trajectory[-1])


def test_part_of_the_steps_begins_at_the_nearest_level_of_others(base, held_out):
    with_scheduler(base, "DDIMScheduler")
    inv = inverted(base, held_out, strength=0.5, return_trajectory=True, max_nfe=3, **STEPS)
    for pipe in (base, img2img(base)):
        with Inputs(pipe) as seen:
            back = drawn(pipe, inv, num_inference_steps=16)
        assert seen.count == 7 and abs(seen.timestep - inv.timesteps[0]) < 1000 / 16
        assert distance(back, inv.trajectory[-1]) < 0.05
    bare = replace(inv, trajectory=None)
    assert distance(drawn(base, bare, num_inference_steps=16), inv.trajectory[-1]) < 0.05  # that level is one of the 16
    with pytest.raises(ValueError, match=r"num_inference_steps: .* holds no trajectory"):
        drawn(base, bare, num_inference_steps=5)


def test_an_img2img_pipeline_takes_another_strength(base, held_out):
    inv = whole(base, held_out, "EulerDiscreteScheduler")  # whose noise a pipeline multiplies by 14.6
    other = img2img(base)
    for options in ({}, {"strength": 0.5}, {"strength": 0.25}, {"edit_strength": 0.5}):
        assert distance(drawn(other, inv, **options), inv.trajectory[-1]) < 0.01
    assert distance(drawn(other, inv, strength=0.5, num_inference_steps=16), inv.trajectory[-1]) < 0.05
    part = inverted(other, held_out, strength=0.5, return_trajectory=True, max_nfe=3, **STEPS)
    with Inputs(other) as seen:
        again = drawn(other, part, edit_strength=0.5)
    assert seen.count == 2 and distance(again, part.trajectory[-1]) < 0.05
    with pytest.raises(ValueError, match="strength: evaluation 2 was not inverted"):
        drawn(other, part, strength=0.75)
    with pytest.raises(ValueError, match="strength: it begins at evaluation 6, not at 4, and the inversion holds no"):
        drawn(other, replace(part, trajectory=None), strength=0.25)
    with pytest.raises(ValueError, match=r"edit_strength must be 1 where strength is given, got 0\.5"):
        drawn(other, inv, strength=0.5, edit_strength=0.5)


def test_what_belongs_to_its_own_steps_is_refused_in_others(turbo, held_out):
    inv = inverted(turbo, held_out, return_defects=True, max_nfe=2, **FEW)
    with Inputs(turbo) as seen:
        with pytest.raises(ValueError, match="replay must be 0 with another schedule"):
            drawn(turbo, inv, replay=1.0, num_inference_steps=8)
        with_scheduler(turbo, "EulerAncestralDiscreteScheduler")
        before = seen.count
        noisy = inverted(turbo, held_out, return_trajectory=True, max_nfe=2, **FEW)
        before = seen.count
        for steps in (2, 8):
            with pytest.raises(ValueError, match=r"num_inference_steps: .* noises are drawn in its own steps"):
                drawn(turbo, noisy, num_inference_steps=steps)
        assert seen.count == before
    free = replace(noisy, noises=None)
    fresh = {"generator": torch.Generator().manual_seed(0)}
    assert torch.equal(drawn(turbo, free, mask_image=KEPT, num_inference_steps=8, **fresh), noisy.trajectory[-1])


def test_steps_of_two_evaluations_are_other_evaluations(base, held_out):
    with_scheduler(base, "HeunDiscreteScheduler")
    options = {**STEPS, "num_inference_steps": 3, "max_nfe": 1, "solver": nrinv.Solver(rounds=1)}
    inv = inverted(base, held_out, return_trajectory=True, **options)
    assert torch.equal(drawn(base, inv, mask_image=KEPT, num_inference_steps=4), inv.trajectory[-1])
    with Inputs(base) as seen:
        drawn(base, inv, edit_strength=0.6, num_inference_steps=4)  # 4 of 7 evaluations; the third step begins at the fifth
    assert seen.count == 5
    same = drawn(base, inv, num_inference_steps=4)
    assert torch.equal(drawn(base, inv, guidance_scale=[1.5] * 7, num_inference_steps=4), same)
    with pytest.raises(ValueError, match="guidance_scale must be a number, or 7 of at least 1"):
        drawn(base, inv, guidance_scale=[1.5] * 5, num_inference_steps=4)


@pytest.mark.parametrize("steps", [2, 9, 400])
def test_a_file_whose_steps_are_not_its_timesteps_is_refused(turbo, held_out, tmp_path, steps):
    inv = inverted(turbo, held_out, return_defects=True, max_nfe=2, **FEW)
    inv.save(tmp_path / "good")
    assert nrinv.load(tmp_path / "good").call["num_inference_steps"] == 4
    _, tensors, metadata = files.read(tmp_path / "good")
    metadata["call"]["arguments"]["num_inference_steps"] = {"json": steps}
    files.write(tmp_path / "bad", tensors, json.dumps(metadata))
    with pytest.raises(ValueError, match=f"4 timesteps from 0 on are not those of {steps} steps"):
        nrinv.load(tmp_path / "bad")


# ---------------------------------------------------------------------------------------------------------- another model


def warned(function, *args, **options):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        function(*args, **options)
    return [
        str(one.message) for one in found if one.category is UserWarning and "inversion was made with" in str(one.message)
    ]


def test_another_model_is_named(turbo, base, held_out, tmp_path):
    inv = inverted(turbo, held_out, return_defects=True, max_nfe=2, **FEW)
    inv.save(tmp_path / "inv")
    (message,) = warned(drawn, base, nrinv.load(tmp_path / "inv"))
    assert message.count("unet UNet2DConditionModel with weights") == 2 and "this pipeline has" in message
    assert not warned(drawn, turbo, nrinv.load(tmp_path / "inv"))
    _, tensors, metadata = files.read(tmp_path / "inv")
    del metadata["networks"]
    del tensors["levels"]
    files.write(tmp_path / "old", tensors, json.dumps(metadata))
    old = nrinv.load(tmp_path / "old")
    assert not warned(drawn, base, old)
    with pytest.raises(ValueError, match=r"num_inference_steps: .* levels of both are not known"):
        drawn(turbo, replace(old, trajectory=[old.latents] * 5), edit_strength=0.5, num_inference_steps=8)


def test_the_same_weights_are_the_same_model_in_every_form(turbo, base):
    made = json.loads(json.dumps(fingerprint(turbo)))
    assert set(made) == {"unet", "text_encoder"} and difference(made, fingerprint(base))
    for dtype in (torch.float16, torch.bfloat16):
        half = copy.deepcopy(turbo).to(dtype)
        assert difference(made, fingerprint(half)) is None
        assert difference(fingerprint(half), fingerprint(base))
    adapted = copy.deepcopy(turbo)
    for name, module in list(adapted.unet.named_modules()):
        if isinstance(module, torch.nn.Linear):  # as adapters wrap what they adapt
            wrapped = torch.nn.Module()
            wrapped.base_layer, wrapped.lora_A = module, torch.nn.Linear(4, 4)
            adapted.unet.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = wrapped
    found = fingerprint(adapted)
    assert found["unet"]["weights"].keys() == made["unet"]["weights"].keys() and difference(made, found) is None
    empty = copy.deepcopy(turbo)
    empty.unet.to("meta")
    for parameter in empty.text_encoder.parameters():
        parameter.requires_grad_(False)
        parameter.data = parameter.data.to(torch.int8)
    assert difference(made, fingerprint(empty)) is None
    larger = copy.deepcopy(turbo)
    larger.unet.register_to_config(sample_size=99)
    assert difference(made, fingerprint(larger))[1] == "unet UNet2DConditionModel with sample_size=99"


# ------------------------------------------------------------------------------------------------ several from one noise


def test_several_prompts_and_copies_are_drawn_from_one_noise(turbo, held_out):
    inv = inverted(turbo, held_out, return_defects=True, max_nfe=2, **FEW)
    single = [drawn(turbo, inv, prompt) for prompt in ("a cat", "a dog")]
    both, four = torch.cat(single), torch.cat([single[0]] * 2 + [single[1]] * 2)
    assert torch.allclose(drawn(turbo, inv, ["a cat", "a dog"]), both, atol=1e-4)
    assert torch.allclose(drawn(turbo, inv, ["a cat", "a dog"], num_images_per_prompt=2), four, atol=1e-4)
    embeds = turbo.encode_prompt(["a cat", "a dog"], "cpu", 1, False)[0]
    assert torch.allclose(drawn(turbo, inv, prompt_embeds=embeds), both, atol=1e-4)
    z = drawn(turbo, inv, replay=1.0)
    assert torch.allclose(drawn(turbo, inv, inv.prompt * 3, replay=1.0), z.expand(3, *z.shape[1:]), atol=1e-4)
    twice = drawn(turbo, inv, num_images_per_prompt=2, negative_prompt="bad", guidance_scale=2.0)
    assert torch.equal(twice[0], twice[1]) and len(twice) == 2
    negatives = drawn(turbo, inv, negative_prompt=["bad", "worse"], guidance_scale=2.0)
    assert len(negatives) == 2 and not torch.equal(*negatives)


def test_each_drawing_has_the_noises_and_the_mask_of_its_image(turbo, held_out):
    with_scheduler(turbo, "EulerAncestralDiscreteScheduler")
    inv = inverted(turbo, held_out, 2, return_trajectory=True, max_nfe=2, **FEW)
    want, z = drawn(turbo, inv), inv.trajectory[-1]
    assert torch.allclose(drawn(turbo, inv, num_images_per_prompt=2), want[[0, 0, 1, 1]], atol=1e-4)
    kept = drawn(turbo, inv.split()[1], ["a cat", "a dog"], mask_image=KEPT)
    assert torch.equal(kept, z[[1, 1]])
    for one, wrong in ((inv, ["a", "b", "c"]), (inv, ["a"]), (inv.split()[0], [])):
        with pytest.raises(ValueError, match=f"prompt must be one prompt or .*, got {len(wrong)}"):
            drawn(turbo, one, wrong)
    with pytest.raises(ValueError, match="prompt_embeds must hold 2 prompts, one for each image, got 3"):
        drawn(turbo, inv, prompt_embeds=torch.zeros(3, 77, 32))
    with pytest.raises(ValueError, match="num_images_per_prompt must be a whole number of at least 1, got 0"):
        drawn(turbo, inv, num_images_per_prompt=0)


# ------------------------------------------------------------------------------------------------------------- generators


@pytest.mark.parametrize("name", ["SD, inpainting", "Flux, ControlNet"])
@pytest.mark.parametrize("kind", ["one", "list", "none"])
def test_what_the_pipeline_draws_itself_is_drawn_again(tmp_path, name, kind):
    pipe, call, latents = zoo.make(name)
    target = torch.randn(latents.shape, generator=torch.Generator().manual_seed(2))
    own = torch.Generator().manual_seed(7)
    generator = {"one": own, "list": [own], "none": None}[kind]
    inv = nrinv.invert(pipe, target, num_inference_steps=4, max_nfe=10, verify=True, generator=generator, **call)
    state, shared = own.get_state(), torch.get_rng_state()
    for _ in range(2):
        assert distance(drawn(pipe, inv), target).item() == pytest.approx(float(inv.error[0]), rel=1e-3)
    inv.save(tmp_path / "inv")
    assert torch.equal(drawn(pipe, nrinv.load(tmp_path / "inv")), drawn(pipe, copy.deepcopy(inv)))
    assert torch.equal(own.get_state(), state) and torch.equal(torch.get_rng_state(), shared)
    copies = drawn(pipe, inv, num_images_per_prompt=2)
    assert distance(copies, target).max() < 2 * float(inv.error[0])
    assert distance(drawn(pipe, inv, generator=torch.Generator().manual_seed(8)), target) > 10 * float(inv.error[0])


def test_images_that_are_inverted_one_by_one_keep_their_own_generators(tmp_path):
    pipe, call, latents = zoo.make("SD, inpainting")
    call = {key: one.repeat(2, *[1] * (one.ndim - 1)) if torch.is_tensor(one) else one for key, one in call.items()}
    target = torch.randn(2, *latents.shape[1:], generator=torch.Generator().manual_seed(2))
    for generator in (torch.Generator().manual_seed(7), [torch.Generator().manual_seed(i) for i in range(2)]):
        inv = nrinv.invert(pipe, target, num_inference_steps=4, max_nfe=10, batch_size=1, generator=generator, **call)
        assert distance(drawn(pipe, inv), target).max() < 1e-3
        for i, one in enumerate(inv.split()):
            one.save(tmp_path / "one")
            assert distance(drawn(pipe, nrinv.load(tmp_path / "one")), target[i : i + 1]) < 1e-3


def test_no_generator_is_kept_where_nothing_is_drawn(turbo, held_out):
    assert "generator" not in inverted(turbo, held_out, return_defects=True, max_nfe=2, **FEW).call


# -------------------------------------------------------------------------------------------------------------- precision


def converted(inv, dtype):
    """All of an inversion by hand."""
    lists = {name: [one.to(dtype) for one in getattr(inv, name) or []] for name in ("noises", "trajectory", "defects")}
    call = Call({**inv.call, "prompt_embeds": inv.call["prompt_embeds"].to(dtype)})
    return replace(inv, latents=inv.latents.to(dtype), call=call, **lists)


@pytest.mark.parametrize(
    ("name", "dtype"), [("SD", torch.bfloat16), ("SD", torch.float16), ("SD, ancestral", torch.bfloat16)]
)
def test_an_inversion_is_drawn_in_the_precision_of_the_pipeline(name, dtype):
    pipe, call, latents = zoo.make(name)
    options = {"num_inference_steps": 4, "max_nfe": 1, "return_trajectory": True, "return_defects": True}
    inv = nrinv.invert(pipe, latents, **options, **call)
    half = copy.deepcopy(pipe).to(dtype)
    edits = ({}, {"edit_strength": 0.5}, {"replay": 1.0}, {"mask_image": np.eye(32, dtype=np.float32)})
    for edit in edits if name == "SD" else edits[:1]:
        there = drawn(half, inv, **edit)
        assert there.dtype == dtype and torch.equal(there, drawn(half, converted(inv, dtype), **edit))
        back = drawn(pipe, converted(inv, dtype), **edit)
        assert back.dtype == torch.float32
        if name == "SD":
            assert distance(torch.cat([there.float(), back]), drawn(pipe, inv, **edit)).max() < 8 * torch.finfo(dtype).eps
    if name == "SD":
        stock = {**call, "latents": inv.latents.to(dtype), "prompt_embeds": call["prompt_embeds"].to(dtype)}
        again = half(**stock, num_inference_steps=4, output_type="latent").images
        assert torch.equal(drawn(half, inv), again)


def test_control_images_follow_the_precision():
    pipe, call, latents = zoo.make("SD, ControlNet")
    call["image"] = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    inv = nrinv.invert(pipe, latents, num_inference_steps=4, max_nfe=4, **call)
    low = replace(inv, latents=inv.latents.half(), call=inv.call.to("cpu", torch.float16))
    assert distance(drawn(pipe, low), drawn(pipe, inv)) < 0.01
