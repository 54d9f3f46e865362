"""From scores in a long frame to a table: a row per method and budget, a column per benchmark, holes named."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from harness.results.labels import short
from harness.results.method_groups import BASELINE, OTHER, group_rank

AVERAGE = "avg"
ROW = ["setting", "budget", "group", "method", "lambda", "label", "hash"]
MISSING_SHOWN = 12  # names in a note; a table with more holes is another table


@dataclass(frozen=True)
class Table:
    """One data frame and what its readers need to know of it.

    `frame` holds a row per method and budget, the unpruned model first: keys, a column per benchmark, `avg`, and what
    statistics add (`low`, `high`, `lost`, `gained`, `agreement`; `as_best` lists the benchmarks on which a row cannot
    be told from the best of its block). A block is what is compared: rows of one setting and budget, and of one
    `source` where ours stand beside published ones.
    """

    name: str
    caption: str
    frame: pd.DataFrame
    benchmarks: list[str]
    titles: dict[str, tuple[str, str]]  # benchmark -> name and unit
    notes: list[str] = field(default_factory=list)
    digits: Mapping[str, int] = field(default_factory=dict)
    errors: pd.DataFrame | None = None  # standard error of each cell, rows as in `frame`

    @property
    def columns(self) -> list[str]:
        """What is ranked: the benchmarks and their average."""
        return [*self.benchmarks, AVERAGE]


def tables_of(long: pd.DataFrame) -> list[Table]:
    """A table for each model and set of tasks, of a frame that `raw` or `read_scores` gave."""
    found = []
    for (model, tasks), part in long.groupby(["model", "tasks"], sort=False):
        name = " ".join(filter(None, [str(model), str(tasks)])) or "scores"
        found.append(_table(part, name))
    return found


def _table(long: pd.DataFrame, name: str) -> Table:
    benchmarks = list(dict.fromkeys(long["benchmark"]))
    rows = []
    for key, part in long.groupby(ROW, sort=False, dropna=False):
        scores = dict(zip(part["benchmark"], part["score"], strict=True))
        shares = dict(zip(part["benchmark"], part["relative"], strict=True))
        cells = {benchmark: scores.get(benchmark, math.nan) for benchmark in benchmarks}
        whole = [shares.get(benchmark, math.nan) for benchmark in benchmarks]
        keys = dict(zip(ROW, key, strict=True)) | {"model": part["model"].iloc[0], "tasks": part["tasks"].iloc[0]}
        rows.append(keys | cells | {AVERAGE: sum(whole) / len(whole)})
    frame = _ordered(pd.DataFrame(rows))
    notes = [*_missing(frame, benchmarks), *_unbased(frame), *_metrics(long)]
    return Table(name, name, frame, benchmarks, _titles(long, benchmarks), notes, _digits(frame, benchmarks))


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Settings and budgets as they come, the unpruned model first, then by group."""
    settings, budgets = list(dict.fromkeys(frame["setting"])), list(dict.fromkeys(frame["budget"]))
    columns = [frame[name] for name in ("setting", "method", "budget", "group")]
    keys = [
        (settings.index(setting), method != BASELINE, budgets.index(budget), group_rank(group))
        for setting, method, budget, group in zip(*columns, strict=True)
    ]
    return frame.loc[sorted(frame.index, key=lambda place: keys[int(place)])].reset_index(drop=True)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows, by name of column."""
    return [{str(key): item for key, item in row.items()} for row in frame.to_dict("records")]


def row_name(row: Mapping[str, Any]) -> str:
    """A row in words: "idpruner keep=0.25 lambda=0.5"."""
    lam = "" if pd.isna(row["lambda"]) else f"lambda={row['lambda']:g}"
    return " ".join(filter(None, [str(row["label"]), str(row["budget"]), lam]))


def _missing(frame: pd.DataFrame, benchmarks: Sequence[str]) -> list[str]:
    """The holes of a table by name; their rows have no average."""
    holes = [
        f"{row_name(row)}: {', '.join(lacking)}"
        for row in records(frame)
        if (lacking := [benchmark for benchmark in benchmarks if pd.isna(row[benchmark])])
    ]
    more = [f"and {len(holes) - MISSING_SHOWN} rows more"] * (len(holes) > MISSING_SHOWN)
    return ["missing, so without an average: " + "; ".join([*holes[:MISSING_SHOWN], *more])] if holes else []


def _unbased(frame: pd.DataFrame) -> list[str]:
    lacking = [s for s, rows in frame.groupby("setting", sort=False) if BASELINE not in set(rows["method"])]
    where = [f" under setting {setting!s}" * bool(setting) for setting in lacking]
    return [f"no unpruned model{place}: nothing to relate to, so no averages" for place in where]


def _metrics(long: pd.DataFrame) -> list[str]:
    """Runs can show other metrics of a task than their neighbours do."""
    notes = []
    for benchmark, metrics in long.groupby("benchmark", sort=False)["metric"]:
        if len(different := list(dict.fromkeys(str(metric) for metric in metrics))) > 1:
            notes.append(f"{benchmark}: rows show different metrics, {' and '.join(different)}")
    return notes


def _titles(long: pd.DataFrame, benchmarks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return short names, and metrics without lmms-eval's filter."""
    metrics = dict(zip(long["benchmark"], long["metric"].fillna("").astype(str), strict=True))
    units = [" + ".join(t.strip().removesuffix(",none") for t in metrics[b].split("+")) for b in benchmarks]
    return dict(zip(benchmarks, zip(short(benchmarks, "_").values(), units, strict=True), strict=True))


def _digits(frame: pd.DataFrame, benchmarks: Sequence[str]) -> dict[str, int]:
    """Digits behind the point: four for shares of one, two for percentages and points, fewer if all say no more."""
    found = {AVERAGE: 2}
    for benchmark in benchmarks:
        known = frame[benchmark].dropna().astype(float)
        if known.abs().max() <= 1:
            found[benchmark] = 4
        else:
            found[benchmark] = next((d for d in range(2) if (known.round(d) - known).abs().max() < 1e-9), 2)
    return found


def marks(table: Table) -> pd.DataFrame:
    """What is "best" and "second" in each column of a block, as shown: ties share a mark; elsewhere ""."""
    frame = table.frame
    found = pd.DataFrame("", index=frame.index, columns=table.columns)
    keys = [column for column in ("setting", "budget", "source") if column in frame]
    for _, block in frame[frame["method"] != BASELINE].groupby(keys, sort=False):
        if "source" in block and block["source"].iloc[0] == "difference":
            continue
        for column in table.columns:
            shown = block[column].astype(float).round(table.digits[column])
            ranked = sorted(shown.dropna().unique(), reverse=True)
            if shown.notna().sum() < 2:
                continue
            for mark, value in zip(("best", "second"), ranked, strict=False):
                found.loc[shown.index[shown == value], column] = mark
    return found


def known_groups(frame: pd.DataFrame) -> bool:
    """True if a column of groups tells anything."""
    return bool(set(frame["group"]) - {"", OTHER})
