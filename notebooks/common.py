"""What the notebooks start from: a pipeline, how to call it, and pictures with their prompts."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

from dataclasses import dataclass

import diffusers
import numpy as np
import skimage.data
import torch
from diffusers.utils import logging
from PIL import Image

import nrinv

logging.set_verbosity_error()
logging.disable_progress_bar()


@dataclass
class Setup:
    """What a notebook works with.

    call: the arguments of every call.  pictures: [(image, prompt)].  edits: for each picture a prompt that changes it.
    concept: (references, their prompts, a prompt) of something that the model hardly knows.
    """

    pipe: diffusers.DiffusionPipeline
    call: dict
    pictures: list
    edits: list
    concept: tuple


def load(model="embedded"):
    """The embedded few-step model and its icons, on any machine; or a model of the hub, such as stabilityai/sdxl-turbo, with
    photographs that come with scikit-image, on a GPU."""
    return _embedded() if model == "embedded" else _hub(model)


def _embedded():
    torch.set_num_threads(max(1, (os.cpu_count() or 2) // 2))
    pipe = nrinv.demo_pipeline("turbo")
    records = {one.name: one for one in nrinv.demo_images(None)}
    names = ["owl_noto", "scissors_noto", "rocket_flat", "turtle_noto"]
    pictures = [(records[name].image, records[name].caption) for name in names]
    edits = ["parrot, noto style", "old key, noto style", "airplane, flat style", "snail, noto style"]
    rare = {}
    for one in nrinv.demo_images("heldout_concept"):
        rare.setdefault(one.caption.split(",")[0], []).append(one)
    name, references = next(iter(rare.items()))
    concept = ([one.image for one in references], [one.caption for one in references], f"{name}, noto style")
    return Setup(pipe, {"num_inference_steps": 4, "guidance_scale": 1.0}, pictures, edits, concept)


def _hub(model):
    pipe = diffusers.AutoPipelineForText2Image.from_pretrained(model, torch_dtype=torch.float16).to("cuda")
    pipe.scheduler = diffusers.EulerDiscreteScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
    pipe.set_progress_bar_config(disable=True)
    photos = {
        "astronaut": "an astronaut in an orange suit",
        "chelsea": "a tabby cat",
        "coffee": "a cup of coffee",
        "rocket": "a rocket",
    }
    pictures = [(_square(getattr(skimage.data, name)()), f"a photo of {what}") for name, what in photos.items()]
    edits = [f"a photo of {what}" for what in ("a robot in an orange suit", "a dog", "a bowl of soup", "a lighthouse")]
    cat = _square(skimage.data.chelsea())
    references = [cat, cat.transpose(Image.FLIP_LEFT_RIGHT), cat.rotate(8)]
    concept = (references, ["a photo of a tabby cat"] * 3, "a photo of a tabby cat")
    call = {"num_inference_steps": 4, "guidance_scale": 0.0, "height": 512, "width": 512}
    return Setup(pipe, call, pictures, edits, concept)


def _square(array, size=512):
    image = Image.fromarray(np.asarray(array)).convert("RGB")
    side = min(image.size)
    left, top = ((n - side) // 2 for n in image.size)
    return image.crop((left, top, left + side, top + side)).resize((size, size), Image.LANCZOS)
