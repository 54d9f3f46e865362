"""What commands print: lines and tables of text, and the JSON line at the end that programs read."""

import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from harness.core.errors import as_user_error
from harness.core.escape import visible
from harness.core.files import json_line

LONGEST = 2000  # characters of the JSON line


def print_json(value: Mapping[str, Any], file: Path | None = None, **form: Any) -> None:
    """Print one line of JSON in ASCII; NaN is an error. `form` holds other options of `json.dumps`.

    A longer one is in `file`, or goes to a new one that only the user can read. The line then names it as "json", and
    of its largest lists and objects it has the lengths.
    """
    line = json_line(value, ensure_ascii=True, **form)
    if len(line) > LONGEST:
        line = _shortened(value, str(file or _kept(line)), **form)
    print(line, flush=True)


def _shortened(value: Mapping[str, Any], file: str, **form: Any) -> str:
    short = {**value, "json": file}
    several = {key: item for key, item in value.items() if isinstance(item, Mapping | list | tuple)}
    for key in sorted(several, key=lambda key: len(json_line(several[key], **form)), reverse=True):
        if len(json_line(short, ensure_ascii=True, **form)) <= LONGEST:
            break
        short[key] = len(several[key])
    return json_line(short, ensure_ascii=True, **form)


def _kept(line: str) -> Path:
    with as_user_error(OSError, "cannot write the whole result as JSON", "set TMPDIR to a folder with room"):
        descriptor, file = tempfile.mkstemp(".json", "harness-")
        with os.fdopen(descriptor, "w", encoding="ascii") as stream:
            stream.write(line)
    return Path(file)


def say(line: str, stream: TextIO | None = None) -> None:
    """Print one line; control characters are shown, so that no name or answer moves the cursor or begins a line."""
    print(visible(line), file=stream, flush=True)


def table_lines(rows: Sequence[Sequence[str]], left: Collection[int] | None = (0,)) -> list[str]:
    """Return one line a row, with columns as wide as their longest cell and two blanks between them.

    Columns whose numbers are in `left` are flush left, all others flush right; None puts every column flush left.
    """
    rows = [[visible(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths, range(len(row)) if left is None else left)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in pairs]
