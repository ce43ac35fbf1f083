"""What a stock pipeline needs while an inversion drives it, and what it tells about itself.

Nothing here knows a pipeline by name except the tables, each entry with its reason.
"""

import ast
import functools
import inspect
import sys
import textwrap
import types
from contextlib import ExitStack, contextmanager
from functools import partial

import torch


def rebind(function, **names):
    """`function` with other values for some of its global names: patching its module would reach every other caller."""
    rebound = types.FunctionType(
        function.__code__, {**function.__globals__, **names}, function.__name__, function.__defaults__, function.__closure__
    )
    rebound.__kwdefaults__ = function.__kwdefaults__
    rebound.__annotations__ = function.__annotations__
    return rebound


def networks(pipe):
    """The modules of a pipeline."""
    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def parameters(pipe):
    """The parameters of the pipeline's call, by name; those it passes on to the class it is derived from among them."""
    found = {}
    for cls in type(pipe).__mro__:
        if "__call__" in vars(cls):
            own = inspect.signature(vars(cls)["__call__"]).parameters
            found = {**own, **found}
            if not any(one.kind is inspect.Parameter.VAR_KEYWORD for one in own.values()):
                break
    return found


def slices(pipe):
    """Whether the pipeline takes its part of the timesteps itself, as img2img pipelines do."""
    return "strength" in parameters(pipe)


@contextmanager
def swapped_scheduler(pipe, scheduler):
    """`pipe` with another scheduler; whatever happens, it has its own back afterwards.

    Goes around DiffusionPipeline.__setattr__, which would record the other class in the pipeline's configuration.
    """
    own = pipe.scheduler
    vars(pipe)["scheduler"] = scheduler
    try:
        yield scheduler
    finally:
        vars(pipe)["scheduler"] = own


@contextmanager
def kept_processors(pipe):
    """Attention processors a pipeline exchanges for the time of its loop (PAG, SAG) come back when the loop is left."""
    own = [(module, module.attn_processors) for module in networks(pipe) if hasattr(module, "attn_processors")]
    try:
        yield
    finally:
        for module, processors in own:
            now = module.attn_processors
            if any(now.get(name) is not processor for name, processor in processors.items()):
                module.set_attn_processor(dict(processors))


@contextmanager
def gradients(pipe, wanted):
    """What to call the pipeline by; where gradients are wanted, those of the latents alone.

    Pipelines switch gradients off by a decorator.  Parameters are frozen meanwhile: their gradients would only cost memory.
    """
    if not wanted:
        yield pipe
        return
    trained = [p for module in networks(pipe) for p in module.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield partial(inspect.unwrap(type(pipe).__call__), pipe)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


class RandomState:
    """The state of the caller's generators and of the global ones: a call that is repeated must draw the same again."""

    def __init__(self, generator):
        one = [generator] if isinstance(generator, torch.Generator) else list(generator or [])
        self._own = [(each, each.get_state()) for each in one]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else None

    def restore(self):
        for generator, state in self._own:
            generator.set_state(state)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)


# ------------------------------------------------------------------------------------------------ samples that are done


def _select(value, rows, mask, lists):
    """The running samples' rows of an argument of a network; lists: whether samples come as lists of tensors."""
    if isinstance(value, torch.Tensor):
        return value[mask.to(value.device)] if value.ndim and value.shape[0] == rows else value
    if isinstance(value, dict):
        return {name: _select(one, rows, mask, lists) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        if lists and len(value) == rows:
            return type(value)(one for one, runs in zip(value, mask.tolist(), strict=True) if runs)
        return type(value)(_select(one, rows, mask, lists) for one in value)
    return value


def _scatter(value, mask, lists):
    """A network's output for all samples, zero where it has not been evaluated."""
    if isinstance(value, torch.Tensor):
        if not value.ndim or value.shape[0] != int(mask.sum()):
            return value
        whole = value.new_zeros((len(mask), *value.shape[1:]))
        whole[mask.to(value.device)] = value
        return whole
    if isinstance(value, dict):  # BaseOutput among them
        for name in list(value):
            value[name] = _scatter(value[name], mask, lists)
        return value
    if isinstance(value, (list, tuple)):
        if lists and len(value) == int(mask.sum()):
            running = iter(value)
            return type(value)(next(running) if runs else torch.zeros_like(value[0]) for runs in mask.tolist())
        return type(value)(_scatter(one, mask, lists) for one in value)
    return value


def _tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _tensors(one)


class _Compaction:
    """Hooks of one module: evaluate the rows of the samples that still run, and no others."""

    def __init__(self, active):
        self._active = active
        self._mask = None

    def before(self, module, args, kwargs):
        self._mask, active = None, self._active()
        if active is None or active.all():
            return None
        first = next(iter([*args, *kwargs.values()]), None)
        self._lists = isinstance(first, (list, tuple))
        rows = len(first) if self._lists or (isinstance(first, torch.Tensor) and first.ndim > 1) else 0
        # Guidance stacks copies of the whole batch.  Rows of another count, as one per frame, cannot be told apart.
        if rows == 0 or rows % len(active):
            return None
        if any(x.ndim > 2 and x.shape[0] != rows and x.shape[0] % rows == 0 for x in _tensors([args, kwargs])):
            return None
        self._mask = torch.from_numpy(active).repeat(rows // len(active))
        fixed = {name: one for name, one in kwargs.items() if name in ("img_ids", "txt_ids")}  # positions, not samples
        args, kwargs = _select((args, kwargs), rows, self._mask, self._lists)
        return args, {**kwargs, **fixed}

    def after(self, module, args, kwargs, output):
        return None if self._mask is None else _scatter(output, self._mask, self._lists)


@contextmanager
def compaction(pipe, active):
    """Networks evaluate only the samples that still run: active() is a bool array [B], or None for all.

    Compiled networks are left alone: each count of samples would be compiled anew.
    """
    with ExitStack() as hooks:
        for module in networks(pipe):
            compiled = isinstance(module, torch._dynamo.OptimizedModule) or module._compiled_call_impl is not None
            if not compiled:
                hook = _Compaction(active)
                hooks.callback(module.register_forward_pre_hook(hook.before, with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(hook.after, with_kwargs=True).remove)
        yield


# ------------------------------------------------------------------------------------------------------ what a loop reads

_HARMLESS_CALLS = {"update", "callback", "mark_step", "len", "getattr", "callback_on_step_end"}


def _names(node):
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def _called(node):
    calls = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "?") for func in calls}


def _is_report(node):
    """An `if` that does nothing but move the progress bar or call the user back, or the call itself."""
    if isinstance(node, ast.If):
        return not node.orelse and all(_called(one) <= _HARMLESS_CALLS for one in node.body) and bool(_called(node))
    return isinstance(node, ast.Assign) and _called(node) == {"callback_on_step_end"}


def _uses(node, name):
    """Whether `node` reads `name` for anything but reports."""
    if _is_report(node):
        return False
    if isinstance(node, ast.Name):
        return node.id == name
    return any(_uses(child, name) for child in ast.iter_child_nodes(node))


def reads_index(pipe):
    """Whether the loop over the timesteps reads its own index for more than reports; True if that cannot be known.

    Such a loop may do something else in each of its rounds (ControlNets switched on and off, truncated guidance), which the
    timestep alone does not tell: an inversion that visits the timesteps in another order has to be checked.
    """
    return _reads_index(type(pipe))


@functools.cache
def _reads_index(cls):
    if not cls.__module__.startswith("diffusers."):
        return True
    tree = _call_tree(cls)
    if tree is None:
        return True
    slices = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice)]
    if not hasattr(cls, "num_timesteps") and any(_names(node.value) & {"timesteps"} for node in slices):
        return True  # it takes some of the timesteps, and does not tell how many
    loops = _step_loops(tree)
    for loop in loops:
        target = loop.target.elts[0] if isinstance(loop.target, ast.Tuple) else loop.target
        if not isinstance(target, ast.Name) or any(_uses(node, target.id) for node in loop.body):
            return True
    return not loops


def _call_tree(cls):
    """The syntax tree of the pipeline's call; None if its source cannot be had."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.__call__))))
    except (OSError, TypeError, SyntaxError):
        return None


def _step_loops(tree):
    """The innermost loops in which a scheduler is stepped."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For) and "step" in _called(node)]
    return [loop for loop in loops if not any(one in loops for node in loop.body for one in ast.walk(node))]


@functools.cache
def guides_each_step(cls):
    """Whether the loop of a pipeline's class reads `guidance_scale` from the pipeline in each of its rounds."""
    tree = _call_tree(cls)
    read = [
        node.attr
        for loop in (_step_loops(tree) if tree else [])
        for node in ast.walk(loop)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    ]
    return bool({"guidance_scale", "_guidance_scale"} & set(read))


# ---------------------------------------------------------------------------------------------------------------- prompts


class _Encoded(BaseException):
    """Ends a pipeline's call when its prompts are encoded.  Not an Exception, so that no handler in between takes it."""


def _assigned(frame):
    """The names that the line a frame is at assigns to: `prompt_embeds, ... = self.encode_prompt(...)`."""
    lines, first = inspect.getsourcelines(frame.f_code)
    line = frame.f_lineno - first + 1
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(node, ast.Assign) and node.lineno <= line <= node.end_lineno:
            target = node.targets[0]
            return [getattr(one, "id", None) for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return []


@contextmanager
def _replaced(owner, **values):
    """Attributes of an instance, for a time; goes around DiffusionPipeline.__setattr__."""
    own = {name: vars(owner)[name] for name in values if name in vars(owner)}
    vars(owner).update(values)
    try:
        yield
    finally:
        for name in values:
            vars(owner).pop(name, None)
        vars(owner).update(own)


@torch.no_grad()
def prompt_embeddings(pipe, call):
    """The tensors, by the names of the pipeline's arguments, that its own `encode_prompt` makes of the prompts of a call.

    The stock call runs until it sets its timesteps; no network but the text encoders is evaluated.  Raises ValueError if
    the pipeline takes no embeddings, or has encoded nothing by then.
    """
    known, found = parameters(pipe), {}
    encode = getattr(pipe, "encode_prompt", None)
    if encode is None or not any(name.endswith("prompt_embeds") for name in known):
        raise ValueError(f"pipe: {type(pipe).__name__} takes no embeddings of prompts")

    def watched(*args, **kwargs):
        result = encode(*args, **kwargs)
        names = _assigned(sys._getframe(1))
        values = result if isinstance(result, tuple) else (result,)
        for name, value in zip(names, values, strict=False):
            if name in known and isinstance(value, torch.Tensor):
                found[name] = value.detach()
        return result

    @functools.wraps(pipe.scheduler.set_timesteps)  # pipelines look at its signature
    def stop(*args, **kwargs):
        raise _Encoded

    arguments = {name: value for name, value in call.items() if name in known}
    with _replaced(pipe, encode_prompt=watched), _replaced(pipe.scheduler, set_timesteps=stop):
        try:
            pipe(**arguments)
        except _Encoded:
            pipe.maybe_free_model_hooks()
    if not found:
        raise ValueError(f"pipe: {type(pipe).__name__} does not encode its prompts before it sets its timesteps")
    return found
