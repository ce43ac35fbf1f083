"""The benchmarks run, and what they hold is held."""

import json

import report
import solver


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
