"""What was submitted to a cluster and what became of it, from the plans, the run folders, the logs and `squeue`.

A submission leaves `<runs>/.sweeps/<time>/`: `plan.json`, written before anything is submitted, and what submitit and
Slurm write under the number of the job, which is how the plan finds its job again.
"""

import fcntl
import json
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.distributed import OTHER_ENDED
from harness.core.errors import UserError
from harness.core.files import digest, to_json, write_atomic

SWEEPS = ".sweeps"
LIVE = ("running", "queued", "submitted")
REMAIN = ("failed", "stopped", "missing")
TAIL = 1 << 16  # bytes of a log that are searched for the last error
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
_BY_SLURM = re.compile(r"slurmstepd\S*: error: (.+)")
_BY_SRUN = re.compile(r"srun: error: (.+)")


@dataclass(frozen=True)
class PlannedRun:
    """One run of a submission: its key, its place without the hash, the overrides that not all of its sweep share."""

    key: str
    run: str
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """What is known of a run, planned or there.

    `state` is "done", "running", "queued", "submitted" (nobody here can ask the queue), "failed" (an exception),
    "stopped" (cancelled, out of time or memory, its node gone), or "missing" (planned, never started).
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
    """A planned run as one submission has it: the job's number, as `12_3`, and the logs of its processes so far."""

    planned: PlannedRun
    job: str | None
    logs: list[Path]


def key_of(identity: Mapping[str, Any]) -> str:
    """What a run is, whatever it runs on: where a sweep is submitted there is no GPU to name."""
    return digest({**identity, "model": {**identity["model"], "device": None}})


def write_plan(runs: Path, jobs: Sequence[PlannedRun], common: Sequence[str]) -> Path:
    """Record what is about to be submitted, and the overrides of every job; returns the folder of the submission."""
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
    """Every run that was planned or begun below `runs`: those of plans first, in their order."""
    attempts, found = _attempts(runs), _found(runs)
    wanted = [a.job for key, a in attempts.items() if a.job and not _done(found.get(key))]
    queue = _queue(wanted) if wanted else {}
    planned = [_state(attempt, found.get(key), queue) for key, attempt in attempts.items()]
    others = [_unplanned(key, folder) for key, folder in found.items() if key not in attempts]
    return [
        Run(**{**asdict(run), "run": _name(runs, found[run.key]) if run.key in found else run.run})
        for run in [*planned, *others]
    ]


def last_error(log: str) -> tuple[str, str] | None:
    """("failed", the exception) or ("stopped", what Slurm said), whichever a job's log has last; None if neither."""
    found, by_srun, after = None, None, False
    for line in log.splitlines():
        if "Traceback (most recent call last):" in line:  # a progress bar may stand before it
            after = True
        elif after and line and not line[0].isspace():
            found, after = ("failed", line.removeprefix("harness.core.errors.UserError: ")), False
        elif match := _BY_SLURM.search(line):
            found = ("stopped", match[1].strip("* "))
        elif match := _BY_SRUN.search(line):
            by_srun = ("stopped", match[1])
    return found or by_srun


def _attempts(runs: Path) -> dict[str, Attempt]:
    """The last attempt at every planned run."""
    found = {}
    for plan in sorted((runs / SWEEPS).glob("*/plan.json")):
        try:
            jobs = [PlannedRun(**job) for job in json.loads(plan.read_text(encoding="utf-8"))["jobs"]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{plan} is no plan of a sweep: move its folder away") from error
        numbers = sorted(path.name.partition("_")[0] for path in plan.parent.glob("[0-9]*_*"))
        for index, job in enumerate(jobs):
            name = numbers[0] + (f"_{index}" if len(jobs) > 1 else "") if numbers else None
            found[job.key] = Attempt(job, name, sorted(plan.parent.glob(f"{name}_*_log.err")))
    return found


def _found(runs: Path) -> dict[str, Path]:
    """Every run folder by its key; of two that differ in their device alone, the finished one."""
    found: dict[str, Path] = {}
    for file in sorted(runs.glob("*/*/*/run.json")):
        try:
            key = key_of(json.loads(file.read_text(encoding="utf-8"))["identity"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{file} cannot be read: move its folder away") from error
        if not _done(found.get(key)):
            found[key] = file.parent
    return found


def _done(folder: Path | None) -> bool:
    return folder is not None and (folder / "DONE").is_file()


def _name(runs: Path, folder: Path) -> str:
    return str(folder.relative_to(runs))


def _answers(folder: Path | None) -> int:
    """How many questions are answered; the processes of a run each have a file while it runs."""
    return sum(file.read_bytes().count(b"\n") for file in folder.glob("responses*.jsonl")) if folder else 0


def _held(folder: Path | None) -> bool:
    """True while a process holds the run's lock, on any node whose file locks reach this one."""
    file = folder.with_name(f".{folder.name}.lock") if folder else None
    if not file or not file.is_file():
        return False
    with file.open() as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _unplanned(key: str, folder: Path) -> Run:
    state = "done" if _done(folder) else "running" if _held(folder) else "stopped"
    return Run(key, "", state, _answers(folder))


def _state(attempt: Attempt, folder: Path | None, queue: Mapping[str, tuple[str, str]] | None) -> Run:
    planned, job = attempt.planned, attempt.job
    said, detail = (queue or {}).get(job or "", ("", ""))
    log, error = _last(attempt.logs)

    def run(state: str, why: str | None = None) -> Run:
        path = str(log) if log else None
        return Run(planned.key, planned.run, state, _answers(folder), job, why, path, planned.overrides)

    if _done(folder):
        return run("done")
    if said and said not in _ENDED:
        return run("queued" if said == "PENDING" else "running", detail)
    if _held(folder):
        return run("running")
    if job is None:
        return run("missing", "its submission was cut short")
    if queue is None:
        return run("submitted", "squeue does not answer here")
    if error:
        return run(*error)
    if log is None:
        return run("missing", f"left the queue before it started{f' ({said})' if said else ''}")
    return run("stopped", said or f"ended without a word: sacct -j {job} may know")


def _last(logs: Sequence[Path]) -> tuple[Path | None, tuple[str, str] | None]:
    """The log that says how a job ended, and what it says: that of the process which the others only saw end."""
    found = [(log, last_error(_tail(log))) for log in logs]
    told = [(log, error) for log, error in found if error]
    first = [(log, error) for log, error in told if not error[1].startswith(OTHER_ENDED)]
    return next(iter([*first, *told, *found]), (None, None))


def _tail(file: Path) -> str:
    with file.open("rb") as stream:
        stream.seek(max(0, file.stat().st_size - TAIL))
        return stream.read().decode(errors="replace")


def _queue(jobs: Iterable[str]) -> dict[str, tuple[str, str]] | None:
    """Job -> its state and where or why; Slurm forgets jobs minutes after their end. None if it cannot be asked."""
    if shutil.which("squeue") is None:
        return None
    numbers = sorted({job.partition("_")[0] for job in jobs})
    call = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%R|%M", f"--jobs={','.join(numbers)}"]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    if done.returncode != 0 and "Invalid job id" not in done.stderr:
        return None
    found = {}
    for line in done.stdout.splitlines():
        job, state, place, time = line.split("|")
        found[job] = (state, place.strip("()") if state == "PENDING" else f"on {place} for {time}")
    return found
