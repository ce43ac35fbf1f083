"""Drives a stock pipeline with a scheduler in the place of its own: its calls, their arguments, and what they cost."""

import inspect

import diffusers
import numpy as np

from .compaction import compaction
from .derived import Left, Relayout, Repeat, Returned, Slice, Unfollowed
from .evidence import Counters, doubts
from .inverse import InverseScheduler
from .known import parameters
from .layout import image_size, learn_layout
from .session import RandomState, gradients, kept_processors, replaced


class Driver:
    """One batch on its way: the call that draws it, and the schedulers that take turns in making it.

    target: the latents [B, ...] that are worked on.  call: the pipeline's arguments, the prompt among them.  generator: as
    the pipeline takes it.  size: height and width of the image in pixels, as far as they are known.
    evaluations: how often the network has been called so far.  doubts: what may make a call another map than the one before.
    """

    def __init__(self, pipe, target, call, generator, size=(None, None)):
        self.pipe, self.name, self.target, self.generator = pipe, type(pipe).__name__, target, generator
        size = image_size(pipe, target, height=size[0], width=size[1])
        missing = {name: n for name, n in size.items() if call.get(name) is None}
        embedded = any("prompt_embeds" in name and not name.startswith("negative") for name in call)
        if call.get("prompt") is None and not embedded:
            missing["prompt"] = ""
        self.call = call.like({**call, **missing})
        self.arguments = self.call.spread().for_pipeline(pipe)
        self.random = RandomState(generator)
        self.doubts = doubts(pipe, self.call)
        self.counters = Counters(self.doubts)
        self.evaluations = 0

    def run(self, scheduler, start, *, with_gradients=False):
        """One call of the pipeline: the outcome with which the scheduler has left it, `Returned` if none did."""
        pipe, known = self.pipe, parameters(self.pipe)
        own = {"latents": start, "generator": self.generator, "output_type": "latent", "return_dict": True}
        own = {name: value for name, value in own.items() if name in known}
        self.random.restore()
        with (
            replaced(pipe, scheduler=scheduler),
            kept_processors(pipe),
            gradients(pipe, with_gradients) as call_pipe,
            compaction(pipe, lambda: getattr(scheduler, "active", None)),
        ):
            try:
                return Returned(call_pipe(**{**self.arguments, **own, **self._watched(scheduler)}))
            except Left as left:
                scheduler.check_alone()
                pipe.maybe_free_model_hooks()  # what the pipeline does after its loop
                return left.outcome
            finally:
                self.evaluations += scheduler.stepped
                scheduler.stepped, scheduler.entered = 0, False
                self.counters.restore()

    def _watched(self, scheduler):
        """The callback with an eye on it: one that changes the call does so at some index of the loop."""
        callback = self.arguments.get("callback_on_step_end")
        if not inspect.isroutine(callback) or getattr(scheduler, "driving", "passes") == "passes":
            return {}

        def watched(pipe, i, t, values):
            before, guidance = dict(values), getattr(pipe, "_guidance_scale", None)
            returned = callback(pipe, i, t, values) or {}
            changed = any(one is not before.get(name) for name, one in returned.items())
            if changed or guidance != getattr(pipe, "_guidance_scale", None):
                scheduler.leave("the callback changes the call at an index of the loop")
            return returned

        return {"callback_on_step_end": watched}

    def drive(self, task, *, doubtful=False):
        """(outcome, scheduler) of the calls that a task takes: `Done`, or `Unfollowed` in its order.

        doubtful: the order may not suit the pipeline, and errors of its loop may come from that.
        """
        known, with_gradients = {"layout": None, "part": None}, getattr(task.solver, "needs_gradients", False)
        while True:
            start = self.target.detach().clone().requires_grad_(with_gradients)
            scheduler = InverseScheduler(self.pipe.scheduler, self.pipe, self.target, start, task, **known)
            match self._repeat(scheduler, start, with_gradients, doubtful):
                case Slice(first, last):
                    known["part"] = first, last
                case Relayout():
                    if known["layout"] is not None:
                        raise ValueError(f"pipe: {self.name} changes its latents before its loop in a way of its own")
                    known["layout"] = learn_layout(self.pipe.scheduler, self.target, self.run)
                case outcome:
                    return outcome, scheduler

    def _repeat(self, scheduler, start, with_gradients, doubtful):
        """Call the pipeline until there is more to do than that."""
        while True:
            try:
                outcome = self.run(scheduler, start, with_gradients=with_gradients)
            except IndexError as error:  # a list with an entry for each round of the loop, which has got longer
                if not doubtful:
                    raise
                return Unfollowed(f"its loop raised IndexError: {error}")
            if isinstance(outcome, Returned):
                if getattr(self.pipe, "interrupt", False):
                    raise RuntimeError("pipe: its loop was interrupted before the inversion was done")
                outcome = scheduler.returned()
            if not isinstance(outcome, Repeat):
                return outcome

    def orders(self, order):
        """In which orders the pipeline may be driven, the best first."""
        callback = self.call.get("callback_on_step_end")
        if order != "auto":
            return (order,)
        if callable(callback) and not inspect.isroutine(callback):  # made to change the call at some index of the loop
            return ("passes",)
        return ("reversed", "passes")


def stock_scheduler(pipe, inv):
    """The scheduler the inversion was made with: the pipeline's own if it is that, else one of the same configuration."""
    own = pipe.scheduler
    if inv.scheduler is None:
        return own
    if type(own).__name__ == inv.scheduler and _comparable(own.config) == _comparable(inv.scheduler_config):
        return own
    cls = getattr(diffusers, str(inv.scheduler), None)
    if not (isinstance(cls, type) and issubclass(cls, diffusers.SchedulerMixin)):
        raise ValueError(f"inv: diffusers has no scheduler {inv.scheduler}; set it on the pipeline yourself")
    return cls.from_config(inv.scheduler_config)


def _comparable(config):
    """A configuration without diffusers' private entries, as it looks after a trip through JSON."""
    plain = {name: value for name, value in dict(config).items() if not name.startswith("_")}
    return {name: list(value) if isinstance(value, (tuple, np.ndarray)) else value for name, value in plain.items()}
