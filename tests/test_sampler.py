"""read_sampler and draw_noises: the linear form and its noises equal what the scheduler itself does."""

import copy
import inspect

import diffusers
import numpy as np
import pytest
import torch
import zoo.schedulers as zoo
from zoo.installed import existing

import nrinv
from nrinv.sampler import draw_noises, start_at, with_noise

STOCHASTIC = [name for name, config in zoo.SCHEDULERS.items() if config.stochastic]
make = zoo.make


def network(x, timestep):
    return 0.7 * torch.tanh(x) + 0.1 * x.roll(1, -1)


def stock(scheduler, sample, count, *, start=0, step_kwargs=None, **given):
    """Step the scheduler as its pipelines do; its states and network outputs."""
    parameters = inspect.signature(scheduler.step).parameters
    timesteps = start_at(scheduler, start)[:count]
    states, outputs, denoised = [sample], [], None
    for j, t in enumerate(timesteps):
        told = {key: value for key, value in {**given, **(step_kwargs or {})}.items() if key in parameters}
        if "prev_timestep" in parameters:
            told["prev_timestep"] = timesteps[j + 1] if j + 1 < count else None
        if "old_pred_original_sample" in parameters:
            told |= {"old_pred_original_sample": denoised, "timestep_back": timesteps[j - 1] if j else None}
        if isinstance(scheduler, diffusers.DDPMWuerstchenScheduler):
            t = t.expand(len(sample))
        x = scheduler.scale_model_input(states[-1], t) if hasattr(scheduler, "scale_model_input") else states[-1]
        outputs.append(network(x, t))
        result = scheduler.step(model_output=outputs[-1], timestep=t, sample=states[-1], return_dict=False, **told)
        states.append(result[0])
        denoised = result[-1]
    return states, outputs


def noise_like(scheduler, dtype=torch.float64, batch=2):
    sample = torch.randn(batch, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (sample * float(getattr(scheduler, "init_noise_sigma", 1.0))).to(dtype)


def replayed(sampler, states, outputs, noises):
    """The largest relative error of the linear form's states."""
    basis = torch.stack([states[0], *outputs, *noises]).double().flatten(1)
    expected = torch.stack(states).double().flatten(1)
    got = torch.from_numpy(sampler.states) @ basis
    return float(((got - expected).norm(dim=1) / expected.norm(dim=1)).max())


@pytest.mark.parametrize(("name", "steps"), [(name, n) for name, one in zoo.SCHEDULERS.items() for n in one.steps])
def test_the_linear_form_and_its_noises_replay_the_trajectory(name, steps):
    config, scheduler = zoo.SCHEDULERS[name], zoo.prepare(name, steps)
    sampler = nrinv.read_sampler(scheduler, step_kwargs=config.step_kwargs)
    assert (sampler.num_noises > 0) == config.stochastic
    sample, ends = noise_like(scheduler), []
    for draws in (True, False):  # from the same seeds, that of the global generator included
        torch.manual_seed(2)
        generator = torch.Generator().manual_seed(1)
        given = {"generator": generator, "step_kwargs": config.step_kwargs}
        if draws:
            noises = draw_noises(scheduler, sample, **given)
        else:
            states, outputs = stock(scheduler, sample, len(sampler), **given)
        ends.append((generator.get_state(), torch.random.get_rng_state()))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert len(noises) == sampler.num_noises
    assert replayed(sampler, states, outputs, noises) < 1e-6


@pytest.mark.parametrize("generators", ["a list", "global"])
@pytest.mark.parametrize("name", STOCHASTIC)
def test_noises_in_single_precision_with_other_generators(name, generators):
    config, scheduler = zoo.SCHEDULERS[name], zoo.prepare(name)
    sampler = nrinv.read_sampler(scheduler, step_kwargs=config.step_kwargs)
    sample = noise_like(scheduler, torch.float32)

    def given():
        torch.manual_seed(5)
        generator = [torch.Generator().manual_seed(seed) for seed in (3, 4)] if generators == "a list" else None
        return {"generator": generator, "step_kwargs": config.step_kwargs}

    noises = draw_noises(scheduler, sample, **given())
    after = torch.random.get_rng_state()
    assert all(noise.dtype == torch.float32 and noise.shape == sample.shape for noise in noises)
    states, outputs = stock(scheduler, sample, len(sampler), **given())
    assert torch.equal(after, torch.random.get_rng_state())
    # The scheduler rounds each state to single precision, and at zero SNR it starts from states of size 4096.
    assert replayed(sampler, states, outputs, noises) < (1e-4 if "zero snr" in name else 2e-5)


def test_noises_have_the_dtype_the_pipeline_steps_in():
    sample = torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)
    for name in ("ddim, eta", "euler ancestral", "lcm", "dpm sde"):
        noises = draw_noises(zoo.prepare(name), sample, step_kwargs=zoo.SCHEDULERS[name].step_kwargs)
        assert {noise.dtype for noise in noises} == {torch.bfloat16}, name


def test_noises_of_a_part():
    scheduler, sample = zoo.prepare("lcm", 6), torch.zeros(1, 4, 8, 8)
    whole, part = (
        draw_noises(scheduler, sample, generator=torch.Generator().manual_seed(1), **part)
        for part in ({}, {"start": 1, "stop": 4})
    )
    assert (len(whole), len(part)) == (5, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole, part, strict=False))


@pytest.mark.parametrize("name", ["ddpm, fixed_small", "dpm sde", "cosine dpm 2", "kdpm2 ancestral", "cogvideox dpm"])
def test_with_noise_hands_out_what_was_drawn(name):
    scheduler = zoo.prepare(name)
    sample = noise_like(scheduler)
    noises = draw_noises(scheduler, sample, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    before, left = torch.random.get_rng_state(), iter(noises)
    clone = with_noise(scheduler, lambda shape, *args, **kwargs: next(left))
    assert isinstance(clone, type(scheduler))
    assert inspect.signature(clone.step) == inspect.signature(scheduler.step)
    count = len(nrinv.read_sampler(scheduler))
    states, outputs = stock(clone, sample, count)
    assert next(left, None) is None and torch.equal(before, torch.random.get_rng_state())
    assert replayed(nrinv.read_sampler(scheduler), states, outputs, noises) < 1e-6


def test_the_local_form_is_the_global_one_substituted():
    sampler = nrinv.read_sampler(make("unipc 2 bh2"), 10)
    rng = np.random.default_rng(0)
    noise, outputs = rng.standard_normal(16), rng.standard_normal((10, 16))
    states = [noise]
    for row in sampler.steps:
        states.append(sum(row[k] * s for k, s in enumerate(states)) + row[10:20] @ outputs)
    np.testing.assert_allclose(sampler.states @ np.vstack([noise[None], outputs]), states, rtol=1e-9, atol=1e-9)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("name", zoo.REFUSED)
def test_what_is_no_linear_sampler_is_refused_by_name(name):
    cls, config, message = zoo.REFUSED[name]
    scheduler = existing(cls)(**config)
    with pytest.raises(ValueError, match=message) as caught:
        nrinv.read_sampler(scheduler, 4)
    assert str(caught.value).startswith("scheduler: ") and cls in str(caught.value)


def test_every_scheduler_of_diffusers_is_in_one_of_the_tables():
    known = {config.cls for config in zoo.SCHEDULERS.values()} | {cls for cls, _, _ in zoo.REFUSED.values()}
    found = {name for name in dir(diffusers.schedulers) if name.endswith("Scheduler") and not name.startswith("Flax")}
    assert found <= known


def test_a_scheduler_of_another_make_is_refused_with_its_own_words():
    class OwnScheduler(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, **kwargs):
            raise RuntimeError("no such thing")

    with pytest.raises(ValueError, match="OwnScheduler cannot be inverted: its step raised RuntimeError: no such") as caught:
        nrinv.read_sampler(OwnScheduler(clip_sample=False), 4)
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_noise_that_a_derived_class_lets_its_base_draw_is_seen():
    class OwnScheduler(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, eta=1.0, repeat=1, return_dict=True):
            for _ in range(repeat):
                result = super().step(model_output, timestep, sample, eta=eta, return_dict=return_dict)
            return result

    scheduler = OwnScheduler(clip_sample=False)
    assert nrinv.read_sampler(scheduler, 4).num_noises == 4
    with pytest.raises(ValueError, match=r"OwnScheduler cannot be inverted: .* draws noise more than 2 times a step"):
        nrinv.read_sampler(scheduler, 4, step_kwargs={"repeat": 4})


def test_third_order_sde_steps_that_diffusers_has_not_are_refused_where_they_are_due():
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(solver_order=3, algorithm_type="sde-dpmsolver++")
    assert len(nrinv.read_sampler(scheduler, 3)) == 3
    with pytest.raises(ValueError, match=r"its step raised UnboundLocalError.*use DDIMScheduler"):
        nrinv.read_sampler(scheduler, 10)


def test_options_of_another_class_count_for_nothing():
    inverted = make("flow euler, inverted").config
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler.from_config(inverted)
    assert scheduler.config["invert_sigmas"]
    levels = nrinv.read_sampler(scheduler, 4).levels
    np.testing.assert_array_equal(levels, nrinv.read_sampler(diffusers.FlowMatchHeunDiscreteScheduler(), 4).levels)
    learned = diffusers.DDPMScheduler(variance_type="learned_range").config
    assert len(nrinv.read_sampler(diffusers.EulerDiscreteScheduler.from_config(learned), 4)) == 4


def test_a_scheduler_without_timesteps_is_refused():
    for name in ("ddim, leading", "euler", "flow euler", "minimax h3", "wuerstchen", "dpmsolver++ 2"):
        for call in (nrinv.read_sampler, lambda one: draw_noises(one, torch.zeros(1, 4, 8, 8))):
            with pytest.raises(ValueError, match="has no timesteps: call set_timesteps or pass num_inference_steps"):
                call(make(name))


def test_a_scheduler_in_the_middle_of_a_run_and_a_part_out_of_range_are_refused():
    scheduler = zoo.prepare("euler", 4)
    with pytest.raises(ValueError, match=r"start must be in 0\.\.3, got 4"):
        nrinv.read_sampler(scheduler, start=4)
    for bad in (1, 5):
        with pytest.raises(ValueError, match=rf"stop must be in 2\.\.4, got {bad}"):
            nrinv.read_sampler(scheduler, start=1, stop=bad)
    x = torch.zeros(1, 4, 8, 8)
    scheduler.scale_model_input(x, scheduler.timesteps[0])
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="has already been stepped"):
        nrinv.read_sampler(scheduler)
    with pytest.raises(ValueError, match="has already been stepped"):
        draw_noises(scheduler, x)
    scheduler = zoo.prepare("pndm", 4)  # which counts in a way of its own
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(ValueError, match="has already been stepped"):
        nrinv.read_sampler(scheduler)
    for bad in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="num_inference_steps must be"):
            nrinv.read_sampler(make("euler"), bad)


# --------------------------------------------------------------------------------------------------- the scheduler itself


@pytest.mark.parametrize("name", ["dpmsolver++ 2", "heun", "flow heun", "dpm sde", "pndm", "lms"])
def test_the_scheduler_it_is_given_is_not_touched(name):
    scheduler = zoo.prepare(name, 7)
    cls, before = type(scheduler), copy.deepcopy(vars(scheduler))
    nrinv.read_sampler(scheduler, start=2)
    draw_noises(scheduler, torch.zeros(1, 4, 8, 8))
    after = vars(scheduler)
    assert type(scheduler) is cls and before.keys() == after.keys()
    for key, value in before.items():
        same = torch.equal(value, after[key]) if isinstance(value, torch.Tensor) else np.array_equal(value, after[key])
        assert same, key


def test_a_scheduler_that_has_been_run_is_as_good_as_new_after_set_timesteps():
    for name in ("dpm sde", "cosine dpm 2", "unipc 2 bh2", "flow heun", "lms", "pndm"):
        fresh = nrinv.read_sampler(zoo.prepare(name, 6))
        scheduler = zoo.prepare(name, 5)
        stock(scheduler, noise_like(scheduler), len(scheduler.timesteps))
        scheduler.set_timesteps(6)
        np.testing.assert_array_equal(nrinv.read_sampler(scheduler).steps, fresh.steps)


def test_reading_draws_nothing_from_the_global_generator():
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    for name in ("euler ancestral", "dpm sde", "cosine dpm 2"):
        nrinv.read_sampler(make(name), 4)
    assert torch.equal(state, torch.random.get_rng_state())


# -------------------------------------------------------------------------------------------------------- parts and levels


@pytest.mark.parametrize(
    "name", ["ddim, leading", "euler", "dpmsolver++ 2", "unipc 2 bh2", "heun", "flow euler", "flow heun"]
)
def test_a_part_replays_the_part(name):
    scheduler = zoo.prepare(name, 10)
    start, stop = 3, 7  # a whole number of Heun's steps
    part, whole = nrinv.read_sampler(scheduler, start=start, stop=stop), nrinv.read_sampler(scheduler)
    assert len(part) == stop - start
    np.testing.assert_array_equal(part.timesteps, whole.timesteps[start:stop])
    np.testing.assert_allclose(part.levels, whole.levels[start : stop + 1], rtol=1e-6, atol=1e-7)
    states, outputs = stock(scheduler, noise_like(scheduler), stop - start, start=start)
    assert replayed(part, states, outputs, []) < 1e-6


def test_the_end_is_clean_only_if_it_is_the_end():
    scheduler = zoo.prepare("ddim, trailing", 5)
    assert tuple(nrinv.read_sampler(scheduler, stop=5).levels[-1]) == (1, 0)
    signal, noise = nrinv.read_sampler(scheduler, stop=4).levels[-1]
    assert 0 < noise < 1 and signal**2 + noise**2 == pytest.approx(1)


def test_the_end_of_the_last_step_is_no_evaluation():
    for name in ("scm, any steps", "wuerstchen"):
        scheduler = zoo.prepare(name, 4)
        assert len(scheduler.timesteps) == 5
        for stop in (None, 4):
            assert len(nrinv.read_sampler(scheduler, stop=stop)) == 4


@pytest.mark.parametrize("name", zoo.SCHEDULERS)
def test_levels_are_none_or_fall_to_a_clean_image(name):
    sampler = nrinv.read_sampler(zoo.prepare(name), step_kwargs=zoo.SCHEDULERS[name].step_kwargs)
    if sampler.levels is None:
        assert name.startswith(("ipndm", "scm", "helios", "consistency decoder")) or name.endswith("inverse")
        return
    signal, noise = sampler.levels.T
    assert (signal >= 0).all() and (np.diff(noise) <= 1e-6).all() and noise[0] > 0.6
    assert tuple(sampler.levels[-1]) == (1, 0)
    if not name.startswith(("edm", "cosine", "consistency")):  # these have data of another variance
        seen = sampler.inputs * np.hypot(signal, noise)[:-1]
        assert (0.7 < seen).all() and (seen < 1.002).all()


def test_ddim_with_eta_draws_noise():
    assert nrinv.read_sampler(make("ddim, leading"), 5, step_kwargs={"eta": 1.0}).num_noises == 5


def test_zero_terminal_snr_has_a_way_back_although_its_last_state_forgets_the_noise():
    sampler = nrinv.read_sampler(make("ddim, zero snr"), 10)
    assert sampler.singular == ()
    single = nrinv.read_sampler(make("ddim, zero snr"), 1)
    assert single.singular == (0,)
    with pytest.raises(ValueError, match="step 0 of 1 cannot be inverted: the coefficient of the step's own state is 0"):
        nrinv.Inversion(single, np.zeros((1, 4), np.float32))
