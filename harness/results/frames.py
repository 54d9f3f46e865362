"""Scores as data frames: runs and published tables in long form, and the scores per question, paired over runs."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import UserError, as_user_error
from harness.results.influence import number
from harness.results.labels import labels
from harness.results.method_groups import BASELINE, group_of
from harness.results.response_log import read_responses
from harness.results.result import Result
from harness.results.run_folder import AGAIN, RESPONSES

KEYS = ["source", "model", "tasks", "budget", "group", "method", "lambda"]
COLUMNS = [
    *(*KEYS, "benchmark", "metric", "score", "baseline", "relative", "questions"),
    *("label", "setting", "run", "hash"),
]


def score_rows(results: Sequence[Result]) -> pd.DataFrame:
    """Return one row per run and task with the primary metric, as lmms-eval reports it (see COLUMNS).

    `baseline` is the unpruned model's score by the same metric under the same settings, NaN if it was not run.
    """
    baselines = {result.setting: result for result in results if result.is_baseline}
    names = labels(results)
    rows = []
    for result in results:
        config = result.about["config"]
        base = baselines.get(result.setting)
        row = {
            "source": "runs",
            "model": config["model"]["name"],
            "tasks": config["tasks"]["name"],
            "budget": result.budget,
            "group": group_of(result.method),
            "method": result.method,
            "lambda": config["method"].get("lam"),
            "label": names[result.hash],
            "setting": result.setting[:8],
            "run": str(result.folder),
            "hash": result.hash,
        }
        for task, metric in result.metrics["primary"].items():
            scores = {"score": result.score(task), "baseline": base.score(task, metric) if base else math.nan}
            count = result.metrics["questions"][task]
            rows.append(row | scores | {"benchmark": task, "metric": metric, "questions": count})
    return _with_relative(pd.DataFrame(rows, columns=COLUMNS))


def read_scores(file: Path) -> pd.DataFrame:
    """Read raw scores from a CSV in the form of results/paper/published_scores.csv, with the columns of `score_rows`.

    Required columns are method, benchmark and score ("-" or empty if unknown); the unpruned model's method is
    "baseline". A column `table` becomes `tasks`. UserError for a missing column, a score that is not a number, or
    a repeated row.
    """
    with as_user_error((OSError, ValueError), f"cannot read scores={file}"):
        rows = pd.read_csv(file, dtype=str, keep_default_na=False)
    if lacking := sorted({"method", "benchmark", "score"} - set(rows)):
        raise UserError(f"{file} lacks the columns {', '.join(lacking)}: method, benchmark and score are needed")
    for column in ("score", "lambda"):
        rows[column] = _numeric(rows, column, file)
    if "table" in rows and "tasks" not in rows:
        rows["tasks"] = "table " + rows["table"]
    unpruned = rows["method"] == BASELINE
    for column in ("model", "tasks", "budget", "metric"):
        rows[column] = rows.get(column, "")
    rows["budget"] = rows["budget"].mask(unpruned, "")
    rows["group"] = rows["group"] if "group" in rows else rows["method"].map(group_of)
    rows["source"], rows["label"], rows["setting"], rows["hash"] = str(file), rows["method"], "", ""
    if len(repeated := rows[rows.duplicated([*KEYS, "benchmark"])]):
        first = repeated.iloc[0]
        raise UserError(f"{file} has {first['method']} {first['budget']} {first['benchmark']} twice: leave one out")
    base = rows[unpruned].set_index(["model", "tasks", "benchmark"])["score"].to_dict()
    places = zip(rows["model"], rows["tasks"], rows["benchmark"], strict=True)
    rows["baseline"] = [base.get(place, math.nan) for place in places]
    return _with_relative(rows.reindex(columns=COLUMNS))


def _numeric(rows: pd.DataFrame, column: str, file: Path) -> pd.Series:
    """Return a column as numbers, with NaN for an empty cell or a dash."""
    if column not in rows:
        return pd.Series(math.nan, index=rows.index)
    text = rows[column].str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    if len(bad := rows[numbers.isna() & ~text.isin(["", "-"])]):
        place = bad.index[0]
        raise UserError(f"{file}, line {int(place) + 2}: {column} is {rows.loc[place, column]!r}, not a number")
    return numbers.astype(float)


def _with_relative(frame: pd.DataFrame) -> pd.DataFrame:
    """Add `relative`, the percentage of the baseline's score; NaN where that is zero or unknown."""
    base = frame["baseline"].astype(float)
    frame["relative"] = 100 * frame["score"].astype(float) / base.mask(base == 0)
    return frame.astype({"lambda": float, "score": float, "baseline": float})


def budget_key(budget: str) -> tuple[str, float]:
    """Parse a budget, so that "keep=0.10" and "keep=0.1" are equal; the baseline's is ("", inf)."""
    kind, _, number = budget.partition("=")
    try:
        return (kind, float(number)) if budget else ("", math.inf)
    except ValueError as error:
        raise UserError(f"budget {budget!r} is neither keep=SHARE nor tokens=COUNT nor per_tile=COUNT") from error


def questions(results: Sequence[Result]) -> pd.DataFrame:
    """Return the primary metric per question: rows (task, doc_id), one column per run, named by `Result.hash`.

    A cell is the question's contribution (1 or 0 for a right or wrong answer), NaN where the task keeps no number.
    UserError unless all runs answer the same questions of the same data.
    """
    same_questions(results)
    return pd.DataFrame({result.hash: numbers(result) for result in results}, index=_index(asked(results[0])))


def asked(result: Result) -> list[tuple[str, int]]:
    """Return task and doc_id of each question of a run, task by task."""
    return [(task, doc_id) for task in result.metrics["primary"] for doc_id in result.per_question[task]["doc_id"]]


def _index(asked: Sequence[tuple[str, int]]) -> pd.MultiIndex:
    return pd.MultiIndex.from_arrays(list(zip(*asked, strict=True)) or [[], []], names=["task", "doc_id"])


def select_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """Return one task's rows of the frame of `questions` or `answers`, by doc_id."""
    rows = frame.loc[task]
    assert isinstance(rows, pd.DataFrame)
    return rows


def same_questions(results: Sequence[Result]) -> None:
    """Raise UserError unless the runs can be paired question by question."""
    first = results[0]
    for other in results[1:]:
        pair = f"{first.folder} and {other.folder}"
        primary, other_primary = first.metrics["primary"], other.metrics["primary"]
        if primary != other_primary:
            names = sorted({task for task, _ in primary.items() ^ other_primary.items()})
            raise UserError(f"{pair} differ in tasks or metrics ({', '.join(names)})")
        tasks, other_tasks = first.about["identity"]["tasks"], other.about["identity"]["tasks"]
        if tasks["files"] != other_tasks["files"]:
            raise UserError(f"{pair} were run on different data: task files differ; run one of them again")
        copies = tasks.get("data", {}), other_tasks.get("data", {})  # data sets from the Hub have no digest
        if differing := [task for task in primary if copies[0].get(task) != copies[1].get(task)]:
            copied = f"data_root= gave them different copies for {', '.join(differing)}"
            raise UserError(f"{pair} were run on different data: {copied}")
        for task in primary:
            a, b = first.per_question[task]["doc_id"], other.per_question[task]["doc_id"]
            if a != b:
                raise UserError(
                    f"{pair} answer different questions of {task} ({len(a)} and {len(b)}): "
                    "run both with the same limit=, sample= and questions="
                )


def answers(results: Sequence[Result]) -> pd.DataFrame:
    """Return the model's answers: rows (task, doc_id), one column per run, named by `Result.hash`.

    For tasks with repeats, only the first answer is returned. UserError for a run without responses, such as an
    archived one.
    """
    columns: dict[str, list[str | None]] = {}
    rows: dict[tuple[str, int], int] = {}  # of all runs: a run may lack questions of others
    for result in results:
        column = columns[result.hash] = [None] * len(rows)
        for line in chain.from_iterable(map(_responses, result.parts or (result,))):
            if not line.get("repeat"):
                row = rows.setdefault((line["task"], line["doc_id"]), len(rows))
                column += [None] * (row + 1 - len(column))
                column[row] = line["response"]
    for column in columns.values():
        column += [None] * (len(rows) - len(column))
    return pd.DataFrame(columns, index=_index(list(rows)), dtype=object)


def _responses(result: Result) -> Iterator[dict[str, Any]]:
    if not (result.folder / RESPONSES).is_file():
        raise UserError(f"{result.folder} has no {RESPONSES}: {AGAIN}")
    return read_responses(result.folder, AGAIN)


def numbers(result: Result) -> list[float]:
    """Return the primary metric of each question of `asked`: the sum of its terms that the task keeps."""
    sums: list[float] = []
    for task, metric in result.metrics["primary"].items():
        columns = result.per_question[task]
        names = [term.strip() for term in (metric or "").split("+")]
        values = [columns[name] for name in names if name in columns]
        if len(values) == 1 and all(type(value) is float for value in values[0]):
            sums += values[0]
            continue
        for place in range(len(columns["doc_id"])):
            parts = [number(column[place]) for column in values if column[place] is not None]
            sums.append(math.nan if not parts or None in parts else math.fsum(p for p in parts if p is not None))
    return sums
