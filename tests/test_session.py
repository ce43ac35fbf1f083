"""What is done to a pipeline while it is driven, and what is read off it, each on its own."""

import diffusers
import numpy as np
import pytest
import torch
from zoo.installed import existing

import nrinv
from nrinv.compaction import compaction
from nrinv.derived import Left
from nrinv.layout import Layout, learn_layout, proportion
from nrinv.loops import reads_index
from nrinv.session import RandomState, kept_processors


class Fake:
    """As much of a pipeline as the host looks at."""

    def __init__(self, **components):
        self.components = components


# ------------------------------------------------------------------------------------------------------------ loop indices


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("StableDiffusionPipeline", False),
        ("StableDiffusionXLPipeline", False),
        ("FluxPipeline", False),
        ("PixArtSigmaPipeline", False),
        ("StableDiffusionControlNetPipeline", True),  # control_guidance_start, control_guidance_end
        ("StableDiffusionXLAdapterPipeline", True),  # adapter_conditioning_factor
        ("StableDiffusionGLIGENPipeline", True),  # gligen_scheduled_sampling_beta
        ("StableDiffusion3Pipeline", True),  # skip_guidance_layers
        ("Lumina2Pipeline", True),  # cfg_trunc_ratio
        ("Flux2KleinKVPipeline", True),  # its first round fills a cache
    ],
)
def test_loops_that_read_their_index_are_known_by_their_code(name, reads):
    assert reads_index(existing(name)) is reads


def test_code_that_is_not_of_diffusers_is_not_trusted():
    class Mine(diffusers.StableDiffusionPipeline):
        pass

    assert reads_index(Mine)


# -------------------------------------------------------------------------------------------------------- rows of a batch


class Network(torch.nn.Module):
    """Counts the rows it evaluates; each row of its output depends on that row of every input."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def forward(self, sample, timestep, text=None, extra=None, ids=None, img_ids=None):
        self.rows.append(len(sample))
        out = sample * 2 + timestep
        out = out + text.mean((1, 2)).reshape(-1, 1) if text is not None else out
        out = out + extra["ids"][:, :1] if extra else out
        return (out,)


def inputs(rows):
    generator = torch.Generator().manual_seed(0)
    x, text, ids = (torch.randn(*shape, generator=generator) for shape in ((rows, 5), (rows, 3, 2), (rows, 4)))
    return (x, torch.tensor(3.0)), {"text": text, "extra": {"ids": ids}, "img_ids": torch.zeros(rows, 3)}


@pytest.mark.parametrize("copies", [1, 2])
def test_only_running_samples_are_evaluated(copies):
    network, active = Network(), np.array([True, False, True, False])
    args, kwargs = inputs(4 * copies)
    (whole,) = network(*args, **kwargs)
    with compaction(Fake(unet=network), lambda: active):
        (some,) = network(*args, **kwargs)
    running = np.tile(active, copies)
    assert network.rows == [4 * copies, 2 * copies]
    assert torch.equal(some[running], whole[running]) and not some[~running].any()
    assert not network._forward_hooks and not network._forward_pre_hooks


def test_rows_that_cannot_be_told_apart_are_all_evaluated():
    network, active = Network(), np.array([True, False])
    for sample, text in (
        (torch.zeros(2, 5), torch.zeros(6, 3, 2)[:2].repeat(3, 1, 1)),
        (torch.zeros(3, 5), torch.zeros(3, 3, 2)),
    ):
        with compaction(Fake(unet=network), lambda: active), pytest.raises(RuntimeError) if len(text) == 6 else _nothing():
            network(sample, 1.0, text=text)
        assert network.rows.pop() == len(sample)


def _nothing():
    from contextlib import nullcontext

    return nullcontext()


def test_samples_that_come_as_a_list():
    class Lists(torch.nn.Module):
        def forward(self, x, t):
            return [one * 2 for one in x]

    active = np.array([False, True, True])
    with compaction(Fake(transformer=Lists()), lambda: active):
        out = Fake(transformer=Lists()).components["transformer"]([torch.ones(2)] * 3, torch.ones(3))
    assert len(out) == 3
    network = Lists()
    with compaction(Fake(transformer=network), lambda: active):
        out = network([torch.ones(2), 2 * torch.ones(2), 3 * torch.ones(2)], torch.ones(3))
    assert [float(one[0]) for one in out] == [0, 4, 6]


@pytest.mark.parametrize("active", [[False, True], [False, False, True]])
def test_arguments_or_outputs_as_many_as_samples_are_no_list_of_samples(active):
    class Lists(torch.nn.Module):
        def forward(self, x, t, text):
            return ([one * 2 + len(x) + text[i] for i, one in enumerate(x)],)

    network, n = Lists(), len(active)
    with compaction(Fake(transformer=network), lambda: np.array(active)):
        (out,) = network([torch.ones(2)] * n, torch.ones(n), text=[torch.ones(2)] * n)
    assert [float(one[0]) for one in out] == [4.0 * runs for runs in active]


def test_a_batch_evaluates_what_its_samples_need(turbo, held_out):
    """Mixed difficulty: the evaluations add up to those of single runs, in whole calls of the network."""
    images, captions, _ = held_out
    call = {"num_inference_steps": 4, "guidance_scale": 3.0, "max_nfe": 20, "tol": 3e-2, "verify": False}
    blank = [img.point(lambda v: 128) for img in images[:4]]
    rows = []
    hook = turbo.unet.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    try:
        found = nrinv.invert(turbo, images[:4] + blank, captions[:4] + [""] * 4, **call)
    finally:
        hook.remove()
    assert sum(rows) == 2 * found.nfe.sum()  # guidance evaluates each sample twice
    assert len(set(found.nfe)) > 1 and len(rows) < found.nfe.sum() and sum(rows) < 2 * 8 * len(rows)
    for b in range(8):
        single = nrinv.invert(turbo, (images[:4] + blank)[b], (captions[:4] + [""] * 4)[b], **call)
        assert single.nfe[0] == found.nfe[b]
        assert torch.allclose(single.latents[0], found.latents[b], atol=2e-3)


# ------------------------------------------------------------------------------------------------------------------ state


def test_processors_that_a_loop_exchanges_come_back(turbo):
    own = dict(turbo.unet.attn_processors)
    with pytest.raises(Left), kept_processors(turbo):
        turbo.unet.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
        raise Left
    assert all(turbo.unet.attn_processors[name] is one for name, one in own.items())


def test_random_states_come_back():
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    state = RandomState(generators)
    first = [torch.randn(3, generator=one) for one in generators] + [torch.randn(3)]
    state.restore()
    again = [torch.randn(3, generator=one) for one in generators] + [torch.randn(3)]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


# ----------------------------------------------------------------------------------------------------------------- layouts


def test_proportion():
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    assert proportion(x, x) == 1 and proportion(x, x * (1 + 1e-7)) == 1
    assert proportion(x, 80 * x) == pytest.approx(80)
    assert proportion(x, -x) is None and proportion(x, x.flip(0)) is None and proportion(x, x[:1]) is None
    assert proportion(x.bfloat16(), x.bfloat16() * 3) == pytest.approx(3, rel=1e-2)


def packed(latents):
    """[B, 4, 6, 6] -> [B, 9, 12], without the last channel: what a pipeline may do to its latents."""
    batch = len(latents)
    return latents[:, :3].reshape(batch, 3, 3, 2, 3, 2).permute(0, 2, 4, 1, 3, 5).reshape(batch, 9, 12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_layout_is_learnt_from_numbers(dtype):
    scheduler = diffusers.EulerDiscreteScheduler()
    calls = []

    def call(probe, codes):
        calls.append(codes)
        with pytest.raises(Left):
            probe.set_timesteps(4)
            probe.step(codes, probe.timesteps[0], packed(codes))

    latents = torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)).to(dtype)
    layout = learn_layout(scheduler, latents, call)
    assert len(calls) == 1 and torch.equal(layout.sample(latents), packed(latents))
    other = torch.randn(2, 9, 12, generator=torch.Generator().manual_seed(1))
    whole = layout.latents(other, latents)
    assert torch.equal(packed(whole), other.to(dtype)) and torch.equal(whole[:, 3], latents[:, 3])


def test_many_elements_take_several_digits():
    layout_calls = []

    def call(probe, codes):
        layout_calls.append(float(codes.max()))
        with pytest.raises(Left):
            probe.step(codes, 0, codes.flip(-1))

    latents = torch.zeros(1, 1, 20, 20, dtype=torch.bfloat16)
    layout = learn_layout(diffusers.EulerDiscreteScheduler(), latents, call)
    assert len(layout_calls) == 2 and max(layout_calls) < 256
    x = torch.randn(1, 1, 20, 20)
    assert torch.equal(layout.sample(x), x.flip(-1))


@pytest.mark.parametrize("spoil", [lambda x: x + 0.5, lambda x: x * 0, lambda x: x[:1]])
def test_a_sample_that_is_not_made_of_the_latents_is_refused(spoil):
    def call(probe, codes):
        with pytest.raises(Left):
            probe.step(codes, 0, spoil(codes))

    with pytest.raises(ValueError, match="which cannot be inverted"):
        learn_layout(diffusers.EulerDiscreteScheduler(), torch.zeros(2, 1, 4, 4), call)


def test_a_layout_without_index_scales():
    layout, x = Layout(80.0), torch.randn(1, 2, 3)
    assert layout.sample(x) is x
    assert torch.allclose(layout.latents(80 * x, x), x)
