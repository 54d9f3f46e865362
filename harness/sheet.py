"""Tables as one data frame of text: the CSV."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.results.table import AVERAGE, Table

FRONT = ["model", "tasks", "budget", "group", "method", "lambda", "source"]
OF_RUNS = ["questions", "failed", "setting", "hash", "K", "kept", "per_layer"]
BEHIND = ["low", "high", "lost", "gained", "agreement", "as_best"]
DIGITS = {"low": 2, "high": 2, "agreement": 2, "lost": 0, "gained": 0}


def sheet(tables: Sequence[Table]) -> pd.DataFrame:
    """All tables below each other, numbers with the digits that are shown; empty cells where nothing is known."""
    whole = pd.concat([_text_of(table) for table in tables], ignore_index=True).fillna("")
    scores = list(dict.fromkeys(benchmark for table in tables for benchmark in table.benchmarks))
    order = [*FRONT, *OF_RUNS, *scores, AVERAGE, *BEHIND]
    empty = [name for name in ("model", "tasks", "setting", "hash") if name in whole and (whole[name] == "").all()]
    return whole[[column for column in order if column in whole and column not in empty]]


def _text_of(table: Table) -> pd.DataFrame:
    frame = table.frame.copy()
    frame["method"] = frame["label"].where(frame["label"] != "", frame["method"])
    for column, digits in {**DIGITS, **table.digits}.items():
        if column in frame:
            frame[column] = [_text(item, f".{digits}f") for item in frame[column]]
    frame["lambda"] = [_text(item, "g") for item in frame["lambda"]]
    return frame[[name for name in [*FRONT, *OF_RUNS, *table.columns, *BEHIND] if name in frame]].astype(object)


def _text(item: Any, form: str) -> str:
    return "" if pd.isna(item) else f"{item:{form}}"
