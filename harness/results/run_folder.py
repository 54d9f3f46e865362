"""Run folders: append-only responses, other files that are complete or absent, and a marker that is written last."""

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import digest, load, to_json, write_atomic, writing
from harness.results.response_log import KEPT, RESPONSES, ResponseLog, other_processes, part_name, remove_logs

__all__ = ["AGAIN", "DONE", "KEPT", "METRICS", "RESPONSES", "SCORES", "ResponseLog", "RunFolder"]

SCORES = "scores.json"
METRICS = "metrics.json"
DONE = "DONE"
AGAIN = "run it again with force=true"  # what to do about a finished run that is damaged
FORMAT = 2  # of run.json
REUSABLE = 2  # oldest format of runs that can be reused; before, code was known by its source text


def format_of(path: Path, about: dict[str, Any]) -> int:
    """Return the format of a `run.json`; UserError if it is newer than this code. `path` is the run's folder."""
    version: int = about.get("format", 1)
    if version not in range(1, FORMAT + 1):
        raise UserError(f"{path} has a run.json of format {version}, expected 1 to {FORMAT}: install a newer harness")
    return version


def _metrics_json(metrics: dict[str, Any]) -> str:
    """Return indented JSON, but with the numbers of `noise`, which are long lists, in one last line."""
    if "noise" not in metrics:
        return to_json(metrics)
    indented = to_json({key: part for key, part in metrics.items() if key != "noise"})
    return f'{indented[:-3]},\n "noise": {json.dumps(metrics["noise"], allow_nan=False)}\n}}\n'


class RunFolder:
    """One run on disk: `run.json`, `responses.jsonl`, `kept.jsonl`, `scores.json`, `metrics.json`, then `DONE`."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = identity

    @property
    def done(self) -> bool:
        """True if the run has finished."""
        return (self.path / DONE).is_file()

    def open(self, about: dict[str, Any], force: bool = False) -> ResponseLog:
        """Start or resume the run; UserError if the folder belongs to another configuration. `force` starts it over."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._check_owner()
        for temporary in self.path.glob(".*.tmp"):
            temporary.unlink()
        if force:
            for name in (DONE, METRICS, SCORES):  # the marker first
                (self.path / name).unlink(missing_ok=True)
        if force or not (self.path / "run.json").is_file():
            write_atomic(self.path / "run.json", to_json({"format": FORMAT, "identity": self.identity, **about}))
        with ExitStack() as locks:
            for process in other_processes(self.path):  # if the first process was killed, the others end a little later
                locks.enter_context(self.lock(process))
            if force:
                remove_logs(self.path, [0, *other_processes(self.path)])
            return ResponseLog(self.path)

    def about(self) -> dict[str, Any]:
        """Read `run.json`."""
        file = self.path / "run.json"
        return load(file, ("identity",), f"move {self.path} away and start again")

    def amend(self, more: dict[str, Any]) -> None:
        """Add keys to `run.json`."""
        write_atomic(self.path / "run.json", to_json({**self.about(), **more}))

    def finish(self, metrics: dict[str, Any], scores: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the score of every question by task, then the metrics, then the marker."""
        lines = [f"{json.dumps(task)}: {json.dumps(part, allow_nan=False)}" for task, part in scores.items()]
        write_atomic(self.path / SCORES, "{\n" + ",\n".join(lines) + "\n}\n")  # a line per task
        write_atomic(self.path / METRICS, _metrics_json(metrics))
        write_atomic(self.path / DONE, to_json(about))

    def check(self) -> None:
        """Raise UserError unless the files that `finish` wrote are complete and belong to this configuration."""
        self._check_owner()
        self.metrics()
        self._finished(SCORES)

    def metrics(self) -> dict[str, Any]:
        """Read `metrics.json`."""
        return self._finished(METRICS, "scores", "primary", "questions")

    def show(self, primary: dict[str, str | None]) -> None:
        """Set the metric of each task that tables show for a finished run; the scores stay."""
        metrics = self.metrics()
        if metrics["primary"] != primary:
            write_atomic(self.path / METRICS, _metrics_json({**metrics, "primary": primary}))

    @contextmanager
    def lock(self, process: int = 0) -> Iterator[None]:
        """Lock the run, so that two launches that need the same baseline compute it once, even on different nodes.

        The first process of a launch locks the run. Each other process locks the response log that it writes.
        """
        file = self.path.with_name(f".{self.path.name}{part_name(process)}.lock")
        with writing(file):
            file.parent.mkdir(parents=True, exist_ok=True)
            stream = file.open("a+")  # NFS passes a lock on to other nodes only for a file open for writing
        with stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that computes {self.path}", file=sys.stderr, flush=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _finished(self, name: str, *keys: str) -> dict[str, Any]:
        return load(self.path / name, keys, f"remove {self.path / DONE} and start again, its answers are kept")

    def _check_owner(self) -> None:
        file = self.path / "run.json"
        hint = "move it away or choose another runs="
        if file.is_file():
            about = self.about()
            format_of(self.path, about)
            if digest(about["identity"]) != digest(self.identity):
                raise UserError(f"{self.path} holds a run of another configuration: {hint}")
        elif any(self.path.glob("*.jsonl")) or self.done:
            raise UserError(f"{self.path} holds responses but no run.json: {hint}")
