"""Run folders: append-only responses, other files that are complete or absent, and a marker that is written last."""

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, as_user_error
from harness.core.files import digest, json_line, load, to_json, write_atomic, writing
from harness.core.locks import locked
from harness.results import schema, seal
from harness.results.response_log import (
    KEPT,
    RESPONSES,
    ResponseLog,
    lock_of,
    other_processes,
    read_kept,
    remove_logs,
)
from harness.results.seal import DONE, METRICS, SCORES

__all__ = ["AGAIN", "DONE", "KEPT", "METRICS", "RESPONSES", "SCORES", "ResponseLog", "RunFolder"]

AGAIN = "run it again with force=true"  # what to do about a finished run that is damaged
FORMAT = 3  # of run.json; from 3 on, `DONE` has the digests of the run's files
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
    return f'{indented[:-3]},\n "noise": {json_line(metrics["noise"], ensure_ascii=True)}\n}}\n'


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
        lines = [f"{json_line(task)}: {json_line(part)}" for task, part in scores.items()]
        write_atomic(self.path / SCORES, "{\n" + ",\n".join(lines) + "\n}\n")  # a line per task
        write_atomic(self.path / METRICS, _metrics_json(metrics))
        seal.write(self.path, about)

    def finished(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `run.json` and the metrics of a finished run; UserError unless its files are those that it wrote.

        Every reader of finished runs begins here.
        """
        is_sealed = seal.check(self.path)
        about, metrics = self.about(), self.metrics()
        format_of(self.path, about)
        if not is_sealed:
            self._check_consistent(about, metrics)
        return about, metrics

    def check(self) -> None:
        """Raise UserError unless the run can be reused: its files are whole and belong to this configuration."""
        self.finished()
        self._check_owner()
        if not seal.is_sealed(self.path):
            for _ in read_kept(self.path, AGAIN):  # which raises where a line contradicts itself
                pass

    def metrics(self) -> dict[str, Any]:
        """Read `metrics.json`, with the metrics that tables show."""
        metrics = self._finished(METRICS, "scores", "primary", "questions")
        return {**metrics, "primary": seal.read(self.path).get("primary", metrics["primary"])}

    def show(self, primary: dict[str, str | None]) -> None:
        """Set the metric of each task that tables show for a finished run; `metrics.json` stays as it is."""
        if self.metrics()["primary"] != primary:
            seal.amend(self.path, {"primary": primary})

    def lock(self, process: int = 0) -> AbstractContextManager[None]:
        """Lock the run, so that two launches that need the same baseline compute it once, even on different nodes.

        The first process of a launch locks the run. Each other process locks the response log that it writes.
        """
        return locked(lock_of(self.path, process), str(self.path))

    def _check_consistent(self, about: dict[str, Any], metrics: dict[str, Any]) -> None:
        """Raise UserError if a run without digests has metrics or scores of other questions than it asked."""
        with as_user_error((AttributeError, KeyError, TypeError), f"{self.path} is damaged", AGAIN):
            tasks, counts = set(about["identity"]["tasks"]["names"]), metrics["questions"]
            if not tasks == counts.keys() == metrics["scores"].keys():
                raise UserError(f"{self.path} is damaged ({METRICS} has other tasks than run.json): {AGAIN}")
            if not (self.path / SCORES).is_file():
                return  # older than the file
            if wrong := schema.other_questions(self._finished(SCORES), counts):
                raise UserError(f"{self.path / SCORES} is damaged ({wrong}): {AGAIN}")

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
