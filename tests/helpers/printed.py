"""What a page prints: the cells of its tables, and scores as they stand there."""

from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path


def rows_below(page: Path, title: str) -> list[list[str]]:
    """Return the cells of the table whose head contains a title, without the line below the head."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|") and title in line)
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start:end]]
    return [rows[0], *rows[2:]]


def percent(score: str) -> str:
    return f"{(Decimal(score) * 100).quantize(Decimal('0.1'), ROUND_HALF_UP)}"
