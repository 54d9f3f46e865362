"""How far each picture moves a score: the numbers from which standard errors are computed, stored with a run.

lmms-eval's aggregations write files, print and add up across calls, so they cannot run on thousands of resamples. They
run a few times instead, when a run is scored. The first of three ways that gives a metric's score back describes it:

* `questions`: the score is the mean of a number per question;
* `units`: the score is the mean of what the aggregation says of each unit alone, such as MME's picture with its two
  questions, or it is the sum or the mean of such means over categories;
* `jackknife`: the aggregation runs once for each of 64 groups of pictures, which it leaves out.

The last two store `influence` [G], the first-order effect on the score of each of G clusters of questions: pictures, or
groups of them. The effects sum to 0, and the squared standard error is G / (G - 1) * sum(influence**2).
Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 11 and 21.
"""

import os
import socket
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, chdir, contextmanager, redirect_stderr, redirect_stdout, suppress
from copy import copy
from math import isclose
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
from loguru import logger
from numpy.typing import NDArray

from harness.core.errors import one_line
from harness.results.metrics import jackknife_groups, numeric, pictures

SECONDS = 1800  # for all units of a metric, and for the jackknife of a task; CIDEr of 5,000 captions takes 20 a call
PROBES = 8  # units that may refute a way to form units before the aggregation runs on all of them
MEMBERS = 8  # questions that a unit may have if it is about several pictures; Vinoground's groups have four
SHORT = 16  # a longer list of numbers is no list of scores
ROUNDED = 5  # digits of LongVideoBench's score
TURNS = 1_000_000  # MMBench asks question i again as i + 1,000,000, with its options in another order

Array = NDArray[np.float64]
Items = Mapping[int, Any]  # doc_id -> the value that lmms-eval aggregates
Units = list[list[int]]  # the doc_ids of each unit
Form = tuple[str | None, bool]  # the key of a unit's category, and whether categories are averaged or added up
Record = dict[str, Any]

FORMS: tuple[Form, ...] = (
    *((None, True), ("l2_category", True), ("category", True), ("category", False)),
    ("task_type", True),  # MLVU
)
GROUPINGS: tuple[Callable[[int, Any, str], Hashable], ...] = (  # what the questions of a unit have in common
    lambda doc_id, item, picture: _index_group(item["index"]),
    lambda doc_id, item, picture: (item["category"], item["question_id"]),  # MME
    lambda doc_id, item, picture: doc_id,
    lambda doc_id, item, picture: picture,
)


class NetworkUsed(BaseException):
    """A task's code opens a connection. A BaseException, since retries of a judge catch every Exception."""


FAILURES = (Exception, SystemExit, NetworkUsed)  # a task's code raises anything


class Term(NamedTuple):
    """A score that tables can show: a metric, or one number of a metric that is a list."""

    metric: str
    place: int
    score: float


def noise(
    load: Callable[[], Any],
    args: Namespace,
    items: Mapping[str, Items],
    scores: Mapping[str, Any],
    questions: Mapping[str, Sequence[Any]],
    shown: str | None,
) -> dict[str, Record]:
    """Return a record per score of a task: the way that describes it (`from`) with its numbers, or a `reason`.

    `load` returns a new Task object, `args` are those that lmms-eval scored with, `items` holds by metric what it
    aggregated, `questions` what `scores.json` holds, and `shown` is the metric of the tables.
    """

    names = pictures(questions)
    terms = _terms(scores, shown)
    records: dict[str, Record] = {}
    with TemporaryDirectory() as scratch:

        def fresh() -> Any:
            task = load()
            task.args = Namespace(**{**vars(args), "output_path": mkdtemp(dir=scratch)})
            return task

        for metric in dict.fromkeys(term.metric for term in terms.values()):
            of_metric = {name: term for name, term in terms.items() if term.metric == metric}
            records |= _numbers(fresh, questions.get(metric, []), of_metric)
            if not records.keys() >= of_metric.keys():
                records |= _units(fresh, items.get(metric, {}), of_metric, names)
        left = {name: term for name, term in terms.items() if name not in records}
        records |= _jackknife(fresh, items, left, names)
    return {name: records[name] for name in terms}


def _terms(scores: Mapping[str, Any], shown: str | None) -> dict[str, Term]:
    """Return every score that tables can show, those that they do show first."""
    first = [name.strip() for name in (shown or "").split("+")]
    terms = {}
    for metric, score in scores.items():
        if not isinstance(score, list):
            terms[metric] = Term(metric, 0, score)
            continue
        for place, number in enumerate(score):
            if len(score) <= SHORT or f"{metric}[{place}]" in first:
                terms[f"{metric}[{place}]"] = Term(metric, place, number)
    return dict(sorted(terms.items(), key=lambda named: named[0] not in first))


def _numbers(fresh: Callable[[], Any], values: Sequence[Any], terms: Mapping[str, Term]) -> dict[str, Record]:
    """Describe a score as the mean of a number per question, or as its percentage."""
    numbers = [value for value in values if value is not None]
    if not numbers or not all(isinstance(value, bool | int | float) for value in numbers):
        return {}
    mean = sum(numbers) / len(numbers)
    records = {}
    for name, term in terms.items():
        scales = [scale for scale in (1, 100) if _equal(scale * mean, term.score)]
        if len(scales) == 2:  # the score is 0, so the aggregation has to say what one right answer would score
            with suppress(*FAILURES):
                scales = [scale for scale in scales if _equal(scale, _aggregate(fresh(), term.metric, [1.0])[0])]
        if scales:
            records[name] = {"from": "questions", "scale": scales[0]}
    return records


def _units(
    fresh: Callable[[], Any], items: Items, terms: Mapping[str, Term], names: Mapping[int, str]
) -> dict[str, Record]:
    """Describe scores of one metric by its aggregation on each unit alone, for the first units that give them back."""
    records: dict[str, Record] = {}
    for units in _partitions(items, names):
        try:
            records = _of_units(fresh, items, units, terms, names) | records
        except FAILURES:  # as when MME's code gets a question without the other one
            continue
        if len(records) == len(terms):
            break
    return records


def _of_units(
    fresh: Callable[[], Any], items: Items, units: Units, terms: Mapping[str, Term], names: Mapping[int, str]
) -> dict[str, Record]:
    """Return the records of the terms that units give back, both all of them and some of them."""
    task, metric = fresh(), next(iter(terms.values())).metric
    some = units[:: max(1, len(units) // PROBES)]
    alone = _alone(task, metric, items, some, SECONDS * len(some) / len(units))
    together = _aggregate(task, metric, [item for unit in some for item in _of(items, unit)])
    probed = {
        name: set(_effects(items, some, alone[:, term.place], together[term.place])) for name, term in terms.items()
    }
    if not any(probed.values()):
        return {}
    alone = _alone(task, metric, items, units, SECONDS)
    clusters, cluster_of = _clusters(units, names)
    records = {}
    for name, term in terms.items():
        effects = _effects(items, units, alone[:, term.place], term.score)
        form = next((form for form in effects if form in probed[name]), None)
        if form and len(clusters) > 1:
            influence = np.zeros(len(clusters))
            np.add.at(influence, cluster_of, effects[form])
            records[name] = _record("units", clusters, influence)
    return records


def _alone(task: Any, metric: str, items: Items, units: Units, seconds: float) -> Array:
    """Return the aggregation of each unit alone [n, numbers]; TimeoutError after `seconds`."""
    end, scores = time.perf_counter() + seconds, []
    for unit in units:
        if time.perf_counter() > end:
            raise TimeoutError
        scores.append(_aggregate(task, metric, _of(items, unit)))
    return np.array(scores)


def _partitions(items: Items, names: Mapping[int, str]) -> Iterator[Units]:
    """Yield ways to divide the questions into units, each way once."""
    tried: list[Units] = []
    for grouping in GROUPINGS:
        by_key: dict[Hashable, list[int]] = {}
        try:
            for doc_id, item in items.items():
                by_key.setdefault(grouping(doc_id, item, names[doc_id]), []).append(doc_id)
        except (KeyError, TypeError):  # the items are no records with such keys
            continue
        units = list(by_key.values())
        small = (len(unit) <= MEMBERS or len({names[doc_id] for doc_id in unit}) == 1 for unit in units)
        if units not in tried and all(small):
            tried.append(units)
            yield units


def _index_group(index: int | str) -> Hashable:
    """Return what the indexes of MMBench's turns of a question share, or Vinoground's of a group ("12_pos")."""
    return index.partition("_")[0] if isinstance(index, str) else index % TURNS


def _effects(items: Items, units: Units, values: Array, score: float) -> dict[Form, Array]:
    """Return, for each form that gives the score from the units' values [n], the effects [n] of the units on it."""
    effects = {}
    for key, averaged in FORMS:
        categories = _categories(items, units, key)
        if categories is None:
            continue
        counts = np.bincount(categories)
        means = np.bincount(categories, values) / counts
        weight = 1 / len(counts) if averaged else 1.0
        total = float(weight * means.sum())
        if _equal(total, score) or round(total, ROUNDED) == score:
            effects[key, averaged] = weight * (values - means[categories]) / counts[categories]
    return effects


def _categories(items: Items, units: Units, key: str | None) -> NDArray[np.int64] | None:
    """Return the category of each unit as a number; None if a unit has none or several."""
    if key is None:
        return np.zeros(len(units), np.int64)
    try:
        labels = [{items[doc_id][key] for doc_id in unit} for unit in units]
    except (KeyError, TypeError):  # the items are no records with such a key
        return None
    if any(len(label) > 1 for label in labels):
        return None
    numbers: NDArray[np.int64] = np.unique([str(*label) for label in labels], return_inverse=True)[1]
    return numbers


def _clusters(units: Units, names: Mapping[int, str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the names of the clusters and the cluster of each unit: units that share a picture are in one."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    shown = sorted({names[doc_id] for unit in units for doc_id in unit})
    place = {name: number for number, name in enumerate(shown)}
    edges = [(place[names[unit[0]]], place[names[doc_id]]) for unit in units for doc_id in unit]
    graph = coo_array((np.ones(len(edges)), np.transpose(edges)), shape=(len(shown), len(shown)))
    count, cluster_of = connected_components(graph, directed=False)
    members: list[list[str]] = [[] for _ in range(count)]
    for name, cluster in zip(shown, cluster_of, strict=True):
        members[cluster].append(name)
    return ["+".join(names) for names in members], np.array([cluster_of[place[names[unit[0]]]] for unit in units])


def _jackknife(
    fresh: Callable[[], Any], items: Mapping[str, Items], terms: Mapping[str, Term], names: Mapping[int, str]
) -> dict[str, Record]:
    """Describe scores by aggregations that leave out a group of pictures at a time; with a reason where one fails."""
    group_of = jackknife_groups(names.values())
    count = len(set(group_of.values()))
    places = {term.metric: [t.place for t in terms.values() if t.metric == term.metric] for term in terms.values()}
    reasons = _reasons(fresh, items, terms, count) if terms else {}
    results: dict[str, list[Array]] = {metric: [] for metric in places}
    for group in range(count):
        if places.keys() <= reasons.keys():
            break
        task = fresh()
        for metric in (metric for metric in places if metric not in reasons):
            kept = [item for doc_id, item in items[metric].items() if group_of[names[doc_id]] != group]
            try:
                results[metric].append(_aggregate(task, metric, kept)[places[metric]])
            except FAILURES as error:
                reasons[metric] = f"without group {group} of {count} of its pictures, its aggregation {_failure(error)}"
    records: dict[str, Record] = {}
    for name, (metric, place, _) in terms.items():
        if metric in reasons:
            records[name] = {"from": None, "reason": reasons[metric]}
            continue
        scores = np.array(results[metric])[:, places[metric].index(place)]
        influence = (scores.mean() - scores) * (count - 1) / count
        records[name] = _record("jackknife", [str(group) for group in range(count)], influence)
    return records


def _reasons(
    fresh: Callable[[], Any], items: Mapping[str, Items], terms: Mapping[str, Term], count: int
) -> dict[str, str]:
    """Return why metrics cannot be aggregated `count` times more: calls are slow, fail or give another score."""
    reasons = {}
    started, task = time.perf_counter(), fresh()
    spent = count * (time.perf_counter() - started)
    for metric in dict.fromkeys(term.metric for term in terms.values()):
        expected = [(term.place, term.score) for term in terms.values() if term.metric == metric]
        if not items.get(metric):
            reasons[metric] = "lmms-eval computes it from something else than values of questions"
            continue
        if count < 2:
            reasons[metric] = "it has only one picture, or one question without"
            continue
        started = time.perf_counter()
        try:
            scores = _aggregate(task, metric, list(items[metric].values()))
            seconds = time.perf_counter() - started
            if other := [(scores[place], score) for place, score in expected if not _equal(scores[place], score)]:
                reasons[metric] = "called again, its aggregation gives {:.6g} instead of {:.6g}".format(*other[0])
            elif spent + count * seconds > SECONDS:
                cost = f"{count} calls of {seconds:.1f} s"
                reasons[metric] = f"its aggregation is too slow: {cost} are more than the {SECONDS // 60} min of a task"
            else:
                spent += count * seconds
        except FAILURES as error:
            reasons[metric] = f"called again, its aggregation {_failure(error)}"
    return reasons


def _failure(error: BaseException) -> str:
    if isinstance(error, NetworkUsed):
        return "opens a connection, as to a judge"
    return f"fails ({type(error).__name__}: {one_line(error)[:200]})"


def _record(way: str, clusters: list[str], influence: Array) -> Record:
    return {"from": way, "clusters": clusters, "influence": [float(f"{effect:.9g}") for effect in influence]}


def _equal(score: float, other: float) -> bool:
    return isclose(score, other, rel_tol=1e-6, abs_tol=1e-9)


def _of(items: Items, unit: Iterable[int]) -> list[Any]:
    return [items[doc_id] for doc_id in unit]


def _aggregate(task: Any, metric: str, items: Sequence[Any]) -> Array:
    """Return a metric ("accuracy,none") of some questions as lmms-eval computes it, as an array of its numbers."""
    from lmms_eval.evaluator_utils import TaskOutput

    output = TaskOutput(task=task)
    output.sample_metrics[metric.rpartition(",")[::2]] = [copy(item) for item in items]
    with _without_trace(task.args.output_path):
        output.calculate_aggregate_metric(bootstrap_iters=0)
    scores = numeric(output.agg_metrics)
    if metric not in scores:
        raise ValueError("it returns no finite number")
    return np.atleast_1d(scores[metric])


@contextmanager
def _without_trace(scratch: str) -> Iterator[None]:
    """Run a task's code in a scratch folder, without its output and without the network."""

    def refuse(*_: Any, **__: Any) -> None:
        raise NetworkUsed

    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        for context in (
            chdir(scratch),
            redirect_stdout(null),
            redirect_stderr(null),
            warnings.catch_warnings(action="ignore"),
            patch.object(socket.socket, "connect", refuse),
            patch.object(socket, "getaddrinfo", refuse),
        ):
            stack.enter_context(context)
        logger.disable("")
        stack.callback(logger.enable, "")
        yield
