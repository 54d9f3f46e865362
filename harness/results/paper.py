"""The published tables (arXiv 2602.13315), and our runs beside them: conf/tables/paper.yaml says what is what."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.core.config import conf
from harness.core.errors import UserError
from harness.results.frames import budget_key, read_scores
from harness.results.labels import labels
from harness.results.result import Result
from harness.results.table import AVERAGE, Table, records, row_name, tables_of

SCORES, AVERAGES = "published_scores.csv", "published_averages.csv"
TOLERANCE = 0.01 + 1e-9  # of published averages, which have two digits


@cache
def facts() -> dict[str, Any]:
    """conf/tables/paper.yaml."""
    found: dict[str, Any] = yaml.safe_load(conf("tables", "paper.yaml").read_text(encoding="utf-8"))
    return found


def published(folder: Path) -> list[Table]:
    """The tables of the paper from its raw scores, averages computed; a published average that differs is a note."""
    long = read_scores(folder / SCORES)
    theirs = _averages(folder / AVERAGES)
    found = []
    for table in tables_of(long):
        number = str(table.frame["tasks"].iloc[0]).removeprefix("table ")
        named = facts()["benchmarks"]
        titles = {b: (named[b]["name"], named[b]["unit"]) for b in table.benchmarks if b in named}
        caption = f"Table {number}: {facts()['captions'].get(number, table.caption)}"
        notes = [*table.notes, *_differing(table, theirs[theirs["table"] == number])]
        found.append(replace(table, name=f"table{number}", caption=caption, titles=table.titles | titles, notes=notes))
    return found


def _averages(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame(columns=["table", "model", "budget", "method", "lambda", "average_percent"])
    return pd.read_csv(file, dtype={"table": str, "budget": str}).fillna({"budget": ""})


def _differing(table: Table, theirs: pd.DataFrame) -> list[str]:
    """Published averages that ours, from the same scores, do not meet."""
    frame, notes = table.frame, []
    for row in records(theirs):
        same = frame[(frame["method"] == row["method"]) & (frame["budget"] == row["budget"])]
        same = same[(same["lambda"] == row["lambda"]) | (same["lambda"].isna() & pd.isna(row["lambda"]))]
        mine = same[AVERAGE].iloc[0] if len(same) == 1 else float("nan")
        if not abs(mine - row["average_percent"]) <= TOLERANCE:
            name = row_name({**row, "label": row["method"]})
            notes.append(f"published average of {name} is {row['average_percent']:.2f}, its scores give {mine:.2f}")
    return notes


def beside(folder: Path, results: Sequence[Result]) -> list[Table]:
    """Published rows with our runs of the same model, method, budget and lambda below, and the differences.

    UserError if no run is of a published cell.
    """
    mine = ours(results)
    found = [_beside(table, mine[mine["model"] == table.frame["model"].iloc[0]]) for table in published(folder)]
    matched = [table for table in found if table is not None]
    if not matched:
        models = sorted({str(table.frame["model"].iloc[0]) for table in published(folder)})
        raise UserError(
            f"none of the {len(results)} runs is in a published table: those are of model={','.join(models)} "
            f"and of the tasks {', '.join(task for b in facts()['benchmarks'].values() for task in b['tasks'])}"
        )
    return matched


def ours(results: Sequence[Result]) -> pd.DataFrame:
    """Our scores on the published scales: a row per run and benchmark that the paper has, by its metric."""
    baselines = {result.setting: result for result in results if result.is_baseline}
    names = labels(results)
    rows = []
    for result in results:
        base = baselines.get(result.setting)
        for benchmark, about in facts()["benchmarks"].items():
            for task in set(about["tasks"]) & set(result.metrics["primary"]):
                metric = about.get("metric") or result.metrics["primary"][task]
                score = about["scale"] * result.score(task, metric)
                share = 100 * score / (about["scale"] * base.score(task, metric)) if base else float("nan")
                rows.append((result, benchmark, score, share))
    return pd.DataFrame(
        {
            "model": [r.about["config"]["model"]["name"] for r, *_ in rows],
            "key": [(r.method, budget_key(r.budget), _lambda(r.method, _given(r))) for r, *_ in rows],
            "run": [r.key_without_tasks for r, *_ in rows],
            "label": [names[r.hash] for r, *_ in rows],
            "limit": [r.about["identity"]["tasks"]["limit"] for r, *_ in rows],
            "versions": [_versions(r) for r, *_ in rows],
            "benchmark": [benchmark for _, benchmark, *_ in rows],
            "score": [score for _, _, score, _ in rows],
            "relative": [share for *_, share in rows],
        }
    )


def _versions(result: Result) -> str:
    model = result.about["identity"]["model"]
    releases = ((name, result.packages.get(name)) for name in ("lmms-eval", "transformers"))
    named = [f"{name} {release}" for name, release in releases if release]
    return ", ".join([*named, str(model.get("dtype"))])


def _given(result: Result) -> float | None:
    found: float | None = result.about["config"]["method"].get("lam")
    return found


def _lambda(method: str, given: float | None) -> float | None:
    """A published row without lambda is that of the method's default."""
    if given is not None and not pd.isna(given):
        return float(given)
    file = conf("method", f"{method}.yaml")
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("lam") if file.is_file() else None


def _beside(table: Table, ours: pd.DataFrame) -> Table | None:
    rows: list[dict[str, Any]] = []
    without, notes = [], list(table.notes)
    for row in records(table.frame):
        rows.append(row | {"source": "paper"})
        method = facts()["methods"].get(row["method"], row["method"])
        key = (method, budget_key(row["budget"]), _lambda(method, row["lambda"]))
        same = ours[pd.Series([mine == key for mine in ours["key"]], index=ours.index, dtype=bool)]
        same = same[same["benchmark"].isin(table.benchmarks)]
        if not len(same):
            without.append(row_name(row))
        for _, run in same.groupby("run", sort=False):
            mine = dict(zip(run["benchmark"], run["score"], strict=True))
            share = dict(zip(run["benchmark"], run["relative"], strict=True))
            cells = {b: mine.get(b, float("nan")) for b in table.benchmarks}
            cells[AVERAGE] = sum(share.get(b, float("nan")) for b in table.benchmarks) / len(table.benchmarks)
            label = str(run["label"].iloc[0])
            name = f"{label} {row['budget']}".strip()
            rows.append(row | cells | {"source": "ours", "label": label})
            rows.append(row | {c: cells[c] - row[c] for c in cells} | {"source": "difference", "label": ""})
            if lacking := [b for b in table.benchmarks if b not in mine]:
                notes.append(f"ours lacks {name}: {', '.join(lacking)}")
            if (limit := run["limit"].iloc[0]) is not None and not pd.isna(limit):
                notes.append(f"ours of {name} are of the first {limit:g} questions of each benchmark")
    if len(without) == len(table.frame):
        return None
    made = " and ".join(dict.fromkeys(ours.loc[ours["benchmark"].isin(table.benchmarks), "versions"]))
    notes.append(f"ours were made with {made}; the paper's with {facts()['made_with']}")
    if without:
        notes.append(f"not run here: {', '.join(without)}")
    return replace(table, frame=pd.DataFrame(rows), notes=notes, caption=f"{table.caption}, published and ours")
