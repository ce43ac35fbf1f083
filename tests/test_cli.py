"""The command line, run as a user runs it."""

import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

import nrinv
from nrinv.cli import app


def run(*args):
    return subprocess.run([sys.executable, "-m", "nrinv", *map(str, args)], capture_output=True, text=True, check=False)


def test_the_demo(tmp_path):
    done = run("demo", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    for word in ("timestep", "residual", "VAE round trip", "naive", "nrinv", "network s"):
        assert word in done.stdout
    for name in ("sheet.png", "residuals.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


def test_invert_then_generate(tmp_path):
    one = nrinv.demo_images()[0]
    one.image.save(tmp_path / "in.png")
    prompt = ["--prompt", one.caption, "--model", "turbo"]
    done = run(
        "invert",
        tmp_path / "in.png",
        *prompt,
        "--steps",
        4,
        "--guidance",
        1,
        "-o",
        tmp_path / "x.safetensors",
        "--verify",
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "network evaluations" in done.stdout and "error" in done.stdout
    for extra, name in (([], "same.png"), (["--prompt", "pink heart, noto style"], "edit.png")):
        done = run("generate", tmp_path / "x.safetensors", "--model", "turbo", "-o", tmp_path / name, *extra)
        assert done.returncode == 0, done.stderr + done.stdout
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Icons, a mask, a folder of references, and files that are no images."""
    folder = tmp_path_factory.mktemp("files")
    first, second, *_ = nrinv.demo_images()
    first.image.save(folder / "a.png")
    second.image.resize((128, 128)).save(folder / "b.jpg")
    Image.new("L", (64, 64), 255).save(folder / "mask.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "empty").mkdir()
    (folder / "one").mkdir()
    first.image.save(folder / "one" / "a.png")
    (folder / "references").mkdir()
    for i, one in enumerate(nrinv.demo_images("heldout_concept")[::20][:2]):
        one.image.save(folder / "references" / f"{i}.png")
    return folder


def invoke(*args):
    """In this process: starting another one takes most of the time."""
    return CliRunner().invoke(app, list(map(str, args)))


def test_edit(files, tmp_path):
    done = invoke("edit", files / "a.png", "--prompt", "owl", "--to", "pink heart, noto style", "-o", tmp_path / "edit.png")
    assert done.exit_code == 0, done.output
    assert "'owl' to 'pink heart, noto style', 16 network evaluations" in " ".join(done.output.split())
    masked = invoke(
        "edit", files / "a.png", "--prompt", "owl", "--to", "pink heart, noto style", "-o", tmp_path / "masked.png",
        "--mask", files / "mask.png", "--edit-strength", 0.5, "--edit-guidance", 1.5, "--max-nfe", 2,
    )  # fmt: skip
    assert masked.exit_code == 0, masked.output
    for name in ("edit.png", "masked.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.mark.parametrize(("name", "size", "frames"), [("strip.png", (256, 64), 1), ("film.gif", (64, 64), 6)])
def test_interpolate(files, tmp_path, name, size, frames):
    out = tmp_path / name
    done = invoke("interpolate", files / "a.png", files / "b.jpg", "--prompt", "owl", "--to", "bell", "-n", 4, "-o", out)
    assert done.exit_code == 0, done.output
    with Image.open(out) as picture:
        assert picture.size == size and getattr(picture, "n_frames", 1) == frames


def test_rare(files, tmp_path):
    out = tmp_path / "rare.png"
    done = invoke("rare", "--images", files / "references", "--prompt", "bagel, noto style", "-n", 3, "-o", out)
    assert done.exit_code == 0, done.output
    assert "3 drawings from 2 images" in " ".join(done.output.split()) and "novelty" in done.output
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["invert", "nothing.png", "-o", "x.safetensors"], "image: 'nothing.png' does not exist"),
        (["invert", "F/broken.png", "-o", "F/x.safetensors"], "cannot be read as an image"),
        (
            ["invert", "F/a.png", "-o", "nowhere/x.safetensors"],
            "output: the folder of 'nowhere/x.safetensors' does not exist",
        ),
        (["invert", "F/a.png", "-o", "F/x.safetensors", "--model", "nothing"], "model: 'nothing' cannot be loaded"),
        (["invert", "F/a.png", "-o", "F/x.safetensors", "--dtype", "int8"], "dtype must be float32, float16 or bfloat16"),
        (["invert", "F/a.png", "-o", "F/x.safetensors", "--correct", "2"], "strength must be above 0 and at most 1, got 2"),
        (["generate", "nothing.safetensors", "-o", "x.png"], "path: 'nothing.safetensors' cannot be read"),
        (["generate", "F/a.png", "-o", "x.png"], "cannot be read as a saved inversion"),
        (["generate", "F/a.png", "-o", "x.tiff"], "output must end with .png, .jpg, .jpeg, .webp, got 'x.tiff'"),
        (["edit", "nothing.png", "--prompt", "a", "--to", "b"], "image: 'nothing.png' does not exist"),
        (["edit", "F/a.png", "--prompt", "a", "--to", "b", "--mask", "nothing.png"], "mask: 'nothing.png' does not exist"),
        (["edit", "F/a.png", "--prompt", "a", "--to", "b", "--mask", "F/broken.png"], "cannot identify image file"),
        (["edit", "F/a.png", "--prompt", "a", "--to", "b", "--edit-strength", "0"], "edit_strength must be above 0"),
        (["edit", "F/a.png", "--prompt", "a", "--to", "b", "-o", "nowhere/x.png"], "the folder of 'nowhere/x.png'"),
        (["interpolate", "F/a.png", "nothing.png"], "B: 'nothing.png' does not exist"),
        (["interpolate", "F/a.png", "F/broken.png", "-o", "F/x.png"], "cannot be read as an image"),
        (["interpolate", "F/a.png", "F/b.jpg", "-n", "1"], "num must be a whole number of at least 2"),
        (["interpolate", "F/a.png", "F/b.jpg", "-o", "x.txt"], "output must end with .png"),
        (["rare", "--images", "nowhere", "--prompt", "a"], "images: the folder 'nowhere' does not exist"),
        (["rare", "--images", "F/empty", "--prompt", "a"], "must hold at least 2 images, got 0"),
        (["rare", "--images", "F/one", "--prompt", "a"], "must hold at least 2 images, got 1"),
        (["rare", "--images", "F/references", "--prompt", "a", "-n", "0", "-o", "F/x.png"], "num must be a whole number"),
        (["rare", "--images", "F/references", "--prompt", "a", "--spread", "2", "-o", "F/x.png"], "spread must be in 0..1"),
        (["demo", "--image", "nothing.png"], "say what your image shows"),
        (["demo", "--steps", "0", "--out", "F/demo"], "num_inference_steps must be at least 1, got 0"),
    ],
)
def test_failures_are_one_clear_line(files, args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    done = invoke(*[arg.replace("F/", f"{files}/") for arg in args])
    assert done.exit_code == 1 and message in " ".join(done.output.split()), done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert not list(tmp_path.iterdir())  # nothing half done is left behind


def test_help_names_every_command_and_option():
    text = run("--help").stdout
    commands = ("demo", "invert", "generate", "edit", "interpolate", "rare")
    assert all(command in text for command in commands)
    for command in commands:
        shown = invoke(command, "--help").output
        assert "--model" in shown and "Usage" in shown
