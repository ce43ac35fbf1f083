"""What an input is: images of every kind, masks, latents; the right values are known."""

import io
import warnings
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
import zoo
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

import nrinv
from nrinv.images import read_arguments, read_images, read_mask, read_source

SIZE = 24


def stand_in(channels=16, factor=2, patch=1, sample_size=None, **more):
    """Of a pipeline only what reading looks at; its latents have `channels`."""
    vae = torch.nn.Conv2d(3, 3, 1)
    vae.config, vae.encode = {"latent_channels": channels}, None
    net = SimpleNamespace(config={"patch_size": patch, "sample_size": sample_size}, dtype=torch.float32)
    processor = VaeImageProcessor(vae_scale_factor=factor)
    parts = {"vae": vae, "unet": net, "components": {"vae": vae}, "image_processor": processor, "vae_scale_factor": factor}
    return SimpleNamespace(**{**parts, **more})


def unit(image, pipe=None, **options):
    """Pixels [B, 3, H, W] in 0..1 as they are read."""
    return read_source(pipe or stand_in(), image, **options).image


def is_all(pixels, value):
    want = torch.as_tensor(value, dtype=torch.float32).reshape(1, -1, 1, 1)
    return torch.allclose(pixels.float(), want.expand_as(pixels), atol=2e-3)


def full(value, dtype=np.float32, shape=(SIZE, SIZE, 3)):
    return np.full(shape, value, dtype)


def ramp(high, dtype):
    return np.linspace(0, high, SIZE * SIZE).reshape(SIZE, SIZE).astype(dtype)


# ------------------------------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
    ("picture", "high"),
    [
        (lambda: Image.fromarray(ramp(65535, np.uint16)), 65535),
        (lambda: Image.fromarray(ramp(65535, np.int32)), 65535),
        (lambda: Image.fromarray(ramp(255, np.int32)), 255),
        (lambda: Image.fromarray(ramp(1, np.float32)), 1),
        (lambda: Image.fromarray(ramp(255, np.float32)), 255),
        (lambda: Image.fromarray(ramp(65535, np.float32)), 65535),
    ],
)
def test_deep_grey_images_are_scaled_and_not_clipped(picture, high):
    read = unit(picture())
    want = torch.from_numpy(np.asarray(picture()).astype(np.float32) / high)
    assert read.shape == (1, 3, SIZE, SIZE) and torch.allclose(read, want.expand_as(read), atol=1e-6)
    small = unit(picture(), height=8, width=8)
    assert small.shape[-2:] == (8, 8) and torch.allclose(small.mean(), want.mean(), atol=5e-3)


def test_a_16_bit_file_is_what_it_shows(tmp_path):
    Image.fromarray(full(32768, np.uint16, (SIZE, SIZE))).save(tmp_path / "grey.png")
    assert is_all(unit(tmp_path / "grey.png"), 0.5) and is_all(unit(Image.open(tmp_path / "grey.png")), 0.5)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LA", "PA", "RGBX", "RGBa", "La"])
def test_every_mode_of_pillow_is_read(mode):
    image = Image.new("RGB", (SIZE, SIZE), "white")
    way = {"PA": ["RGBA", "P", "PA"], "RGBa": ["RGBA", "RGBa"], "La": ["LA", "La"]}.get(mode, [mode])
    for step in way:
        image = image.convert(step)
    assert image.mode == mode and is_all(unit(image), 1.0)


def icon(mode):
    """Red, invisible."""
    image = Image.new("RGBA", (SIZE, SIZE), (255, 0, 0, 0))
    if mode == "P":
        image = Image.new("P", (SIZE, SIZE), 0)
        image.putpalette([255, 0, 0])
        image.info["transparency"] = 0
    return image.convert("LA") if mode == "LA" else image


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composed_on_the_background(mode, tmp_path):
    assert is_all(unit(icon(mode)), 1.0)
    assert is_all(unit(icon(mode), background=(0, 0, 255)), (0, 0, 1)) and is_all(
        unit(icon(mode), background="#0f0"), (0, 1, 0)
    )
    icon(mode).save(tmp_path / "icon.png")
    assert is_all(unit(tmp_path / "icon.png"), 1.0)


@pytest.mark.parametrize(
    ("pixel", "dtype"), [((1.0, 0, 0, 0.25), np.float32), ((255, 0, 0, 64), np.uint8), ((65535, 0, 0, 16384), np.uint16)]
)
def test_arrays_and_tensors_with_alpha_are_composed(pixel, dtype):
    array = np.broadcast_to(np.array(pixel, dtype), (SIZE, SIZE, 4)).copy()
    for image in (
        array,
        array[None],
        torch.from_numpy(array).permute(2, 0, 1),
        torch.from_numpy(array[None]).permute(0, 3, 1, 2),
    ):
        assert is_all(unit(image), (1, 0.75, 0.75)) and is_all(unit(image, background="black"), (0.25, 0, 0))


def test_an_opaque_image_is_the_image():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8))
    assert torch.equal(unit(image.convert("RGBA")), unit(image))


def test_exif_turns_an_opened_image_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees
    half = np.zeros((SIZE, 2 * SIZE, 3), np.uint8)
    half[:, :SIZE] = 255
    Image.fromarray(half).save(tmp_path / "turned.png", exif=exif)
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        read = unit(given)
        assert read.shape[-2:] == (2 * SIZE, SIZE) and is_all(read[:, :, :SIZE], 1.0) and is_all(read[:, :, SIZE:], 0.0)


@pytest.mark.parametrize(
    ("value", "dtype"), [(True, bool), (255, np.uint8), (65535, np.uint16), (1, np.float64), (1, np.float16), (65535, ">u2")]
)
def test_numbers_are_scaled_by_their_own_range(value, dtype):
    array = full(value, dtype)
    assert is_all(unit(array), 1.0)
    if dtype != ">u2":
        assert is_all(unit(torch.from_numpy(array).permute(2, 0, 1)), 1.0)
    if dtype is np.uint16:
        assert is_all(unit(full(6553, np.uint16)), 0.1)


def test_grey_tensors_are_images():
    assert is_all(unit(torch.full((1, SIZE, SIZE), 0.25)), 0.25) and is_all(unit(torch.full((2, 1, SIZE, SIZE), 0.25)), 0.25)


def test_floats_are_judged_with_a_tolerance_and_together():
    slightly = full(0.5)
    slightly[0, 0] = -1e-6
    assert is_all(unit(slightly)[..., 1:, :], 0.5)
    low, high = (torch.full((3, SIZE, SIZE), x) for x in (-0.3, 0.3))
    read = unit([high, low])
    assert is_all(read[:1], 0.65) and is_all(read[1:], 0.35)
    assert is_all(unit([full(0.3), full(-0.3)])[:1], 0.65)
    read = unit([full(255, np.uint8), high, low])
    assert is_all(read[:1], 1.0) and is_all(read[1:2], 0.65)


def test_value_range_ends_the_guessing():
    assert is_all(unit(full(0.5), value_range=(-1, 1)), 0.75)
    assert is_all(unit(full(127.5), value_range=(0, 255)), 0.5)
    assert is_all(unit(full(4095, np.uint16), value_range=(0, 4095)), 1.0)
    assert is_all(unit(full(100, np.int64), value_range=(0, 200)), 0.5)
    assert is_all(unit(Image.fromarray(full(100, np.int32, (SIZE, SIZE))), value_range=(0, 65535)), 100 / 65535)
    with pytest.raises(ValueError, match=r"image must be in 0\.\.1 as value_range says, got 2\.\.2"):
        unit(full(2), value_range=(0, 1))
    for wrong in (3, (1, 0), (0, np.inf), (0, 1, 2), ("a", "b")):
        with pytest.raises(ValueError, match="value_range must be"):
            unit(full(0.5), value_range=wrong)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (full(7, np.int64), "image must hold uint8 .*bool or uint16, got int64; .*value_range"),
        (full(1j, np.complex64), "image must hold uint8 .*got complex64"),
        (full(2.0), r"image must be in 0\.\.1 or -1\.\.1 if it holds floats, got 2\.\.2; .*value_range"),
        (full(-0.5, shape=(SIZE, SIZE, 4)), r"image must be in 0\.\.1 if it holds floats with alpha, got -0\.5"),
        (
            Image.fromarray(full(70000, np.int32, (SIZE, SIZE))),
            r"image must be in 0\.\.255 or 0\.\.65535.*mode I, got 70000",
        ),
        (np.full((SIZE, SIZE, 3), np.nan), "image must be finite"),
        (torch.zeros(1, 5, SIZE, SIZE), "image must have 3 channels, or 16 if it is latents"),
        (torch.zeros(SIZE, SIZE), r"image must be a tensor \[3, H, W\]"),
        (np.zeros((1, 1, 3), np.uint8), "image must have at least 2 pixels a side, got 1x1"),
    ],
)
def test_what_is_no_image_is_refused(image, message):
    with pytest.raises(ValueError, match=message):
        unit(image)


def test_a_background_must_be_a_colour():
    for wrong in ("no colour", 3, (1, 2), (0, 0, 256), (0.5, 0.5, 0.5)):
        with pytest.raises(ValueError, match="background must be a colour"):
            unit(full(0.5), background=wrong)


def half_grey(dtype=np.float32, shape=(SIZE, SIZE, 3)):
    high = {"u": 2**15, "f": 0.5}[np.dtype(dtype).kind] if np.dtype(dtype).itemsize > 1 else 128
    return np.full(shape, high, dtype)


def read_only(array):
    array.setflags(write=False)
    return array


def animated(at):
    frames = [Image.new("L", (SIZE, SIZE), value) for value in (0, 128)]
    held = io.BytesIO()
    frames[0].save(held, "GIF", save_all=True, append_images=frames[1:])
    opened = Image.open(held)
    opened.seek(at)
    return opened


def jpeg_in_cmyk():
    held = io.BytesIO()
    Image.new("RGB", (SIZE, SIZE), (128, 128, 128)).convert("CMYK").save(held, "JPEG", quality=100)
    return Image.open(held)


def palette_with_transparency():
    image = Image.new("P", (SIZE, SIZE), 1)
    image.putpalette([255, 0, 0, 0, 0, 0])
    image.info["transparency"] = bytes([255, 127])
    return image


# What people have; each is half grey.
GREY = {
    "float64": half_grey(np.float64),
    "float16": half_grey(np.float16),
    "big-endian": half_grey(">f4"),
    "big-endian 16 bits": half_grey(">u2"),
    "uint16 colours": half_grey(np.uint16),
    "long double": half_grey(np.longdouble),
    "negative strides": half_grey()[::-1, ::-1],
    "negative strides, bytes": half_grey(np.uint8)[::-1],
    "every second pixel": half_grey(np.uint8, (2 * SIZE, 2 * SIZE, 3))[::2, ::2],
    "BGR turned": half_grey(np.uint8)[..., ::-1],
    "Fortran order": np.asfortranarray(half_grey()),
    "read-only": read_only(half_grey()),
    "one channel last": half_grey(np.uint8, (SIZE, SIZE, 1)),
    "no channel": half_grey(np.float64, (SIZE, SIZE)),
    "grey and alpha": np.concatenate([half_grey(shape=(SIZE, SIZE, 1)), full(1, shape=(SIZE, SIZE, 1))], -1),
    "requires gradients": torch.full((3, SIZE, SIZE), 0.5, requires_grad=True),
    "bfloat16": torch.full((3, SIZE, SIZE), 0.5, dtype=torch.bfloat16),
    "channels_last": torch.full((1, 3, SIZE, SIZE), 0.5).to(memory_format=torch.channels_last),
    "expanded": torch.full((1, 1, 1), 0.5).expand(3, SIZE, SIZE),
    "transposed": torch.full((SIZE, SIZE, 3), 0.5).permute(2, 0, 1),
    "a frame of a GIF": animated(1),
    "CMYK JPEG": jpeg_in_cmyk(),
    "half transparent palette": palette_with_transparency(),
    "PIL and array": [Image.new("RGB", (SIZE, SIZE), (128, 128, 128)), half_grey(np.uint8), half_grey()],
    "tuple": (half_grey(np.uint8),),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", GREY)
def test_what_people_have_is_read(name):
    read = unit(GREY[name])
    assert (
        read.shape[1:] == (3, SIZE, SIZE)
        and not read.requires_grad
        and torch.allclose(read.float(), torch.tensor(0.5), atol=1e-2 if "JPEG" in name or "GIF" in name else 4e-3)
    )


# What is none; each is refused, and the error names the argument and what was given.
NOTHING = {
    "channels first in an array": (
        np.zeros((3, SIZE, SIZE), np.uint8),
        r"got shape \(3, 24, 24\); channels come last in arrays",
    ),
    "channels last in a tensor": (torch.zeros(SIZE, SIZE, 3), r"got shape \(24, 24, 3\); channels come last in arrays"),
    "no images": (np.zeros((0, SIZE, SIZE, 3), np.uint8), r"got shape \(0, 24, 24, 3\)"),
    "no tensors": (torch.zeros(0, 3, SIZE, SIZE), r"got shape \(0, 3, 24, 24\)"),
    "no pixels": (np.zeros((0, 0, 3), np.uint8), r"must not be empty, got shape \(0, 0, 3\)"),
    "no channels": (np.zeros((SIZE, SIZE, 0), np.uint8), r"got shape \(24, 24, 0\)"),
    "a row": (np.zeros(SIZE, np.uint8), r"got shape \(24,\)"),
    "one pixel": (torch.zeros(3, 1, 1), "at least 2 pixels a side, got 1x1"),
    "on no device": (torch.zeros(3, SIZE, SIZE, device="meta"), "must be a dense tensor, got layout torch.strided on meta"),
    "infinite": (full(np.inf), "must be finite"),
    "complex": (torch.zeros(3, SIZE, SIZE, dtype=torch.complex64), "got complex64"),
    "strings": (np.full((SIZE, SIZE, 3), "a"), "must hold uint8"),
    "objects": (np.full((SIZE, SIZE, 3), None), "got object"),
    "int8": (np.zeros((SIZE, SIZE, 3), np.int8), "got int8"),
    "uint32": (np.zeros((SIZE, SIZE, 3), np.uint32), "got uint32"),
    "bytes": (b"\x89PNG", "got bytes"),
    "an open file": (io.BytesIO(b"\x89PNG"), "got BytesIO"),
    "a number": (3, "got int"),
    "a list of rows": ([[0.5, 0.5], [0.5, 0.5]], "draws images, not videos.*a list in a list"),
    "an empty list": ([], "got an empty list"),
    "nothing": (None, "got NoneType"),
    "a name that is no file": ("no such file.png", "'no such file.png' cannot be read"),
    "a name with a zero": ("a\0b", "cannot be read"),
    "a folder": (".", "cannot be read as an image"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_is_nothing_is_refused(name):
    given, message = NOTHING[name]
    with pytest.raises(ValueError, match=f"^image.*{message}"):
        unit(given)


def test_files_that_are_no_images_are_refused(tmp_path, monkeypatch):
    whole = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(whole, "PNG")
    broken = bytearray(whole.getvalue())
    broken[200:260] = bytes(60)
    contents = {"photo.heic": b"\0\0\0\x18ftypheic" + bytes(64), "cut.png": whole.getvalue()[:4000], "broken.png": broken}
    for name, content in {**contents, "empty.png": b"", "text.jpg": b"hello"}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"^image: .*{name}' cannot be read as an image"):
            unit(tmp_path / name)
    with Image.open(io.BytesIO(whole.getvalue()[:4000])) as cut, pytest.raises(ValueError, match="cannot be read"):
        unit(cut)
    (tmp_path / "whole.png").write_bytes(whole.getvalue())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"cannot be read as an image: .*decompression bomb"):
        unit(tmp_path / "whole.png")


def test_sizes_must_be_numbers_of_pixels():
    for wrong in (0, -8, 8.0, "8"):
        with pytest.raises(ValueError, match=f"height must be a whole number of pixels of at least 1, got {wrong!r}"):
            unit(full(0.5), height=wrong)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_do_not_overflow(dtype):
    assert is_all(unit(torch.ones(3, 512, 512, dtype=dtype)), 1.0)
    if dtype == torch.float16:
        assert is_all(unit(np.ones((512, 512, 3), np.float16)), 1.0)


# ------------------------------------------------------------------------------------------------------------------ latents


def test_a_tensor_of_four_channels_that_may_be_both_is_refused():
    pipe, z = stand_in(channels=4), zoo.randn(2, 4, 8, 8)
    assert torch.equal(read_images(pipe, z), z) and torch.equal(read_images(pipe, z[0]), z[:1])
    for both in (torch.rand(4, SIZE, SIZE), torch.rand(1, 4, SIZE, SIZE)):
        with pytest.raises(ValueError, match=r"may be both .*give latents as latents=.*value_range=\(0, 1\)"):
            unit(both, pipe)
        assert read_source(pipe, both, value_range=(0, 1)).tensor.shape == (1, 3, SIZE, SIZE)
        assert read_source(pipe, None, latents=both).encoded


def test_latents_are_said_to_be_latents():
    pipe, z = stand_in(channels=4), zoo.randn(2, 4, 8, 8)
    assert torch.equal(read_source(pipe, None, latents=[z[0], z[1]]).tensor, z)
    for wrong, message in (
        (z[:, :3], r"latents must be \[B, C, h, w\].*with 4 channels, got shape \(2, 3, 8, 8\)"),
        (z.numpy(), "latents must be a tensor of floating-point numbers.*got .*ndarray"),
        (z.long(), "latents must be a tensor of floating-point numbers"),
        ([], "latents must be a tensor"),
        (z[:0], "latents must not be empty"),
        (z / 0, "latents must be finite"),
        ([z, z[..., 1:]], "latents must hold latents of one shape"),
    ):
        with pytest.raises(ValueError, match=message):
            read_source(pipe, None, latents=wrong)
    with pytest.raises(ValueError, match="latents: give either image or latents, got both"):
        read_source(pipe, full(0.5), latents=z)


def test_encode_and_invert_take_latents(turbo):
    z, call = 0.1 * torch.rand(1, 4, 16, 16), {"num_inference_steps": 1, "guidance_scale": 1.0, "max_nfe": 1}
    assert torch.equal(nrinv.encode(turbo, latents=z), z)
    found = nrinv.invert(turbo, prompt="owl", latents=z, return_trajectory=True, **call)
    assert torch.allclose(found.trajectory[-1], z)
    assert (
        nrinv.correct(turbo, prompt="owl", latents=z, rounds=1, radius=None, num_inference_steps=1).latents.shape == z.shape
    )
    for function in (nrinv.invert, nrinv.correct):
        with pytest.raises(ValueError, match="got both"):
            function(turbo, z, "owl", latents=z)


def test_invert_and_correct_read_as_encode_does(turbo):
    rgba = np.full((64, 64, 4), (0, 0, 0, 0), np.uint16)
    rgba[16:48, 16:48] = (4095, 2000, 0, 4095)
    reading = {"value_range": (0, 4095), "background": "blue"}
    z = nrinv.encode(turbo, rgba, **reading)
    want = np.zeros((64, 64, 3), np.float32)
    want[..., 2] = 1
    want[16:48, 16:48] = (1, 2000 / 4095, 0)
    assert torch.allclose(z, nrinv.encode(turbo, want), atol=1e-4)
    call = {"num_inference_steps": 1, "guidance_scale": 1.0}
    found = nrinv.invert(turbo, rgba, "owl", **call, max_nfe=1, return_trajectory=True, **reading)
    assert torch.allclose(found.trajectory[-1], z)
    corrected = nrinv.correct(turbo, rgba, "owl", **call, rounds=1, **reading)
    assert torch.allclose(corrected.latents, nrinv.correct(turbo, want, "owl", **call, rounds=1).latents, atol=1e-3)
    for function in (nrinv.encode, nrinv.invert, nrinv.correct):
        with pytest.raises(ValueError, match=r"got 0\.\.4095; give others with value_range=\(low, high\)"):
            function(turbo, rgba.astype(np.float32), height=64, width=64)


def test_latents_of_three_frames_are_no_image():
    pipe, _, _ = zoo.make("CogVideoX")  # [B, F, C, h, w] with 4 channels
    z = zoo.randn(1, 3, 4, 8, 8)
    assert torch.equal(read_images(pipe, z), z)
    with pytest.raises(ValueError, match="may be both"):
        read_images(pipe, torch.rand(1, 3, 4, 8, 8))
    with pytest.raises(ValueError, match="image must have 3 channels"):
        read_images(pipe, zoo.randn(1, 3, 5, 8, 8))


# -------------------------------------------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("more", "size"),
    [
        ({"factor": 8}, (40, 56)),
        ({"factor": 8, "patch": 2}, (32, 48)),
        ({"factor": 8, "patch": (1, 2, 2)}, (32, 48)),
        ({"factor": 16, "patch": 2, "vae_scale_factor": 8}, (32, 48)),
        ({"factor": 4, "movq": object()}, (32, 48)),
    ],
)
def test_sizes_are_what_the_pipeline_takes(more, size):
    for image in (full(0.5, shape=(45, 62, 3)), Image.new("RGB", (62, 45)), Image.fromarray(full(9, np.uint16, (45, 62)))):
        assert read_images(stand_in(**more), image).shape[-2:] == size
    assert read_images(stand_in(**more), full(0.5), height=45, width=62).shape[-2:] == size


def test_sizes_pass_the_checks_of_the_pipeline(turbo):
    image = Image.new("RGB", (67, 45))
    call = nrinv.invert(turbo, image, num_inference_steps=1, guidance_scale=1.0, max_nfe=1).call
    assert (call["height"], call["width"]) == (40, 64)  # its check_inputs wants multiples of 8, its autoencoder 4
    assert read_images(turbo, image).shape[-2:] == (44, 64)


def test_a_processor_of_another_kind_is_not_asked():
    pipe = stand_in(factor=8, image_processor=object())  # CLIP's, in Wan's pipelines
    assert read_images(pipe, full(0.5, shape=(45, 62, 3))).shape[-2:] == (40, 56)


def test_a_large_image_is_warned_of_once():
    pipe = stand_in(factor=8, sample_size=8)
    with pytest.warns(UserWarning, match="256x256 pixels are much more than the 64x64 .* give height and width") as caught:
        read_images(pipe, full(0.5, shape=(2, 256, 256, 3)))
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read_images(pipe, full(0.5, shape=(128, 128, 3)))
        read_images(pipe, full(0.5, shape=(256, 256, 3)), height=256, width=256)


# ------------------------------------------------------------------------------------------------------------------ img2img


def test_img2img_pipelines_are_handed_what_was_read(turbo, held_out, tmp_path):
    names = ("vae", "text_encoder", "tokenizer", "unet", "scheduler", "safety_checker", "feature_extractor")
    pipe = diffusers.StableDiffusionImg2ImgPipeline(**{n: turbo.components[n] for n in names}, requires_safety_checker=False)
    image = held_out[0][0]
    image.save(tmp_path / "image.png")
    want = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
    for given in (image, str(tmp_path / "image.png"), image.convert("RGBA"), [np.asarray(image)], want * 2 - 1):
        handed = nrinv.invert(pipe, given, "owl", num_inference_steps=2, guidance_scale=1.0, max_nfe=1).call["image"]
        assert isinstance(handed, torch.Tensor) and torch.allclose(handed, want, atol=1e-6)
    grey = image.convert("L").resize((80, 70))
    found = nrinv.invert(pipe, grey, "owl", num_inference_steps=2, guidance_scale=1.0, max_nfe=1, height=64, width=64)
    assert found.call["image"].shape == (1, 3, 64, 64) and found.latents.shape == (1, 4, 16, 16)


# ----------------------------------------------------------------------------------------------------- the call's own images


def turned(image):
    """A file's image, stored on its side, with what says so."""
    stored = image.transpose(Image.Transpose.ROTATE_90)
    stored.getexif()[0x0112] = 6
    return stored


def test_images_and_masks_of_an_inpainting_call_are_read(tmp_path):
    pipe, call, _ = zoo.make("SD, inpainting")
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    mask = np.zeros((32, 32), np.uint8)
    mask[:, 16:] = 255
    alpha = Image.new("RGB", (32, 32))
    alpha.putalpha(Image.fromarray(mask))
    for name, one in {"image": image, "mask": Image.fromarray(mask), "alpha": alpha}.items():
        one.save(tmp_path / f"{name}.png")
    deep = Image.fromarray(mask.astype(np.uint16) * 257)
    want = {
        "image": torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255,
        "mask_image": torch.from_numpy(mask)[None, None] / 255,
    }
    ways = [
        (tmp_path / "image.png", str(tmp_path / "mask.png")),
        (turned(image), tmp_path / "alpha.png"),
        (image.convert("RGBA"), deep),
        (np.asarray(image), mask > 0),
        ([image], [Image.fromarray(mask)]),
        (Image.fromarray(np.asarray(image).repeat(2, 0).repeat(2, 1)), mask.repeat(2, 0).repeat(2, 1)),
    ]
    call = {name: value for name, value in call.items() if name not in want}
    options = {"num_inference_steps": 2, "max_nfe": 1, "generator": torch.Generator()}
    inv = nrinv.invert(pipe, image, **options, **call, mask_image=want["mask_image"])
    stock = nrinv.generate(pipe, inv, output_type="latent", generator=torch.Generator(), **want).images
    halved = np.array(ways[-1][0].resize((32, 32), Image.Resampling.LANCZOS))
    halved = {**want, "image": torch.from_numpy(halved).permute(2, 0, 1)[None] / 255}
    for number, (picture, drawn) in enumerate(ways):
        if number == len(ways) - 1:  # in another size
            stock = nrinv.generate(pipe, inv, output_type="latent", generator=torch.Generator(), **halved).images
        other = nrinv.invert(pipe, image, **options, **call, mask_image=drawn)
        assert torch.equal(other.call["mask_image"].round(), want["mask_image"]), number
        read = nrinv.generate(
            pipe, inv, output_type="latent", generator=torch.Generator(), image=picture, mask_image=drawn
        ).images
        assert torch.allclose(read, stock, atol=1e-5), number
    with pytest.raises(ValueError, match="mask_image must be an image"):
        nrinv.generate(pipe, inv, mask_image=mask[..., None].repeat(3, -1))
    with pytest.raises(ValueError, match=r"image: .* cannot be read as an image"):
        nrinv.generate(pipe, inv, image="no such file.png")


def test_control_images_are_shown_as_they_are_meant(tmp_path):
    pipe = stand_in()
    left = Image.new("RGB", (2 * SIZE, SIZE))
    left.paste("white", (0, 0, SIZE, SIZE))
    turned(left).save(tmp_path / "turned.png", exif=turned(left).getexif())
    deep = Image.fromarray(ramp(65535, np.uint16))
    given = {
        "control_image": tmp_path / "turned.png",
        "image": [icon("RGBA"), deep, left],
        "ip_adapter_image": [[str(tmp_path / "turned.png")]],
        "conditioning_frames": [turned(left)],
        "image_embeds": torch.ones(1),
        "prompt": "an image.png",
        "original_size": (64, 64),
    }
    read = read_arguments(pipe, given)
    assert (
        read["prompt"] == "an image.png"
        and read["original_size"] == (64, 64)
        and read["image_embeds"] is given["image_embeds"]
    )
    for upright in (read["control_image"], read["ip_adapter_image"][0][0], read["conditioning_frames"][0]):
        assert np.array_equal(np.asarray(upright), np.asarray(left))
    clear, grey, plain = read["image"]
    assert clear.mode == "RGB" and np.asarray(clear).min() == 255 and plain.mode == "RGB"
    assert grey.mode == "RGB" and abs(np.asarray(grey)[..., 0] - np.asarray(deep) / 257).max() <= 0.51
    layered = stand_in()
    layered.vae.config["input_channels"] = 4
    assert read_arguments(layered, {"image": icon("RGBA")})["image"].mode == "RGBA"


# -------------------------------------------------------------------------------------------------------------------- masks


def right_half(value=1, dtype=np.float32):
    mask = np.zeros((8, 8), dtype)
    mask[:, 4:] = value
    return mask


def drawn_in_alpha(mode, color=0):
    image = Image.new(mode, (8, 8), color)
    image.putalpha(Image.fromarray(right_half(255, np.uint8)))
    return image


@pytest.mark.parametrize(
    "mask",
    [
        right_half(),
        right_half(255),
        right_half(True, bool),
        right_half(1, np.uint8),
        right_half(255, np.uint8),
        right_half(65535, np.uint16),
        right_half(1, np.int64),
        right_half(1, np.float16),
        right_half()[..., None],
        right_half()[None],
        right_half()[None, None],
        torch.from_numpy(right_half()),
        torch.from_numpy(right_half()).bfloat16(),
        torch.from_numpy(right_half(True, bool)),
        torch.from_numpy(right_half(65535, np.uint16))[None],
        Image.fromarray(right_half(255, np.uint8)),
        Image.fromarray(right_half(255, np.uint8)).convert("1"),
        Image.fromarray(right_half(255, np.uint8)).convert("RGB"),
        Image.fromarray(right_half(255, np.uint8)).convert("RGBA"),
        Image.fromarray(right_half(65535, np.uint16)),
        Image.fromarray(right_half(65535, np.int32)),
        Image.fromarray(right_half()),
        drawn_in_alpha("RGB"),
        drawn_in_alpha("RGB", "white"),
        drawn_in_alpha("L"),
    ],
)
def test_every_kind_of_mask_is_the_same_mask(mask, tmp_path):
    read = read_mask(mask)
    assert read.dtype == torch.float32 and torch.equal(read, torch.from_numpy(right_half())[None, None])
    if isinstance(mask, Image.Image) and mask.mode not in ("I", "F"):
        mask.save(tmp_path / "mask.png")
        assert torch.equal(read_mask(tmp_path / "mask.png"), read) and torch.equal(
            read_mask(str(tmp_path / "mask.png")), read
        )


@pytest.mark.parametrize(
    "mask", [right_half(0.5), Image.fromarray(right_half(32768, np.uint16)), right_half(32768, np.uint16)]
)
def test_grey_in_a_mask_stays_grey(mask):
    assert torch.allclose(read_mask(mask), torch.from_numpy(right_half(0.5))[None, None], atol=1e-4)


def both_drawn():
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8))
    image.putalpha(Image.fromarray(right_half(255, np.uint8)))
    return image


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (right_half(2) - 1, r"got -1\.\.1"),
        (right_half(1.4) - 0.7, r"got -0\.7\.\.0\.7"),
        (right_half(0.5) * 3, r"got 0\.\.1\.5"),
        (right_half(np.nan), "got NaN or infinity"),
        (np.ones(3), r"got shape \(3,\)"),
        (np.ones((8, 8, 3)), r"got shape \(8, 8, 3\)"),
        (right_half(70000), r"got 0\.\.70000"),
        (3.5, "got float"),
        (both_drawn(), "both grey and alpha differ"),
        ("no such file.png", "cannot be read as an image"),
    ],
)
def test_what_is_no_mask_is_refused(mask, message):
    with pytest.raises(ValueError, match=f"mask_image.*{message}"):
        read_mask(mask)
