"""What can be said of runs in one long frame: scores, errors, intervals, flips, and what is as good as the best."""

import json
import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from harness.core.errors import UserError
from harness.results.frames import answers, budget_key, questions, select_task
from harness.results.labels import names, unlike
from harness.results.method_groups import group_of
from harness.results.result import Result, average, failures, relative, unproven
from harness.results.stats import (
    AVERAGE,
    RESAMPLES,
    Draws,
    agreement,
    draw,
    flips,
    holm,
    interval,
    pairwise_p,
    task_strata,
)

ALPHA = 0.05  # two runs differ where Holm's p over all pairs of their block is smaller
COLUMNS = [
    *("hash", "setting", "budget", "benchmark", "score", "se", "relative", "relative_se", "low", "high"),
    *("lost", "gained", "agreement", "best", "p_best", "as_best"),
]


def summary(results: Sequence[Result], resamples: int = RESAMPLES, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """One row per run and benchmark, and per run and `AVERAGE`, with COLUMNS; and notes on what could not be said.

    `se` is the standard error of the score, `relative_se` that of `relative`, which `low` and `high` bound;
    `lost` and `gained` count questions that score less and more than unpruned (right to wrong, wrong to right),
    `agreement` is the percent of answers that are the unpruned model's. Within one setting and budget: `best`, and for
    the others `p_best`, Holm's p that they are as good, and `as_best` where it is not below ALPHA. NaN: unknown.
    """
    rows: list[pd.DataFrame] = []
    notes: list[str] = []
    for setting in dict.fromkeys(result.setting for result in results):
        same = [result for result in results if result.setting == setting]
        frame, said = _of_setting(same, resamples, seed)
        rows.append(frame)
        notes += said
    frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)
    return frame.astype({"best": bool, "as_best": bool}), list(dict.fromkeys(notes))


def _of_setting(results: Sequence[Result], resamples: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """The rows of runs that share a baseline."""
    baseline = next((result for result in results if result.is_baseline), None)
    cells = {key: cell for result in results for key, cell in _scores(result, baseline).items()}
    notes = []
    if baseline is None:
        place, name = results[0].folder.parent, results[0].folder.name
        notes.append(f"{place}: no finished run of the unpruned model with the settings of {name}")
    asked = [result for result in results if result.has_questions]
    without = [str(result.folder) for result in results if not result.has_questions]
    if without:
        more = f" and {len(without) - 1} more" * (len(without) > 1)
        notes.append(f"no statistics of {without[0]}{more}: no scores.json there; run again with force=true")
    if baseline is not None:
        others = [result for result in asked if result.metrics["primary"] != baseline.metrics["primary"]]
        asked = [result for result in asked if result not in others]
        notes += [f"no statistics of {result.folder}: it shows other metrics than the unpruned" for result in others]
    if baseline is not None and baseline.has_questions and len(asked) > 1:
        draws = draw(asked, baseline, resamples, seed)
        notes += [f"no interval for {task}: {why}" for task, why in draws.unknown.items()]
        _say(cells, asked, baseline, draws)
    return pd.DataFrame([{column: cell.get(column, math.nan) for column in COLUMNS} for cell in cells.values()]), notes


def _scores(result: Result, baseline: Result | None) -> dict[tuple[str, str], dict[str, Any]]:
    """What needs no questions, by run and benchmark."""
    percent = relative(result, baseline) if baseline else dict.fromkeys(result.metrics["primary"])
    known: dict[str, Any] = {"hash": result.hash, "setting": result.setting[:8], "budget": result.budget}
    known |= {"best": False, "as_best": False}
    rows = {task: {"score": result.score(task), "relative": share} for task, share in percent.items()}
    rows[AVERAGE] = {"relative": average(percent)}
    return {(result.hash, name): {**known, "benchmark": name, **row} for name, row in rows.items()}


def _say(
    cells: dict[tuple[str, str], dict[str, Any]],
    asked: Sequence[Result],
    baseline: Result,
    draws: Draws,
) -> None:
    """Add to the cells what the questions say."""
    each, said = questions(asked), _said(asked)
    errors = _standard_errors(asked, draws)
    budgets = [budget for budget in dict.fromkeys(result.budget for result in asked) if budget]
    blocks = [[result.hash for result in asked if result.budget == budget] for budget in budgets]
    for benchmark in [*draws.tasks, AVERAGE]:
        whole = benchmark == AVERAGE
        part = each if whole else select_task(each, benchmark)
        texts = None if said is None else said if whole else select_task(said, benchmark)
        for run in (result.hash for result in asked):
            drawn = draws.of(benchmark, run)
            low, high = interval(drawn)
            share = float(drawn.std(ddof=1)) if math.isfinite(low) else math.nan
            found = {"se": errors.get((run, benchmark)), "relative_se": share, "low": low, "high": high}
            if not part[[run, baseline.hash]].isna().to_numpy().any():
                found["lost"], found["gained"] = flips(part[run], part[baseline.hash])
            if texts is not None:
                found["agreement"] = agreement(texts[run], texts[baseline.hash])
            cells[run, benchmark] |= found
        for block in blocks:
            _mark({run: cells[run, benchmark] for run in block}, None if whole else part[block], draws)


def _said(results: Sequence[Result]) -> pd.DataFrame | None:
    """The answers, or None if any run is kept without them."""
    try:
        return answers(results)
    except UserError:
        return None


def _standard_errors(asked: Sequence[Result], draws: Draws) -> dict[tuple[str, str], float]:
    """Of the scores over questions, as of weighted sums of independent means."""
    found = {}
    for task in set(draws.tasks) - set(draws.unknown):
        for result, parts in zip(asked, task_strata(asked, task), strict=True):
            squares = [(weight * stats.sem(values)) ** 2 for weight, values in parts if len(values) > 1]
            found[result.hash, task] = math.sqrt(math.fsum(squares))
    return found


def _mark(block: dict[str, dict[str, Any]], part: pd.DataFrame | None, draws: Draws) -> None:
    """Set `best`, `p_best` and `as_best` of one column of a block."""
    runs, row = list(block), next(iter(block.values()))
    shares = [block[run]["relative"] for run in runs]
    scores = shares if part is None else [block[run]["score"] for run in runs]
    if any(value is None or math.isnan(value) for value in [*scores, *shares]):
        return
    best = max(range(len(runs)), key=lambda place: scores[place])
    drawn = np.stack([draws.of(row["benchmark"], run) for run in runs])
    p, _ = pairwise_p(part, drawn, shares)
    pairs = list(combinations(range(len(runs)), 2))
    corrected = np.full_like(p, math.nan)
    for (a, b), value in zip(pairs, holm([p[pair] for pair in pairs]), strict=True):
        corrected[a, b] = corrected[b, a] = value
    for place, run in enumerate(runs):
        equal = math.isclose(scores[place], scores[best], rel_tol=1e-9)
        found = math.nan if equal else float(corrected[place, best])
        block[run] |= {"best": equal, "p_best": found, "as_best": found >= ALPHA}


FACTS = ["hash", "model", "tasks", "method", "name", "group", "lambda", "params", "K", "per_layer", "questions"]


def standing(results: Sequence[Result], resamples: int = 2000) -> tuple[pd.DataFrame, list[str]]:
    """`summary` (a row per run and benchmark, and for their average) joined with FACTS; and its notes.

    `name` tells apart the runs of one setting and budget; `params` are a method's parameters but for lambda, as JSON.
    """
    frame, notes = summary(results, resamples)
    for model, tasks in dict.fromkeys(map(_place, results)):
        alike = [result for result in results if _place(result) == (model, tasks)]
        notes += [f"{model} on {tasks}: {note}" for note in [*unlike(alike), *failures(alike), *unproven(alike)]]
    called = names(results)
    facts = pd.DataFrame([_facts(result, called[result.hash]) for result in results], columns=FACTS)
    return frame.merge(facts, on="hash", how="left", validate="many_to_one"), notes


def _place(result: Result) -> tuple[str, str]:
    config = result.about["config"]
    return config["model"]["name"], config["tasks"]["name"]


def _facts(result: Result, name: str) -> dict[str, Any]:
    config = result.about["config"]
    params = {key: it for key, it in config["method"].items() if key not in ("name", "lam")}
    return {
        "hash": result.hash,
        "model": config["model"]["name"],
        "tasks": config["tasks"]["name"],
        "method": result.method,
        "name": name,
        "group": group_of(result.method),
        "lambda": config["method"].get("lam"),
        "params": json.dumps(params, sort_keys=True),
        "K": result.tokens("budget"),
        "per_layer": result.tokens("per_layer"),
        "questions": sum(result.metrics["questions"].values()),
    }


def of_scores(raw: pd.DataFrame) -> pd.DataFrame:
    """The same columns from raw scores without questions (`frames.read_scores`): no intervals, no tests."""
    rows = raw.assign(setting=raw["model"] + " " + raw["tasks"], params="{}")
    rows["hash"] = rows["setting"] + " " + rows["budget"] + " " + rows["method"] + " " + rows["lambda"].map(str)
    several = rows.groupby(["setting", "budget", "method"])["lambda"].transform("nunique") > 1
    rows["name"] = rows["method"] + (" (lam " + rows["lambda"].map(str) + ")").where(several, "")
    rows["K"] = [count if kind == "tokens" else math.nan for kind, count in map(budget_key, rows["budget"])]
    whole = rows.drop_duplicates("hash").assign(benchmark=AVERAGE, score=math.nan)
    counts = rows["setting"].map(rows.groupby("setting")["benchmark"].nunique())
    there = rows.groupby("hash")["relative"].transform("count") == counts  # no average over what is missing
    means = rows[there].groupby("hash")["relative"].mean()
    whole["relative"] = whole["hash"].map(means)
    return pd.concat([rows, whole], ignore_index=True).reindex(columns=[*COLUMNS, *FACTS[1:]])
