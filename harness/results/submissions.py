"""The state of runs that were submitted to a cluster, from plans, run folders, logs and `squeue`.

A submission has the folder `<runs>/.sweeps/<time>/`. It holds `plan.json`, which is written before the submission, and
the files of submitit and Slurm. Their names begin with the number of the job, which connects the plan with its job.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.distributed import OTHER_ENDED
from harness.core.errors import UserError, one_line
from harness.core.files import BAD_JSON, digest, from_json, to_json, write_atomic
from harness.core.locks import is_locked
from harness.results import seal
from harness.results.response_log import lock_of
from harness.results.run_folder import DONE, RunFolder

SWEEPS = ".sweeps"
LIVE = ("running", "queued", "submitted")
REMAIN = ("failed", "stopped", "missing")
TAIL = 1 << 16  # bytes of a log that are searched for the last error
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_BY_SLURM = re.compile(r"slurmstepd\S*: error: (.+)")
_BY_SRUN = re.compile(r"srun: error: (.+)")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a submission: its key, its path without the hash, and the overrides that vary in its sweep."""

    key: str
    run: str
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """The state of a planned or started run.

    `state` is "done", "damaged" (finished, and its files were changed since), "running", "queued", "submitted" (the
    queue cannot be asked from here), "failed" (an exception), "stopped" (cancelled, out of time or memory, or its node
    failed), or "missing" (planned, never started).
    """

    key: str
    run: str
    state: str
    answers: int = 0
    job: str | None = None
    why: str | None = None
    log: str | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Attempt:
    """A planned run in one submission: the job's number, as `12_3`, and the logs of its processes."""

    planned: PlannedRun
    job: str | None
    logs: list[Path]


def key_of(identity: Mapping[str, Any]) -> str:
    """Return a digest of a run's identity without the device, which is unknown on the node that submits a sweep."""
    return digest({**identity, "model": {**identity["model"], "device": None}})


def write_plan(runs: Path, jobs: Sequence[PlannedRun], common: Sequence[str]) -> Path:
    """Write the plan of a submission, with the overrides of every job, and return the submission's folder."""
    now = datetime.now(UTC)
    folder = runs / SWEEPS / now.strftime("%Y%m%d-%H%M%S-%f")
    folder.mkdir(parents=True)
    plan = {
        "submitted": now.isoformat(timespec="seconds"),
        "overrides": list(common),
        "jobs": [asdict(job) for job in jobs],
    }
    write_atomic(folder / "plan.json", to_json(plan))
    return folder


def list_runs(runs: Path) -> list[Run]:
    """Return every run that was planned or started below `runs`: planned runs first, in the order of their plans."""
    attempts, folders = _attempts(runs), _folders(runs)
    unfinished = [a.job for key, a in attempts.items() if a.job and not _done(folders.get(key))]
    queue = _queue(unfinished) if unfinished else {}
    planned = [_state(attempt, folders.get(key), queue) for key, attempt in attempts.items()]
    others = [_unplanned(key, folder) for key, folder in folders.items() if key not in attempts]
    return [
        Run(**{**asdict(run), "run": str(folders[run.key].relative_to(runs)) if run.key in folders else run.run})
        for run in [*planned, *others]
    ]


def last_error(log: str) -> tuple[str, str] | None:
    """Return the last error in a job's log: ("failed", exception) or ("stopped", Slurm's message); None if none."""
    error, srun_error, in_traceback = None, None, False
    for line in log.splitlines():
        if "Traceback (most recent call last):" in line:  # may follow a progress bar
            in_traceback = True
        elif in_traceback and line and not line[0].isspace():
            error, in_traceback = ("failed", line.removeprefix("harness.core.errors.UserError: ")), False
        elif line.startswith("error: "):
            error = ("failed", line.removeprefix("error: "))
        elif match := _BY_SLURM.search(line):
            error = ("stopped", match[1].strip("* "))
        elif match := _BY_SRUN.search(line):
            srun_error = ("stopped", match[1])
    return error or srun_error


def _attempts(runs: Path) -> dict[str, Attempt]:
    """Return the last attempt at every planned run, by key."""
    attempts = {}
    for plan in sorted((runs / SWEEPS).glob("*/plan.json")):
        try:
            jobs = [PlannedRun(**job) for job in from_json(plan.read_bytes())["jobs"]]
        except (*BAD_JSON, KeyError, TypeError) as error:
            raise UserError(f"{plan} is no plan of a sweep: move its folder away") from error
        numbers = sorted(path.name.partition("_")[0] for path in plan.parent.glob("[0-9]*_*"))
        for index, job in enumerate(jobs):
            name = numbers[0] + (f"_{index}" if len(jobs) > 1 else "") if numbers else None
            attempts[job.key] = Attempt(job, name, sorted(plan.parent.glob(f"{name}_*_log.err")))
    return attempts


def _folders(runs: Path) -> dict[str, Path]:
    """Return every run folder by key; of two that differ only in their device, the finished one.

    A folder whose `run.json` cannot be read has its path for a key.
    """
    folders: dict[str, Path] = {}
    for file in sorted(runs.glob("*/*/*/run.json")):
        try:
            key = key_of(from_json(file.read_bytes())["identity"])
        except (*BAD_JSON, KeyError, TypeError):
            key = str(file.parent)
        if not _done(folders.get(key)):
            folders[key] = file.parent
    return folders


def _done(folder: Path | None) -> bool:
    return folder is not None and (folder / DONE).is_file()


def _end(folder: Path) -> tuple[str, str | None]:
    """Return the state of a finished run, and what is wrong or unknown about its files."""
    try:
        RunFolder(folder, {}).finished()
    except UserError as error:
        return "damaged", one_line(error)
    return "done", None if seal.is_sealed(folder) else seal.UNSEALED


def _answers(folder: Path | None) -> int:
    """Count the answered questions; while a run is going on, each of its processes has a file."""
    files = [file for file in folder.glob("responses*.jsonl") if file.is_file()] if folder else []
    return sum(file.read_bytes().count(b"\n") for file in files)


def _locked(folder: Path | None) -> bool:
    """Return whether a process holds the run's lock, on any node whose file locks are visible here."""
    return folder is not None and is_locked(lock_of(folder))


def _unplanned(key: str, folder: Path) -> Run:
    if key == str(folder):
        return Run(key, "", "damaged", _answers(folder), why="run.json cannot be read: move the folder away")
    state, why = _end(folder) if _done(folder) else ("running" if _locked(folder) else "stopped", None)
    return Run(key, "", state, _answers(folder), why=why)


def _state(attempt: Attempt, folder: Path | None, queue: Mapping[str, tuple[str, str]] | None) -> Run:
    planned, job = attempt.planned, attempt.job
    slurm_state, detail = (queue or {}).get(job or "", ("", ""))
    log, error = _decisive_log(attempt.logs)

    def run(state: str, why: str | None = None) -> Run:
        path = str(log) if log else None
        return Run(planned.key, planned.run, state, _answers(folder), job, why, path, planned.overrides)

    if folder is not None and _done(folder):
        return run(*_end(folder))
    if slurm_state and slurm_state not in _ENDED:
        return run("queued" if slurm_state == "PENDING" else "running", detail)
    if _locked(folder):
        return run("running")
    if job is None:
        return run("missing", "its submission was cut short")
    if queue is None:
        return run("submitted", "squeue does not answer here")
    if error:
        return run(*error)
    if log is None:
        return run("missing", f"left the queue before it started{f' ({slurm_state})' if slurm_state else ''}")
    return run("stopped", slurm_state or f"ended without a message: try sacct -j {job}")


def _decisive_log(logs: Sequence[Path]) -> tuple[Path | None, tuple[str, str] | None]:
    """Return the log that tells how a job ended, and its last error.

    When one process fails, the others end because of it. The log of the failed process is preferred.
    """
    errors = [(log, last_error(_tail(log))) for log in logs]
    with_error = [(log, error) for log, error in errors if error]
    original = [(log, error) for log, error in with_error if not error[1].startswith(OTHER_ENDED)]
    return next(iter([*original, *with_error, *errors]), (None, None))


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL))
        return stream.read().decode(errors="replace")


def _queue(jobs: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """Return job -> its state, with its node and time or the reason why it waits; None if `squeue` does not answer.

    Slurm forgets a job some minutes after its end.
    """
    if shutil.which("squeue") is None:
        return None
    numbers = sorted({job.partition("_")[0] for job in jobs})
    call = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%R|%M", f"--jobs={','.join(numbers)}"]
    squeue = subprocess.run(call, capture_output=True, text=True, check=False)
    if squeue.returncode != 0 and "Invalid job id" not in squeue.stderr:
        return None
    queue = {}
    for line in squeue.stdout.splitlines():
        job, state, place, time = line.split("|")
        queue[job] = (state, place.strip("()") if state == "PENDING" else f"on {place} for {time}")
    return queue
