"""One long frame about runs: scores, standard errors, intervals, changed answers, and tests against the best."""

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
from harness.results.labels import names, setting_notes
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

ALPHA = 0.05  # two runs differ significantly if Holm's p over all pairs of their block is smaller
COLUMNS = [
    *("hash", "setting", "budget", "benchmark", "score", "se", "relative", "relative_se", "low", "high"),
    *("lost", "gained", "agreement", "best", "p_best", "as_best"),
]


def summary(results: Sequence[Result], resamples: int = RESAMPLES, seed: int = 0) -> tuple[pd.DataFrame, list[str]]:
    """Return a row per run and benchmark, and per run and `AVERAGE`, with COLUMNS; and notes on missing statistics.

    `se` is the standard error of the score, and `relative_se` that of `relative`, whose interval is `low` to `high`.
    `lost` and `gained` count the questions that score less and more than unpruned (right to wrong, wrong to right).
    `agreement` is the percentage of answers that equal the unpruned model's. `best` marks the best of a setting and
    budget. For the others, `p_best` is Holm's p of being as good, and `as_best` is true unless it is below ALPHA.
    NaN means unknown.
    """
    frames: list[pd.DataFrame] = []
    notes: list[str] = []
    for setting in dict.fromkeys(result.setting for result in results):
        same_setting = [result for result in results if result.setting == setting]
        frame, more_notes = _of_setting(same_setting, resamples, seed)
        frames.append(frame)
        notes += more_notes
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=COLUMNS)
    return frame.astype({"best": bool, "as_best": bool}), list(dict.fromkeys(notes))


def _of_setting(results: Sequence[Result], resamples: int, seed: int) -> tuple[pd.DataFrame, list[str]]:
    """Return the rows of runs that share a baseline, and notes."""
    baseline = next((result for result in results if result.is_baseline), None)
    cells = {key: cell for result in results for key, cell in _scores(result, baseline).items()}
    notes = []
    if baseline is None:
        place, name = results[0].folder.parent, results[0].folder.name
        notes.append(f"{place}: no finished run of the unpruned model with the settings of {name}")
    scored = [result for result in results if result.has_questions]
    unscored = [str(result.folder) for result in results if not result.has_questions]
    if unscored:
        more = f" and {len(unscored) - 1} more" * (len(unscored) > 1)
        notes.append(f"no statistics of {unscored[0]}{more}: no scores.json there; run again with force=true")
    if baseline is not None:
        others = [result for result in scored if result.metrics["primary"] != baseline.metrics["primary"]]
        scored = [result for result in scored if result not in others]
        notes += [f"no statistics of {result.folder}: it shows other metrics than the unpruned" for result in others]
    if baseline is not None and baseline.has_questions and len(scored) > 1:
        draws = draw(scored, baseline, resamples, seed)
        notes += [f"no interval for {task}: {why}" for task, why in draws.unknown.items()]
        _add_statistics(cells, scored, baseline, draws)
    return pd.DataFrame([{column: cell.get(column, math.nan) for column in COLUMNS} for cell in cells.values()]), notes


def _scores(result: Result, baseline: Result | None) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the columns that need no scores per question, by run and benchmark."""
    percent = relative(result, baseline) if baseline else dict.fromkeys(result.metrics["primary"])
    shared: dict[str, Any] = {"hash": result.hash, "setting": result.setting[:8], "budget": result.budget}
    shared |= {"best": False, "as_best": False}
    rows = {task: {"score": result.score(task), "relative": share} for task, share in percent.items()}
    rows[AVERAGE] = {"relative": average(percent)}
    return {(result.hash, name): {**shared, "benchmark": name, **row} for name, row in rows.items()}


def _add_statistics(
    cells: dict[tuple[str, str], dict[str, Any]],
    results: Sequence[Result],
    baseline: Result,
    draws: Draws,
) -> None:
    """Add the columns that are computed from scores and answers per question."""
    scores, texts = questions(results), _answers(results)
    errors = _standard_errors(results, draws)
    budgets = [budget for budget in dict.fromkeys(result.budget for result in results) if budget]
    blocks = [[result.hash for result in results if result.budget == budget] for budget in budgets]
    for benchmark in [*draws.tasks, AVERAGE]:
        is_average = benchmark == AVERAGE
        task_scores = scores if is_average else select_task(scores, benchmark)
        task_texts = texts if texts is None or is_average else select_task(texts, benchmark)
        for run in (result.hash for result in results):
            drawn = draws.of(benchmark, run)
            low, high = interval(drawn)
            relative_se = float(drawn.std(ddof=1)) if math.isfinite(low) else math.nan
            cell = cells[run, benchmark]
            cell |= {"se": errors.get((run, benchmark)), "relative_se": relative_se, "low": low, "high": high}
            if not task_scores[[run, baseline.hash]].isna().to_numpy().any():
                cell["lost"], cell["gained"] = flips(task_scores[run], task_scores[baseline.hash])
            if task_texts is not None:
                cell["agreement"] = agreement(task_texts[run], task_texts[baseline.hash])
        for block in blocks:
            _mark({run: cells[run, benchmark] for run in block}, None if is_average else task_scores[block], draws)


def _answers(results: Sequence[Result]) -> pd.DataFrame | None:
    """Return the answers; None if a run has none on disk."""
    try:
        return answers(results)
    except UserError:
        return None


def _standard_errors(results: Sequence[Result], draws: Draws) -> dict[tuple[str, str], float]:
    """Return the standard error of the score by run and task: scores are weighted sums of independent means."""
    errors = {}
    for task in set(draws.tasks) - set(draws.unknown):
        for result, parts in zip(results, task_strata(results, task), strict=True):
            squares = [(weight * stats.sem(values)) ** 2 for weight, values in parts if len(values) > 1]
            errors[result.hash, task] = math.sqrt(math.fsum(squares))
    return errors


def _mark(block: dict[str, dict[str, Any]], values: pd.DataFrame | None, draws: Draws) -> None:
    """Set `best`, `p_best` and `as_best` of one column of a block; `values` per question are None for the average."""
    runs, row = list(block), next(iter(block.values()))
    shares = [block[run]["relative"] for run in runs]
    scores = shares if values is None else [block[run]["score"] for run in runs]
    if any(score is None or math.isnan(score) for score in [*scores, *shares]):
        return
    best = max(range(len(runs)), key=lambda place: scores[place])
    drawn = np.stack([draws.of(row["benchmark"], run) for run in runs])
    p, _ = pairwise_p(values, drawn, shares)
    pairs = list(combinations(range(len(runs)), 2))
    corrected = np.full_like(p, math.nan)
    for (a, b), value in zip(pairs, holm([p[pair] for pair in pairs]), strict=True):
        corrected[a, b] = corrected[b, a] = value
    for place, run in enumerate(runs):
        equal = math.isclose(scores[place], scores[best], rel_tol=1e-9)
        p_best = math.nan if equal else float(corrected[place, best])
        block[run] |= {"best": equal, "p_best": p_best, "as_best": p_best >= ALPHA}


FACTS = ["hash", "model", "tasks", "method", "name", "group", "lambda", "params", "K", "per_layer", "questions"]


def full_summary(results: Sequence[Result], resamples: int = 2000) -> tuple[pd.DataFrame, list[str]]:
    """Return the frame of `summary` joined with FACTS about each run, and all notes.

    `name` is unique within a setting and budget. `params` holds a method's parameters except lambda, as JSON.
    """
    frame, notes = summary(results, resamples)
    for model, tasks in dict.fromkeys(map(_place, results)):
        runs = [result for result in results if _place(result) == (model, tasks)]
        notes += [f"{model} on {tasks}: {note}" for note in [*setting_notes(runs), *failures(runs), *unproven(runs)]]
    unique_names = names(results)
    facts = pd.DataFrame([_facts(result, unique_names[result.hash]) for result in results], columns=FACTS)
    return frame.merge(facts, on="hash", how="left", validate="many_to_one"), notes


def _place(result: Result) -> tuple[str, str]:
    config = result.about["config"]
    return config["model"]["name"], config["tasks"]["name"]


def _facts(result: Result, name: str) -> dict[str, Any]:
    config = result.about["config"]
    params = {key: value for key, value in config["method"].items() if key not in ("name", "lam")}
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
    """Return the columns of `full_summary` for raw scores (`frames.read_scores`), without intervals and tests."""
    rows = raw.assign(setting=raw["model"] + " " + raw["tasks"], params="{}")
    rows["hash"] = rows["setting"] + " " + rows["budget"] + " " + rows["method"] + " " + rows["lambda"].map(str)
    several = rows.groupby(["setting", "budget", "method"])["lambda"].transform("nunique") > 1
    rows["name"] = rows["method"] + (" (lam " + rows["lambda"].map(str) + ")").where(several, "")
    rows["K"] = [count if kind == "tokens" else math.nan for kind, count in map(budget_key, rows["budget"])]
    averages = rows.drop_duplicates("hash").assign(benchmark=AVERAGE, score=math.nan)
    counts = rows["setting"].map(rows.groupby("setting")["benchmark"].nunique())
    complete = rows.groupby("hash")["relative"].transform("count") == counts  # other rows have no average
    means = rows[complete].groupby("hash")["relative"].mean()
    averages["relative"] = averages["hash"].map(means)
    return pd.concat([rows, averages], ignore_index=True).reindex(columns=[*COLUMNS, *FACTS[1:]])
