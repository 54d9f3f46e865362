"""What can be said of runs in one long frame: scores, errors, intervals, flips, and what is as good as the best."""

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pandas as pd
from scipy import stats

from harness.errors import UserError
from harness.scores import Result, answers, average, questions, relative
from harness.stats import (
    AVERAGE,
    LEVEL,
    RESAMPLES,
    Draws,
    agreement,
    difference_p,
    draw,
    flips,
    holm,
    interval,
    task_strata,
)

ALPHA = 0.05  # two runs differ where Holm's p over all pairs of their block is smaller
COLUMNS = [
    *("hash", "setting", "budget", "benchmark", "score", "se", "relative", "relative_se", "low", "high"),
    *("lost", "gained", "agreement", "best", "p_best", "as_best"),
]


def summary(
    results: Sequence[Result], resamples: int = RESAMPLES, seed: int = 0, level: float = LEVEL
) -> tuple[pd.DataFrame, list[str]]:
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
        frame, said = _of_setting(same, resamples, seed, level)
        rows.append(frame)
        notes += said
    frame = pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=COLUMNS)
    return frame.astype({"best": bool, "as_best": bool}), list(dict.fromkeys(notes))


def _of_setting(results: Sequence[Result], resamples: int, seed: int, level: float) -> tuple[pd.DataFrame, list[str]]:
    """The rows of runs that share a baseline."""
    baseline = next((result for result in results if result.is_baseline), None)
    frame = pd.DataFrame([row for result in results for row in _scores(result, baseline)], columns=COLUMNS)
    if baseline is None:
        place = results[0].folder.parent
        return frame, [f"{place}: no finished run of the unpruned model with the settings of {results[0].folder.name}"]
    asked = [result for result in results if result.has_questions]
    without = [str(result.folder) for result in results if not result.has_questions]
    notes = []
    if without:
        more = f" and {len(without) - 1} more" * (len(without) > 1)
        notes.append(f"no statistics of {without[0]}{more}: no scores.json there; run again with force=true")
    if not baseline.has_questions or len(asked) < 2:
        return frame, notes
    each = questions(asked)
    draws = draw(asked, baseline, resamples, seed)
    notes += [f"no interval for {task}: {why}" for task, why in draws.unknown.items()]
    said = _said(asked)
    frame = frame.set_index(["hash", "benchmark"])
    for result in asked:
        for benchmark in [*draws.tasks, AVERAGE]:
            cell = _cell(result, baseline, benchmark, each, draws, said, level)
            for column, found in cell.items():
                frame.loc[(result.hash, benchmark), column] = found
    frame = frame.reset_index()
    for budget in dict.fromkeys(result.budget for result in asked if not result.is_baseline):
        block = [result.hash for result in asked if result.budget == budget and not result.is_baseline]
        for benchmark in [*draws.tasks, AVERAGE]:
            _mark(frame, block, benchmark, each, draws)
    return frame[COLUMNS], notes


def _scores(result: Result, baseline: Result | None) -> list[dict[str, Any]]:
    """What needs no questions."""
    percent = relative(result, baseline) if baseline else dict.fromkeys(result.metrics["primary"])
    known = {
        "hash": result.hash,
        "setting": result.setting[:8],
        "budget": result.budget,
        "best": False,
        "as_best": False,
    }
    rows = [
        {**known, "benchmark": task, "score": result.score(task), "relative": share} for task, share in percent.items()
    ]
    return [*rows, {**known, "benchmark": AVERAGE, "score": math.nan, "relative": average(percent)}]


def _said(results: Sequence[Result]) -> pd.DataFrame | None:
    """The answers, or None if any run is kept without them."""
    try:
        return answers(results)
    except UserError:
        return None


def _cell(
    result: Result,
    baseline: Result,
    benchmark: str,
    each: pd.DataFrame,
    draws: Draws,
    said: pd.DataFrame | None,
    level: float,
) -> dict[str, float]:
    whole = benchmark == AVERAGE
    mine, base = ((each if whole else each.loc[[benchmark]])[run.hash] for run in (result, baseline))
    drawn = draws.of(benchmark, result.hash)
    low, high = interval(drawn, level)
    lost, gained = flips(mine, base) if not (mine.isna() | base.isna()).any() else (math.nan, math.nan)
    same = math.nan
    if said is not None:
        texts = said if whole else said.loc[[benchmark]]
        same = agreement(texts[result.hash], texts[baseline.hash])
    error = math.nan if whole else _standard_error(result, benchmark)
    share = float(drawn.std(ddof=1)) if math.isfinite(low) else math.nan
    found = {"se": error, "relative_se": share, "low": low, "high": high}
    return found | {"lost": lost, "gained": gained, "agreement": same}


def _standard_error(result: Result, task: str) -> float:
    """Of the score over questions, as of a weighted sum of independent means."""
    try:
        (found,) = task_strata([result], task)
    except ValueError:
        return math.nan
    return math.sqrt(sum((weight * stats.sem(values)) ** 2 for weight, values in found if len(values) > 1))


def _mark(frame: pd.DataFrame, block: list[str], benchmark: str, each: pd.DataFrame, draws: Draws) -> None:
    """Set `best`, `p_best` and `as_best` of one column of a block."""
    column = "relative" if benchmark == AVERAGE else "score"
    rows = frame[(frame["benchmark"] == benchmark) & frame["hash"].isin(block)]
    if rows[column].isna().any():
        return
    scores = rows.set_index("hash")[column].astype(float)
    share = rows.set_index("hash")["relative"].astype(float)
    best = str(scores.idxmax())
    pairs = list(combinations(block, 2))
    p = [difference_p(each, draws, benchmark, a, b, share[a] - share[b]) for a, b in pairs]
    corrected = {frozenset(pair): found for pair, found in zip(pairs, holm(p), strict=True)}
    for place, run in zip(rows.index, rows["hash"].astype(str), strict=True):
        equal = math.isclose(scores[run], scores[best], rel_tol=1e-9)
        found = math.nan if equal else corrected[frozenset((run, best))]
        frame.loc[place, "best"] = equal
        frame.loc[place, "p_best"] = found
        frame.loc[place, "as_best"] = bool(found >= ALPHA)
