"""The command line, run as a user runs it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import nrinv
from nrinv import models, pipeline
from nrinv.cli import app, draw, options, paths, shell
from nrinv.images import psnr


def invoke(*args):
    """In this process: starting another one takes most of the time."""
    return CliRunner().invoke(app, list(map(str, args)))


def done(*args):
    result = invoke(*args)
    assert result.exit_code == 0, result.output
    return result.stdout


def pixels(path):
    with Image.open(path) as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None].float() / 255


@pytest.fixture(autouse=True)
def embedded(_pipelines, monkeypatch):
    """The embedded models are loaded once, and each command gets its own pipeline of them."""

    def load(model, dtype):
        if model in models.KINDS and dtype == "float32":
            return type(_pipelines[model])(**_pipelines[model].components, requires_safety_checker=False)
        return options_load(model, dtype)

    options_load = options.load_pipeline
    monkeypatch.setattr(options, "load_pipeline", load)
    monkeypatch.setattr(draw, "load_pipeline", load)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Icons, a mask, a folder of references, inversions, and files that are none of these."""
    folder = tmp_path_factory.mktemp("files")
    first, second, *_ = nrinv.demo_images()
    first.image.save(folder / "a.png")
    second.image.resize((128, 128)).save(folder / "b.jpg")
    Image.new("L", (64, 64), 255).save(folder / "mask.png")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "cut.png").write_bytes((folder / "a.png").read_bytes()[:1500])
    Image.new("1", (20000, 20000)).save(folder / "bomb.png")
    for name in ("empty", "one", "references", "folder.png", "folder.safetensors", "pipe"):
        (folder / name).mkdir()
    first.image.save(folder / "one" / "a.png")
    for i, one in enumerate(nrinv.demo_images("heldout_concept")[::20][:2]):
        one.image.save(folder / "references" / f"{i}.png")
    pipe = nrinv.demo_pipeline("turbo")
    inv = nrinv.invert(pipe, first.image, first.caption, num_inference_steps=4, guidance_scale=1.0, max_nfe=1)
    inv.save(folder / "x.safetensors")
    data = bytearray((folder / "x.safetensors").read_bytes())
    data[-5] ^= 1
    (folder / "damaged.safetensors").write_bytes(data)
    inv.scheduler_config["beta_end"] = 0.5
    inv.save(folder / "foreign.safetensors")
    (folder / "pipe" / "model_index.json").write_text('["StableDiffusionPipeline"]')
    (folder / "captions.csv").write_text("a.png,one,two\n")
    (folder / "captions.json").write_text('{"a.png": 1}')
    return folder


# ----------------------------------------------------------------------------------------------------------------- commands


def test_the_demo(tmp_path):
    shown = done("demo", "--out", tmp_path)
    for word in ("timestep", "residual", "VAE round trip", "naive", "nrinv", "network s"):
        assert word in shown
    for name in ("sheet.png", "residuals.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 100


def test_an_inversion_draws_its_image_and_verify_says_how_well(tmp_path, files):
    caption = nrinv.demo_images()[0].caption
    shown = done("invert", files / "a.png", "--prompt", caption, "-o", tmp_path / "x.safetensors", "--verify")
    assert np.isfinite(nrinv.load(tmp_path / "x.safetensors").error).all()
    done("generate", tmp_path / "x.safetensors", "-o", tmp_path / "same.png")
    told = float(shown.split("drawn again it has ")[1].split(" dB")[0])
    assert told > 25 and told == pytest.approx(psnr(pixels(tmp_path / "same.png"), pixels(files / "a.png"))[0], abs=0.2)
    done("generate", tmp_path / "x.safetensors", "--prompt", "pink heart, noto style", "-o", tmp_path / "edit.png")
    assert psnr(pixels(tmp_path / "edit.png"), pixels(files / "a.png"))[0] < 20
    assert {one.name for one in tmp_path.iterdir()} == {"x.safetensors", "same.png", "edit.png"}


def test_what_is_not_drawn_again_is_estimated_by_the_autoencoder(turbo, held_out):
    images, captions, _ = held_out
    given = {"num_inference_steps": 4, "guidance_scale": 1.0}
    inv = nrinv.invert(turbo, images[:6], captions[:6], verify=True, **given)
    z, drawn = nrinv.encode(turbo, images[:6]), nrinv.generate(turbo, inv, output_type="latent").images
    true = psnr(nrinv.decode(turbo, z), nrinv.decode(turbo, drawn))
    told = draw._quality(shell.Screen(quiet=True), turbo, inv, images[:6], {}, None)
    estimated = [float(one.removeprefix("reconstructs to about ").removesuffix(" dB")) for one in told]
    np.testing.assert_allclose(estimated, true, atol=3)
    inv.error[:] = np.nan
    assert "--verify" in draw._quality(shell.Screen(quiet=True), turbo, inv, images[:6], {}, None)[0]


def test_edit(files, tmp_path):
    shown = done("edit", files / "a.png", "--prompt", "owl", "--to", "pink heart, noto style", "-o", tmp_path / "edit.png")
    assert "'owl' to 'pink heart, noto style', 16 network evaluations" in shown
    done(
        "edit", files / "a.png", "--prompt", "owl", "--to", "pink heart, noto style", "-o", tmp_path / "masked.png",
        "--mask", files / "mask.png", "--edit-strength", 0.5, "--edit-guidance", 1.5, "--max-nfe", 2,
    )  # fmt: skip
    for name in ("edit.png", "masked.png"):
        with Image.open(tmp_path / name) as picture:
            assert picture.size == (64, 64)


@pytest.mark.parametrize(("name", "size", "frames"), [("strip.png", (256, 64), 1), ("film.gif", (64, 64), 6)])
def test_interpolate(files, tmp_path, name, size, frames):
    out = tmp_path / name
    given = ["--prompt", "owl", "--to", "bell", "-n", 4, "--max-nfe", 1]
    done("interpolate", files / "a.png", files / "b.jpg", *given, "-o", out)
    with Image.open(out) as picture:
        assert picture.size == size and getattr(picture, "n_frames", 1) == frames


def test_rare(files, tmp_path):
    out = tmp_path / "rare.png"
    shown = done("rare", "--images", files / "references", "--prompt", "bagel, noto style", "-n", 3, "-o", out)
    assert "3 drawings from 2 images" in shown and "novelty" in shown
    with Image.open(out) as picture:
        assert picture.width > picture.height > 100


def test_info_says_what_works_here():
    found = json.loads(done("info", "--json"))
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["nrinv"] == nrinv.__version__
    assert found["devices"][0]["device"] == "cpu" and 0 < found["devices"][0]["free_gb"] < 1e6
    assert found["works"]["torch tensors in the C core"] is None and found["works"]["embedded models"] is None
    assert "cli" in found["extras"]
    assert "torch tensors in the C core: works" in done("info")


def test_help_names_every_command_and_option():
    text = done("--help")
    for name in ("demo", "samples", "info", "invert", "generate", "edit", "interpolate", "rare"):
        assert name in text
        shown = done(name, "--help")
        assert "--quiet" in shown and "--debug" in shown and "Usage" in shown
    assert "--install-completion" in text and done("--version") == f"nrinv {nrinv.__version__}\n"


# -------------------------------------------------------------------------------------------------------------- many images


def test_a_folder_of_samples_is_inverted_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(
        models, "demo_images", lambda split: [one._replace(caption="a, b") for one in nrinv.demo_images()[:3]]
    )
    done("samples", tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    captions = json.loads((tmp_path / "in" / "captions.json").read_text())
    assert captions == {"a-b.png": "a, b", "a-b-2.png": "a, b", "a-b-3.png": "a, b"}
    given = ["--captions", tmp_path / "in" / "captions.json", "--max-nfe", 1, "-o", tmp_path / "inv"]
    result = invoke("invert", tmp_path / "in", "--batch-size", 2, *given)
    assert result.exit_code == 1 and "broken.png' cannot be read as an image" in result.stderr
    assert result.stderr.splitlines()[-1] == "nrinv: 1 of 4 failed"
    found = {name: nrinv.load(tmp_path / "inv" / f"{name}.safetensors") for name in ("a-b", "a-b-2", "a-b-3")}
    assert len(list((tmp_path / "inv").iterdir())) == 3
    done("invert", tmp_path / "in" / "a-b-2.png", "--prompt", "a, b", "--max-nfe", 1, "-o", tmp_path / "alone")
    alone = nrinv.load(tmp_path / "alone")
    torch.testing.assert_close(found["a-b-2"].latents, alone.latents, rtol=1e-4, atol=1e-4)
    assert found["a-b-2"].prompt == alone.prompt == "a, b"

    (tmp_path / "inv" / "a-b-2.safetensors").write_bytes(b"")
    (tmp_path / "in" / "broken.png").unlink()
    assert "3 of 3 outputs exist" in done("invert", tmp_path / "in", "--skip-existing", *given)
    result = invoke("generate", tmp_path / "inv", "-o", tmp_path / "drawn")
    assert result.exit_code == 1 and "a-b-2.safetensors' cannot be read" in result.stderr
    assert sorted(one.name for one in (tmp_path / "drawn").iterdir()) == ["a-b-3.png", "a-b.png"]


def test_one_image_that_fails_in_a_batch_does_not_spoil_the_others(files, tmp_path, monkeypatch):
    def failing(pipe, images, prompts, **given):
        if "bad" in prompts:
            raise RuntimeError("no")
        return invert(pipe, images, prompts, **given)

    invert = pipeline.invert
    monkeypatch.setattr(pipeline, "invert", failing)
    for name, caption in (("good", "owl"), ("wrong", "bad"), ("fine", "bell")):
        nrinv.demo_images()[0].image.save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(caption + "\n")
    given = ["--to", "dog", "--max-nfe", 1, "--batch-size", 3, "-o", tmp_path / "out"]
    result = invoke("edit", *(tmp_path / f"{name}.png" for name in ("good", "wrong", "fine")), *given)
    assert result.exit_code == 1 and "wrong.png: RuntimeError: no" in result.stderr and "1 of 3 failed" in result.stderr
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["fine.png", "good.png"]


def test_captions(tmp_path):
    (tmp_path / "a.csv").write_text('a.png,"owl, noto style"\nb, dog\n')
    captions = paths.read_captions(tmp_path / "a.csv")
    assert captions == {"a.png": "owl, noto style", "b": "dog"}
    (tmp_path / "c.txt").write_text("cat")
    named = [paths.caption_of(tmp_path / name, captions, None) for name in ("a.png", "b.png", "c.png", "d.png")]
    assert named == ["owl, noto style", "dog", "cat", None]
    assert paths.caption_of(tmp_path / "c.png", captions, "said") == "said"


# ---------------------------------------------------------------------------------------------------------------- the model


def test_an_inversion_is_drawn_with_the_model_that_it_was_made_with(files, tmp_path):
    done("invert", files / "a.png", "--model", "base", "--steps", 2, "--max-nfe", 1, "-o", tmp_path / "base")
    done("generate", tmp_path / "base", "-o", tmp_path / "own.png")
    done("generate", tmp_path / "base", "-o", tmp_path / "named.png", "--model", "base")
    assert (tmp_path / "own.png").read_bytes() == (tmp_path / "named.png").read_bytes()
    other = invoke("generate", files / "x.safetensors", "-o", tmp_path / "other.png", "--model", "base")
    assert other.exit_code == 0 and other.stderr.startswith("nrinv: warning: ") and other.stderr.count("\n") == 1
    foreign = invoke("generate", files / "foreign.safetensors", "-o", tmp_path / "foreign.png")
    assert foreign.exit_code == 1 and "model must be given" in foreign.stderr


# ----------------------------------------------------------------------------------------------------------------- failures


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("invert nothing.png -o x.safetensors", "image: 'nothing.png' does not exist"),
        ("invert F/broken.png -o x.safetensors", "cannot be read as an image"),
        ("invert F/cut.png -o x.safetensors", "cut.png' cannot be read as an image: image file is truncated"),
        ("invert F/bomb.png -o x.safetensors", "image: 'F/bomb.png' cannot be read as an image: Image size (400000000"),
        ("invert F/empty -o x.safetensors", "image: the folder 'F/empty' holds no .png"),
        ("invert /dev/null -o x.safetensors", "image: '/dev/null' is no file"),
        ("invert F/a.png -o nowhere/x.safetensors", "output: the folder of 'nowhere/x.safetensors' does not exist"),
        ("invert F/a.png -o F/folder.safetensors", "output: 'F/folder.safetensors' is a folder"),
        ("invert F/a.png F/b.jpg -o x.safetensors", "output must be a folder where several files may go"),
        ("invert F/a.png F/one/a.png -o .", "would both go to 'a.safetensors'"),
        ("invert F/a.png -o /proc/x.safetensors", "output: nothing can be written to the folder '/proc'"),
        ("invert F/a.png -o /dev/full --max-nfe 1", "No space left on device"),
        ("invert F/a.png -o x --model nothing", "model: 'nothing' cannot be loaded"),
        ("invert F/a.png -o x --model F/pipe", "model: 'F/pipe' cannot be loaded"),
        ("invert F/a.png -o x --correct 2", "strength must be above 0 and at most 1, got 2"),
        ("invert F/a.png -o x --max-nfe 1099511627776", "max_nfe must be a whole number in 1..10000, got 1099511627776"),
        ("invert F/a.png -o x --rounds -1", "rounds must be a whole number in 0..10000, got -1"),
        ("invert F/a.png -o x --tol nan", "tol must be a finite number of at least 0, got nan"),
        ("invert F/a.png -o x --tol -1", "tol must be a finite number of at least 0, got -1"),
        ("invert F/a.png -o x --guidance nan", "guidance must be a finite number, got nan"),
        ("invert F/a.png -o x --guidance inf", "guidance must be a finite number, got inf"),
        ("invert F/a.png -o x --guidance 1e39", "NaN or infinity"),
        ("invert F/a.png -o x --seed -1", "seed must be a whole number in 0..9223372036854775807, got -1"),
        ("invert F/a.png -o x --steps 0", "steps must be a whole number in 1.."),
        ("invert F/a.png -o x --steps 1000000000", "steps must be a whole number in 1..1000, got 1000000000"),
        ("invert F/a.png -o x --size 1000000", "size: 1 x 1000000x1000000 pixels take about 1152000.0 GB of memory"),
        ("invert F/a.png -o x --size 0", "size must be a whole number in 1.."),
        ("invert F/a.png -o x --batch-size 0", "batch_size must be a whole number in 1.."),
        ("invert F/a.png -o x --captions F/captions.csv", "must have lines name,caption"),
        ("invert F/a.png -o x --captions F/captions.json", "must be an object {name: caption}"),
        ("invert F/a.png -o x --captions F/a.png", "captions: 'F/a.png' is no text in UTF-8"),
        ("invert F/a.png -o x --prompt \udc80", "is no text in UTF-8"),
        ("generate nothing.safetensors -o x.png", "inversion: 'nothing.safetensors' does not exist"),
        ("generate F/a.png -o x.png", "cannot be read as a saved inversion"),
        ("generate F/damaged.safetensors -o x.png", "its digest is another"),
        ("generate F/a.png -o x.tiff", "output must end with .png, .jpg, .jpeg, .webp, got 'x.tiff'"),
        ("generate F/x.safetensors -o F/folder.png", "output: 'F/folder.png' is a folder"),
        ("generate F/x.safetensors -o x.png --replay", "the inversion holds no defects"),
        ("edit nothing.png --prompt a --to b", "image: 'nothing.png' does not exist"),
        ("edit F/a.png --to b", "prompt: say what 'F/a.png' shows"),
        ("edit F/a.png --prompt a --to b --mask nothing.png", "mask: 'nothing.png' does not exist"),
        ("edit F/a.png --prompt a --to b --mask F/broken.png", "cannot identify image file"),
        ("edit F/a.png --prompt a --to b --mask F/bomb.png", "mask: 'F/bomb.png' cannot be read as an image"),
        ("edit F/a.png --prompt a --to b --edit-strength nan", "edit_strength must be above 0 and at most 1, got nan"),
        ("edit F/a.png --prompt a --to b --edit-guidance nan", "edit_guidance must be a finite number, got nan"),
        ("edit F/a.png --prompt a --to b --max-nfe 1 --edit-guidance 1e39", "NaN or infinity"),
        ("edit F/a.png --prompt a --to b -o nowhere/x.png", "the folder of 'nowhere/x.png'"),
        ("interpolate F/a.png nothing.png", "B: 'nothing.png' does not exist"),
        ("interpolate F/a.png F/broken.png", "cannot be read as an image"),
        ("interpolate F/a.png F/b.jpg -n 1", "num must be a whole number in 2.."),
        ("interpolate F/a.png F/b.jpg -n 1000000000", "num: 1000000000 x 64x64 pixels take about"),
        ("interpolate F/a.png F/b.jpg -n 2000 -o x.webp", ".webp images have at most 16383 pixels a side, got 128000"),
        ("interpolate F/a.png F/b.jpg -o x.txt", "output must end with .png"),
        ("rare --images nowhere --prompt a", "images: the folder 'nowhere' does not exist"),
        ("rare --images F/empty --prompt a", "must hold at least 2 images, got 0"),
        ("rare --images F/one --prompt a", "must hold at least 2 images, got 1"),
        ("rare --images F/references --prompt a -n 0", "num must be a whole number in 1.."),
        ("rare --images F/references --prompt a -n 1000000000", "num: 1000000000 x 64x64 pixels take about"),
        ("rare --images F/references --prompt a --spread 2", "spread must be in 0..1"),
        ("rare --images F/references --prompt a --spread nan", "spread must be a finite number, got nan"),
        ("samples F/a.png", "output: 'F/a.png' is no folder"),
        ("samples x --split nothing", "split must be one of"),
        ("demo --image F/a.png", "say what your image shows"),
        ("demo --steps 0", "steps must be a whole number in 1..1000, got 0"),
        ("demo --out F/a.png", "output: 'F/a.png' is no folder"),
    ],
)
def test_failures_are_one_clear_line(files, args, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.symlink(files, tmp_path / "F")
    before = sorted(files.rglob("*"))
    result = invoke(*args.split())
    assert result.exit_code == 1 and message in result.stderr, result.output
    assert isinstance(result.exception, SystemExit) and not result.stdout
    assert result.stderr.startswith("nrinv: ") and result.stderr.count("\n") == 1
    assert os.listdir(tmp_path) == ["F"] and sorted(files.rglob("*")) == before  # nothing half done is left behind


@pytest.mark.parametrize(
    "args", ["invert F/a.png -o x --solver magic", "invert F/a.png", "generate x -o x.png --dtype int8", "x"]
)
def test_wrong_options_are_exit_code_2(args):
    result = invoke(*args.split())
    assert result.exit_code == 2 and "Error" in result.stderr and isinstance(result.exception, SystemExit)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (KeyboardInterrupt(), 130, "nrinv: interrupted"),
        (MemoryError(), 1, "nrinv: out of memory"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), 1, "nrinv: out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "nrinv: out of memory"),
        (RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 1"), 1, "nrinv: out of memory"),
        (Image.DecompressionBombError("too many pixels"), 1, "nrinv: image: too many pixels"),
        (LookupError("of\ntwo lines"), 1, "nrinv: LookupError: of two lines (--debug shows where)"),
        (RuntimeError("x" * 10_000), 1, "nrinv: RuntimeError: " + "x" * 600 + " ..."),
        (OSError(28, "No space left on device", "x.png"), 1, "nrinv: 'x.png': No space left on device"),
        (BrokenPipeError(), 1, ""),
    ],
)
def test_whatever_is_raised_is_one_line_and_an_exit_code(files, tmp_path, monkeypatch, error, code, line):
    def raising(*args, **kwargs):
        raise error

    monkeypatch.setattr(pipeline, "invert", raising)
    result = invoke("invert", files / "a.png", "-o", tmp_path / "x")
    assert result.exit_code == code and isinstance(result.exception, SystemExit)
    assert result.stderr.startswith(line) and result.stderr.count("\n") == bool(line)
    if code == 1 and line:
        assert invoke("invert", files / "a.png", "-o", tmp_path / "x", "--debug").exception is error
        monkeypatch.setenv("NRINV_TRACEBACK", "1")
        assert invoke("invert", files / "a.png", "-o", tmp_path / "x").exception is error


def test_memory_is_looked_at_before_anything_runs(files, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "invert", None)
    monkeypatch.setattr(options, "free_memory", lambda device: 2e6)
    result = invoke(
        "edit", files / "a.png", files / "b.jpg", "--size", 256, "--prompt", "a", "--to", "b", "-o", tmp_path / "x"
    )
    assert result.exit_code == 1 and "size: 1 x 256x256 pixels take about 0.1 GB" in result.stderr


def test_a_write_that_fails_leaves_the_picture_that_was_there(files, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    (tmp_path / "x.png").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", full)
    result = invoke("generate", files / "x.safetensors", "-o", tmp_path / "x.png")
    assert result.exit_code == 1 and "No space left" in result.stderr
    assert (tmp_path / "x.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_warnings_of_ours_are_lines_and_those_of_others_are_not_shown(capsys):
    with shell._warnings_in_lines(shell.Screen()):
        for name, text in (("nrinv.any", "ours"), ("nrinv.any", "ours"), ("diffusers.any", "theirs")):
            exec(f"import warnings; warnings.warn('{text}', stacklevel=2)", {"__name__": name})
    assert capsys.readouterr().err == "nrinv: warning: ours\n"


def test_quiet(files, tmp_path):
    result = invoke("generate", files / "x.safetensors", "-o", tmp_path / "x.png", "--quiet")
    assert result.exit_code == 0 and not result.output and (tmp_path / "x.png").exists()


def test_the_bar_counts_the_steps_of_the_pipeline(turbo):
    screen = shell.Screen()
    own = turbo.progress_bar
    screen.phase("invert [/red].png")  # a name of a file, and no markup
    assert screen._bar.make_tasks_table(screen._bar.tasks).row_count == 1
    with screen.watched(turbo):
        turbo("owl", num_inference_steps=4, guidance_scale=1.0, height=64, width=64, output_type="latent")
    (task,) = screen._bar.tasks
    assert (task.completed, task.total) == (4, 4) and turbo.progress_bar == own


def test_a_reader_that_leaves_gets_no_traceback(tmp_path):
    command = [sys.executable, "-m", "nrinv", "samples", str(tmp_path / "in")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 1
    assert Path(tmp_path / "in" / "captions.json").exists()
