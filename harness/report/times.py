"""Measured prefill times, as `python -m harness.bench` writes them, joined to runs; nothing is estimated here."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from harness.errors import UserError, one_line
from harness.scores import budget_key

COLUMNS = ["model", "method", "budget", "prefill_ms"]
ALIKE = ("workload", "batch", "weights", "device")  # of bench.csv: what has to be the same for times to compare
UNPRUNED = ("none", "baseline")


@dataclass(frozen=True)
class Times:
    """COLUMNS of every measurement, budgets as runs have them, and in words what all of them share."""

    frame: pd.DataFrame
    measured: str = ""


def read_times(file: Path) -> Times:
    """From bench.csv or bench.json, or any CSV or list of records with COLUMNS; UserError for what cannot compare."""
    try:
        if file.suffix == ".json":
            found = json.loads(file.read_text(encoding="utf-8"))
            frame = pd.DataFrame(found["rows"] if isinstance(found, dict) else found)
        else:
            frame = pd.read_csv(file, dtype={"budget": str})
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"cannot read prefill={file}: {one_line(error)}") from error
    if lacking := [name for name in COLUMNS if name not in frame]:
        raise UserError(f"prefill={file} lacks the columns {', '.join(lacking)}: it needs {', '.join(COLUMNS)}")
    if not pd.api.types.is_numeric_dtype(frame["prefill_ms"]):
        raise UserError(f"prefill={file}: prefill_ms has to be a number of milliseconds in every row")
    shared = []
    for name in (name for name in ALIKE if name in frame):
        values = [str(value) for value in frame[name].dropna().unique()]
        if len(values) > 1:
            raise UserError(f"prefill={file} has several of {name} ({', '.join(values)}): leave the rows of one in it")
        shared += [f"{name} {value}" for value in values]
    if "weights tiny" in shared:
        raise UserError(f"prefill={file} was measured on tiny stand-ins: measure the models that the runs are of")
    frame = frame[COLUMNS].dropna(subset=["prefill_ms"])
    budgets = frame["budget"].fillna("").astype(str)
    frame["budget"] = [_budget(*pair) for pair in zip(frame["method"], budgets, strict=True)]
    return Times(frame, ", ".join(shared))


def _budget(method: str, budget: str) -> str:
    """A budget as runs have it: "keep=0.25" of 0.25, "tokens=64" of 64tok, nothing for the unpruned model."""
    if method in UNPRUNED:
        return ""
    if "=" in budget or not budget:
        return budget
    return f"tokens={budget.removesuffix('tok')}" if budget.endswith("tok") else f"keep={budget}"


def join(times: Times, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(hash, prefill_ms) of the runs in `frame`, and the names of runs without one time of their own."""
    known: dict[tuple[str, str, tuple[str, float]], list[float]] = {}
    for row in times.frame.to_dict("records"):
        known.setdefault(_key(row["model"], row["method"], row["budget"]), []).append(row["prefill_ms"])
    runs = frame.drop_duplicates("hash").to_dict("records")
    keys = [_key(run["model"], run["method"], run["budget"]) for run in runs]
    rows, without = [], []
    for run, key in zip(runs, keys, strict=True):
        if keys.count(key) == 1 and len(known.get(key, [])) == 1:
            rows.append((run["hash"], known[key][0]))
        else:
            without.append(f"{run['name']} {run['budget']}".strip())
    return pd.DataFrame(rows, columns=["hash", "prefill_ms"]), sorted(without)


def _key(model: str, method: str, budget: str) -> tuple[str, str, tuple[str, float]]:
    return model, UNPRUNED[0] if method in UNPRUNED else method, budget_key(budget)
