"""Files that are no saved inversions, made by code: each with the reason for which it is refused.

`FIELDS` change what a file holds and sign it again, so that the digest has nothing to say; `BYTES` change the file itself.
"""

import json

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save

from nrinv import files
from nrinv.call import Call
from nrinv.inversion import InversionOutput

BATCH, EVALUATIONS, SHAPE = 2, 3, (2, 4, 6, 5)


def inversion():
    """Two images, three evaluations, every field filled."""
    generator = torch.Generator().manual_seed(0)

    def states(count):
        return [torch.randn(SHAPE, generator=generator) for _ in range(count)]

    counts, each = np.arange(BATCH), np.ones((EVALUATIONS, BATCH))
    arguments = {
        "num_inference_steps": 3,
        "guidance_scale": 7.5,
        "negative_prompt": ["blurred", ""],
        "image": [Image.new("RGB", (4, 3), "red"), Image.new("L", (4, 3))],
        "prompt_embeds": torch.ones(2, 3, 4),
        "cross_attention_kwargs": {"scale": 0.5, "masks": [np.zeros((2, 2), bool)]},
    }
    return InversionOutput(
        latents=states(1)[0],
        noises=states(3),
        timesteps=np.array([999.0, 666.0, 333.0]),
        residuals=1e-3 * each,
        step_nfe=4 * each.astype(int),
        nfe=12 + counts,
        restarts=counts,
        rejected=counts,
        failed=counts,
        reasons=["tol", "max_nfe"],
        error=np.array([1e-3, np.nan]),
        trajectory=states(EVALUATIONS + 1),
        defects=states(EVALUATIONS),
        corrected=states(1)[0],
        moved=np.array([0.1, 0.2]),
        psnr_loss=np.array([1.0, -0.5]),
        prompt=["a dog", "a cat"],
        call=Call(arguments, batch=BATCH),
        pipeline="StableDiffusionPipeline",
        scheduler="EulerAncestralDiscreteScheduler",
        scheduler_config={"num_train_timesteps": 1000, "lambda_min_clipped": -float("inf")},
    )


def smallest():
    """One image of two numbers, one evaluation: a file of less than a kilobyte."""
    each, counts = np.ones((1, 1)), np.ones(1, int)
    return InversionOutput(
        latents=torch.ones(1, 1, 1, 2),
        noises=[],
        timesteps=np.ones(1),
        residuals=each,
        step_nfe=each.astype(int),
        nfe=counts,
        reasons=["tol"],
        error=np.array([1e-3]),
        prompt=["a"],
        call=Call({"num_inference_steps": 1}, batch=1),
        pipeline="P",
        scheduler="DDIMScheduler",
        scheduler_config={},
    )


def parts(data):
    """(header, data of the tensors) of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined(header, body):
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return len(text).to_bytes(8, "little") + text + body


def signed(header, body):
    """A file whose digest is right, whatever the rest is."""
    header["__metadata__"]["sha256"] = "0" * 64
    data = joined(header, body)
    before, digest, after = files.signed(data, data.index(b'"sha256":"'))
    return bytes(before) + digest.encode() + bytes(after)


FIELDS, BYTES = {}, {}


def field(reason, name=None):
    """change(tensors, metadata) of a good file; it may return other metadata, as an object or as text."""
    return lambda change: FIELDS.setdefault(name or change.__name__, (change, reason))


def raw(reason):
    return lambda change: BYTES.setdefault(change.__name__, (change, reason))


def header(reason, close=joined):
    """change(header) of a good file in its place; close(header, body) makes a file of it."""

    def register(change):
        def changed(data):
            header, body = parts(data)
            change(header)
            return close(header, body)

        BYTES[change.__name__] = changed, reason

    return register


def setting(place, value, reason):
    """Metadata with another value in one place."""

    def change(tensors, metadata):
        *way, last = place.split("/")
        for one in way:
            metadata = metadata[one]
        metadata[last] = value

    FIELDS[f"{place} = {value!r}"[:60]] = change, reason


def tensor(name, value, reason):
    """Another tensor; None takes it away."""

    def change(tensors, metadata):
        old = tensors.pop(name, None)
        if value is not None:
            tensors[name] = value(old) if callable(value) else value

    FIELDS[f"{name} {len(FIELDS)}"] = change, reason


def spoiled(value):
    def change(old):
        old = old.clone()
        old.view(-1)[1] = value
        return old

    return change


def nested(depth, kind=list):
    value = 0
    for _ in range(depth):
        value = [value] if kind is list else {"dict": {"a": value}} if isinstance(value, dict) else {"json": value}
    return value


# ----------------------------------------------------------------------------------------------------------- the metadata

for place, value, reason in [
    ("start", -3, "start: -3 is less than the minimum of 0"),
    ("start", 2.0, "start: 2.0 is not of type 'integer'"),
    ("start", True, "start: True is not of type 'integer'"),
    ("start", float("nan"), "start: nan is not of type"),
    ("start", "0", "start: '0' is not of type"),
    ("start", None, "start: None is not of type"),
    ("reasons", ["tol"], "reasons must be 2, one for each sample, got 1"),
    ("reasons", ["tol", "fine"], "reasons"),
    ("reasons", "tol", "reasons: 'tol' is not of type"),
    ("order", "sideways", "order: 'sideways' is not one of"),
    ("order", ["reversed"], "order"),
    ("prompt", 3, "prompt: 3 is not of type"),
    ("prompt", {"a": "dog"}, "prompt"),
    ("prompt", ["a dog", 3], "prompt"),
    ("prompt", ["a dog"] * 3, "prompt must be one prompt or 2"),
    ("pipeline", ["x"], "pipeline"),
    ("scheduler", 5, "scheduler: 5 is not of type"),
    ("scheduler", "UNet2DConditionModel", "'UNet2DConditionModel' is not the name of a scheduler"),
    ("scheduler", "StableDiffusionPipeline", "is not the name of a scheduler"),
    ("scheduler", "SchedulerMixin", "is not the name of a scheduler"),
    ("scheduler", "utils", "is not the name of a scheduler"),
    ("scheduler", "__version__", "is not the name of a scheduler"),
    ("scheduler", "schedulers.DDIMScheduler", "scheduler: 'schedulers.DDIMScheduler' does not match"),
    ("scheduler_config", "linear", "scheduler_config: 'linear' is not of type 'object'"),
    ("scheduler_config", [1], "scheduler_config"),
    ("scheduler_config", None, "scheduler_config"),
    ("scheduler_config", {"betas": nested(100)}, "nested deeper than 64 levels"),
    ("versions", {"nrinv": 1}, "versions"),
    ("strange", 1, "'strange' was unexpected"),
    ("call", None, "call: None is not of type 'object'"),
    ("call", [], "call"),
    ("call/nets", -1, "call.nets: -1 is less than"),
    ("call/nets", "many", "call.nets"),
    ("call/shared", 1, "call.shared: 1 is not of type 'boolean'"),
    ("call/strange", 1, "'strange' was unexpected"),
    ("call/arguments", [], "call.arguments"),
    ("call/arguments/a", 1, "call.arguments.a: 1 is not of type 'object'"),
    ("call/arguments/a", {}, "call.arguments.a"),
    ("call/arguments/a", {"json": 1, "list": []}, "call.arguments.a"),
    ("call/arguments/a", {"pickle": "gASVAAAA"}, "'pickle' was unexpected"),
    ("call/arguments/a", {"list": {}}, "call.arguments.a.list"),
    ("call/arguments/a", {"dict": {"b": 1}}, "call.arguments.a.dict.b: 1 is not of type"),
    ("call/arguments/a", {"tensor": 7}, "call.arguments.a.tensor: 7 is not of type 'string'"),
    ("call/arguments/a", {"tensor": "latents"}, "'latents' does not match"),
    ("call/arguments/a", {"tensor": "call.a"}, "the tensor 'call.a' is missing"),
    ("call/arguments/a", {"tensor": "call.prompt_embeds"}, "the tensor 'call.prompt_embeds' is missing, or used twice"),
    ("call/arguments/a", nested(40, dict), "nested deeper than 64 levels"),
    ("call/arguments/a", {"json": nested(70)}, "nested deeper than 64 levels"),
    ("call/arguments/num_inference_steps", {"json": -1}, "num_inference_steps.json: -1 is less than the minimum of 1"),
    ("call/arguments/num_inference_steps", {"json": "9"}, "num_inference_steps.json"),
    ("call/arguments/num_inference_steps", {"list": []}, "num_inference_steps"),
    ("call/arguments/num_images_per_prompt", {"json": 3}, "num_images_per_prompt must divide the 2 images, got 3"),
    ("call/arguments/num_images_per_prompt", {"json": 0}, "num_images_per_prompt.json"),
]:
    setting(place, value, reason)


@field("start")
def no_start(tensors, metadata):
    del metadata["start"]


for name, text, reason in [
    ("a list", "[]", "is not of type 'object'"),
    ("a number", "3", "is not of type 'object'"),
    ("nothing", "null", "is not of type 'object'"),
    ("an empty text", "", "Expecting value"),
    ("no JSON", "{'a': 1}", "Expecting property name"),
    ("a name twice", '{"start": 0, "start": 1}', "a name stands twice"),
    ("brackets", "[" * 100_000, "nested deeper"),
    ("closed brackets", "[" * 100_000 + "]" * 100_000, "nested deeper"),
    ("dictionaries", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested deeper"),
    ("digits", '{"start": ' + "9" * 10_000 + "}", "digit"),
]:
    field(reason, name)(lambda tensors, metadata, text=text: text)

# ------------------------------------------------------------------------------------------------------------ the tensors

finite = "must hold finite numbers"
for name, value, reason in [
    ("latents", None, "latents is missing"),
    ("latents", spoiled(float("nan")), f"latents {finite}"),
    ("latents", spoiled(float("inf")), f"latents {finite}"),
    ("latents", lambda z: z.int(), "latents must be floating-point"),
    ("latents", lambda z: z > 0, "latents must be floating-point"),
    ("latents", lambda z: z.to(torch.complex64), "latents must be floating-point"),
    ("latents", lambda z: z.to(torch.float8_e4m3fn), "latents must be floating-point"),
    ("latents", lambda z: z.double(), "noises must be floating-point numbers"),
    ("latents", lambda z: z[..., :3], "corrected must be floating-point numbers"),
    ("latents", lambda z: z[:1], "reasons must be 1"),
    ("latents", lambda z: z[:0], "nothing to draw from"),
    ("latents", lambda z: z[..., :0], "nothing to draw from"),
    ("latents", torch.tensor(1.0), "nothing to draw from"),
    ("latents", torch.ones(2), "nothing to draw from"),
    ("noises.1", None, "the tensor 'noises.1' is missing"),
    ("noises.x", torch.ones(SHAPE), "the tensor 'noises.3' is missing"),
    ("noises.01", torch.ones(SHAPE), "the tensor 'noises.3' is missing"),
    ("noises.0", spoiled(float("nan")), f"noises {finite}"),
    ("noises.0", lambda z: z[:, :2], "noises must be floating-point"),
    ("noises.0", lambda z: z.long(), "noises must be floating-point"),
    ("noises.0", lambda z: z.half(), "noises must be floating-point"),
    ("trajectory.1", spoiled(float("nan")), f"trajectory {finite}"),
    ("trajectory.3", None, "trajectory must be 4 tensors, got 3"),
    ("trajectory.4", torch.ones(SHAPE), "trajectory must be 4 tensors, got 5"),
    ("trajectory.0", torch.tensor(1.0), "trajectory must hold finite numbers for 2 samples"),
    ("defects.2", spoiled(-float("inf")), f"defects {finite}"),
    ("defects.2", None, "defects must be 3 tensors, got 2"),
    ("defects.0", lambda z: z.flatten(2), "defects must be"),
    ("corrected", spoiled(float("nan")), f"corrected {finite}"),
    ("corrected", lambda z: z[:1], "corrected must be"),
    ("timesteps", None, "timesteps is missing"),
    ("timesteps", spoiled(float("nan")), "timesteps must not hold nan"),
    ("timesteps", lambda t: t[:2], "residuals must be"),
    ("timesteps", lambda t: t[:0], "nothing to draw from"),
    ("timesteps", lambda t: t.long(), "timesteps must be floating-point"),
    ("timesteps", lambda t: t[None], "timesteps must be"),
    ("residuals", lambda r: r.T.contiguous(), "residuals must be floating-point numbers"),
    ("residuals", spoiled(-1.0), "residuals must not hold -1.0"),
    ("step_nfe", lambda n: n.double(), "step_nfe must be whole numbers"),
    ("nfe", spoiled(-1), "nfe must not hold -1"),
    ("nfe", lambda n: n > 0, "nfe must be whole numbers"),
    ("nfe", lambda n: n[:1], "nfe must be whole numbers"),
    ("restarts", torch.tensor(1), "restarts must be whole numbers"),
    ("error", lambda e: e.bfloat16(), "error is no array"),
    ("error", spoiled(-1.0), "error must not hold -1.0"),
    ("moved", lambda m: m.int(), "moved must be floating-point"),
    ("psnr_loss", torch.ones(3), "psnr_loss must be"),
    ("weight", torch.ones(3), "nothing has a tensor 'weight'"),
    ("call.more", torch.ones(3), "nothing has a tensor 'call.more'"),
    ("prompt", torch.ones(3), "nothing has a tensor 'prompt'"),
    ("call.prompt_embeds", None, "the tensor 'call.prompt_embeds' is missing"),
    ("call.image.0", torch.ones(3, 4, 5, 6), "call.image.0 is no image"),
    ("call.image.0", torch.ones(3, 4, 7), "call.image.0 is no image"),
    ("call.image.0", torch.ones(3, 4, dtype=torch.complex64), "call.image.0 is no image"),
    ("call.image.0", torch.ones(3, 4, dtype=torch.bfloat16), "call.image.0 is no image"),
]:
    tensor(name, value, reason)


@field("do not belong to the same latents")
def larger_states(tensors, metadata):
    for name, one in tensors.items():
        if name.startswith(("trajectory", "defects", "noises")):
            tensors[name] = torch.cat([one, one], -1)


@field("do not belong to the same latents")
def states_of_two_shapes(tensors, metadata):
    for name, one in tensors.items():
        if name.startswith("trajectory"):
            tensors[name] = one.flatten(2)


# -------------------------------------------------------------------------------------------------------------- the bytes


@raw("header is cut off")
def empty(data):
    return b""


@raw("header is cut off")
def seven_bytes(data):
    return data[:7]


@raw("header is cut off")
def a_header_longer_than_the_file(data):
    return (2**63).to_bytes(8, "little") + data[8:]


@raw("Expecting value")
def no_header(data):
    return bytes(8) + data[8:]


@raw("codec can't decode")
def a_header_that_is_no_text(data):
    return joined(b"\xff\xfe" * 8, b"")


@raw("nested deeper")
def a_header_of_brackets(data):
    return joined(b"[" * 100_000, b"")


@raw("nrinv has not written it")
def a_header_that_is_a_list(data):
    return joined(b"[]", b"")


@raw("nrinv has not written it")
def metadata_that_is_no_dictionary(data):
    header, body = parts(data)
    return joined({**header, "__metadata__": "nrinv"}, body)


@raw("nrinv has not written it")
def another_model_s_file(data):
    return save({"weight": torch.zeros(3)}, {"format": "pt"})


@raw("nrinv has not written it")
def a_later_format(data):
    return data.replace(b"nrinv-inversion-2", b"nrinv-inversion-9")


@raw("a name stands twice in it")
def a_tensor_twice(data):
    header, body = parts(data)
    text = json.dumps(header).encode()
    entry = json.dumps({"latents": header["latents"]}).encode()[1:-1]
    return joined(text[:-1] + b"," + entry + b"}", body)


@header("it has no digest")
def no_digest(header):
    del header["__metadata__"]["sha256"]


@header("it has no digest")
def a_digest_that_is_none(header):
    header["__metadata__"]["sha256"] = "good"


@header("its digest is another")
def a_digest_of_zeros(header):
    header["__metadata__"]["sha256"] = "0" * 64


@raw("its digest is another")
def another_format_s_name_with_the_digest(data):
    return data.replace(b"nrinv-inversion-2", b"nrinv-inversion-1")


@raw("its digest is another")
def cut(data):
    return data[:-100]


@raw("its digest is another")
def longer(data):
    return data + b"more"


@raw("its digest is another")
def another_prompt(data):
    return data.replace(b"a dog", b"a cow")


@header("its tensors", signed)
def places_that_overlap(header):
    header["latents"]["data_offsets"] = header["corrected"]["data_offsets"]


@header("its tensors", signed)
def a_place_outside_of_the_file(header):
    header["latents"]["data_offsets"] = [2**40, 2**40 + 960]


@header("its tensors", signed)
def a_dtype_that_is_none(header):
    header["latents"]["dtype"] = "object"


@header("its tensors", signed)
def a_shape_that_overflows(header):
    header["latents"]["shape"] = [2**62, 2**62]


@header("its metadata is no text", signed)
def metadata_that_is_no_text(header):
    header["__metadata__"]["nrinv"] = {}


@header("its metadata is no text", signed)
def no_metadata(header):
    del header["__metadata__"]["nrinv"]
