"""Tables of text on the screen."""

from collections.abc import Collection, Sequence


def table_lines(rows: Sequence[Sequence[str]], left: Collection[int] | None = (0,)) -> list[str]:
    """Return one line a row, with columns as wide as their longest cell and two blanks between them.

    Columns whose numbers are in `left` are flush left, all others flush right; None puts every column flush left.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(_cells(row, widths, range(len(row)) if left is None else left)).rstrip() for row in rows]


def _cells(row: Sequence[str], widths: Sequence[int], left: Collection[int]) -> list[str]:
    pairs = enumerate(zip(row, widths, strict=True))
    return [cell.ljust(width) if column in left else cell.rjust(width) for column, (cell, width) in pairs]
