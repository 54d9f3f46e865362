"""What `harness.status` says of runs that were planned, begun, ended or lost; the queue is a script here."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from run_folders import make_run, sealed_again

from harness import status
from harness.core.errors import UserError
from harness.results.run_folder import RunFolder
from harness.results.submissions import PlannedRun, key_of, last_error, list_runs, write_plan

RUN = "pocket/text/random-0.5"
METRICS = {"scores": {}, "primary": {}, "questions": {}}
BAR = "random-0.5 text:  40%|####      | 24/60 [00:01<00:01, 29.9it/s]"
CANCELLED = "slurmstepd-n1: error: *** STEP 12.0 ON n1 CANCELLED AT 2026-11-21T13:54:15 DUE TO TIME LIMIT ***"
TRACEBACK = """Traceback (most recent call last):
  File "a.py", line 1, in <module>
ValueError: inner

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "b.py", line 2, in run
    raise UserError
harness.core.errors.UserError: cannot load task text: no file
srun: error: n1: task 0: Exited with exit code 1
"""


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("", None),
        (f"{BAR}\nwarning: nothing\n", None),
        ("error: cannot load task text: no file\nsrun: error: n1: x", ("failed", "cannot load task text: no file")),
        (TRACEBACK, ("failed", "cannot load task text: no file")),
        (f"\r{BAR}{TRACEBACK}", ("failed", "cannot load task text: no file")),
        (f"{BAR}{CANCELLED}\nsrun: error: n1: task 0: Terminated", ("stopped", CANCELLED[26:-4])),
        (f"{TRACEBACK}\n{CANCELLED}", ("stopped", CANCELLED[26:-4])),  # requeued after it failed
        ("srun: error: n1: task 0: Segmentation fault\n", ("stopped", "n1: task 0: Segmentation fault")),
        ("Traceback (most recent call last):\n  File x\nKeyboardInterrupt", ("failed", "KeyboardInterrupt")),
    ],
)
def test_the_last_error_of_a_log(log, expected):
    assert last_error(log) == expected


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """A folder of runs, and a queue that says what `queue.txt` holds."""
    program = tmp_path / "bin" / "squeue"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\nexec cat {tmp_path}/queue.txt\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "queue.txt").touch()
    return tmp_path / "runs"


def identity(number: int, device: str = "cpu") -> dict:
    return {"model": {"device": device, "weights": number}}


def submit(runs: Path, *numbers: int, job: int | None = 12) -> Path:
    folder = write_plan(runs, [PlannedRun(key_of(identity(n)), f"{RUN}{n}", [f"seed={n}"]) for n in numbers], [])
    if job is not None:
        (folder / f"{job}_submission.sh").touch()
    return folder


def begin(runs: Path, number: int, answers: int = 0, device: str = "cuda") -> RunFolder:
    """A run as a node with a GPU leaves it, which the login node that planned it does not have."""
    folder = RunFolder(runs / f"{RUN}{number}-0123abcd", identity(number, device))
    folder.open({}).add([{"key": str(i)} for i in range(answers)], [{"key": str(i)} for i in range(answers)])
    return folder


def without_format(runs: Path, number: int) -> None:
    """As it was before run.json said its format."""
    file = runs / f"{RUN}{number}-0123abcd" / "run.json"
    about = json.loads(file.read_text())
    del about["format"]
    file.write_text(json.dumps(about))
    if (file.parent / "DONE").exists():
        sealed_again(file.parent)


def only(runs: Path):
    (run,) = list_runs(runs)
    return run


def test_a_planned_run_by_what_the_queue_says(runs):
    submit(runs, 1, 2)
    queue = runs.parent / "queue.txt"
    queue.write_text("12_0|RUNNING|n1|1:02\n12_1|PENDING|(Resources)|0:00\n")
    first, second = list_runs(runs)
    assert (first.state, first.job, first.why) == ("running", "12_0", "on n1 for 1:02")
    assert (second.state, second.why, second.overrides) == ("queued", "Resources", ["seed=2"])
    queue.write_text("12_0|NODE_FAIL|n1|1:02\n12_1|CANCELLED||0:00\n")
    assert [(run.state, run.why) for run in list_runs(runs)] == [
        ("missing", "left the queue before it started (NODE_FAIL)"),
        ("missing", "left the queue before it started (CANCELLED)"),
    ]


def test_a_run_that_a_node_with_another_device_finished_is_done(runs):
    submit(runs, 1)
    begin(runs, 1, answers=3).finish(METRICS, {}, {})
    run = only(runs)
    assert (run.state, run.answers, run.run) == ("done", 3, f"{RUN}1-0123abcd")


def test_a_job_that_left_the_queue_without_an_end(runs):
    folder = submit(runs, 1)
    begin(runs, 1, answers=3)
    log = folder / "12_0_log.err"
    log.touch()
    run = only(runs)
    assert (run.state, run.answers, run.log) == ("stopped", 3, str(log))
    assert run.why == "ended without a message: try sacct -j 12"
    (runs.parent / "queue.txt").write_text("12|OUT_OF_MEMORY||0:00\n")
    assert only(runs).why == "OUT_OF_MEMORY"
    log.write_text(TRACEBACK)
    assert (only(runs).state, only(runs).why) == ("failed", "cannot load task text: no file")


def test_a_run_that_was_submitted_again_is_told_by_its_last_job(runs):
    (submit(runs, 1, 2, job=12) / "12_0_0_log.err").write_text(TRACEBACK)
    submit(runs, 1, job=13)
    (runs.parent / "queue.txt").write_text("13|PENDING|(Priority)|0:00\n")
    first, second = list_runs(runs)
    assert (first.job, first.state) == ("13", "queued")
    assert (second.job, second.state) == ("12_1", "missing")


def test_a_submission_that_was_cut_short(runs):
    submit(runs, 1, job=None)
    assert (only(runs).state, only(runs).why) == ("missing", "its submission was cut short")


def test_without_a_queue_nothing_is_called_lost(runs, monkeypatch):
    (submit(runs, 1) / "12_0_log.err").write_text(TRACEBACK)
    monkeypatch.setenv("PATH", "")
    assert (only(runs).state, only(runs).why) == ("submitted", "squeue does not answer here")


def test_a_controller_that_does_not_answer_loses_nothing(runs):
    submit(runs, 1)
    (runs.parent / "bin" / "squeue").write_text("#!/bin/sh\necho 'Unable to contact slurm controller' >&2; exit 1\n")
    assert only(runs).state == "submitted"
    (runs.parent / "bin" / "squeue").write_text("#!/bin/sh\necho 'Invalid job id specified' >&2; exit 1\n")
    assert only(runs).state == "missing"


@pytest.mark.parametrize("refused", [False, True])
def test_a_run_that_nobody_submitted_runs_while_its_lock_is_held(refused, runs, monkeypatch):
    if refused:  # a file system without locks

        def flock(stream, operation):
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", flock)
    folder = begin(runs, 1, answers=2)
    assert (only(runs).state, only(runs).answers) == ("stopped", 2)
    with folder.lock():
        assert only(runs).state == "running"
    folder.finish(METRICS, {}, {})
    assert only(runs).state == "done"


def test_looking_does_not_stand_in_the_way_of_a_run(runs):
    folder = begin(runs, 1)
    with folder.lock():
        pass
    only(runs)
    with (runs / f"{RUN[:12]}.{RUN[12:]}1-0123abcd.lock").open("a+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_damage_is_named(runs):
    folder = submit(runs, 1)
    (folder / "plan.json").write_text("{")
    with pytest.raises(UserError, match="is no plan of a sweep"):
        list_runs(runs)


def test_the_command(runs):
    submit(runs, 1, 2, 3)
    (runs.parent / "queue.txt").write_text("12_1|RUNNING|n1|1:02\n")
    begin(runs, 1, answers=3).finish(METRICS, {}, {})
    without_format(runs, 1)
    call = [sys.executable, "-X", "importtime", "-m", "harness.status", f"runs={runs}"]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    table = done.stdout.splitlines()
    assert table[0].split() == ["state", "answers", "reusable", "job", "run"]
    assert table[1].split() == ["done", "3", "no", "12_0", f"{RUN}1-0123abcd"]
    assert table[2].strip() == "not reusable: its run.json has format 1, expected 2 or newer"
    assert table[-2] == "1 done, 1 running, 1 missing: run the same command again for what remains"
    report = json.loads(table[-1])
    assert (report["counts"], report["remain"]) == ({"done": 1, "running": 1, "missing": 1}, 1)
    assert not {"torch", "pandas"} & {line.split("|")[-1].strip() for line in done.stderr.splitlines()}


@pytest.mark.parametrize(
    ("version", "reasons"),
    [(2, []), (4, []), (5, ["has a run.json of format 5, expected 1 to 4: install a newer harness"])],
)
def test_a_run_of_another_format_is_reused_where_status_says_so(version, reasons, runs, monkeypatch):
    folder = begin(runs, 1)
    folder.amend({"format": version})
    monkeypatch.setattr("harness.results.run_folder.FORMAT", 4)
    monkeypatch.setattr("harness.evaluation.identity.changes", lambda about: [])
    assert status._changes(folder.path) == [f"{folder.path} {reason}" for reason in reasons]
    with pytest.raises(UserError, match=reasons[0]) if reasons else nullcontext():
        folder.open({})


def test_a_folder_without_runs_is_one_line(tmp_path, python):
    for runs, says in ((tmp_path, "no run below"), (tmp_path / "x", "no folder at")):
        call = [python, "-m", "harness.status", f"runs={runs}"]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: {says} runs={runs}")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("kind", ["pipe", "folder"])
def test_a_log_that_is_no_file_is_damage_and_no_wait(kind, tmp_path):
    run = make_run(tmp_path / "m" / "t", each={"t": [1.0, 0.0]}, said={"t": ["a", "b"]}).path
    (run / "responses.jsonl").unlink()
    (os.mkfifo if kind == "pipe" else os.mkdir)(run / "responses.jsonl")
    (state,) = list_runs(tmp_path)
    assert state.state == "damaged"
    assert "responses.jsonl is missing" in state.why
