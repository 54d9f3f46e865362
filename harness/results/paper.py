"""The published tables (arXiv 2602.13315), and our runs compared with them.

conf/tables/paper.yaml maps the paper's names of benchmarks and methods to ours.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from harness.core.config import conf
from harness.core.errors import UserError
from harness.core.question_sample import ALL, in_words
from harness.results.benchmarks import facts
from harness.results.frames import budget_key, read_scores
from harness.results.labels import labels, versions
from harness.results.result import Result
from harness.results.table import AVERAGE, Table, records, row_name, tables_of

SCORES, AVERAGES = "published_scores.csv", "published_averages.csv"
TOLERANCE = 0.01 + 1e-9  # published averages have two digits


def published(folder: Path) -> list[Table]:
    """Build the tables of the paper from its raw scores; a note names each published average that differs."""
    averages = _averages(folder / AVERAGES)
    tables = []
    for table in tables_of(read_scores(folder / SCORES)):
        number = str(table.frame["tasks"].iloc[0]).removeprefix("table ")
        benchmarks = facts()["benchmarks"]
        titles = {b: (benchmarks[b]["name"], benchmarks[b]["unit"]) for b in table.benchmarks if b in benchmarks}
        caption = f"Table {number}: {facts()['captions'].get(number, table.caption)}"
        notes = [*table.notes, *_differing(table, averages[averages["table"] == number])]
        tables.append(replace(table, name=f"table{number}", caption=caption, titles=table.titles | titles, notes=notes))
    return tables


def _averages(file: Path) -> pd.DataFrame:
    if not file.is_file():
        return pd.DataFrame(columns=["table", "model", "budget", "method", "lambda", "average_percent"])
    return pd.read_csv(file, dtype={"table": str, "budget": str}).fillna({"budget": ""})


def _differing(table: Table, averages: pd.DataFrame) -> list[str]:
    """Return a note for each published average that differs from ours of the same scores."""
    frame, notes = table.frame, []
    for row in records(averages):
        same = frame[(frame["method"] == row["method"]) & (frame["budget"] == row["budget"])]
        same = same[(same["lambda"] == row["lambda"]) | (same["lambda"].isna() & pd.isna(row["lambda"]))]
        average = same[AVERAGE].iloc[0] if len(same) == 1 else float("nan")
        if not abs(average - row["average_percent"]) <= TOLERANCE:
            name = row_name({**row, "label": row["method"]})
            notes.append(f"published average of {name} is {row['average_percent']:.2f}, its scores give {average:.2f}")
    return notes


def published_and_ours(folder: Path, results: Sequence[Result]) -> list[Table]:
    """Build the published tables with our runs of the same model, method, budget and lambda, and the differences.

    UserError if no run is of a published cell.
    """
    tables, own = published(folder), ours(results)
    merged = [_with_ours(table, own[own["model"] == table.frame["model"].iloc[0]]) for table in tables]
    matched = [table for table in merged if table is not None]
    if not matched:
        models = sorted({str(table.frame["model"].iloc[0]) for table in tables})
        raise UserError(
            f"none of the {len(results)} runs is in a published table: those are of model={','.join(models)} "
            f"and of the tasks {', '.join(task for b in facts()['benchmarks'].values() for task in b['tasks'])}"
        )
    return matched


def ours(results: Sequence[Result]) -> pd.DataFrame:
    """Return our scores on the published scales: a row per run and benchmark of the paper, by the paper's metric."""
    baselines = {result.setting: result for result in results if result.is_baseline}
    names = labels(results)
    rows = []
    for result in results:
        base = baselines.get(result.setting)
        for benchmark, entry in facts()["benchmarks"].items():
            for task in set(entry["tasks"]) & set(result.metrics["primary"]):
                metric = entry.get("metric") or result.metrics["primary"][task]
                score = entry["scale"] * result.score(task, metric)
                share = 100 * score / (entry["scale"] * base.score(task, metric)) if base else float("nan")
                rows.append((result, benchmark, score, share))
    return pd.DataFrame(
        {
            "model": [r.about["config"]["model"]["name"] for r, *_ in rows],
            "key": [
                (r.method, budget_key(r.budget), _lambda(r.method, r.about["config"]["method"].get("lam")))
                for r, *_ in rows
            ],
            "run": [r.key_without_tasks for r, *_ in rows],
            "label": [names[r.hash] for r, *_ in rows],
            "asked": [in_words(r.sample) for r, *_ in rows],
            "versions": [versions([r]) for r, *_ in rows],
            "benchmark": [benchmark for _, benchmark, *_ in rows],
            "score": [score for _, _, score, _ in rows],
            "relative": [share for *_, share in rows],
        }
    )


def _lambda(method: str, lam: float | None) -> float | None:
    """Return lambda, or the method's default where a row has none."""
    if lam is not None and not pd.isna(lam):
        return float(lam)
    file = conf("method", f"{method}.yaml")
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}).get("lam") if file.is_file() else None


def _with_ours(table: Table, ours: pd.DataFrame) -> Table | None:
    rows: list[dict[str, Any]] = []
    not_run, notes = [], list(table.notes)
    for row in records(table.frame):
        rows.append(row | {"source": "paper"})
        method = facts()["methods"].get(row["method"], row["method"])
        key = (method, budget_key(row["budget"]), _lambda(method, row["lambda"]))
        same = ours[pd.Series([own_key == key for own_key in ours["key"]], index=ours.index, dtype=bool)]
        same = same[same["benchmark"].isin(table.benchmarks)]
        if not len(same):
            not_run.append(row_name(row))
        for _, run in same.groupby("run", sort=False):
            scores = dict(zip(run["benchmark"], run["score"], strict=True))
            shares = dict(zip(run["benchmark"], run["relative"], strict=True))
            cells = {b: scores.get(b, float("nan")) for b in table.benchmarks}
            cells[AVERAGE] = sum(shares.get(b, float("nan")) for b in table.benchmarks) / len(table.benchmarks)
            label = str(run["label"].iloc[0])
            name = f"{label} {row['budget']}".strip()
            rows.append(row | cells | {"source": "ours", "label": label})
            rows.append(row | {c: cells[c] - row[c] for c in cells} | {"source": "difference", "label": ""})
            if lacking := [b for b in table.benchmarks if b not in scores]:
                notes.append(f"ours lacks {name}: {', '.join(lacking)}")
            if (asked := run["asked"].iloc[0]) != ALL:
                notes.append(f"our {name} answers only {asked}")
    if len(not_run) == len(table.frame):
        return None
    versions = " and ".join(dict.fromkeys(ours.loc[ours["benchmark"].isin(table.benchmarks), "versions"]))
    notes.append(f"our runs used {versions}; the paper's used {facts()['made_with']}")
    if not_run:
        notes.append(f"not run here: {', '.join(not_run)}")
    return replace(table, frame=pd.DataFrame(rows), notes=notes, caption=f"{table.caption}, published and ours")
