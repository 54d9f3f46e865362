"""How sure a score, a percentage of the unpruned model's, or a difference between two of them is.

All runs answer the same questions, and what one picture does to a score is known for each run (`influence`). The
covariance of any two numbers of a table is then a sum over pictures: it holds what questions about one picture have in
common and, since the runs are paired, what two runs have in common. Nothing is resampled, so no seed decides a mark.

Each run gets a part of an answer of its own in addition. Without it, a run that agrees with the unpruned model on all
of twenty questions would count as equal to it for certain. Agresti and Min (2005) add a half, Bonett and Price (2012)
add one; `OWN_ANSWER` is chosen so that cases of scripts/coverage.py lie at 93 % or above within its error.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from harness.results.frames import same_questions
from harness.results.influence import Influence, Untested, influence
from harness.results.result import Result

AVERAGE = "avg"
LEVEL = 0.95
ALPHA = 1 - LEVEL  # a run whose p of being as good as the best of its block is smaller is significantly worse
FEWEST = 10  # independent pictures of a task that is tested; scripts/coverage.py has worlds with less
OWN_ANSWER = 0.75
DRAWS = 2**14  # quasi-random, of the largest of several differences
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """Numbers of several runs with their joint error.

    `factor` [G, R] holds an error's source in each row: its cross product is the covariance of the values [R].
    `freedom` is the number of independent pictures less one, for quantiles of Student's distribution. Values lie
    between `least` and `most`, and so do their intervals.
    """

    values: Array
    factor: Array
    freedom: float
    least: float = -math.inf
    most: float = math.inf

    @cached_property
    def covariance(self) -> Array:
        """The covariance [R, R] of the values."""
        product: Array = self.factor.T @ self.factor
        return product

    @cached_property
    def errors(self) -> Array:
        """The standard error [R] of each value."""
        return self.error(np.eye(len(self.values)))

    def error(self, contrasts: Array) -> Array:
        """Return the standard errors of linear combinations [..., R] of the values."""
        squares = np.square(self.factor @ contrasts.reshape(-1, len(self.values)).T).sum(axis=0)
        errors: Array = np.sqrt(squares).reshape(contrasts.shape[:-1])
        return errors

    @property
    def quantile(self) -> float:
        """How many standard errors an interval reaches to either side."""
        return float(stats.t.ppf((1 + LEVEL) / 2, self.freedom))

    def interval(self, run: int) -> tuple[float, float]:
        """Return the interval of one value."""
        value, half = float(self.values[run]), self.quantile * float(self.errors[run])
        return max(self.least, value - half), min(self.most, value + half)

    def difference(self, a: int, b: int) -> tuple[float, float, float]:
        """Return the interval of value a less value b, and the two-sided p of no difference."""
        contrast = np.eye(len(self.values))[a] - np.eye(len(self.values))[b]
        difference, error = float(contrast @ self.values), float(self.error(contrast))
        if not error > 0:
            return difference, difference, 1.0 if difference == 0 else 0.0 if error == 0 else math.nan
        half, most = self.quantile * error, self.most - self.least
        p = float(2 * stats.t.sf(abs(difference) / error, self.freedom))
        return max(-most, difference - half), min(most, difference + half), p

    def of(self, runs: Sequence[int]) -> "Estimate":
        """Return the estimate of some of the runs."""
        return replace(self, values=self.values[list(runs)], factor=self.factor[:, list(runs)])

    def _draws(self, seed: int) -> Array:
        """Draw errors [DRAWS, R] of the values, divided by the root of a common chi-squared draw over `freedom`."""
        runs = len(self.values)
        scale, vectors = np.linalg.eigh(self.covariance)
        uniform = stats.qmc.Sobol(runs + 1, rng=np.random.default_rng(seed)).random(DRAWS)
        uniform = np.clip(uniform, 1e-12, 1 - 1e-12)
        normal = stats.norm.ppf(uniform[:, :runs]) * np.sqrt(np.clip(scale, 0, None))
        chi = stats.chi2.ppf(uniform[:, runs:], self.freedom) / self.freedom
        errors: Array = normal @ vectors.T / np.sqrt(chi)
        return errors

    def against_best(self, seed: int = 0) -> Array:
        """Return for each run the p [R] of the hypothesis that none of the others is better.

        Multiple comparisons with the best: the largest of a run's studentized deficits against all others, under the
        joint distribution of these (max-T). The best run is not taken as known, and equal runs have equal p.
        """
        draws, runs = self._draws(seed), len(self.values)
        p = np.ones(runs)
        for run in range(runs):
            contrasts = np.eye(runs) - np.eye(runs)[run]
            errors = self.error(contrasts)
            others = errors > 1e-9 * max(1.0, float(np.abs(self.values).max()))
            exact = (self.values > self.values[run]) & ~others
            if exact.any():
                p[run] = 0.0
            elif others.any():
                largest = ((self.values - self.values[run])[others] / errors[others]).max()
                deficits = (draws[:, others] - draws[:, [run]]) / errors[others]
                p[run] = float((deficits.max(axis=1) >= largest).mean())
                if ALPHA / 2 < p[run] < 2 * ALPHA:  # where a mark is decided, no seed decides it
                    sources = self.factor @ contrasts[others].T / errors[others]
                    p[run] = _beyond(largest, sources.T @ sources, self.freedom, seed)
        return p

    def luck(self, seed: int = 0) -> float:
        """Return by how much the best value is expected to lie above the truth because it was chosen as the best."""
        draws = self._draws(seed)
        chosen = (self.values + draws).argmax(axis=1)
        return max(0.0, float(draws[np.arange(len(draws)), chosen].mean()))


def _beyond(limit: float, correlation: Array, freedom: float, seed: int) -> float:
    """Return the probability that one of several numbers, jointly of Student's distribution, is beyond a limit."""
    upper = np.full(len(correlation), limit)
    options = {"df": freedom, "allow_singular": True, "random_state": seed}
    return float(1 - stats.multivariate_t.cdf(upper, shape=correlation, **options))


@dataclass(frozen=True)
class Noise:
    """The errors of all scores of runs that answered the same questions."""

    tasks: list[str]
    runs: list[str]  # Result.hash
    scores: dict[str, Estimate]  # by task, as lmms-eval counts
    shares: dict[str, Estimate]  # by task and `AVERAGE`, in percent of the baseline's
    questions: dict[str, int]  # by task: right or wrong answers whose mean is the score
    untested: dict[str, str]  # task -> why its error is unknown

    def place(self, run: str) -> int:
        """Return the place of a run, by `Result.hash`."""
        return self.runs.index(run)

    def score_interval(self, task: str, run: str) -> tuple[float, float]:
        """Return the interval of a score; for a share of right answers Wilson's, which stays between 0 and 1."""
        estimate, place, n = self.scores[task], self.place(run), self.questions[task]
        if not n:
            return estimate.interval(place)
        scale = estimate.most
        share, variance = float(estimate.values[place]) / scale, float(estimate.errors[place] / scale) ** 2
        effective = (share * (1 - share) + OWN_ANSWER / n) / variance  # as many independent answers have this variance
        z = estimate.quantile
        center = (share + z**2 / (2 * effective)) / (1 + z**2 / effective)
        half = z / (1 + z**2 / effective) * math.sqrt(share * (1 - share) / effective + (z / (2 * effective)) ** 2)
        return scale * max(0.0, center - half), scale * min(1.0, center + half)


def noise(results: Sequence[Result], baseline: Result | None, part: Callable[[str], bool] | None = None) -> Noise:
    """Return the errors of the runs' scores and of their percentages of the baseline's, which may be among the runs.

    `part` selects pictures: scores are then those of the questions about them.
    """
    runs = list(results) if baseline is None or baseline in results else [baseline, *results]
    same_questions(runs)
    influences: dict[str, list[Influence]] = {}
    untested: dict[str, str] = {}
    for task in runs[0].metrics["primary"]:
        try:
            influences[task] = [influence(run, task, part) for run in runs]
        except Untested as error:
            untested[task] = str(error)
    place = None if baseline is None else runs.index(baseline)
    return combine(influences, [run.hash for run in runs], place, untested)


def combine(
    influences: dict[str, list[Influence]],
    runs: Sequence[str],
    baseline: int | None,
    untested: dict[str, str],
    fewest: int = FEWEST,
) -> Noise:
    """Return the errors of scores whose influences are given by task and run.

    Tasks with less than `fewest` independent pictures are untested.
    """
    scores, shares, questions, names = {}, {}, {}, {}
    untested = dict(untested)
    for task, of_runs in influences.items():
        if len({one.grouped for one in of_runs}) > 1:
            untested[task] = "its runs are known in different ways, by pictures and by groups of pictures"
            continue
        clusters = sorted({cluster for one in of_runs for cluster in one.clusters})
        rows = {cluster: row for row, cluster in enumerate(clusters)}
        factor = np.zeros((len(clusters) + len(runs), len(runs)))
        for column, one in enumerate(of_runs):
            factor[[rows[cluster] for cluster in one.clusters], column] = one.values
        if len(clusters) < fewest:
            untested[task] = f"it has {len(clusters)} independent pictures, and a test needs at least {fewest}"
            continue
        factor *= math.sqrt(len(clusters) / (len(clusters) - 1))
        answer = math.sqrt(OWN_ANSWER) * max(one.answer for one in of_runs)
        factor[len(clusters) :] = answer * np.eye(len(runs))
        values = np.array([one.score for one in of_runs])
        least = 0.0 if (values >= 0).all() else -math.inf
        scores[task] = Estimate(values, factor, len(clusters) - 1, least, max(one.most for one in of_runs))
        questions[task] = min(one.questions for one in of_runs)
        names[task] = [*clusters, *(f"{task} {run}" for run in runs)]
        if baseline is None:
            continue
        if not values[baseline] > 0:
            untested[task] = "the unpruned model scores 0"
            continue
        shares[task] = _relative(scores[task], baseline)
    if baseline is not None and influences and shares.keys() == influences.keys() and not untested:
        shares[AVERAGE] = _average(shares, names)
    tasks = [*influences, *(task for task in untested if task not in influences)]
    return Noise(tasks, list(runs), scores, shares, questions, untested)


def _relative(estimate: Estimate, baseline: int) -> Estimate:
    """Return scores in percent of the baseline's, with their first-order errors."""
    base = estimate.values[baseline]
    share = estimate.values / base
    factor = 100 / base * (estimate.factor - np.outer(estimate.factor[:, baseline], share))
    return Estimate(100 * share, factor, estimate.freedom, 100 / base * estimate.least, 100 / base * estimate.most)


def _average(shares: dict[str, Estimate], names: dict[str, list[str]]) -> Estimate:
    """Return the mean over tasks; a picture that several tasks show is one source of error."""
    rows = {name: row for row, name in enumerate(dict.fromkeys(name for of_task in names.values() for name in of_task))}
    runs = len(next(iter(shares.values())).values)
    factor = np.zeros((len(rows), runs))
    for task, estimate in shares.items():
        factor[[rows[name] for name in names[task]]] += estimate.factor / len(shares)
    values = np.mean([estimate.values for estimate in shares.values()], axis=0)
    variances = np.array([np.square(estimate.errors).max() for estimate in shares.values()])
    weights = variances / (variances.sum() or 1.0)
    freedom = 1 / float(sum(w**2 / e.freedom for w, e in zip(weights, shares.values(), strict=True)) or 1.0)
    least, most = (float(np.mean([getattr(e, end) for e in shares.values()])) for end in ("least", "most"))
    return Estimate(values, factor, freedom, least, most)


def mcnemar_p(wins: int, losses: int) -> float:
    """Return McNemar's exact p of the hypothesis that two runs are right equally often.

    `wins` and `losses` count the questions on which only one of them is right. It takes questions as independent.
    """
    return float(min(1.0, 2 * stats.binom.cdf(min(wins, losses), wins + losses, 0.5)))


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
    same = (a == b).to_numpy()
    others = a[~same].str.strip().str.casefold() == b[~same].str.strip().str.casefold()
    return 100 * float(same.sum() + others.sum()) / len(same)
