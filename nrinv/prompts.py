"""The embeddings that a pipeline makes of prompts."""

import ast
import functools
import inspect
import sys
import textwrap

import torch

from .derived import Left
from .known import parameters
from .session import exclusively, replaced


def _assigned(frame):
    """The names that the line a frame is at assigns to: `prompt_embeds, ... = self.encode_prompt(...)`."""
    lines, first = inspect.getsourcelines(frame.f_code)
    line = frame.f_lineno - first + 1
    for node in ast.walk(ast.parse(textwrap.dedent("".join(lines)))):
        if isinstance(node, ast.Assign) and node.lineno <= line <= node.end_lineno:
            target = node.targets[0]
            return [getattr(one, "id", None) for one in (target.elts if isinstance(target, ast.Tuple) else [target])]
    return []


@torch.no_grad()
@exclusively
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
        raise Left

    with replaced(pipe, encode_prompt=watched), replaced(pipe.scheduler, set_timesteps=stop):
        try:
            pipe(**{name: value for name, value in call.items() if name in known})
        except Left:
            pipe.maybe_free_model_hooks()
    if not found:
        raise ValueError(f"pipe: {type(pipe).__name__} does not encode its prompts before it sets its timesteps")
    return found
