"""Videos: frames are one sample, in the layout that each pipeline draws; what cannot be one is refused."""

import diffusers
import numpy as np
import pytest
import torch
import zoo
import zoo.video
from PIL import Image

import nrinv
from nrinv.images import read_source


def ltx_vae():
    torch.manual_seed(0)
    sizes = {"block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    layers = {"layers_per_block": (1,) * 5, "decoder_layers_per_block": (1,) * 5}
    vae = diffusers.AutoencoderKLLTXVideo(latent_channels=8, **sizes, **layers).eval()
    vae.latents_mean += 0.5  # among its weights
    vae.latents_std *= 2
    return vae


# An autoencoder for those that the zoo leaves without.
MADE = {
    "CogVideoX": lambda: zoo.video.cogvideox(autoencoder=zoo.video.cogvideox_vae()),
    "LTX": lambda: zoo.video.ltx(autoencoder=ltx_vae()),
    "HunyuanVideo": lambda: zoo.video.hunyuan(autoencoder=zoo.video.hunyuan_vae(), guidance_scale=6.0),
}
# Layouts [B, C, F, h, w], [B, F, C, h, w] and packed; frames by the autoencoder and one by one; with an image to go on from.
KINDS = (
    "Wan",
    "Wan, image to video",
    "CogVideoX",
    "CogVideoX, Fun Control",
    "CogVideoX, image to video",
    "LTX",
    "HunyuanVideo",
    "EasyAnimate",
    "Sana, video",
    "AnimateDiff",
    "Lucy, edit",
)


def made(name):
    return MADE[name]() if name in MADE else zoo.make(name)


def film(call, seed=7):
    """Pixels [1, F, 3, H, W] in 0..1 of the size that a case's call draws."""
    frames = call.get("num_frames") or call.get("frames") or 5
    return zoo.randn(1, frames, 3, call.get("height", 32), call.get("width", 32), seed=seed).sigmoid()


@pytest.mark.parametrize("name", KINDS)
def test_encoded_videos_are_what_the_pipeline_draws(name):
    pipe, call, latents = made(name)
    video = film(call)
    state = torch.get_rng_state()
    z = nrinv.encode(pipe, video)
    assert torch.equal(torch.get_rng_state(), state)
    assert z.shape == latents.shape and float(z.std()) > 0
    vae = pipe.vae
    x = video.transpose(1, 2) * 2 - 1
    if name == "AnimateDiff":
        want = torch.stack([vae.encode(frame).latent_dist.mode() for frame in x.unbind(2)], 2)
    else:
        want = vae.encode(x).latent_dist.mode()
    mean, std = (
        (vae.latents_mean, vae.latents_std)
        if name == "LTX"
        else (vae.config.get(n) for n in ("latents_mean", "latents_std"))
    )
    if mean is not None:
        shape = (1, -1, 1, 1, 1)
        want = (want - torch.as_tensor(mean).reshape(shape)) / torch.as_tensor(std).reshape(shape)
    else:
        want = want * (vae.config.get("scaling_factor") or 1)
    if z.ndim == 3:
        want = pipe._pack_latents(want, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)
    elif name.startswith("CogVideoX"):
        want = want.transpose(1, 2)
    torch.testing.assert_close(z, want, rtol=1e-4, atol=1e-5)
    again = nrinv.decode(pipe, z, height=call.get("height"), width=call.get("width"))
    assert again.shape[0] == 1 and again.shape[2:] == video.shape[2:]
    if not name.startswith("CogVideoX"):  # whose autoencoder makes 8 frames of an even number of latents
        assert again.shape == video.shape


@pytest.mark.parametrize("name", ["Wan", "CogVideoX", "LTX", "AnimateDiff"])
def test_a_video_is_inverted_and_drawn_again(name):
    pipe, call, _ = made(name)
    if name == "AnimateDiff":  # random weights encode to next to nothing
        pipe.vae.register_to_config(scaling_factor=4.0)
    video = film(call)
    call = {key: value for key, value in call.items() if key not in ("num_frames", "height", "width")}
    options = {"num_inference_steps": 4, "max_nfe": 24, "tol": 2e-5}
    if name == "Wan":
        options = {
            "num_inference_steps": 10,
            "max_nfe": 1,
            "tol": 1e-4,
            "solver": nrinv.Solver(rounds=20, extrapolation=0.5),
        }
    inv = nrinv.invert(pipe, video, **options, **call)
    assert inv.call["num_frames"] == video.shape[1] and inv.call["height"] == video.shape[-2]
    drawn = nrinv.generate(pipe, inv, output_type="latent").frames
    z = nrinv.encode(pipe, video)
    if drawn.shape != z.shape:  # LTX unpacks, and puts the statistics of its autoencoder back
        assert name == "LTX"
        drawn = pipe._pack_latents(drawn, pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size)
    assert float((drawn - z).norm() / z.norm()) < 2e-3


@pytest.fixture(scope="module")
def wan():
    return made("Wan")[0]


def test_every_way_to_give_a_video(wan, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    frames = [Image.fromarray(frame) for frame in pixels]
    frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
    for index, frame in enumerate(frames):
        frame.save(tmp_path / f"{index}.png")
    want = torch.from_numpy(pixels).permute(0, 3, 1, 2)[None] / 255
    ways = {
        "array": pixels,
        "array of videos": pixels[None],
        "tensor": want[0],
        "tensor of videos": want,
        "list of images": frames,
        "list of lists": [frames],
        "tuple": tuple(frames),
        "list of arrays": list(pixels),
        "list of tensors": list(want[0]),
        "paths": [tmp_path / f"{n}.png" for n in range(5)],
        "list of videos": [pixels],
        "animated file": tmp_path / "film.png",
        "animated image": Image.open(tmp_path / "film.png"),
        "list of files": [str(tmp_path / "film.png")],
    }
    for name, given in ways.items():
        read = read_source(wan, given)
        assert read.frames == 5 and len(read) == 1 and torch.allclose(read.image, want, atol=1e-6), name
    two = read_source(wan, [frames, [one.rotate(180) for one in frames]])
    assert two.tensor.shape == (2, 5, 3, 32, 32) and torch.equal(two.tensor[1], two.tensor[0].flip(-1, -2))
    assert read_source(wan, [[frames[0]], [frames[1]]]).tensor.shape == (2, 1, 3, 32, 32)
    assert read_source(wan, frames[0]).tensor.shape == (1, 1, 3, 32, 32)
    small = read_source(wan, pixels, height=16, width=16)
    assert small.tensor.shape == (1, 5, 3, 16, 16)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (np.zeros((6, 32, 32, 3), np.uint8), "image: WanPipeline draws videos of 5 or 9 frames, got 6"),
        ([np.zeros((n, 32, 32, 3), np.uint8) for n in (5, 9)], r"videos must have one number of frames.*\[5, 9\]"),
        ([[Image.new("RGB", (32, 32))], []], r"one number of frames, at least 1, got \[1, 0\]"),
        (torch.zeros(1, 3, 5, 32, 32), "image must have 3 channels"),
        (torch.zeros(1, 1, 5, 3, 32, 32), "image must be a tensor"),
        (zoo.randn(1, 5, 3, 32, 32), r"image must be in 0\.\.1 or -1\.\.1"),
        (zoo.randn(1, 16, 32, 32), "image must have 3 channels"),
        (torch.rand(1, 4, 3, 32, 32), "may be both"),  # latents of 4 channels have that shape too
    ],
)
def test_what_is_no_video_is_refused(wan, video, message):
    with pytest.raises(ValueError, match=message):
        nrinv.encode(wan, video)


def test_the_frames_of_the_call_are_those_of_the_video(wan):
    with pytest.raises(ValueError, match="num_frames must be 5, the frames of the video, got 9"):
        nrinv.invert(wan, torch.zeros(1, 5, 3, 32, 32), prompt_embeds=zoo.randn(1, 7, 32), num_frames=9)


def test_what_cannot_be_encoded_is_refused_by_name():
    pipe, call, _ = zoo.make("Allegro")
    with pytest.raises(ValueError, match="AllegroPipeline has no autoencoder; give latents"):
        nrinv.encode(pipe, film(call))
    vae = diffusers.AutoencoderKLAllegro(
        latent_channels=4, block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=2
    )
    pipe.register_modules(vae=vae.eval())
    with pytest.raises(ValueError, match=r"AutoencoderKLAllegro cannot encode a video: .*tiling.*; give latents"):
        nrinv.encode(pipe, film(call))
    pipe, call, _ = zoo.video.ltx(diffusers.LTXImageToVideoPipeline, autoencoder=ltx_vae(), image=zoo.video.picture())
    with pytest.raises(ValueError, match=r"LTXImageToVideoPipeline lays its latents out .*give latents"):
        nrinv.encode(pipe, film(call))


def test_a_network_that_takes_frames_together_gets_whole_ones():
    network = {"use_rotary_positional_embeddings": True, "patch_size_t": 2, "patch_bias": False}
    scheduler = zoo.video.cogvideox_scheduler(snr_shift_scale=1.0)
    pipe, _, _ = zoo.video.cogvideox(scheduler=scheduler, network=network, autoencoder=zoo.video.cogvideox_vae())
    with pytest.raises(ValueError, match="draws videos of 5 or 13 frames, got 9"):
        nrinv.encode(pipe, torch.rand(1, 9, 3, 64, 64))


def test_pipelines_of_images_refuse_videos(turbo, tmp_path):
    frames = [Image.new("RGB", (32, 32), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    for video in ([frames], torch.rand(1, 2, 3, 32, 32), np.zeros((1, 2, 32, 32, 3), np.uint8)):
        with pytest.raises(ValueError, match="StableDiffusionPipeline draws images, not videos"):
            nrinv.encode(turbo, video)
    with pytest.raises(ValueError, match="cannot be read as an image: it has 2 frames"):
        nrinv.encode(turbo, tmp_path / "film.gif")
    opened = Image.open(tmp_path / "film.gif")
    opened.seek(1)
    assert read_source(turbo, opened).image[0, 2].min() > 0.9


def test_a_mask_is_laid_over_every_frame():
    from nrinv.autoencoder import mask_like

    pipe, call, latents = made("LTX")
    mask = np.zeros((call["height"], call["width"]), np.float32)
    mask[:, call["width"] // 2 :] = 1
    laid = mask_like(pipe, mask, latents, call["height"], call["width"])
    assert laid.shape == latents.shape and torch.equal(laid.reshape(2, 4, 4, -1)[:, :, 2:].mean(), torch.tensor(1.0))
    assert float(laid.mean()) == 0.5
    pipe, call, latents = made("CogVideoX")
    laid = mask_like(pipe, mask, latents, None, None)
    assert laid.shape == (1, 1, 1, 8, 8) and float(laid[..., 4:].min()) == 1 and float(laid.mean()) == 0.5
