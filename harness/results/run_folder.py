"""Run folders: append-only responses, files that are whole or absent, and a marker written last."""

import fcntl
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import digest, load, to_json, write_atomic, writing
from harness.results.response_log import KEPT, RESPONSES, ResponseLog, others, part_name, remove

__all__ = ["AGAIN", "DONE", "FORMAT", "KEPT", "METRICS", "RESPONSES", "SCORES", "ResponseLog", "RunFolder"]

SCORES = "scores.json"
METRICS = "metrics.json"
DONE = "DONE"
AGAIN = "run it again with force=true"  # what to do about a finished run that is damaged
FORMAT = 2  # of run.json: format 1 knew code by its source text, and packages by their full version


class RunFolder:
    """One run on disk: `run.json`, `responses.jsonl`, `kept.jsonl`, `scores.json`, `metrics.json`; last, `DONE`."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = identity

    @property
    def done(self) -> bool:
        """True once the marker is there."""
        return (self.path / DONE).is_file()

    def open(self, about: dict[str, Any], force: bool = False) -> ResponseLog:
        """Start or resume the run; UserError if the folder belongs to another configuration. `force` starts it over."""
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self._check_owner()
        for left in self.path.glob(".*.tmp"):
            left.unlink()
        if force:
            for name in (DONE, METRICS, SCORES):  # the marker first
                (self.path / name).unlink(missing_ok=True)
        if force or not (self.path / "run.json").is_file():
            write_atomic(self.path / "run.json", to_json({"format": FORMAT, "identity": self.identity, **about}))
        with ExitStack() as held:
            for process in others(self.path):  # of a run whose first process was killed; they end a little later
                held.enter_context(self.lock(process))
            if force:
                remove(self.path, [0, *others(self.path)])
            return ResponseLog(self.path)

    def about(self) -> dict[str, Any]:
        """What `run.json` holds."""
        file = self.path / "run.json"
        return load(file, ("identity",), f"move {self.path} away and start again")

    def amend(self, more: dict[str, Any]) -> None:
        """Write more into `run.json`."""
        write_atomic(self.path / "run.json", to_json({**self.about(), **more}))

    def finish(self, metrics: dict[str, Any], scores: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the score of every question by task, the metrics, and then the marker."""
        lines = [f"{json.dumps(task)}: {json.dumps(each, allow_nan=False)}" for task, each in scores.items()]
        write_atomic(self.path / SCORES, "{\n" + ",\n".join(lines) + "\n}\n")  # a line per task
        write_atomic(self.path / METRICS, to_json(metrics))
        write_atomic(self.path / DONE, to_json(about))

    def check(self) -> None:
        """UserError unless what `finish` wrote is whole, and of this configuration."""
        self._check_owner()
        self.metrics()
        self._finished(SCORES)

    def metrics(self) -> dict[str, Any]:
        """What `finish` wrote."""
        return self._finished(METRICS, "scores", "primary", "questions")

    def show(self, primary: dict[str, str | None]) -> None:
        """Have the tables show these metrics of a finished run; its scores stay as they are."""
        metrics = self.metrics()
        if metrics["primary"] != primary:
            write_atomic(self.path / METRICS, to_json({**metrics, "primary": primary}))

    @contextmanager
    def lock(self, process: int = 0) -> Iterator[None]:
        """Hold the run: two launches of a sweep that want the same baseline compute it once, on any node.

        Of a launch's processes the first holds the run, each other one the journal that it writes.
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
        again = f"remove {self.path / DONE} and start again, its answers are kept"
        return load(self.path / name, keys, again)

    def _check_owner(self) -> None:
        file = self.path / "run.json"
        move = "move it away or choose another runs="
        if file.is_file():
            if digest(self.about()["identity"]) != digest(self.identity):
                raise UserError(f"{self.path} holds a run of another configuration: {move}")
        elif any(self.path.glob("*.jsonl")) or self.done:
            raise UserError(f"{self.path} holds responses but no run.json: {move}")
