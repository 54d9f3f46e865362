"""The journals of a run: an answer is on disk before it counts.

Each process of a run has a journal of its own: the first one's is `responses.jsonl` and `kept.jsonl`, those of others
lie beside it (`responses.1.jsonl`) until the first one has taken them in.
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
    """Responses by key, on disk before they count; lines at the end that a crash damaged are dropped on opening.

    Each of a run's processes adds to files of its own and knows, from the start, what the first one's hold.
    """

    def __init__(self, folder: Path, process: int = 0):
        self._folder = folder
        self._process = process
        self.responses, self.kept = _read(folder, 0)
        if process == 0:
            for other in others(folder):
                responses, kept = _read(folder, other)
                self.responses = {**self.responses, **responses, **self.responses}
                self.kept = {**self.kept, **kept, **self.kept}  # the first answer stays, and where it stands
            self.settle(list(self.responses))

    def add(self, responses: list[dict[str, Any]], kept: list[dict[str, Any]]) -> None:
        """Append the lines of one batch; the kept indices first, so that a response never lacks its own."""
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
        """Leave the lines of `keys` alone, in that order, and in the first process's files alone."""
        self.responses = {key: self.responses[key] for key in keys}
        self.kept = {key: self.kept[key] for key in self.responses}
        for file, lines in zip(_files(self._folder), (self.responses, self.kept), strict=True):
            text = _text(lines.values())
            if (file.read_text(encoding="utf-8", errors="replace") if file.exists() else "") != text:
                write_atomic(file, text)
        remove(self._folder, others(self._folder))


def part_name(process: int) -> str:
    """What tells the files of a process from those of the first one."""
    return f".{process}" if process else ""


def _files(folder: Path, process: int = 0) -> tuple[Path, Path]:
    """The responses and the kept indices of one process."""
    responses, kept = (folder / f"{Path(name).stem}{part_name(process)}.jsonl" for name in (RESPONSES, KEPT))
    return responses, kept


def others(folder: Path) -> list[int]:
    """The processes other than the first whose files are there."""
    names = (re.fullmatch(r"\w+\.(\d+)\.jsonl", path.name) for path in folder.glob("*.*.jsonl"))
    return sorted({int(name[1]) for name in names if name})


def remove(folder: Path, processes: Iterable[int]) -> None:
    """Remove the files of these processes."""
    for process in processes:
        for file in _files(folder, process):
            file.unlink(missing_ok=True)


def _read(folder: Path, process: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Responses and kept indices by key, of the questions of which both are there."""
    responses, kept = (_by_key(_recover(file)) for file in _files(folder, process))
    both = [key for key in responses if key in kept]
    return {key: responses[key] for key in both}, {key: kept[key] for key in both}


def _by_key(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The first line of each key: the answer that was scored."""
    found: dict[str, dict[str, Any]] = {}
    for line in lines:
        found.setdefault(line["key"], line)
    return found


def _text(lines: Iterable[dict[str, Any]]) -> str:
    return "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)


def _recover(file: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; UserError if one that is not is followed by one that is: no crash does that."""
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
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and isinstance(found.get("key"), str) else None
