"""Prefill times that `python -m harness.bench` measured, joined to runs; none is estimated."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import UserError, as_user_error
from harness.core.escape import text_of
from harness.results.frames import budget_key
from harness.results.method_groups import UNPRUNED, printed

COLUMNS = ["model", "method", "budget", "prefill_ms"]
SPREAD = "prefill_iqr_ms"  # the interquartile range of the times, NaN if the file has none
CONDITIONS = ("workload", "batch", "weights", "device")  # columns of bench.csv that must agree for times to compare


@dataclass(frozen=True)
class Times:
    """COLUMNS and SPREAD of every measurement, budgets as in runs, and the conditions of each model in words."""

    frame: pd.DataFrame
    measured: dict[str, str]


def files_of(prefill: Any) -> list[Path]:
    """List the files that `prefill=` names: none, one file, or the CSV files of a folder."""
    if prefill is None:
        return []
    place = Path(str(prefill))
    return sorted(place.glob("*.csv")) if place.is_dir() else [place]


def read_times(files: Sequence[Path]) -> Times:
    """Read bench.csv, bench.json, or any CSV or list of records with COLUMNS; UserError if times do not compare."""
    frame = pd.concat([_rows(file) for file in files], ignore_index=True)
    measured = {str(model): _shared(rows, str(model)) for model, rows in frame.groupby("model")}
    frame = frame.reindex(columns=[*COLUMNS, SPREAD]).dropna(subset=["prefill_ms"])
    frame["budget"] = [_budget(*pair) for pair in zip(frame["method"], frame["budget"], strict=True)]
    return Times(frame, measured)


def _rows(file: Path) -> pd.DataFrame:
    with as_user_error((OSError, ValueError, KeyError), f"cannot read prefill={file}"):
        if file.suffix == ".json":
            records = json.loads(file.read_text(encoding="utf-8"))
            frame = pd.DataFrame(records["rows"] if isinstance(records, dict) else records)
        else:
            frame = pd.read_csv(file, dtype={"budget": str}, converters=dict.fromkeys(("model", "method"), text_of))
    if lacking := [name for name in COLUMNS if name not in frame]:
        raise UserError(f"prefill={file} lacks the columns {', '.join(lacking)}: it needs {', '.join(COLUMNS)}")
    if not pd.api.types.is_numeric_dtype(frame["prefill_ms"]):
        raise UserError(f"prefill={file}: prefill_ms has to be a number of milliseconds in every row")
    return frame


def _shared(rows: pd.DataFrame, model: str) -> str:
    """Describe the conditions that all measurements of a model share; UserError where one of CONDITIONS differs."""
    shared = []
    for name in (name for name in CONDITIONS if name in rows):
        values = [str(value) for value in rows[name].dropna().unique()]
        if len(values) > 1:
            raise UserError(f"prefill= has several of {name} ({', '.join(values)}) for {model}: leave the rows of one")
        shared += [f"{name} {value}" for value in values]
    if "weights tiny" in shared:
        raise UserError(f"prefill= of {model} is of tiny stand-ins: measure the models that the runs are of")
    return ", ".join(shared)


def _budget(method: str, budget: str | float | None) -> str:
    """Return a budget as runs write it: "keep=0.25" for 0.25, "tokens=64" for 64tok, "" for the unpruned model."""
    text = "" if budget is None or pd.isna(budget) else str(budget)
    if method in UNPRUNED or "=" in text or not text:
        return "" if method in UNPRUNED else text
    return f"tokens={text.removesuffix('tok')}" if text.endswith("tok") else f"keep={text}"


def join(times: Times, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Return (hash, prefill_ms, SPREAD) of the runs in `frame`, and the names of runs without exactly one time."""
    measured_ms: dict[tuple[str, str, tuple[str, float]], list[tuple[float, float]]] = {}
    for row in times.frame.to_dict("records"):
        measured_ms.setdefault(_key(row["model"], row["method"], row["budget"]), []).append(
            (row["prefill_ms"], row[SPREAD])
        )
    runs = frame.drop_duplicates("hash").to_dict("records")
    keys = [_key(run["model"], run["method"], run["budget"]) for run in runs]
    rows, without = [], []
    for run, key in zip(runs, keys, strict=True):
        if keys.count(key) == 1 and len(measured_ms.get(key, [])) == 1:
            rows.append((run["hash"], *measured_ms[key][0]))
        else:
            without.append(f"{printed(run['name'])} {run['budget']}".strip())
    return pd.DataFrame(rows, columns=["hash", "prefill_ms", SPREAD]), sorted(without)


def _key(model: str, method: str, budget: str) -> tuple[str, str, tuple[str, float]]:
    return model, "none" if method in UNPRUNED else method, budget_key(budget)
