"""The benchmarks run, and what they hold is held."""

import json
from argparse import Namespace

import numpy as np
import pipelines
import pytest
import report
import solver
import torch

import nrinv


def test_no_method_is_ahead_of_auto_on_one_step(tmp_path, monkeypatch, capsys):
    out = tmp_path / "solver.json"
    monkeypatch.setattr("sys.argv", ["solver.py", "--quick", "--check", "--out", str(out)])
    assert solver.main() == 0, capsys.readouterr().out
    rows = json.loads(out.read_text())["rows"]
    assert {"nrinv auto", "fixed point", "Newton-GMRES", "scipy anderson"} <= {row["method"] for row in rows}


def test_the_check_of_the_solver_benchmark_can_fail(monkeypatch):
    rows = [
        row
        for case in solver.cases(True)
        if case.kappa == 0.6
        for row in solver.measure(solver.Problem(case), solver.contenders())
    ]
    assert not list(solver.violations(rows))
    monkeypatch.setattr(solver, "REFERENCE", "fixed point")
    assert len(list(solver.violations(rows))) > 10


def test_the_pages_show_the_committed_results():
    assert all(path.read_text() == text for path, text in report.pages().items())


@pytest.fixture
def folder(tmp_path):
    """Two held-out images with captions, as a user would give them."""
    records = nrinv.demo_images("heldout_pair")[:2]
    for i, one in enumerate(records):
        one.image.save(tmp_path / f"{i}.png")
    (tmp_path / "captions.json").write_text(json.dumps({f"{i}.png": one.caption for i, one in enumerate(records)}))
    return tmp_path


def test_the_steps_of_a_pipeline_are_the_samplers(folder):
    arguments = Namespace(model="turbo", images=folder, steps=3, guidance=1.0, size=64, quick=False)
    problems = list(solver.model_problems(arguments))
    assert [problem.case.side for problem in problems] == ["step 0", "step 1", "step 2"]
    for j, problem in enumerate(problems):
        signal, sigma = problem.work.sampler.levels[j]
        noise = np.random.default_rng(j).standard_normal(tuple(problem.work.latents.shape), dtype=np.float32)
        assert problem.log_residual((signal * problem.work.latents + sigma * torch.from_numpy(noise)).float()) < -4
        answer, used = solver.run_nrinv({}, problem, 8)
        assert used <= 8 and problem.log_residual(answer) < problem.log_residual(problem.state)


def test_whole_inversions_of_a_users_images(folder, monkeypatch):
    out = folder / "pipelines.json"
    monkeypatch.setattr(
        "sys.argv",
        ["pipelines.py", "--quick", "--model", "turbo", "--images", str(folder), "--steps", "4", "--out", str(out)],
    )
    assert not pipelines.main()
    rows = {row["method"]: row for row in json.loads(out.read_text())["rows"]}
    ours = [row for name, row in rows.items() if name.startswith("nrinv")]
    assert rows["naive"]["nfe"] == 4
    assert max(row["psnr_vae"] for row in ours) > rows["naive"]["psnr_vae"] + 10
