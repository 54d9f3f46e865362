"""A task's score as a weighted mean of independent units, so that it can be computed on resampled questions.

lmms-eval aggregates one value per question: a number, or a record that its own code counts. That code cannot run on
resamples, since some of it writes files or accumulates over calls. Most of it is a weighted sum of means. A form is
accepted only if it reproduces the score of every run.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Strata = list[tuple[float, NDArray[np.float64]]]  # (weight, values [units]): score = sum of weight * mean
ANSWERS = (("pred", "answer"), ("pred_answer", "answer"))  # keys of SEED-Bench and Video-MME


def terms(metric: str | None) -> list[str]:
    """Return the names in a metric expression such as `a,none + b,none`; [] if one has an index into a list."""
    names = [term.strip() for term in (metric or "").split("+")]
    return [] if any(name.endswith("]") for name in names) else names


def number(value: Any) -> float | None:
    """Return what one question adds to a score; None if unknown.

    That is the number itself, the score of a record, or whether the record's two answers agree.
    """
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, dict):
        if isinstance(value.get("score"), bool | int | float):
            return float(value["score"])
        for predicted, target in ANSWERS:
            if isinstance(value.get(predicted), str) and isinstance(value.get(target), str):
                return float(value[predicted].lower().strip() == value[target].lower().strip())
    return None


def strata(runs: Sequence[Sequence[Any]], scores: Sequence[float]) -> list[Strata]:
    """Split one metric's values [runs][questions] into strata, of the same form and order of units for all runs.

    ValueError if no known form gives every run's score.
    """
    for form in (_mean, _by("l2_category"), _by("category"), _pairs):
        for scale in (1.0, 100.0):
            candidates = [_scaled(form(values), scale) for values in runs]
            if all(_gives(candidate, score) for candidate, score in zip(candidates, scores, strict=True)):
                return [candidate for candidate in candidates if candidate is not None]
    raise ValueError("its score is no weighted mean of the values of its questions")


def _scaled(parts: Strata | None, scale: float) -> Strata | None:
    return None if parts is None else [(scale * weight, values) for weight, values in parts]


def _gives(parts: Strata | None, score: float) -> bool:
    if parts is None:
        return False
    return math.isclose(sum(weight * values.mean() for weight, values in parts), score, rel_tol=1e-6, abs_tol=1e-9)


def _mean(values: Sequence[Any]) -> Strata | None:
    numbers = [number(value) for value in values]
    return None if None in numbers or not numbers else [(1.0, np.array(numbers, dtype=float))]


def _by(key: str) -> Callable[[Sequence[Any]], Strata | None]:
    """Return the form of MMStar: the mean over categories of their means. Resampling keeps the categories' sizes."""

    def form(values: Sequence[Any]) -> Strata | None:
        categories: dict[Any, list[float | None]] = {}
        for record in values:
            if not isinstance(record, dict) or key not in record:
                return None
            categories.setdefault(record[key], []).append(number(record))
        if any(None in numbers for numbers in categories.values()):
            return None
        return [(1 / len(categories), np.array(numbers, dtype=float)) for numbers in categories.values()]

    return form


def _pairs(values: Sequence[Any]) -> Strata | None:
    """Apply the form of MME, whose unit is an image with two questions.

    An image scores the percentage of right answers, plus 100 if both are right. A category's score is the mean over
    its images; the task's score is the sum over categories.
    """
    categories: dict[Any, dict[Any, list[float]]] = {}
    for record in values:
        score = number(record)
        if score is None or not isinstance(record, dict) or not {"category", "question_id"} <= record.keys():
            return None
        categories.setdefault(record["category"], {}).setdefault(record["question_id"], []).append(score)
    if any(len(pair) != 2 for images in categories.values() for pair in images.values()):
        return None
    scores = [[50 * sum(pair) + 100 * (sum(pair) == 2) for pair in images.values()] for images in categories.values()]
    return [(1.0, np.array(images)) for images in scores]
