"""What users of diffusers do to their pipelines goes on working, and is as it was afterwards."""

import copy

import diffusers
import numpy as np
import pytest
import torch
import zoo

import nrinv

CALL = {"num_inference_steps": 4, "guidance_scale": 1.0}


def seeded(seed=4):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def plain(_pipelines, held_out):
    """What the untouched pipeline finds for the first image."""
    images, captions, _ = held_out
    return nrinv.invert(_pipelines["turbo"], images[0], captions[0], **CALL)


def assert_same_result(found, plain, atol=1e-4):
    assert torch.allclose(found.latents.float(), plain.latents, atol=atol)
    assert list(found.nfe) == list(plain.nfe)


# ------------------------------------------------------------------------------------------------------------- arguments


def test_the_image_may_be_given_by_name(turbo, held_out, plain):
    assert_same_result(nrinv.invert(turbo, image=held_out[0][0], prompt=held_out[1][0], **CALL), plain)


def test_one_prompt_for_several_images(turbo, held_out):
    images, captions, _ = held_out
    each = nrinv.invert(turbo, images[:2], [captions[0]] * 2, **CALL)
    for same in ({"prompt": captions[0]}, {"prompt": captions[0], "num_images_per_prompt": 2}):
        found = nrinv.invert(turbo, images[:2], **same, **CALL)
        assert_same_result(found, each)
        drawn = nrinv.generate(turbo, found, output_type="latent").images
        assert torch.allclose(drawn, nrinv.generate(turbo, each, output_type="latent").images, atol=1e-4)


def test_lists_are_split_into_batches(turbo, held_out, tmp_path):
    images, captions, _ = held_out
    call = {**CALL, "return_trajectory": True, "negative_prompt": ["", "blurred", ""]}
    whole = nrinv.invert(turbo, images[:3], captions[:3], **call)
    split = nrinv.invert(turbo, images[:3], captions[:3], batch_size=2, **call)
    assert torch.allclose(split.latents, whole.latents, atol=1e-4)
    assert np.array_equal(split.nfe, whole.nfe) and np.allclose(split.residuals, whole.residuals, rtol=1e-2, atol=1e-6)
    assert len(split.trajectory) == 5 and split.trajectory[0].shape == whole.trajectory[0].shape
    assert split.reasons == whole.reasons and split.prompt == whole.prompt and split.call == whole.call
    split.save(tmp_path / "split.safetensors")
    again = nrinv.load(tmp_path / "split.safetensors")
    drawn = nrinv.generate(turbo, again, output_type="latent").images
    assert torch.allclose(drawn, nrinv.generate(turbo, whole, output_type="latent").images, atol=1e-3)


def test_lists_that_are_as_long_as_the_batch_by_chance_are_not_split():
    pipe, call, latents = zoo.make("SD, sigmas")
    images = torch.randn(len(call["sigmas"]), *latents.shape[1:], generator=seeded())
    call = {name: one.repeat(len(images), 1, 1) if "embeds" in name else one for name, one in call.items()}
    found = nrinv.invert(pipe, images, batch_size=2, max_nfe=2, **call)
    assert found.latents.shape == images.shape and found.call["sigmas"] == call["sigmas"]


def test_a_single_run_finds_what_a_batch_finds(turbo, held_out):
    images, captions, _ = held_out
    batch = nrinv.invert(turbo, images[:3], captions[:3], **CALL)
    for b in range(3):
        single = nrinv.invert(turbo, images[b], captions[b], **CALL)
        assert torch.allclose(batch.latents[b], single.latents[0], atol=1e-3)
        assert batch.nfe[b] == single.nfe[0]


# ---------------------------------------------------------------------------------------------------------------- noise


@pytest.mark.parametrize("generators", [False, True])
def test_a_stock_call_with_the_same_generators_draws_the_image_again(turbo, held_out, generators):
    images, captions, _ = held_out
    turbo.scheduler = diffusers.EulerAncestralDiscreteScheduler.from_config(turbo.scheduler.config)
    stock = turbo.scheduler

    def generator():
        return [seeded(1), seeded(2)] if generators else seeded()

    z = nrinv.encode(turbo, images[:2])
    found = nrinv.invert(turbo, z, captions[:2], generator=generator(), max_nfe=30, solver=nrinv.Solver(depth=8), **CALL)
    assert turbo.scheduler is stock
    drawn = turbo(captions[:2], latents=found.latents, generator=generator(), output_type="latent", **CALL).images
    assert ((drawn - z).flatten(1).norm(dim=1) / z.flatten(1).norm(dim=1)).max() < 0.05
    assert torch.allclose(nrinv.generate(turbo, found, output_type="latent").images, drawn, atol=1e-3)
    if generators:
        alone = nrinv.invert(
            turbo, z[1:], captions[1], generator=[seeded(2)], max_nfe=30, solver=nrinv.Solver(depth=8), **CALL
        )
        assert torch.allclose(alone.noises[0][0], found.noises[0][1])


# ----------------------------------------------------------------------------------------- what is done to the pipeline


def restored(turbo, attribute):
    return copy.deepcopy(getattr(turbo, attribute))


def test_attention_slicing_and_tiling(turbo, held_out, plain):
    images, captions, _ = held_out
    turbo.enable_attention_slicing(1)
    turbo.vae.enable_tiling()
    turbo.vae.enable_slicing()
    try:
        processors = dict(turbo.unet.attn_processors)
        assert_same_result(nrinv.invert(turbo, images[0], captions[0], **CALL), plain)
        assert all(turbo.unet.attn_processors[name] is one for name, one in processors.items())
        assert turbo.vae.use_tiling and turbo.vae.use_slicing
    finally:
        turbo.disable_attention_slicing()
        turbo.vae.disable_tiling()
        turbo.vae.disable_slicing()
        turbo.unet.set_default_attn_processor()


def test_a_compiled_network(turbo, held_out, plain):
    images, captions, _ = held_out
    own = turbo.unet
    turbo.unet = torch.compile(own, backend="eager")
    try:
        assert_same_result(
            nrinv.invert(turbo, images[:2], captions[:2], **CALL), nrinv.invert(turbo, images[:2], captions[:2], **CALL)
        )
        assert_same_result(nrinv.invert(turbo, images[0], captions[0], **CALL), plain)
    finally:
        turbo.unet = own


def test_half_precision(turbo, held_out, plain):
    images, captions, _ = held_out
    pipe = diffusers.StableDiffusionPipeline(
        **{
            **turbo.components,
            "unet": copy.deepcopy(turbo.unet),
            "vae": copy.deepcopy(turbo.vae),
            "text_encoder": copy.deepcopy(turbo.text_encoder),
        },
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.to(torch.bfloat16)
    found = nrinv.invert(pipe, images[0], captions[0], **CALL)
    assert found.latents.dtype == torch.bfloat16
    assert (found.latents.float() - plain.latents).norm() < 0.2 * plain.latents.norm()


OFFLOADS = ["enable_model_cpu_offload", "enable_group_offload", "enable_sequential_cpu_offload"]


@pytest.mark.parametrize("offload", OFFLOADS)
def test_offloading(turbo, held_out, plain, offload):
    if offload == "enable_sequential_cpu_offload" and not torch.cuda.is_available():
        pytest.skip("sequential offloading needs a GPU: accelerate fails in a stock call on the CPU")
    images, captions, _ = held_out
    parts = {name: copy.deepcopy(part) for name, part in turbo.components.items()}
    pipe = diffusers.StableDiffusionPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if offload == "enable_group_offload":
        pipe.enable_group_offload(onload_device=device, offload_device=torch.device("cpu"), offload_type="leaf_level")
    else:
        getattr(pipe, offload)(device=device)
    before = fingerprint(pipe)
    assert any(before)
    found = nrinv.invert(pipe, images[0], captions[0], verify=True, **CALL)
    found.nfe = found.nfe - 4
    assert_same_result(found, plain, atol=1e-4 if device.type == "cpu" else 1e-2)
    assert found.error[0] < 0.1 and fingerprint(pipe) == before


def fingerprint(pipe):
    """What hangs on the modules of a pipeline."""
    networks = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    modules = [module for network in networks for module in network.modules()]
    return [
        type(kept)
        for module in modules
        for kept in (
            getattr(module, "_hf_hook", None),
            getattr(module, "_diffusers_hook", None),
            *module._forward_hooks.values(),
        )
        if kept is not None
    ]


def test_hooks_of_the_user_stay_and_see_every_evaluation(turbo, held_out, plain):
    images, captions, _ = held_out
    calls = []
    hook = turbo.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        found = nrinv.invert(turbo, images[0], captions[0], **CALL)
        assert len(calls) == found.nfe[0]
        turbo(captions[0], **CALL)
        assert len(calls) == found.nfe[0] + 4
    finally:
        hook.remove()


# ------------------------------------------------------------------------------------------------------------- callbacks


def test_a_callback_gets_its_tensors(turbo, held_out, plain):
    images, captions, _ = held_out
    seen = []

    def callback(pipe, i, t, values):
        seen.append(set(values))
        return values

    tensors = ["latents", "prompt_embeds"]
    given = {"callback_on_step_end": callback, "callback_on_step_end_tensor_inputs": tensors}
    found = nrinv.invert(turbo, images[0], captions[0], verify=False, **given, **CALL)
    assert_same_result(found, plain)
    assert seen == [set(tensors)] * (int(found.nfe[0]) - 1)
    assert "callback_on_step_end" not in found.call


def test_a_callback_that_moves_the_latents_is_refused(turbo, held_out):
    images, captions, _ = held_out

    def callback(pipe, i, t, values):
        return {"latents": values["latents"] * 1.01}

    for order in ("reversed", "auto"):
        with pytest.raises(ValueError, match=r"pipe: .*(changes the latents between its steps|changes the call)"):
            nrinv.invert(turbo, images[0], captions[0], callback_on_step_end=callback, order=order, **CALL)


def test_an_interrupted_pipeline_says_so_and_stays_usable(turbo, held_out, plain):
    images, captions, _ = held_out

    def callback(pipe, i, t, values):
        pipe._interrupt = i == 2
        return values

    with pytest.raises(RuntimeError, match="interrupted before the inversion was done"):
        nrinv.invert(turbo, images[0], captions[0], callback_on_step_end=callback, **CALL)
    assert_same_result(nrinv.invert(turbo, images[0], captions[0], **CALL), plain)


# ------------------------------------------------------------------------------------------------------------- adapters


def test_a_lora_and_its_scale(turbo, held_out, plain):
    peft = pytest.importorskip("peft")
    images, captions, _ = held_out
    torch.manual_seed(0)
    turbo.unet.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), "mine")
    try:
        scales = {name: dict(m.scaling) for name, m in turbo.unet.named_modules() if hasattr(m, "scaling")}
        call = {**CALL, "cross_attention_kwargs": {"scale": 0.5}}
        found = nrinv.invert(turbo, images[0], captions[0], max_nfe=16, tol=1e-5, **call)
        assert not torch.allclose(found.latents, plain.latents, atol=1e-2)
        assert scales == {name: dict(m.scaling) for name, m in turbo.unet.named_modules() if hasattr(m, "scaling")}
        z = nrinv.encode(turbo, images[0])
        drawn = turbo(captions[0], latents=found.latents, output_type="latent", **call).images
        assert (drawn - z).norm() < 0.05 * z.norm()
    finally:
        turbo.unet.delete_adapters("mine")
    assert_same_result(nrinv.invert(turbo, images[0], captions[0], **CALL), plain)


def test_the_images_of_a_controlnet_are_left_alone():
    pipe, call, latents = zoo.make("SD, two ControlNets")
    before = [image.clone() for image in call["image"]]
    image = torch.randn(latents.shape, generator=seeded())
    found = nrinv.invert(pipe, image, num_inference_steps=4, max_nfe=12, verify=True, **call)
    assert found.error[0] < 1e-3 and found.order == "reversed"
    assert all(torch.equal(a, b) for a, b in zip(call["image"], before, strict=True))
    assert all(a is b for a, b in zip(found.call["image"], call["image"], strict=True))


@pytest.mark.parametrize("name", ["SD, PAG", "SD, SAG"])
def test_processors_of_pipelines_that_exchange_them(name):
    pipe, call, latents = zoo.make(name)
    own = dict(pipe.unet.attn_processors)
    nrinv.invert(pipe, latents, num_inference_steps=4, max_nfe=2, **call)
    assert list(pipe.unet.attn_processors) == list(own)
    assert all(pipe.unet.attn_processors[key] is one for key, one in own.items())


def test_outputs_of_generate_are_the_pipelines_own(turbo, plain):
    for kind, check in (
        ("pil", lambda x: x[0].size == (64, 64)),
        ("np", lambda x: x.shape == (1, 64, 64, 3)),
        ("pt", lambda x: x.shape == (1, 3, 64, 64)),
        ("latent", lambda x: x.shape == (1, 4, 16, 16)),
    ):
        assert check(nrinv.generate(turbo, plain, output_type=kind).images)
    assert isinstance(nrinv.generate(turbo, plain, return_dict=False), tuple)
