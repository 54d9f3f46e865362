"""Show the state of every run, and whether today's code would reuse it: python -m harness.status runs=results/runs."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from harness.core.command import command
from harness.core.console import print_json, table_lines
from harness.core.errors import UserError, one_line
from harness.core.escape import visible
from harness.core.files import load, path_of
from harness.results.archive import enclosing
from harness.results.run_folder import REUSABLE, format_of
from harness.results.submissions import REMAIN, Run, list_runs

HEAD = ("state", "answers", "reusable", "job", "run")


def table(runs: Sequence[Run], changed: Sequence[list[str] | None]) -> str:
    """Format one row per run, with notes below it.

    Notes are the overrides, the error and the log of an unfinished run, what is wrong with the files of a finished one,
    and the reasons why a run would not be reused.
    `changed` holds these reasons for each run; None for a run that has not started.
    """
    reusable = [
        "-" if reasons is None else "no" if reasons or run.state == "damaged" else "yes"
        for run, reasons in zip(runs, changed, strict=True)
    ]
    rows = [(r.state, str(r.answers), reuse, r.job or "-", r.run) for r, reuse in zip(runs, reusable, strict=True)]
    head, *below = table_lines([HEAD, *rows], left=None)
    lines, indent = [head], " " * head.rindex(HEAD[-1])
    for run, row, reasons in zip(runs, below, changed, strict=True):
        lines.append(row)
        notes = [f"not reusable: {'; '.join(reasons)}"] if reasons else []
        overrides = () if run.state in ("done", "damaged") else run.overrides
        notes += filter(None, (" ".join(overrides), run.why, run.log if run.state in REMAIN else None))
        lines += [indent + visible(note) for note in notes]
    return "\n".join(lines)


def main(cfg: DictConfig) -> None:
    """Print the table, a line with the totals, and the same as one JSON line."""
    root = path_of(cfg.runs, "runs")
    if not root.is_dir():
        raise UserError(f"no folder at runs={cfg.runs}: pass the folder of the runs, as in runs=results/runs")
    runs = list_runs(root)
    if not runs and enclosing(root):
        raise UserError(f"runs={cfg.runs} is an archive, whose runs are never reused: pass a folder of runs")
    if not runs:
        raise UserError(f"no run below runs={cfg.runs}: start with python -m harness")
    changed = [_changes(root / run.run) for run in runs]
    print(table(runs, changed))
    counts = Counter(run.state for run in runs)
    remain = sum(counts[state] for state in REMAIN)
    hint = ": run the same command again for what remains" if remain else ""
    print(", ".join(f"{number} {state}" for state, number in counts.items()) + hint)
    jobs = [_row(run, reasons) for run, reasons in zip(runs, changed, strict=True)]
    print_json({"runs": str(cfg.runs), "counts": counts, "remain": remain, "jobs": jobs})


def _changes(folder: Path) -> list[str] | None:
    """Return why today's code would not reuse a run; None if it has not started."""
    file = folder / "run.json"
    if not file.is_file():
        return None
    try:
        about = load(file, ("identity",), f"move {folder} away and start again")
        version = format_of(folder, about)
    except UserError as error:
        return [one_line(error)]
    if version < REUSABLE:
        return [f"its run.json has format {version}, expected {REUSABLE} or newer"]
    from harness.evaluation.identity import changes  # imports torch, which takes seconds

    return changes(about)


def _row(run: Run, changed: list[str] | None) -> dict[str, Any]:
    return {**{key: value for key, value in asdict(run).items() if key != "key"}, "changed": changed}


if __name__ == "__main__":
    command("status", main)
