"""What of the submitted sweeps ran, failed and why, is running, remains: python -m harness.status runs=results/runs."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.cli import command
from harness.errors import UserError
from harness.sweep import REMAIN, Run, survey

HEAD = ("state", "answers", "job", "run")


def table(runs: Sequence[Run]) -> str:
    """One row a run; below an unfinished one its point of the sweep, what is known of its end, and its log."""
    rows = [(run.state, str(run.answers), run.job or "-", run.run) for run in runs]
    widths = [max(map(len, column)) + 2 for column in zip(HEAD, *rows, strict=True)]
    lines = [_spaced(HEAD, widths)]
    for run, row in zip(runs, rows, strict=True):
        lines.append(_spaced(row, widths))
        if run.state != "done":
            notes = (" ".join(run.overrides), run.why, run.log if run.state in REMAIN else None)
            lines += [" " * sum(widths[:-1]) + note for note in notes if note]
    return "\n".join(lines)


def _spaced(cells: Sequence[str], widths: Sequence[int]) -> str:
    return "".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def main(cfg: DictConfig) -> None:
    """Print the table, a line that adds it up, and the same as one JSON line."""
    if cfg.runs is None or not Path(str(cfg.runs)).is_dir():
        raise UserError(f"no folder at runs={cfg.runs}: pass the folder of the runs, as in runs=results/runs")
    runs = survey(Path(str(cfg.runs)))
    if not runs:
        raise UserError(f"no run below runs={cfg.runs}: start with python -m harness")
    print(table(runs))
    counts = Counter(run.state for run in runs)
    remain = sum(counts[state] for state in REMAIN)
    again = ": the same submission again runs what remains" if remain else ""
    print(", ".join(f"{number} {state}" for state, number in counts.items()) + again)
    print(json.dumps({"runs": str(cfg.runs), "counts": counts, "remain": remain, "jobs": list(map(_row, runs))}))


def _row(run: Run) -> dict[str, Any]:
    return {key: value for key, value in asdict(run).items() if key != "key"}


if __name__ == "__main__":
    command("status", main)
