"""Scores as data: finished runs and published tables as one long frame, and the score of every question, paired."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from harness.core.errors import UserError, as_user_error
from harness.core.files import read_jsonl
from harness.results.aggregation import number, terms
from harness.results.labels import labels
from harness.results.method_groups import BASELINE, group_of
from harness.results.result import Result
from harness.results.run_folder import AGAIN, RESPONSES

KEYS = ["source", "model", "tasks", "budget", "group", "method", "lambda"]
COLUMNS = [
    *(*KEYS, "benchmark", "metric", "score", "baseline", "relative", "questions"),
    *("label", "setting", "run", "hash"),
]


def raw(results: Sequence[Result]) -> pd.DataFrame:
    """One row per run and task: the primary metric as lmms-eval has it, and where it is from (see COLUMNS).

    `baseline` is what the unpruned model scores by the same metric under the same settings, NaN if it was not run.
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
    """Raw scores of a CSV in the form of results/paper/published_scores.csv, as `raw` gives them.

    Needed columns: method, benchmark, score ("-" or nothing: not known); the unpruned model's method is "baseline".
    A column `table` becomes `tasks`. UserError for what is missing, no number, or said twice.
    """
    with as_user_error((OSError, ValueError), f"cannot read scores={file}"):
        found = pd.read_csv(file, dtype=str, keep_default_na=False)
    if lacking := sorted({"method", "benchmark", "score"} - set(found)):
        raise UserError(f"{file} lacks the columns {', '.join(lacking)}: method, benchmark and score are needed")
    for column in ("score", "lambda"):
        found[column] = _numeric(found, column, file)
    if "table" in found and "tasks" not in found:
        found["tasks"] = "table " + found["table"]
    unpruned = found["method"] == BASELINE
    for column in ("model", "tasks", "budget", "metric"):
        found[column] = found.get(column, "")
    found["budget"] = found["budget"].mask(unpruned, "")
    found["group"] = found["group"] if "group" in found else found["method"].map(group_of)
    found["source"], found["label"], found["setting"], found["hash"] = str(file), found["method"], "", ""
    if len(twice := found[found.duplicated([*KEYS, "benchmark"])]):
        first = twice.iloc[0]
        raise UserError(f"{file} has {first['method']} {first['budget']} {first['benchmark']} twice: leave one out")
    base = found[unpruned].set_index(["model", "tasks", "benchmark"])["score"].to_dict()
    places = zip(found["model"], found["tasks"], found["benchmark"], strict=True)
    found["baseline"] = [base.get(place, math.nan) for place in places]
    return _with_relative(found.reindex(columns=COLUMNS))


def _numeric(found: pd.DataFrame, column: str, file: Path) -> pd.Series:
    """A column as numbers; NaN where there is nothing, or a dash."""
    if column not in found:
        return pd.Series(math.nan, index=found.index)
    text = found[column].str.strip()
    numbers = pd.to_numeric(text, errors="coerce")
    if len(bad := found[numbers.isna() & ~text.isin(["", "-"])]):
        place = bad.index[0]
        raise UserError(f"{file}, line {int(place) + 2}: {column} is {found.loc[place, column]!r}, no number")
    return numbers.astype(float)


def _with_relative(frame: pd.DataFrame) -> pd.DataFrame:
    """`relative`: percent of the baseline's score; NaN where that is nothing or unknown."""
    base = frame["baseline"].astype(float)
    frame["relative"] = 100 * frame["score"].astype(float) / base.mask(base == 0)
    return frame.astype({"lambda": float, "score": float, "baseline": float})


def budget_key(budget: str) -> tuple[str, float]:
    """What a budget means: "keep=0.10" and "keep=0.1" are one; the baseline's is ("", inf)."""
    kind, _, number = budget.partition("=")
    try:
        return (kind, float(number)) if budget else ("", math.inf)
    except ValueError as error:
        raise UserError(f"budget {budget!r} is neither keep=SHARE nor tokens=COUNT") from error


def questions(results: Sequence[Result]) -> pd.DataFrame:
    """The primary metric question by question: rows (task, doc_id), a column per run, named by `Result.hash`.

    A cell is what the question adds (1 or 0 where answers are right or wrong), NaN where the task keeps no number.
    UserError unless all runs answer the same questions of the same data.
    """
    same_questions(results)
    columns = {result.hash: _numbers(result) for result in results}
    frame = pd.DataFrame(columns)
    frame.index.names = ["task", "doc_id"]
    return frame


def select_task(frame: pd.DataFrame, task: str) -> pd.DataFrame:
    """One task's rows of what `questions` or `answers` gave, by doc_id."""
    found = frame.loc[task]
    assert isinstance(found, pd.DataFrame)
    return found


def same_questions(results: Sequence[Result]) -> None:
    """UserError unless the runs can be paired question by question."""
    first = results[0]
    for other in results[1:]:
        pair = f"{first.folder} and {other.folder}"
        mine, theirs = first.metrics["primary"], other.metrics["primary"]
        if mine != theirs:
            names = sorted({*mine.items()} ^ {*theirs.items()}, key=str)
            raise UserError(f"{pair} differ in tasks or metrics ({', '.join(sorted({n for n, _ in names}))})")
        one, two = first.about["identity"]["tasks"], other.about["identity"]["tasks"]
        if one["files"] != two["files"]:
            raise UserError(f"{pair} answer other data: the files of their tasks differ; run one of them again")
        copies = one.get("data", {}), two.get("data", {})  # what the Hub had has no digest
        if unlike := [task for task in mine if copies[0].get(task) != copies[1].get(task)]:
            raise UserError(f"{pair} answer other data: data_root= gave them other copies for {', '.join(unlike)}")
        for task in mine:
            a, b = first.per_question[task]["doc_id"], other.per_question[task]["doc_id"]
            if a != b:
                raise UserError(
                    f"{pair} answer different questions of {task} ({len(a)} and {len(b)}): same limit= needed"
                )


def answers(results: Sequence[Result]) -> pd.DataFrame:
    """What the model said, question by question: rows (task, doc_id), a column per run, named by `Result.hash`.

    UserError where a run's responses are gone; committed results are kept without them.
    """
    columns = {}
    for result in results:
        lines = [line for part in result.parts or (result,) for line in _responses(part)]
        columns[result.hash] = pd.Series({(line["task"], line["doc_id"]): line["response"] for line in lines})
    frame = pd.DataFrame(columns)
    frame.index.names = ["task", "doc_id"]
    return frame


def _responses(result: Result) -> list[dict[str, Any]]:
    file = result.folder / RESPONSES
    if not file.is_file():
        raise UserError(f"{result.folder} has no {RESPONSES}: {AGAIN}")
    return list(read_jsonl(file, AGAIN))


def _numbers(result: Result) -> pd.Series:
    found = {}
    for task, metric in result.metrics["primary"].items():
        each = result.per_question[task]
        names = terms(metric)
        for place, doc_id in enumerate(each["doc_id"]):
            parts = [number(each[name][place]) for name in names if name in each and each[name][place] is not None]
            found[task, doc_id] = (
                math.nan if not parts or None in parts else math.fsum(p for p in parts if p is not None)
            )
    return pd.Series(found, dtype=float)
