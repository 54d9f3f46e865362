"""Tables built from a long frame of scores: a row per method and budget, a column per benchmark."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from harness.results.benchmarks import percent_scale
from harness.results.benchmarks import titles as benchmark_titles
from harness.results.labels import ranked_apart
from harness.results.method_groups import BASELINE, OTHER, group_rank

AVERAGE = "avg"
ROW = ["setting", "budget", "group", "method", "lambda", "label", "hash"]
MISSING_SHOWN = 12  # rows that a note about missing scores names


@dataclass(frozen=True)
class Table:
    """A data frame with the caption, titles and notes that describe it.

    `frame` holds a row per method and budget, the unpruned model first: keys, a column per benchmark, `avg`, and
    statistics (`low`, `high`, `lost`, `gained`, `agreement`). `as_best` lists the benchmarks on which a row is not
    significantly different from the best of its block. A block is a set of rows that are ranked together: those of one
    setting and budget, of one `source` if our rows are compared with published ones, and of equal tokens per layer if
    they cut inside the language model (`ranked_apart`).
    """

    name: str
    caption: str
    frame: pd.DataFrame
    benchmarks: list[str]
    titles: dict[str, tuple[str, str]]  # benchmark -> name and unit
    notes: list[str] = field(default_factory=list)
    digits: Mapping[str, int] = field(default_factory=dict)
    errors: pd.DataFrame | None = None  # standard error of each cell, with the rows of `frame`
    untested: frozenset[str] = frozenset()  # columns without interval and test
    settings: Mapping[str, str] = field(default_factory=dict)  # value of `setting` -> in what it differs from others

    @property
    def columns(self) -> list[str]:
        """Return the columns that are ranked: the benchmarks and their average."""
        return [*self.benchmarks, AVERAGE]


def tables_of(long: pd.DataFrame) -> list[Table]:
    """Return a table for each model and set of tasks in a frame from `score_rows` or `read_scores`."""
    tables = []
    for (model, tasks), part in long.groupby(["model", "tasks"], sort=False):
        name = " ".join(filter(None, [str(model), str(tasks)])) or "scores"
        tables.append(_table(part, name))
    return tables


def _table(long: pd.DataFrame, name: str) -> Table:
    benchmarks = list(dict.fromkeys(long["benchmark"]))
    rows = []
    for key, part in long.groupby(ROW, sort=False, dropna=False):
        scores = dict(zip(part["benchmark"], part["score"], strict=True))
        shares = dict(zip(part["benchmark"], part["relative"], strict=True))
        cells = {benchmark: scores.get(benchmark, math.nan) for benchmark in benchmarks}
        average = sum(shares.get(benchmark, math.nan) for benchmark in benchmarks) / len(benchmarks)
        keys = dict(zip(ROW, key, strict=True)) | {"model": part["model"].iloc[0], "tasks": part["tasks"].iloc[0]}
        rows.append(keys | cells | {AVERAGE: average})
    frame = _ordered(pd.DataFrame(rows))
    notes = [*_missing(frame, benchmarks), *_without_baseline(frame), *_metrics(long)]
    return Table(name, name, frame, benchmarks, _titles(long, benchmarks), notes, _digits(frame, benchmarks))


def _ordered(frame: pd.DataFrame) -> pd.DataFrame:
    """Order rows: settings and budgets as they occur, the unpruned model first, then by group."""
    settings, budgets = list(dict.fromkeys(frame["setting"])), list(dict.fromkeys(frame["budget"]))
    columns = [frame[name] for name in ("setting", "method", "budget", "group")]
    keys = [
        (settings.index(setting), method != BASELINE, budgets.index(budget), group_rank(group))
        for setting, method, budget, group in zip(*columns, strict=True)
    ]
    return frame.loc[sorted(frame.index, key=lambda place: keys[int(place)])].reset_index(drop=True)


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as dictionaries, with the column names as text."""
    return [{str(key): item for key, item in row.items()} for row in frame.to_dict("records")]


def row_name(row: Mapping[str, Any]) -> str:
    """Name a row, as "idpruner keep=0.25 lambda=0.5"."""
    lam = "" if pd.isna(row["lambda"]) else f"lambda={row['lambda']:g}"
    return " ".join(filter(None, [str(row["label"]), str(row["budget"]), lam]))


def _missing(frame: pd.DataFrame, benchmarks: Sequence[str]) -> list[str]:
    """Return a note that names the missing scores; rows that lack one have no average."""
    gaps = [
        f"{row_name(row)}: {', '.join(lacking)}"
        for row in records(frame)
        if (lacking := [benchmark for benchmark in benchmarks if pd.isna(row[benchmark])])
    ]
    more = [f"and {len(gaps) - MISSING_SHOWN} more rows"] * (len(gaps) > MISSING_SHOWN)
    return ["no average, since scores are missing: " + "; ".join([*gaps[:MISSING_SHOWN], *more])] if gaps else []


def _without_baseline(frame: pd.DataFrame) -> list[str]:
    lacking = [s for s, rows in frame.groupby("setting", sort=False) if BASELINE not in set(rows["method"])]
    where = [f" of setting {setting!s}" * bool(setting) for setting in lacking]
    return [f"no averages, since there is no unpruned run{setting}" for setting in where]


def _metrics(long: pd.DataFrame) -> list[str]:
    """Return a note for each benchmark whose rows show different metrics."""
    notes = []
    for benchmark, metrics in long.groupby("benchmark", sort=False)["metric"]:
        if len(different := list(dict.fromkeys(str(metric) for metric in metrics))) > 1:
            notes.append(f"{benchmark}: rows show different metrics, {' and '.join(different)}")
    return notes


def _titles(long: pd.DataFrame, benchmarks: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Return the benchmarks' printed names, and their metrics without lmms-eval's filter."""
    metrics = dict(zip(long["benchmark"], long["metric"].fillna("").astype(str), strict=True))
    units = [" + ".join(t.strip().removesuffix(",none") for t in metrics[b].split("+")) for b in benchmarks]
    return dict(zip(benchmarks, zip(benchmark_titles(benchmarks, "_").values(), units, strict=True), strict=True))


def _digits(frame: pd.DataFrame, benchmarks: Sequence[str]) -> dict[str, int]:
    """Return the number of decimals per column: four for fractions, else two or as many as the scores have."""
    digits = {AVERAGE: 2}
    for benchmark in benchmarks:
        scores = frame[benchmark].dropna().astype(float)
        if scores.abs().max() <= 1:
            digits[benchmark] = 4
        else:
            digits[benchmark] = next((d for d in range(2) if (scores.round(d) - scores).abs().max() < 1e-9), 2)
    return digits


def in_percent(table: Table) -> Table:
    """Return the table as it is printed: scores that are shares between 0 and 1 are in percent."""
    scales = {b: percent_scale(b, table.titles[b][1], table.frame[b].astype(float)) for b in table.benchmarks}
    shares = [benchmark for benchmark, scale in scales.items() if scale != 1]
    name_and_unit = {b: (table.titles[b][0], f"{table.titles[b][1]}, %".removeprefix(", ")) for b in shares}
    return replace(
        table,
        frame=_scaled(table.frame, shares),
        errors=None if table.errors is None else _scaled(table.errors, shares),
        titles={**table.titles, **name_and_unit},
        digits={**table.digits, **{benchmark: table.digits[benchmark] - 2 for benchmark in shares}},
    )


def _scaled(frame: pd.DataFrame, shares: Sequence[str]) -> pd.DataFrame:
    return frame.assign(**{benchmark: 100 * frame[benchmark].astype(float) for benchmark in shares})


def marks(table: Table) -> pd.DataFrame:
    """Mark the "best" and the "second" in each column of a block; other cells are "".

    Scores are compared as they are shown, so ties share a mark. Untested columns have none.
    """
    frame = table.frame
    if {"K", "per_layer"} <= set(frame):
        apart = [ranked_apart(*pair) for pair in zip(frame["K"], frame["per_layer"], strict=True)]
        frame = frame.assign(apart=apart)
    marked = pd.DataFrame("", index=frame.index, columns=table.columns)
    keys = [column for column in ("setting", "budget", "source", "apart") if column in frame]
    for _, block in frame[frame["method"] != BASELINE].groupby(keys, sort=False):
        if "source" in block and block["source"].iloc[0] == "difference":
            continue
        for column in (column for column in table.columns if column not in table.untested):
            shown = block[column].astype(float).round(table.digits[column])
            ranked = sorted(shown.dropna().unique(), reverse=True)
            if shown.notna().sum() < 2:
                continue
            for mark, value in zip(("best", "second"), ranked, strict=False):
                marked.loc[shown.index[shown == value], column] = mark
    return marked


def known_groups(frame: pd.DataFrame) -> bool:
    """Return whether the frame has a method of a known group."""
    return bool(set(frame["group"]) - {"", OTHER})
