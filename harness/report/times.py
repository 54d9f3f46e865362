"""Measured prefill times, which a benchmark of speed wrote, joined to runs; nothing is estimated here."""

from pathlib import Path

import pandas as pd

from harness.errors import UserError, one_line
from harness.scores import budget_key

COLUMNS = ["model", "method", "budget", "prefill_ms"]
UNPRUNED = ("none", "baseline")


def read_times(file: Path) -> pd.DataFrame:
    """COLUMNS of a CSV file, or of a JSON file that holds a list of records; UserError for what is missing."""
    try:
        found = pd.read_json(file) if file.suffix == ".json" else pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read prefill={file}: {one_line(error)}") from error
    if lacking := [name for name in COLUMNS if name not in found]:
        raise UserError(f"prefill={file} lacks the columns {', '.join(lacking)}: it needs {', '.join(COLUMNS)}")
    found = found[COLUMNS].dropna(subset=["prefill_ms"])
    if not pd.api.types.is_numeric_dtype(found["prefill_ms"]):
        raise UserError(f"prefill={file}: prefill_ms has to be a number of milliseconds in every row")
    found["budget"] = found["budget"].fillna("").astype(str)
    return found


def join(times: pd.DataFrame, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """(hash, prefill_ms) of the runs in `frame`, and the names of runs without one time of their own."""
    known: dict[tuple[str, str, tuple[str, float]], list[float]] = {}
    for row in times.to_dict("records"):
        known.setdefault(_key(*map(str, (row["model"], row["method"], row["budget"]))), []).append(row["prefill_ms"])
    runs = frame.drop_duplicates("hash")
    keys = {str(run.hash): _key(str(run.model), str(run.method), str(run.budget)) for run in runs.itertuples()}
    single = {
        name for name, key in keys.items() if list(keys.values()).count(key) == 1 and len(known.get(key, [])) == 1
    }
    rows = [(name, known[keys[name]][0]) for name in keys if name in single]
    without = runs[~runs["hash"].isin(single)]
    return pd.DataFrame(rows, columns=["hash", "prefill_ms"]), sorted(
        {f"{r.name} {r.budget}".strip() for r in without.itertuples(index=False)}
    )


def _key(model: str, method: str, budget: str) -> tuple[str, str, tuple[str, float]]:
    if method in UNPRUNED:
        return model, UNPRUNED[0], budget_key("")
    return model, method, budget_key(budget)
