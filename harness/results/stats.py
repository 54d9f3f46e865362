"""Paired statistics: every method answers the same questions, so chance in the questions is shared and cancels.

An interval comes from drawing the questions of each benchmark anew, for all runs at once. Whether two runs differ on a
benchmark is McNemar's exact test where answers are right or wrong, else the paired bootstrap. Holm's correction is over
all pairs of a block, since its best was picked by the same questions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from harness.core.errors import UserError
from harness.results.aggregation import Strata, strata, terms
from harness.results.frames import same_questions
from harness.results.result import Result

AVERAGE = "avg"
LEVEL = 0.95
RESAMPLES = 2000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """Scores on resampled questions, the same for all runs."""

    tasks: list[str]
    runs: list[str]  # Result.hash
    scores: Array  # [T, R, B] as lmms-eval counts
    relative: Array  # [T + 1, R, B] percent of the baseline's, the average last; NaN where it is undefined
    observed: Array  # [T + 1, R] the same of the questions themselves
    unknown: dict[str, str] = field(default_factory=dict)  # task -> why nothing can be drawn

    def of(self, benchmark: str, run: str) -> Array:
        """Relative scores [B] of one run on a benchmark, or on all of them (`AVERAGE`)."""
        row = len(self.tasks) if benchmark == AVERAGE else self.tasks.index(benchmark)
        found: Array = self.relative[row, self.runs.index(run)]
        return found

    def average(self, run: str) -> float:
        """Mean of the relative scores of one run on the questions that were drawn from; NaN where it is undefined."""
        return float(self.observed[-1, self.runs.index(run)])


def task_strata(results: Sequence[Result], task: str) -> list[Strata]:
    """A task's primary metric as weighted means of units, for each run; ValueError with the reason if it is none."""
    metric = results[0].metrics["primary"][task]
    found: list[Strata] = [[] for _ in results]
    names = terms(metric)
    if not names:
        raise ValueError(f"{metric} is one of several numbers that are counted together")
    for name in names:
        each = [result.per_question[task].get(name, []) for result in results]
        values = [[value for value in column if value is not None] for column in each]
        scores = [result.score(task, name) for result in results]
        for whole, part in zip(found, strata(values, scores), strict=True):
            whole += part
    return found


def draw(
    results: Sequence[Result],
    baseline: Result | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    units: slice = slice(None),
) -> Draws:
    """Draw the questions of every benchmark with replacement, for all runs together; relative to `baseline` if any.

    `units` are those to draw from of what a benchmark counts, in its order: questions, or groups that count as one.
    """
    runs = list(results) if baseline is None or baseline in results else [baseline, *results]
    same_questions(runs)
    tasks = list(runs[0].metrics["primary"])
    parts: list[tuple[int, float, Array]] = []  # task, weight, values [R, n]
    unknown: dict[str, str] = {}
    for place, task in enumerate(tasks):
        try:
            found = task_strata(runs, task)
        except ValueError as error:
            unknown[task] = str(error)
            continue
        for same in zip(*found, strict=True):
            values = np.stack([values for _, values in same])[:, units]
            if not values.size:
                raise UserError(f"task {task} has too few questions of a kind to take a part of them")
            parts.append((place, same[0][0], values))
    whole = np.zeros((len(tasks), len(runs), 1))
    for place, weight, values in parts:
        whole[place] += weight * values.mean(axis=1, keepdims=True)
    scores = _resampled(parts, len(tasks), len(runs), resamples, seed)
    base = None if baseline is None else runs.index(baseline)
    for each in (whole, scores):
        each[[tasks.index(task) for task in unknown]] = np.nan
    shares = _relative(scores, base)
    return Draws(tasks, [run.hash for run in runs], scores, shares, _relative(whole, base)[..., 0], unknown)


def _relative(scores: Array, base: int | None) -> Array:
    """Scores [T, R, B] in percent of those of run `base`, and their mean over the benchmarks behind them."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = 100 * scores / (np.nan if base is None else scores[:, [base]])
    found: Array = np.concatenate([shares, shares.mean(axis=0, keepdims=True)])
    return found


def _resampled(parts: list[tuple[int, float, Array]], tasks: int, runs: int, resamples: int, seed: int) -> Array:
    """Scores [T, R, B]: scipy draws the places of units in every stratum, which all runs share."""
    if not parts:
        return np.full((tasks, runs, resamples), np.nan)

    def score(*drawn: NDArray[np.int64], axis: int = -1) -> Array:
        """Scores [T, R, B] of drawn places [B, n] per stratum."""
        total = np.zeros((tasks, runs, len(drawn[0])))
        for (task, weight, values), places in zip(parts, drawn, strict=True):
            draws, n = places.shape
            flat = (places + n * np.arange(draws)[:, None]).ravel()
            counts = np.bincount(flat, minlength=draws * n).reshape(draws, n)
            total[task] += weight / n * (values @ counts.T)
        return total

    units = [np.arange(values.shape[1]) for _, _, values in parts]
    units = [np.tile(each, 2) if len(each) == 1 else each for each in units]  # a category of one unit; scipy wants two
    parts = [(t, w, np.repeat(v, 2, axis=1) if v.shape[1] == 1 else v) for t, w, v in parts]
    rng = np.random.default_rng(seed)
    found = stats.bootstrap(
        units,
        score,
        n_resamples=resamples,
        batch=500,
        vectorized=True,
        method="percentile",
        rng=rng,
    )
    drawn: Array = found.bootstrap_distribution
    return drawn


def interval(drawn: Array) -> tuple[float, float]:
    """Percentile interval of bootstrap draws [B]; (NaN, NaN) where the baseline may score nothing."""
    if not np.isfinite(drawn).all():
        return math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_p(drawn: Array, observed: float) -> float:
    """Two-sided p of a difference, its error being that of its bootstrap draws [B] and normal."""
    error = float(drawn.std(ddof=1))
    if not math.isfinite(error) or not math.isfinite(observed):
        return math.nan
    if error < 1e-9:
        return 1.0 if abs(observed) < 1e-9 else 0.0
    return float(2 * stats.norm.sf(abs(observed) / error))


def is_binary(values: pd.DataFrame) -> bool:
    """True if every question is right or wrong."""
    return bool(values.isin([0.0, 1.0]).to_numpy().all())


def mcnemar_p(wins: Any, losses: Any) -> Array:
    """McNemar's exact p that two runs are right equally often, from the questions on which one alone is right."""
    wins, losses = np.asarray(wins), np.asarray(losses)
    found: Array = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))
    return found


def pairwise_p(values: pd.DataFrame | None, drawn: Array, observed: Sequence[float]) -> tuple[Array, str]:
    """p [R, R] that two of some runs are equally good, and by which test.

    `values` are those of one benchmark's questions, a column per run; None for an average. Without right and wrong, the
    draws [R, B] of what `observed` [R] holds decide.
    """
    if values is not None and is_binary(values):
        right = values.to_numpy(dtype=float)
        wins = np.rint(right.T @ (1 - right))
        return mcnemar_p(wins, wins.T), "mcnemar"
    found = np.ones((len(drawn), len(drawn)))
    for a, b in combinations(range(len(drawn)), 2):
        found[a, b] = found[b, a] = bootstrap_p(drawn[a] - drawn[b], observed[a] - observed[b])
    return found, "bootstrap"


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction of the p that are numbers."""
    from statsmodels.stats.multitest import multipletests

    known = [place for place, each in enumerate(p) if not math.isnan(each)]
    found = [math.nan] * len(p)
    if known:
        for place, each in zip(known, multipletests([p[i] for i in known], method="holm")[1], strict=True):
            found[place] = float(each)
    return found


def flips(a: pd.Series, b: pd.Series) -> tuple[int, int]:
    """Questions on which `a` scores less than `b` (right in `b`, wrong in `a`), and more."""
    return int((a < b).sum()), int((a > b).sum())


def agreement(a: pd.Series, b: pd.Series) -> float:
    """Percent of questions with the same answer, but for blanks around it and case."""
    same = a.str.strip().str.casefold() == b.str.strip().str.casefold()
    return 100 * float(same.mean())
