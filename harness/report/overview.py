"""The tables of the page: scores with their intervals, one table for all runs that share benchmarks."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.results.labels import short
from harness.results.result import Result
from harness.results.stats import AVERAGE


def overview(frame: pd.DataFrame, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Tables as {"benchmarks": {id: short name}, "rows": [...]}, that with the most runs first."""
    tables: list[tuple[set[str], list[Result]]] = []
    for result in results:
        tasks, members = set(result.metrics["primary"]), [result]
        for other in [table for table in tables if table[0] & tasks]:
            tables.remove(other)
            tasks, members = tasks | other[0], other[1] + members
        tables.append((tasks, members))
    return [_table(frame, members) for _, members in sorted(tables, key=lambda table: -len(table[1]))]


def _table(frame: pd.DataFrame, members: Sequence[Result]) -> dict[str, Any]:
    benchmarks = list(dict.fromkeys(task for result in members for task in result.metrics["primary"]))
    cells = {(row["hash"], row["benchmark"]): row for row in frame.to_dict("records")}
    rows = [_row(result, [AVERAGE, *benchmarks], cells) for result in members]
    return {"benchmarks": short(benchmarks), "rows": rows, "settings": len({r.setting for r in members})}


def _row(result: Result, benchmarks: Sequence[str], cells: dict[tuple[str, str], Any]) -> dict[str, Any]:
    about = cells[result.hash, AVERAGE]
    return {
        "hash": result.hash,
        "name": about["name"],
        "method": result.method,
        "group": about["group"],
        "model": about["model"],
        "tasks": about["tasks"],
        "budget": result.budget,
        "kept": result.tokens("kept"),
        "per_layer": about["per_layer"],
        "cells": [_cell(cells.get((result.hash, benchmark))) for benchmark in benchmarks],
    }


def _cell(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What one cell shows; None where the run has no such benchmark. NaN becomes None."""
    if found is None:
        return None
    numbers = ("score", "relative", "low", "high", "se", "lost", "gained", "agreement", "p_best")
    known = {name: None if pd.isna(found[name]) else float(found[name]) for name in numbers}
    return {**known, "best": found["best"] is True or bool(found["best"] == 1), "as_best": bool(found["as_best"] == 1)}
