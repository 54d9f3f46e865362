"""Paired statistics: all methods answer the same questions, so sampling noise of the questions cancels.

An interval comes from resampling the questions of each benchmark, with the same resamples for all runs. Two runs are
compared on a benchmark by McNemar's exact test if answers are right or wrong, else by the paired bootstrap. Holm's
correction is over all pairs of a block, since the best of the block was chosen on the same questions.
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
    """Scores on resampled questions, with the same resamples for all runs."""

    tasks: list[str]
    runs: list[str]  # Result.hash
    scores: Array  # [T, R, B] as lmms-eval counts
    relative: Array  # [T + 1, R, B] percent of the baseline's, the average last; NaN where it is undefined
    observed: Array  # [T + 1, R] the same on the questions without resampling
    unknown: dict[str, str] = field(default_factory=dict)  # task -> why it cannot be resampled

    def of(self, benchmark: str, run: str) -> Array:
        """Return the relative scores [B] of one run on a benchmark, or their average (`AVERAGE`)."""
        row = len(self.tasks) if benchmark == AVERAGE else self.tasks.index(benchmark)
        shares: Array = self.relative[row, self.runs.index(run)]
        return shares

    def average(self, run: str) -> float:
        """Return the mean of one run's relative scores without resampling; NaN where it is undefined."""
        return float(self.observed[-1, self.runs.index(run)])


def task_strata(results: Sequence[Result], task: str) -> list[Strata]:
    """Return each run's primary metric of a task as weighted means of units; ValueError if that is impossible."""
    metric = results[0].metrics["primary"][task]
    strata_by_run: list[Strata] = [[] for _ in results]
    names = terms(metric)
    if not names:
        raise ValueError(f"{metric} is one of several numbers that are counted together")
    for name in names:
        columns = [result.per_question[task].get(name, []) for result in results]
        values = [[value for value in column if value is not None] for column in columns]
        scores = [result.score(task, name) for result in results]
        for run_strata, part in zip(strata_by_run, strata(values, scores), strict=True):
            run_strata += part
    return strata_by_run


def draw(
    results: Sequence[Result],
    baseline: Result | None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    units: slice = slice(None),
) -> Draws:
    """Resample the questions of every benchmark with replacement, for all runs together.

    Relative scores are NaN without a `baseline`. `units` selects the units to draw from, in the order of the benchmark:
    questions, or groups of questions that are scored together.
    """
    runs = list(results) if baseline is None or baseline in results else [baseline, *results]
    same_questions(runs)
    tasks = list(runs[0].metrics["primary"])
    parts: list[tuple[int, float, Array]] = []  # task, weight, values [R, n]
    unknown: dict[str, str] = {}
    for place, task in enumerate(tasks):
        try:
            strata_by_run = task_strata(runs, task)
        except ValueError as error:
            unknown[task] = str(error)
            continue
        for stratum in zip(*strata_by_run, strict=True):
            values = np.stack([values for _, values in stratum])[:, units]
            if not values.size:
                raise UserError(f"task {task} has too few questions in one of its categories to take a part of them")
            parts.append((place, stratum[0][0], values))
    observed = np.zeros((len(tasks), len(runs), 1))
    for place, weight, values in parts:
        observed[place] += weight * values.mean(axis=1, keepdims=True)
    scores = _resampled(parts, len(tasks), len(runs), resamples, seed)
    base = None if baseline is None else runs.index(baseline)
    for array in (observed, scores):
        array[[tasks.index(task) for task in unknown]] = np.nan
    shares = _relative(scores, base)
    return Draws(tasks, [run.hash for run in runs], scores, shares, _relative(observed, base)[..., 0], unknown)


def _relative(scores: Array, base: int | None) -> Array:
    """Return scores [T, R, B] in percent of those of run `base`, with their mean over benchmarks as the last row."""
    with np.errstate(divide="ignore", invalid="ignore"):
        shares: Array = 100 * scores / (np.nan if base is None else scores[:, [base]])
    return np.concatenate([shares, shares.mean(axis=0, keepdims=True)])


def _resampled(parts: list[tuple[int, float, Array]], tasks: int, runs: int, resamples: int, seed: int) -> Array:
    """Return scores [T, R, B] on units that scipy draws in every stratum, the same for all runs."""
    if not parts:
        return np.full((tasks, runs, resamples), np.nan)

    def score(*drawn: NDArray[np.int64], axis: int = -1) -> Array:
        """Return scores [T, R, B] of drawn units [B, n] per stratum."""
        total = np.zeros((tasks, runs, len(drawn[0])))
        for (task, weight, values), places in zip(parts, drawn, strict=True):
            draws, n = places.shape
            flat = (places + n * np.arange(draws)[:, None]).ravel()
            counts = np.bincount(flat, minlength=draws * n).reshape(draws, n)
            total[task] += weight / n * (values @ counts.T)
        return total

    units = [np.arange(values.shape[1]) for _, _, values in parts]
    units = [np.tile(u, 2) if len(u) == 1 else u for u in units]  # scipy needs two units in a category
    parts = [(t, w, np.repeat(v, 2, axis=1) if v.shape[1] == 1 else v) for t, w, v in parts]
    rng = np.random.default_rng(seed)
    result = stats.bootstrap(
        units,
        score,
        n_resamples=resamples,
        batch=500,
        vectorized=True,
        method="percentile",
        rng=rng,
    )
    drawn: Array = result.bootstrap_distribution
    return drawn


def interval(drawn: Array) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws [B]; (NaN, NaN) if the baseline scores 0 in some of them."""
    if not np.isfinite(drawn).all():
        return math.nan, math.nan
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def bootstrap_p(drawn: Array, observed: float) -> float:
    """Return the two-sided p of a difference; its error is normal, with the deviation of its bootstrap draws [B]."""
    error = float(drawn.std(ddof=1))
    if not math.isfinite(error) or not math.isfinite(observed):
        return math.nan
    if error < 1e-9:
        return 1.0 if abs(observed) < 1e-9 else 0.0
    return float(2 * stats.norm.sf(abs(observed) / error))


def is_binary(values: pd.DataFrame) -> bool:
    """Return whether every question is right or wrong."""
    return bool(values.isin([0.0, 1.0]).to_numpy().all())


def mcnemar_p(wins: Any, losses: Any) -> Array:
    """Return McNemar's exact p of the hypothesis that two runs are right equally often.

    `wins` and `losses` count the questions on which only one of them is right.
    """
    wins, losses = np.asarray(wins), np.asarray(losses)
    p: Array = np.minimum(1.0, 2 * stats.binom.cdf(np.minimum(wins, losses), wins + losses, 0.5))
    return p


def pairwise_p(values: pd.DataFrame | None, drawn: Array, observed: Sequence[float]) -> tuple[Array, str]:
    """Return p [R, R] of the hypothesis that two runs are equally good, and the name of the test.

    `values` holds the questions of one benchmark, a column per run; None for an average. If answers are not right or
    wrong, the test is the bootstrap with the draws [R, B] of the `observed` scores [R].
    """
    if values is not None and is_binary(values):
        right = values.to_numpy(dtype=float)
        wins = np.rint(right.T @ (1 - right))
        return mcnemar_p(wins, wins.T), "mcnemar"
    p = np.ones((len(drawn), len(drawn)))
    for a, b in combinations(range(len(drawn)), 2):
        p[a, b] = p[b, a] = bootstrap_p(drawn[a] - drawn[b], observed[a] - observed[b])
    return p, "bootstrap"


def holm(p: Sequence[float]) -> list[float]:
    """Return p-values with Holm's correction; NaN stays NaN and does not count."""
    from statsmodels.stats.multitest import multipletests

    places = [place for place, value in enumerate(p) if not math.isnan(value)]
    corrected = [math.nan] * len(p)
    if places:
        for place, value in zip(places, multipletests([p[i] for i in places], method="holm")[1], strict=True):
            corrected[place] = float(value)
    return corrected


def flips(a: pd.Series, b: pd.Series) -> tuple[int, int]:
    """Count the questions on which `a` scores less than `b` (right in `b`, wrong in `a`), and more."""
    return int((a < b).sum()), int((a > b).sum())


def agreement(a: pd.Series, b: pd.Series) -> float:
    """Return the percentage of questions with the same answer, ignoring case and surrounding blanks."""
    same = a.str.strip().str.casefold() == b.str.strip().str.casefold()
    return 100 * float(same.mean())
