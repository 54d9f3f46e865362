"""Run folders: append-only responses, files that are whole or absent, and a marker written last."""

import fcntl
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.errors import UserError

RESPONSES = "responses.jsonl"
KEPT = "kept.jsonl"
SCORES = "scores.json"


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def slug(name: str) -> str:
    """A name as one path component."""
    return re.sub(r"[^\w.+-]+", "-", Path(name).name)


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def check_place(folder: Path, key: str = "runs") -> None:
    """UserError unless `folder` can be made and written to; makes nothing."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{key}={folder} cannot be made: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} cannot be written: no permission in {place}")


def to_json(value: Any) -> str:
    """JSON for people and diffs: indented, ending in a newline; NaN is an error."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


class RunFolder:
    """One run on disk: `run.json`, `responses.jsonl`, `kept.jsonl`, `scores.json`, `metrics.json`; last, `DONE`."""

    def __init__(self, path: Path, identity: dict[str, Any]):
        self.path = path
        self.identity = identity

    @property
    def done(self) -> bool:
        """True once the marker is there."""
        return (self.path / "DONE").is_file()

    def open(self, about: dict[str, Any], force: bool = False) -> "Journal":
        """Start or resume the run; UserError if the folder belongs to another configuration. `force` starts it over."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._check_owner()
        if force:
            for name in ("DONE", "metrics.json", SCORES, RESPONSES, KEPT):  # the marker first
                (self.path / name).unlink(missing_ok=True)
        if not (self.path / "run.json").is_file():
            write_atomic(self.path / "run.json", to_json({"identity": self.identity, **about}))
        return Journal(self.path)

    def finish(self, metrics: dict[str, Any], scores: dict[str, Any], about: dict[str, Any]) -> None:
        """Write the score of every question by task, the metrics, and then the marker."""
        lines = [f"{json.dumps(task)}: {json.dumps(each, allow_nan=False)}" for task, each in scores.items()]
        write_atomic(self.path / SCORES, "{\n" + ",\n".join(lines) + "\n}\n")  # a line per task
        write_atomic(self.path / "metrics.json", to_json(metrics))
        write_atomic(self.path / "DONE", to_json(about))

    def metrics(self) -> dict[str, Any]:
        """What `finish` wrote."""
        loaded: dict[str, Any] = json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))
        return loaded

    def show(self, primary: dict[str, str | None]) -> None:
        """Have the tables show these metrics of a finished run; its scores stay as they are."""
        metrics = self.metrics()
        if metrics["primary"] != primary:
            write_atomic(self.path / "metrics.json", to_json({**metrics, "primary": primary}))

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run: two processes of a sweep that want the same baseline compute it once, on any node."""
        file = self.path.with_name(f".{self.path.name}.lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a+") as stream:  # NFS passes a lock on to other nodes only for a file open for writing
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process that computes {self.path}", file=sys.stderr, flush=True)
                fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def _check_owner(self) -> None:
        file = self.path / "run.json"
        if file.is_file():
            found = json.loads(file.read_text(encoding="utf-8"))["identity"]
            if digest(found) != digest(self.identity):
                raise UserError(
                    f"{self.path} holds a run of another configuration: move it away or choose another runs="
                )
        elif (self.path / RESPONSES).exists():
            raise UserError(f"{self.path} holds responses but no run.json: move it away or choose another runs=")


class Journal:
    """Responses by key, on disk before they count; a line that a crash cut short is dropped on opening."""

    def __init__(self, folder: Path):
        self._responses_file = folder / RESPONSES
        self._kept_file = folder / KEPT
        self.responses = {line["key"]: line for line in _recover(self._responses_file)}
        self.kept = {line["key"]: line for line in _recover(self._kept_file) if line["key"] in self.responses}
        for key in [key for key in self.responses if key not in self.kept]:
            del self.responses[key]
        self._rewrite()

    def add(self, responses: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
        """Append the lines of one batch; the kept indices first, so that a response never lacks its own."""
        new = [line for line in responses if line["key"] not in self.responses]
        keys = {line["key"] for line in new}
        _append(self._kept_file, [line for line in kept if line["key"] in keys])
        _append(self._responses_file, new)
        self.kept.update({line["key"]: line for line in kept if line["key"] in keys})
        self.responses.update({line["key"]: line for line in new})

    def _rewrite(self) -> None:
        for file, lines in ((self._responses_file, self.responses), (self._kept_file, self.kept)):
            text = "".join(_line(line) for line in lines.values())
            if file.exists() and file.read_text(encoding="utf-8", errors="replace") != text:
                write_atomic(file, text)


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def _append(file: Path, lines: list[dict[str, Any]]) -> None:
    with file.open("a", encoding="utf-8") as stream:
        stream.write("".join(map(_line, lines)))
        stream.flush()
        os.fsync(stream.fileno())


def _recover(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    *whole, _cut_short = file.read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise UserError(f"{file} is damaged in line {number}: move the run folder away and start again") from error
    return lines
