"""Calls that change on their way: the stock pipeline draws what the inversion says, or the call is refused by name."""

import diffusers
import pytest
import torch
from helpers import distance as distances

import nrinv
from nrinv import evidence

CALL = {"num_inference_steps": 4, "guidance_scale": 2.0}


@pytest.fixture
def ddim(base, monkeypatch):
    """The base model with a deterministic sampler of few steps, and nothing remembered of other tests."""
    monkeypatch.setattr(evidence, "_followed", {})
    base.scheduler = diffusers.DDIMScheduler.from_config(base.scheduler.config)
    own = dict(base.unet.attn_processors)
    yield base
    base.unet.set_attn_processor(own)
    vars(base.unet.mid_block).pop("forward", None)


def callback(function, *tensors):
    return {"callback_on_step_end": function, "callback_on_step_end_tensor_inputs": ["latents", *tensors]}


def prompt_fades(pipe, i, t, values):
    values["prompt_embeds"].mul_(0.9)
    return values


def rescale_begins(pipe, i, t, values):
    if i == 1:
        pipe._guidance_rescale = 0.7
    return values


def latents_fade(pipe, i, t, values):
    values["latents"].mul_(0.98)
    return values


def last_latents_change(pipe, i, t, values):
    return {"latents": values["latents"] * 0.9} if i == 3 else values


def reports(pipe, i, t, values):
    return values


class Counting:
    """An attention processor that does something else in the second half of its calls, as Prompt-to-Prompt does."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0

    def __call__(self, *args, **kwargs):
        self.calls = self.calls % 4 + 1
        return self.inner(*args, **kwargs) * (1.0 if self.calls <= 2 else 0.7)


def distance(drawn, z):
    return float((drawn.float() - z.float()).norm() / z.float().norm())


def redrawn(pipe, image, prompt, **given):
    """(inversion, how far from the latents the stock call ends)"""
    found = nrinv.invert(pipe, image, prompt, max_nfe=8, **CALL, **given)
    drawn = pipe(prompt, latents=found.latents, output_type="latent", **CALL, **given).images
    return found, distance(drawn, nrinv.encode(pipe, image))


def check_honest(pipe, held_out, order, **given):
    image, prompt = held_out[0][0], held_out[1][0]
    found, error = redrawn(pipe, image, prompt, **given)
    assert found.order == order and error < 2 * found.error[0] + 1e-5
    return found


@pytest.mark.parametrize("function", [prompt_fades, rescale_begins])
def test_a_callback_that_changes_the_call(ddim, held_out, function):
    found = check_honest(ddim, held_out, "passes", **callback(function, "prompt_embeds"))
    assert found.error[0] < 0.2


def test_a_callback_of_old_times(ddim, held_out):
    def legacy(i, t, latents):
        ddim._guidance_scale = 2.0 if i < 1 else 1.3

    check_honest(ddim, held_out, "passes", callback=legacy, callback_steps=1)


def test_a_callback_that_reports(ddim, held_out):
    found = check_honest(ddim, held_out, "reversed", **callback(reports))
    plain = nrinv.invert(ddim, held_out[0][0], held_out[1][0], max_nfe=8, **CALL)
    assert torch.equal(found.latents, plain.latents) and found.nfe[0] == plain.nfe[0] + 4
    other = nrinv.invert(ddim, held_out[0][0], held_out[1][0], max_nfe=8, verify=False, **CALL, **callback(reports))
    assert other.nfe[0] == other.step_nfe.sum() and not other.measured[0] and other.error[0] > 0


def test_a_processor_that_counts_its_calls(ddim, held_out):
    ddim.unet.set_attn_processor({name: Counting(one) for name, one in ddim.unet.attn_processors.items()})
    check_honest(ddim, held_out, "passes")
    again = nrinv.invert(ddim, held_out[0][0], held_out[1][0], max_nfe=2, **CALL)
    assert again.order == "passes" and again.nfe[0] <= 3 * 4  # what was found is not looked for again
    assert {one.calls for one in ddim.unet.attn_processors.values()} == {4}  # as the stock calls have left them


def test_a_block_that_is_evaluated_every_second_time(ddim, held_out):
    block, kept = ddim.unet.mid_block, []
    forward = block.forward

    def cached(*args, **kwargs):
        if len(kept) % 2 == 0:
            kept.append(forward(*args, **kwargs))
        else:
            kept.append(kept[-1])
        return kept[-1]

    block.forward = cached
    check_honest(ddim, held_out, "passes")


@pytest.mark.parametrize("function", [latents_fade, last_latents_change])
@pytest.mark.parametrize("order", ["auto", "passes"])
def test_a_callback_that_changes_the_latents_is_refused(ddim, held_out, function, order):
    with pytest.raises(ValueError, match=r"pipe: .*(changes the latents|because of callback_on_step_end=latents_fade)"):
        nrinv.invert(ddim, held_out[0][0], held_out[1][0], order=order, max_nfe=4, **CALL, **callback(function))


def second_loop(call, out, latents, arguments):
    again = {**arguments, "latents": out.images / 2 + latents / 2, "num_inference_steps": 2}
    return call(**again)


def after_the_loop(call, out, latents, arguments):
    out.images = out.images * 0.9
    return out


@pytest.mark.parametrize("order", ["auto", "passes"])
@pytest.mark.parametrize("change", [second_loop, after_the_loop, None])
def test_a_pipeline_of_the_users_that_does_more_than_its_loop_is_refused(ddim, held_out, change, order):
    class Mine(type(ddim)):
        def __call__(self, *args, **kwargs):
            latents = kwargs.get("latents")
            if change is None:
                return super().__call__(*args, **{**kwargs, "latents": latents.flip(-1)})
            return change(super().__call__, super().__call__(*args, **kwargs), latents, kwargs)

    pipe = Mine(**ddim.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    with pytest.raises(ValueError, match=r"pipe: Mine cannot .*: it (sets its timesteps again|changes the latents)"):
        nrinv.invert(pipe, held_out[0][0], held_out[1][0], order=order, max_nfe=4, **CALL)


class Keywords(diffusers.DDIMScheduler):
    def step(self, model_output, timestep, sample, **keywords):
        return super().step(model_output, timestep, sample, **keywords)


class Anything(diffusers.DDIMScheduler):
    def step(self, *args, **kwargs):
        return super().step(*args, **kwargs)

    def set_timesteps(self, *args, **kwargs):
        return super().set_timesteps(*args, **kwargs)


@pytest.mark.parametrize("cls", [Keywords, Anything])
def test_schedulers_of_the_users_that_pass_their_arguments_on(ddim, held_out, cls):
    plain = nrinv.invert(ddim, held_out[0][0], held_out[1][0], max_nfe=8, **CALL)
    ddim.scheduler = cls.from_config(ddim.scheduler.config)
    found = check_honest(ddim, held_out, "reversed")
    assert torch.equal(found.latents, plain.latents)


@pytest.mark.parametrize("method", ["step", "set_timesteps", "scale_model_input"])
def test_methods_replaced_on_a_scheduler_are_refused_before_the_network_runs(ddim, held_out, method):
    own, calls = getattr(ddim.scheduler, method), []
    setattr(ddim.scheduler, method, lambda *args, **kwargs: own(*args, **kwargs))
    hook = ddim.unet.register_forward_hook(lambda *args: calls.append(1))
    try:
        with pytest.raises(ValueError, match=f"scheduler: the {method} of this DDIMScheduler is replaced on the object"):
            nrinv.invert(ddim, held_out[0][0], held_out[1][0], **CALL)
    finally:
        hook.remove()
    assert not calls


def test_a_step_that_hides_its_arguments_is_refused(ddim, held_out, monkeypatch):
    own = diffusers.DDIMScheduler.step
    monkeypatch.setattr(diffusers.DDIMScheduler, "step", lambda *args, **kwargs: own(*args, **kwargs))
    with pytest.raises(ValueError, match=r"DDIMScheduler.step does not name its arguments.*functools.wraps"):
        nrinv.invert(ddim, held_out[0][0], held_out[1][0], **CALL)


# ---------------------------------------------------------------------------------------------------------------- the error


def stock_errors(pipe, found, images, captions, call):
    drawn = pipe(captions, latents=found.latents, output_type="latent", **call).images
    return distances(drawn, nrinv.encode(pipe, images))


def test_the_error_is_estimated_where_that_is_good_enough(turbo, held_out):
    images, captions, _ = held_out
    call = {"num_inference_steps": 4, "guidance_scale": 1.0}
    found = nrinv.invert(turbo, images[:4], captions[:4], **call)
    errors = stock_errors(turbo, found, images[:4], captions[:4], call)
    assert not found.measured.any() and (found.nfe <= 17).all()
    assert all(e / 1.5 < said < 1.5 * e for e, said in zip(errors.tolist(), found.error, strict=True))
    assert "estimated" in repr(found)


def test_the_error_is_measured_where_a_step_stretches_differences(ddim, held_out):
    images, captions, _ = held_out
    call = {"num_inference_steps": 10, "guidance_scale": 7.5}
    found = nrinv.invert(ddim, images[:2], captions[:2], **call)
    errors = stock_errors(ddim, found, images[:2], captions[:2], call)
    assert found.measured.all() and "measured" in repr(found)
    assert errors.tolist() == pytest.approx(found.error.tolist(), rel=0.05)
