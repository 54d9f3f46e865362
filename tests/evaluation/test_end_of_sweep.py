"""A sweep ends with its runs side by side, what failed, the line that makes the report, and one JSON line."""

import json
from types import SimpleNamespace

import pytest
from run_folders import coins, make_run

from harness.__main__ import end


@pytest.fixture
def finished(tmp_path):
    runs = [make_run(tmp_path, each=coins(0, 0.9)), make_run(tmp_path, "random", coins(1, 0.6))]
    return [run.path for run in runs]


def said(capsys, finished, jobs, failed, left=0):
    end(SimpleNamespace(finished=finished, folders=["runs"]), jobs, failed, len(jobs) - left)
    return capsys.readouterr().out


@pytest.mark.parametrize("failed", [[], [0], [1]])
def test_the_runs_and_what_failed(failed, finished, capsys):
    jobs = [["method=random", "keep=0.25", "seed=0"], ["method=fastv", "keep=0.25", "seed=0"]]
    *lines, report, last = said(capsys, finished, jobs, failed).splitlines()
    assert len([line for line in lines if line.startswith("| Control | Random |")]) == 1
    assert "95 %" in "\n".join(lines)
    names = [["method=random", "method=fastv"][number] for number in failed]
    assert [line for line in lines if line.startswith("failed: ")] == [f"failed: {name}" for name in names]
    assert report == "python -m harness.report runs=runs out=report.html"
    assert json.loads(last) == {"finished": 2 - len(failed), "failed": names, "runs": ["runs"]}


def test_a_sweep_of_which_nothing_finished(capsys):
    first, *_, last = said(capsys, [], [["method=fastv"]], [0]).splitlines()
    assert first == "failed: method=fastv"
    assert json.loads(last)["finished"] == 0


def test_a_sweep_that_was_only_submitted(capsys):
    assert said(capsys, [], [["method=fastv"]], []) == ""


def test_an_interrupted_sweep_shows_what_is_done_and_what_is_left(finished, capsys):
    jobs = [["method=random", "keep=0.25"], ["method=fastv", "keep=0.25"], ["method=dart", "keep=0.25"]]
    *lines, note, last = said(capsys, finished, jobs, [], left=2).splitlines()
    assert any(line.startswith("| Control | Random |") for line in lines)
    assert note == "interrupted: 2 of 3 jobs are left; the same command goes on"
    assert json.loads(last) == {"finished": 1, "left": 2, "failed": [], "runs": ["runs"]}
