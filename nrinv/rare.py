"""Rare objects: new drawings of a concept the model hardly knows, from the noises of a few images of it."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers.utils import BaseOutput

from .autoencoder import draw_pixels
from .call import Call, known_names
from .inversion import InversionOutput
from .known import autoencoder
from .path import centroid, interpolate, like_sampler
from .pipeline import check_whole, generate, invert
from .session import RandomState, exclusive, gradients

if TYPE_CHECKING:
    from typing import Unpack

    from .arguments import RareArguments


@dataclass
class RareOutput(BaseOutput):
    """Drawings of a concept, and how they relate to each other and to the references.

    images: the pipeline's own output, `num` of them.  latents [num, ...]: their noises.
    references: the inversion of the reference images.
    similarity [num]: cosine between the features of a drawing and the mean features of the references.
    novelty [num]: 1 - cosine to the nearest reference; a copy has 0.
    diversity: mean of 1 - cosine between two drawings; NaN for one.
    These three are of the scorer's features, None without a scorer.
    """

    images: Any
    latents: torch.Tensor | None = None
    references: InversionOutput | None = None
    similarity: np.ndarray | None = None
    novelty: np.ndarray | None = None
    diversity: float | None = None


@known_names
def rare(
    pipe: Any,
    images: Any,
    prompt: str,
    num: int = 8,
    *,
    spread: float = 0.5,
    refine_seeds: int = 0,
    rate: float = 0.05,
    scorer: Any = None,
    seed: int = 0,
    reference_prompt: str | list[str] | None = None,
    output_type: str = "pil",
    invert_options: dict[str, Any] | None = None,
    **pipe_kwargs: "Unpack[RareArguments]",
) -> RareOutput:
    """Draw `prompt` from noises near those of reference images; returns a `RareOutput`.

    The references are inverted.  Each new seed starts from a centroid of their noises with shares of its own (Dirichlet, so
    that all of the region between them is reached), goes the part `spread` of the geodesic towards fresh noise, and is drawn
    by the stock pipeline: Samuel et al., NAO (arXiv 2306.08687), on inverted real images as in arXiv 2312.12540.

    pipe: a pipeline with an embedded or any other model.  images: at least two references, as `invert` takes them, or their
    inversion (`RareOutput.references`, to try other options without inverting again).
    prompt: what is drawn.  reference_prompt: what the references show, one prompt or one each; default: `prompt`.
    num: how many drawings, at least 1.  spread: 0 stays between the references, 1 is fresh noise.
    refine_seeds: gradient steps through the sampler for each seed, of AdamW at `rate`, on SeedSelect's loss (arXiv
    2304.14530): 10 (1 - cosine to the references' mean features) + mean squared distance to their mean latent.  Needs the
    memory of training through all steps of the sampler.
    scorer: what has `image_features(images [N, 3, H, W] in 0..1) -> [N, F]`, differentiable; default `nrinv.scorer()`, the
    embedded one, which knows icons; False: none.
    invert_options: further arguments of `invert`.  **pipe_kwargs (num_inference_steps, guidance_scale, ...): of all calls.

    Raises TypeError for a name that neither nrinv nor the pipeline knows, ValueError naming the argument for fewer than 2
    images, num below 1, and numbers out of range.
    """
    _check(num, spread, refine_seeds, rate, seed, scorer)
    if scorer is None:
        from .models import scorer as embedded

        scorer = embedded()
    if isinstance(images, (list, tuple)):
        _check_count(images)
    references = images
    if not isinstance(images, InversionOutput):
        options = {**pipe_kwargs, **(invert_options or {})}
        references = invert(pipe, images, reference_prompt or prompt, seed=seed, **options)
    _check_count(references.latents)
    latents = _seeds(references.latents, num, spread, seed)
    call = {**references.whole_call.part(range(1)), **pipe_kwargs}
    call = Call({name: value for name, value in call.items() if "prompt" not in name or name.startswith("negative")})
    if scorer:  # drawings are compared with the references as the pipeline draws them
        features = scorer.image_features(generate(pipe, references, output_type="pt").images.float().cpu()).detach()
    if refine_seeds:
        latents = torch.cat(
            [_refined(pipe, z, prompt, call, references, features, scorer, refine_seeds, rate) for z in latents.split(1)]
        )
    # The sampler's own noises, if it draws any: fresh ones as `spread` asks, from those of the references.
    noises = [_seeds(noise, num, spread, seed + 1 + k) for k, noise in enumerate(references.noises or [])]
    start = like_sampler(references, latents=latents, noises=noises or None, prompt=prompt, call=call)
    out = RareOutput(images=generate(pipe, start, output_type=output_type).images, latents=latents, references=references)
    if scorer:
        drawn = generate(pipe, start, output_type="pt").images if output_type != "pt" else out.images
        _describe(out, scorer.image_features(drawn.float().cpu()).detach(), features)
    return out


def _check_count(references):
    if len(references) < 2:
        raise ValueError(f"images must hold at least 2 references, got {len(references)}")


def _check(num, spread, refine_seeds, rate, seed, scorer):
    check_whole("num", num, 1)
    if not 0 <= spread <= 1:
        raise ValueError(f"spread must be in 0..1, got {spread!r}")
    check_whole("refine_seeds", refine_seeds, 0)
    if not rate > 0 or not np.isfinite(rate):
        raise ValueError(f"rate must be a finite number above 0, got {rate!r}")
    check_whole("seed", seed, 0)
    if refine_seeds and scorer is False:
        raise ValueError("scorer must be given where refine_seeds is above 0")
    if scorer not in (None, False) and not callable(getattr(scorer, "image_features", None)):
        raise ValueError(f"scorer must have image_features(images), got {type(scorer).__name__}")


def _seeds(latents, num, spread, seed):
    """Noises near those of the references: [num, ...]."""
    random = np.random.default_rng(seed)
    found = []
    for i in range(num):
        middle = centroid(latents, shares=random.dirichlet(np.ones(len(latents))))
        fresh = torch.from_numpy(random.standard_normal(tuple(middle.shape), dtype=np.float32)).to(middle)
        found.append(interpolate(middle, fresh, [spread], method="geodesic", seed=seed + i)[0])
    return torch.cat(found)


def _describe(out, drawn, references):
    mean = torch.nn.functional.normalize(references.mean(0), dim=0)
    out.similarity = (drawn @ mean).double().numpy()
    out.novelty = (1 - (drawn @ references.T).amax(1)).double().numpy()
    count = len(drawn)
    pairs = 1 - (drawn @ drawn.T)
    out.diversity = float(pairs.sum() / (count * (count - 1))) if count > 1 else float("nan")


def _refined(pipe, start, prompt, call, references, features, scorer, steps, rate):
    """A seed after gradient steps through the sampler: the best by its loss."""
    if autoencoder(pipe) is None:
        raise ValueError(f"refine_seeds: {type(pipe).__name__} has no autoencoder to see its drawings through")
    mean = torch.nn.functional.normalize(features.mean(0), dim=0)
    with torch.no_grad():
        target = generate(pipe, references, output_type="latent").images.float().mean(0)
    z = start.detach().float().clone().requires_grad_()
    optimizer = torch.optim.AdamW([z], rate, weight_decay=0.0)
    best, least = start, float("inf")
    random = RandomState(call.get("generator"))
    for _ in range(steps + 1):
        random.restore()
        with exclusive(pipe), gradients(pipe, True) as call_pipe:
            drawn = call_pipe(prompt=prompt, latents=z.to(start.dtype), output_type="latent", **call).images
            pixels = draw_pixels(pipe, drawn, height=call.get("height"), width=call.get("width"))
            seen = scorer.image_features(pixels.float().to(features.device))[0]
            loss = 10 * (1 - seen @ mean) + (drawn.float()[0] - target.to(drawn.device)).pow(2).mean()
            loss.backward()
        if loss.item() < least:
            best, least = z.detach().to(start), loss.item()
        if not torch.isfinite(z.grad).all():
            break
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():  # back to the norm that noise has
            z.mul_(start.float().norm() / z.norm())
    return best
