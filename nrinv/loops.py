"""What the code of a pipeline's loop tells."""

import ast
import functools
import inspect
import textwrap

from .known import HARMLESS_CALLS


def _called(node):
    calls = [one.func for one in ast.walk(node) if isinstance(one, ast.Call)]
    return {func.attr if isinstance(func, ast.Attribute) else getattr(func, "id", "?") for func in calls}


def _is_report(node):
    """An `if` that does nothing but move the progress bar or call the user back, or the call itself."""
    if isinstance(node, ast.If):
        return not node.orelse and all(_called(one) <= HARMLESS_CALLS for one in node.body) and bool(_called(node))
    return isinstance(node, ast.Assign) and _called(node) == {"callback_on_step_end"}


def _uses(node, name):
    """Whether `node` reads `name` for anything but reports."""
    if _is_report(node):
        return False
    if isinstance(node, ast.Name):
        return node.id == name
    return any(_uses(child, name) for child in ast.iter_child_nodes(node))


@functools.cache
def reads_index(cls):
    """Whether the loop of a pipeline's class reads its own index for more than reports; True if that cannot be known.

    Such a loop may do something else in each of its rounds (ControlNets switched on and off, truncated guidance), which the
    timestep alone does not tell: an inversion that visits the timesteps in another order has to be checked.
    """
    if not cls.__module__.startswith("diffusers."):
        return True
    tree = _call_tree(cls)
    slices = [node for node in ast.walk(tree) if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice)]
    if not hasattr(cls, "num_timesteps") and any(_uses(node.value, "timesteps") for node in slices):
        return True  # it takes some of the timesteps, and does not tell how many
    loops = _step_loops(tree)
    for loop in loops:
        target = loop.target.elts[0] if isinstance(loop.target, ast.Tuple) else loop.target
        if not isinstance(target, ast.Name) or any(_uses(node, target.id) for node in loop.body):
            return True
    return not loops


def _call_tree(cls):
    """The syntax tree of the pipeline's call; an empty one if its source cannot be had."""
    try:
        return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(cls.__call__))))
    except (OSError, TypeError, SyntaxError):
        return ast.parse("")


def _step_loops(tree):
    """The innermost loops in which a scheduler is stepped."""
    loops = [node for node in ast.walk(tree) if isinstance(node, ast.For) and "step" in _called(node)]
    return [loop for loop in loops if not any(one in loops for node in loop.body for one in ast.walk(node))]


@functools.cache
def guides_each_step(cls):
    """Whether the loop of a pipeline's class reads `guidance_scale` from the pipeline in each of its rounds."""
    nodes = [node for loop in _step_loops(_call_tree(cls)) for node in ast.walk(loop)]
    read = {one.attr for one in nodes if isinstance(one, ast.Attribute) and isinstance(one.ctx, ast.Load)}
    return not read.isdisjoint(("guidance_scale", "_guidance_scale"))
