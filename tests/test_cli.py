"""The command line, run as a user runs it."""

import subprocess
import sys

import pytest
from PIL import Image

import nrinv


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
    for extra, name in (([], "same.png"), (["--prompt", "red heart, noto style"], "edit.png")):
        done = run("generate", tmp_path / "x.safetensors", "--model", "turbo", "-o", tmp_path / name, *extra)
        assert done.returncode == 0, done.stderr + done.stdout
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["invert", "nothing.png", "--model", "turbo", "-o", "x.safetensors"], "image: 'nothing.png' does not exist"),
        (
            ["generate", "nothing.safetensors", "--model", "turbo", "-o", "x.png"],
            "path: 'nothing.safetensors' cannot be read",
        ),
        (["demo", "--image", "nothing.png"], "say what your image shows"),
        (["demo", "--steps", "0", "--out", "TMP"], "num_inference_steps must be at least 1, got 0"),
    ],
)
def test_failures_are_one_clear_line(args, message, tmp_path):
    done = run(*[str(tmp_path) if arg == "TMP" else arg for arg in args])
    assert done.returncode != 0
    assert message in " ".join(done.stdout.split())
    assert "Traceback" not in done.stderr


def test_help_names_every_command():
    text = run("--help").stdout
    assert all(command in text for command in ("demo", "invert", "generate"))
