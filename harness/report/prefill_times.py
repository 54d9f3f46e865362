"""Measured prefill times, as `python -m harness.bench` writes them, joined to runs; nothing is estimated here."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import UserError, as_user_error
from harness.results.frames import budget_key

COLUMNS = ["model", "method", "budget", "prefill_ms"]
ALIKE = ("workload", "batch", "weights", "device")  # of bench.csv: what has to be the same for times to compare
UNPRUNED = ("none", "baseline")


@dataclass(frozen=True)
class Times:
    """COLUMNS of every measurement, budgets as runs have them, and model -> in words what those of it share."""

    frame: pd.DataFrame
    measured: dict[str, str]


def files_of(prefill: Any) -> list[Path]:
    """What a command was given as `prefill=`: nothing, a file, or a folder of CSV files."""
    if prefill is None:
        return []
    place = Path(str(prefill))
    return sorted(place.glob("*.csv")) if place.is_dir() else [place]


def read_times(files: Sequence[Path]) -> Times:
    """From bench.csv or bench.json, or any CSV or list of records with COLUMNS; UserError for what cannot compare."""
    frame = pd.concat([_rows(file) for file in files], ignore_index=True)
    measured = {str(model): _shared(rows, str(model)) for model, rows in frame.groupby("model")}
    frame = frame[COLUMNS].dropna(subset=["prefill_ms"])
    frame["budget"] = [_budget(*pair) for pair in zip(frame["method"], frame["budget"], strict=True)]
    return Times(frame, measured)


def _rows(file: Path) -> pd.DataFrame:
    with as_user_error((OSError, ValueError, KeyError), f"cannot read prefill={file}"):
        if file.suffix == ".json":
            found = json.loads(file.read_text(encoding="utf-8"))
            frame = pd.DataFrame(found["rows"] if isinstance(found, dict) else found)
        else:
            frame = pd.read_csv(file, dtype={"budget": str})
    if lacking := [name for name in COLUMNS if name not in frame]:
        raise UserError(f"prefill={file} lacks the columns {', '.join(lacking)}: it needs {', '.join(COLUMNS)}")
    if not pd.api.types.is_numeric_dtype(frame["prefill_ms"]):
        raise UserError(f"prefill={file}: prefill_ms has to be a number of milliseconds in every row")
    return frame


def _shared(rows: pd.DataFrame, model: str) -> str:
    """In words what all measurements of a model have in common; UserError where one of ALIKE is not."""
    shared = []
    for name in (name for name in ALIKE if name in rows):
        values = [str(value) for value in rows[name].dropna().unique()]
        if len(values) > 1:
            raise UserError(f"prefill= has several of {name} ({', '.join(values)}) for {model}: leave the rows of one")
        shared += [f"{name} {value}" for value in values]
    if "weights tiny" in shared:
        raise UserError(f"prefill= of {model} is of tiny stand-ins: measure the models that the runs are of")
    return ", ".join(shared)


def _budget(method: str, budget: str | float | None) -> str:
    """A budget as runs have it: "keep=0.25" of 0.25, "tokens=64" of 64tok, nothing for the unpruned model."""
    text = "" if budget is None or pd.isna(budget) else str(budget)
    if method in UNPRUNED or "=" in text or not text:
        return "" if method in UNPRUNED else text
    return f"tokens={text.removesuffix('tok')}" if text.endswith("tok") else f"keep={text}"


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
