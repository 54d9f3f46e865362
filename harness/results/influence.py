"""How much each picture moves a score: the form in which the noise of every metric is known.

A cluster is all that is asked about one picture or video, or one question without any. The influence of a cluster is
its first-order effect on the score: influences sum to 0, and the squared standard error of the score is the sum of
their squares times G / (G - 1). For a mean over questions they follow from the score of every question. For every other
metric they were computed when the run was scored (`metrics.json`, "noise").
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.results.benchmarks import greatest
from harness.results.result import Result

Array = NDArray[np.float64]
DIGITS = 16  # of a picture's name
# Keys of a record's two answers: of SEED-Bench, Video-MME, LongVideoBench
PAIRS = (("pred", "answer"), ("pred_answer", "answer"), ("parsed_pred", "answer"))
OLDER = "the run does not say how its score follows from its questions: run it again"


class Untested(ValueError):  # noqa: N818  (a state of a score, and no fault)
    """The noise of a score is unknown; the message is the reason."""


@dataclass(frozen=True)
class Influence:
    """The influence of every cluster on one run's score of one task.

    `answer` is what one answer can move the score by, so that scores without observed noise do not count as exact; as
    many answers about one picture as are alike count as one.
    `questions` is the number of right or wrong answers whose mean is the score, 0 if it is no such mean.
    """

    score: float
    clusters: tuple[str, ...]
    values: Array  # [G]
    answer: float
    questions: int = 0
    grouped: bool = False  # clusters are a jackknife's groups of pictures
    most: float = math.inf  # the greatest score that the metric can reach; infinite if unknown

    @classmethod
    def of_questions(cls, values: Array, clusters: Sequence[str], scale: float = 1.0) -> "Influence":
        """Return the influences on `scale` times the mean of values [n] of questions."""
        names, places = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
        shares = np.bincount(places, values - values.mean(), len(names)) / len(values)
        binary = bool(np.isin(values, (0.0, 1.0)).all())
        bounded = bool((values >= 0).all() and (values <= 1).all())
        alone = float(np.square(values - values.mean()).sum()) / len(values) ** 2
        alike = max(1.0, float(np.square(shares).sum()) / alone) if alone else 1.0  # the design effect
        answer = scale * math.sqrt(alike) / len(values) if bounded else 0.0
        name = tuple(names.tolist())
        most = scale if bounded else math.inf
        return cls(scale * float(values.mean()), name, scale * shares, answer, len(values) if binary else 0, most=most)

    def __add__(self, other: "Influence") -> "Influence":
        """Return the influences on the sum of two scores, such as MME's two parts."""
        if self.grouped != other.grouped:
            raise Untested("its parts are known in different ways, by pictures and by groups of pictures")
        values = dict.fromkeys(self.clusters + other.clusters, 0.0)
        for part in (self, other):
            for cluster, value in zip(part.clusters, part.values.tolist(), strict=True):
                values[cluster] += value
        score, answer = self.score + other.score, max(self.answer, other.answer)
        influences, most = np.array(list(values.values())), self.most + other.most
        return Influence(score, tuple(values), influences, answer, 0, self.grouped, most)


def influence(result: Result, task: str, part: Callable[[str], bool] | None = None) -> Influence:
    """Return the influences on a run's primary metric of a task; Untested if they are unknown.

    `part` selects clusters: the score is then that of their questions alone.
    """
    metric = str(result.metrics["primary"][task])
    records = result.metrics.get("noise", {}).get(task, {})
    names = [metric] if metric in records else [term.strip() for term in metric.split("+")]
    total, *more = (_of_metric(result, task, name, records.get(name), part) for name in names)
    for other in more:
        total = total + other
    return total


def _of_metric(
    result: Result, task: str, metric: str, record: dict[str, Any] | None, part: Callable[[str], bool] | None
) -> Influence:
    if record is None or record["from"] == "questions":
        return _of_questions(result, task, metric, (1.0, 100.0) if record is None else (record["scale"],), part)
    if record["from"] is None:
        raise Untested(record["reason"])
    if part is not None:
        raise Untested("its score does not follow from its questions, so a part of them has none")
    score = result.score(task, metric)
    # Groups of a jackknife and questions without a picture have numbers for names, which mean nothing to another task.
    clusters = tuple(name if len(name) >= DIGITS else f"{task}/{name}" for name in record["clusters"])
    values = np.array(record["influence"], dtype=float)
    if len(clusters) < 2 or len(clusters) != len(values):
        raise Untested(f"it has influences of {len(values)} pictures, at least two are needed")
    grouped, most = record["from"] == "jackknife", greatest(task, metric, score)
    return Influence(score, clusters, values, abs(score) / len(clusters), 0, grouped, most)


def _of_questions(
    result: Result, task: str, metric: str, scales: Sequence[float], part: Callable[[str], bool] | None
) -> Influence:
    columns, score = result.per_question[task], result.score(task, metric)
    shown = columns.get("picture", [""] * len(columns["doc_id"]))
    rows = zip(columns.get(metric, []), shown, columns["doc_id"], strict=False)  # no value: an older run
    asked = [(picture or f"{task}/{doc_id}", number(value)) for value, picture, doc_id in rows if value is not None]
    values = np.array([value for _, value in asked], dtype=float)  # NaN for a record without a number
    mean = float(values.mean()) if asked else math.nan
    scale = next((scale for scale in scales if math.isclose(scale * mean, score, rel_tol=1e-6, abs_tol=1e-9)), None)
    if scale is None:
        other = f"its questions give {scales[0] * mean:g} and not its score {score:g}: run it again with force=true"
        raise Untested(OLDER if len(scales) > 1 else other)
    chosen = [part is None or part(cluster) for cluster, _ in asked]
    if not any(chosen):
        raise Untested("none of its questions is in this part")
    return Influence.of_questions(values[chosen], [cluster for cluster, _ in compress(asked, chosen)], scale)


def number(value: Any) -> float | None:
    """Return what one question adds to a score; None if unknown.

    That is the number itself, the score of a record, or whether the record's two answers agree.
    """
    if isinstance(value, bool | int | float):
        return float(value)
    if isinstance(value, dict):
        if isinstance(value.get("score"), bool | int | float):
            return float(value["score"])
        for predicted, target in PAIRS:
            if isinstance(value.get(predicted), str) and isinstance(value.get(target), str):
                return float(value[predicted].lower().strip() == value[target].lower().strip())
    return None


def pictures(result: Result, task: str) -> int | None:
    """Return how many different pictures or videos a task's questions show; None if the run did not record them."""
    column = result.per_question[task].get("picture")
    return None if column is None else len(set(column) - {""})
