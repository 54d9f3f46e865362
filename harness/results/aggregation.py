"""How a task's score follows from its questions: as weighted means over units that can be drawn anew.

lmms-eval aggregates what each question gave: numbers, or records that its own code then counts. Its code cannot be run
on resamples (some of it writes files, or adds up across calls), but most of it is a weighted sum of means, which is
recognised here and believed only where it gives the very score of every run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Strata = list[tuple[float, NDArray[np.float64]]]  # (weight, values [units]): score = sum of weight * mean
ANSWERS = (("pred", "answer"), ("pred_answer", "answer"))  # of SEED-Bench and Video-MME


def terms(metric: str | None) -> list[str]:
    """The names in a metric expression such as `a,none + b,none`; [] if it takes one of several numbers."""
    names = [term.strip() for term in (metric or "").split("+")]
    return [] if any(name.endswith("]") for name in names) else names


def number(found: Any) -> float | None:
    """What one question adds: a number itself, a record's score, or whether its two answers agree; None if unknown."""
    if isinstance(found, bool | int | float):
        return float(found)
    if isinstance(found, dict):
        if isinstance(found.get("score"), bool | int | float):
            return float(found["score"])
        for said, right in ANSWERS:
            if isinstance(found.get(said), str) and isinstance(found.get(right), str):
                return float(found[said].lower().strip() == found[right].lower().strip())
    return None


def strata(runs: Sequence[Sequence[Any]], scores: Sequence[float]) -> list[Strata]:
    """One metric's values of some runs [runs][questions] as strata, all of one form, in the same order of units.

    ValueError if no known form gives every run's score.
    """
    for form in (_mean, _by("l2_category"), _by("category"), _pairs):
        for scale in (1.0, 100.0):
            found = [_scaled(form(values), scale) for values in runs]
            if all(_gives(each, score) for each, score in zip(found, scores, strict=True)):
                return [each for each in found if each is not None]
    raise ValueError("its score is no weighted mean of what its questions gave")


def _scaled(found: Strata | None, scale: float) -> Strata | None:
    return None if found is None else [(scale * weight, values) for weight, values in found]


def _gives(found: Strata | None, score: float) -> bool:
    if found is None:
        return False
    return math.isclose(sum(weight * values.mean() for weight, values in found), score, rel_tol=1e-6, abs_tol=1e-9)


def _mean(values: Sequence[Any]) -> Strata | None:
    numbers = [number(found) for found in values]
    return None if None in numbers or not numbers else [(1.0, np.array(numbers, dtype=float))]


def _by(key: str) -> Callable[[Sequence[Any]], Strata | None]:
    """The mean of the means of categories, as MMStar has it; categories keep their sizes."""

    def form(values: Sequence[Any]) -> Strata | None:
        found: dict[Any, list[float | None]] = {}
        for record in values:
            if not isinstance(record, dict) or key not in record:
                return None
            found.setdefault(record[key], []).append(number(record))
        if any(None in numbers for numbers in found.values()):
            return None
        return [(1 / len(found), np.array(numbers, dtype=float)) for numbers in found.values()]

    return form


def _pairs(values: Sequence[Any]) -> Strata | None:
    """MME: of a picture's two questions the percentage that is right, and 100 more if both are; a category's mean; all
    categories added. A picture is drawn with both."""
    found: dict[Any, dict[Any, list[float]]] = {}
    for record in values:
        scored = number(record)
        if scored is None or not isinstance(record, dict) or not {"category", "question_id"} <= record.keys():
            return None
        found.setdefault(record["category"], {}).setdefault(record["question_id"], []).append(scored)
    if any(len(pair) != 2 for pictures in found.values() for pair in pictures.values()):
        return None
    worth = [[50 * sum(pair) + 100 * (sum(pair) == 2) for pair in pictures.values()] for pictures in found.values()]
    return [(1.0, np.array(pictures)) for pictures in worth]
