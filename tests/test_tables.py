"""Tables tell distinct runs apart, compare like with like, and say in one line what cannot be read or written."""

import json
import subprocess
import sys

import pytest

from harness.errors import UserError
from harness.store import RunFolder, digest, to_json
from harness.tables import collect, frame, relative

COLUMNS = ["model", "tasks", "budget", "method", "lambda", "questions", "hash", "K", "kept", "per_layer", "t", "avg"]


def finished(root, method="none", score=0.5, limit=None, primary="a,none", **more):
    """A run folder as the main command leaves it."""
    keep = 1.0 if method == "none" else 0.25
    identity = {
        "model": {"weights": "w"},
        "tasks": {"names": ["t"], "limit": limit},
        "method": {"name": method, **more},
    }
    config = {"model": {"name": "m"}, "tasks": {"name": "t"}, "keep": keep, "tokens": None, "method": {"name": method}}
    about = {"method": method, "model": "m", "budget": str(keep), "config": config}
    folder = RunFolder(root / f"{method}-{digest(identity)[:8]}", identity)
    folder.open(about)
    scores = {"t": {"a,none": score, "b,none": 10 * score}}
    folder.finish({"scores": scores, "primary": {"t": primary}, "questions": {"t": limit or 100}}, {}, {})
    return folder


def test_runs_that_differ_are_rows_that_differ(tmp_path):
    for limit in (None, 5):
        for method, score in (("none", 0.5), ("random", 0.2)):
            finished(tmp_path, method, score, limit)
    finished(tmp_path, "random", 0.3, power=2)
    table = frame(collect(tmp_path))
    assert list(table) == COLUMNS
    assert len(table) == 5
    assert not table.duplicated(["budget", "method", "questions", "hash"]).any()
    assert sorted(table["questions"]) == [5, 5, 100, 100, 100]
    assert set(table["avg"]) == {100.0, 40.0, 60.0}


def test_a_copy_of_a_run_is_not_a_second_row(tmp_path):
    finished(tmp_path / "one")
    finished(tmp_path / "two")
    assert len(collect(tmp_path)) == 1


def test_a_run_and_its_baseline_are_compared_by_the_same_metric(tmp_path):
    finished(tmp_path, "none", 0.5, primary="b,none")
    finished(tmp_path, "random", 0.25)
    baseline, result = collect(tmp_path)
    assert relative(result, baseline) == {"t": 50.0}


def test_the_shown_metric_of_a_finished_run_can_be_changed(tmp_path):
    folder = finished(tmp_path)
    before = folder.metrics()
    folder.show({"t": "b,none"})
    assert folder.metrics() == {**before, "primary": {"t": "b,none"}}
    assert folder.done


@pytest.mark.parametrize("text", [None, "{", "{}", to_json({"identity": {}})])
def test_a_stray_marker_is_named(tmp_path, text):
    finished(tmp_path)
    stray = tmp_path / "other"
    stray.mkdir()
    (stray / "DONE").write_text("")
    if text is not None:
        (stray / "run.json").write_text(text)
    with pytest.raises(UserError, match="other holds DONE but is no whole run"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs=null"], "runs is null"),
        (["runs=nowhere"], "no finished run below runs=nowhere"),
        (["runs=.", "csv=/no/such/x.csv"], "cannot write csv=/no/such/x.csv"),
    ],
)
def test_a_mistake_is_one_line_with_exit_code_2(args, message, tmp_path):
    finished(tmp_path)
    call = [sys.executable, "-m", "harness.tables", *args]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_the_last_line_is_json(tmp_path):
    finished(tmp_path)
    call = [sys.executable, "-m", "harness.tables", "runs=.", "csv=table.csv"]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == {"runs": 1, "csv": "table.csv"}
    assert (tmp_path / "table.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
