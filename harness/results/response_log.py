"""Append-only logs of a run's responses and kept tokens.

Each process of a run has its own log. The first process writes `responses.jsonl` and `kept.jsonl`, the others files
such as `responses.1.jsonl` in the same folder, which the first process merges into its own.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from harness.core.errors import UserError
from harness.core.files import append, write_atomic

RESPONSES = "responses.jsonl"
KEPT = "kept.jsonl"


class ResponseLog:
    """Responses and kept tokens by key; a response is on disk before it counts.

    Opening drops lines at the end of a file that a crash damaged. Each process of a run appends to its own files, and
    reads those of the first process when it starts.
    """

    def __init__(self, folder: Path, process: int = 0):
        self._folder = folder
        self._process = process
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
        append(kept_file, _text(indices.values()))
        append(responses_file, _text(new.values()))
        self.kept.update(indices)
        self.responses.update(new)

    def settle(self, keys: Iterable[str]) -> None:
        """Rewrite the first process's files with the lines of `keys` in that order; remove the other files."""
        self.responses = {key: self.responses[key] for key in keys}
        self.kept = {key: self.kept[key] for key in self.responses}
        for file, lines in zip(_files(self._folder), (self.responses, self.kept), strict=True):
            text = _text(lines.values())
            if (file.read_text(encoding="utf-8", errors="replace") if file.exists() else "") != text:
                write_atomic(file, text)
        remove_logs(self._folder, other_processes(self._folder))


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
    responses, kept = (_by_key(_recover(file)) for file in _files(folder, process))
    both = [key for key in responses if key in kept]
    return {key: responses[key] for key in both}, {key: kept[key] for key in both}


def _by_key(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the first line of each key, which is the answer that was scored."""
    first_lines: dict[str, dict[str, Any]] = {}
    for line in lines:
        first_lines.setdefault(line["key"], line)
    return first_lines


def _text(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _recover(file: Path) -> list[dict[str, Any]]:
    """Return the complete lines of a file.

    A crash damages only the end of a file, so a damaged line before a complete one is a UserError.
    """
    if not file.exists():
        return []
    *ended, _cut_short = file.read_bytes().split(b"\n")
    lines: list[dict[str, Any]] = []
    for number, line in enumerate(map(_parsed, ended), 1):
        if line is not None:
            if len(lines) < number - 1:
                damaged = f"{file} is damaged in line {len(lines) + 1}"
                raise UserError(f"{damaged}: move the run folder away and start again")
            lines.append(line)
    return lines


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        content = json.loads(line)
    except ValueError:
        return None
    return content if isinstance(content, dict) and isinstance(content.get("key"), str) else None
