"""What commands print: lines and tables of text, and the JSON line at the end that programs read."""

from collections.abc import Collection, Sequence
from typing import Any, TextIO

from harness.core.escape import visible
from harness.core.files import json_line


def print_json(value: Any, **form: Any) -> None:
    """Print one line of JSON in ASCII; NaN is an error. `form` holds other options of `json.dumps`."""
    print(json_line(value, ensure_ascii=True, **form), flush=True)


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
