"""Append-only logs of a run's responses and kept tokens.

Each process of a run has its own log. The first process writes `responses.jsonl` and `kept.jsonl`, the others files
such as `responses.1.jsonl` in the same folder, which the first process merges into its own.
"""

import re
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import BAD_JSON, append, from_json, json_lines, read_jsonl, sync, utf8, write_atomic
from harness.results import schema

RESPONSES = "responses.jsonl"
KEPT = "kept.jsonl"
SYNC = 10.0  # seconds between two waits for the disk
LINES = {RESPONSES: schema.Response, KEPT: schema.Kept}


class ResponseLog:
    """Responses and kept tokens by key; a response is in its file before it counts.

    A process that is killed loses nothing, a machine at most the last `SYNC` seconds: to wait for a disk after every
    batch takes longer than a small model. Opening drops lines at the end of a file that a crash damaged. Each process
    of a run appends to its own files, and reads those of the first process when it starts.
    """

    def __init__(self, folder: Path, process: int = 0):
        self._folder = folder
        self._process = process
        self._synced = time.monotonic()
        self.responses, self.kept = _read(folder, 0)
        if process == 0:
            for other in other_processes(folder):
                responses, kept = _read(folder, other)
                self.responses = {**self.responses, **responses, **self.responses}
                self.kept = {**self.kept, **kept, **self.kept}  # the first answer keeps its value and its position
            self.settle(list(self.responses))

    def add(self, responses: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
        """Append the lines of one batch, kept indices first, so that no response is without its indices."""
        new = {key: line for key, line in _by_key(responses).items() if key not in self.responses}
        indices = {key: line for key, line in _by_key(kept).items() if key in new}
        if not new:
            return
        responses_file, kept_file = _files(self._folder, self._process)
        if due := time.monotonic() - self._synced >= SYNC:
            self._synced = time.monotonic()
        append(kept_file, json_lines(indices.values()), due)
        append(responses_file, json_lines(new.values()), due)
        self.kept.update(indices)
        self.responses.update(new)

    def settle(self, keys: Iterable[str]) -> None:
        """Rewrite the first process's files with the lines of `keys` in that order; remove the other files."""
        self.responses = {key: self.responses[key] for key in keys}
        self.kept = {key: self.kept[key] for key in self.responses}
        for file, lines in zip(_files(self._folder), (self.responses, self.kept), strict=True):
            content = utf8(json_lines(lines.values()))
            if (file.read_bytes() if file.exists() else b"") != content:
                write_atomic(file, content)
            elif content:
                sync(file)
        remove_logs(self._folder, other_processes(self._folder))


def read_responses(folder: Path, remedy: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a finished run's responses; none if it has no such file.

    Halves of surrogate pairs, which JSON may hold and no other format can, become escapes.
    """
    for line in _lines(folder / RESPONSES, remedy):
        if not line["response"].isascii():
            line["response"] = utf8(line["response"]).decode()
        yield line


def read_kept(folder: Path, remedy: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of a finished run's kept tokens; none if it has no such file.

    UserError if a line contradicts itself; of `resize` it names no tokens.
    """
    yield from _lines(folder / KEPT, remedy)


def _lines(file: Path, remedy: str) -> Iterator[dict[str, Any]]:
    return read_jsonl(file, remedy, partial(schema.fault, LINES[file.name])) if file.is_file() else iter(())


def lock_of(folder: Path, process: int = 0) -> Path:
    """Return the lock of a run, or of the log of another process than the first; it lies beside the folder."""
    return folder.with_name(f".{folder.name}{part_name(process)}.lock")


def part_name(process: int) -> str:
    """Return the infix of a process's file names; empty for the first process."""
    return f".{process}" if process else ""


def _files(folder: Path, process: int = 0) -> tuple[Path, Path]:
    """Return the two files of one process: responses and kept indices."""
    responses, kept = (folder / f"{Path(name).stem}{part_name(process)}.jsonl" for name in (RESPONSES, KEPT))
    return responses, kept


def other_processes(folder: Path) -> list[int]:
    """Return the processes other than the first that have files in the folder."""
    names = (re.fullmatch(r"\w+\.(\d+)\.jsonl", path.name) for path in folder.glob("*.*.jsonl"))
    return sorted({int(name[1]) for name in names if name})


def remove_logs(folder: Path, processes: Iterable[int]) -> None:
    """Remove the files of some processes."""
    for process in processes:
        for file in _files(folder, process):
            file.unlink(missing_ok=True)


def _read(folder: Path, process: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return responses and kept indices by key, for the questions that have both."""
    files = zip(_files(folder, process), LINES.values(), strict=True)
    responses, kept = (_by_key(_recover(file, kind)) for file, kind in files)
    both = [key for key in responses if key in kept]
    return {key: responses[key] for key in both}, {key: kept[key] for key in both}


def _by_key(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the first line of each key, which is the answer that was scored."""
    first_lines: dict[str, dict[str, Any]] = {}
    for line in lines:
        first_lines.setdefault(line["key"], line)
    return first_lines


def _recover(file: Path, kind: type) -> list[dict[str, Any]]:
    """Return the complete lines of a file, which are of this kind.

    A crash damages only the end of a file, so a damaged line before a complete one is a UserError.
    """
    if not file.exists():
        return []
    *ended, _cut_short = file.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    for number, line in enumerate((_parsed(line, kind) for line in ended), 1):
        if line is not None:
            if len(lines) < number - 1:
                damaged = f"{file} is damaged in line {len(lines) + 1}"
                raise UserError(f"{damaged}: move the run folder away and start again")
            lines.append(line)
    return lines


def _parsed(line: bytes, kind: type) -> dict[str, Any] | None:
    try:
        content = from_json(line)
    except BAD_JSON:
        return None
    return content if schema.fault(kind, content) is None else None
