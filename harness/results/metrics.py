"""The numbers that lmms-eval reports of a task, and the one of them that tables show."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from harness.core.errors import UserError

OF_QUESTION = ("doc_id", "picture")  # columns of a question; the others are metrics
GROUPS = 64  # of pictures, of which a jackknife leaves out one at a time
TERM = re.compile(r"\s*(.+?)(?:\[(\d+)\])?\s*")  # of a metric expression: a name, and an index into a list


def primary(scores: dict[str, dict[str, Any]], metrics: dict[str, str | None]) -> dict[str, str | None]:
    """Return the metric of each task that tables show: the requested one or the first; UserError if it is missing."""
    chosen = {name: metric or next(iter(scores[name]), None) for name, metric in metrics.items()}
    for name, metric in chosen.items():
        value(scores[name], metric)
    return chosen


def numeric(results: dict[str, Any]) -> dict[str, Any]:
    """Return the finite numbers, or lists of them, of a task's results, without standard errors."""
    scores: dict[str, Any] = {}
    for key, result in results.items():
        is_list = isinstance(result, list | tuple)
        numbers = [_number(item) for item in (result if is_list else [result])]
        if "_stderr" not in key and None not in numbers:
            scores[key] = numbers if is_list else numbers[0]
    return scores


def per_question(
    samples: list[dict[str, Any]], columns: list[str], pictures: Mapping[int, str | None]
) -> dict[str, list[Any]]:
    """Return `doc_id`, `picture` and, for each metric of `columns` ("accuracy,none"), the value per question.

    `pictures` has the digest of what each document shows; it is shortened; "" stands for a question without one.

    These are the values that lmms-eval aggregates, from the task's own `process_results`. Most are numbers; some tasks
    have records (MME: category and score). `samples` has each document once per filter, in the order of the filters.
    """
    values = aggregated(samples, columns)
    ids = sorted({int(sample["doc_id"]) for sample in samples})
    of_question: dict[str, list[Any]] = {"doc_id": ids, "picture": [(pictures[doc_id] or "")[:16] for doc_id in ids]}
    return of_question | {name: [_plain(column.get(doc_id)) for doc_id in ids] for name, column in values.items()}


def aggregated(samples: list[dict[str, Any]], columns: list[str]) -> dict[str, dict[int, Any]]:
    """Return for each metric what lmms-eval aggregates, by document: not every document has a value for each."""
    pairs = [column.rpartition(",")[::2] for column in columns if "," in column]
    filters = list(dict.fromkeys(name for _, name in pairs))
    occurrences: Counter[int] = Counter()
    values: dict[str, dict[int, Any]] = {}
    for sample in samples:
        doc_id = int(sample["doc_id"])
        current = filters[occurrences[doc_id]]
        occurrences[doc_id] += 1
        for key, name in pairs:
            if name == current and key in sample:
                values.setdefault(f"{key},{name}", {})[doc_id] = sample[key]
    return values


def pictures(questions: Mapping[str, Sequence[Any]]) -> dict[int, str]:
    """Return the picture of each document of `per_question`; one without a picture is named by its own number."""
    pairs = zip(questions["doc_id"], questions["picture"], strict=True)
    return {doc_id: picture or str(doc_id) for doc_id, picture in pairs}


def jackknife_groups(names: Iterable[str]) -> dict[str, int]:
    """Return the group of each picture: the same in all runs, and of equal sizes but for one picture."""
    return {name: place % GROUPS for place, name in enumerate(sorted(set(names)))}


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold: NumPy numbers as numbers, NaN as null, other objects as text."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    number = _number(value)
    return str(value) if number is None and not isinstance(value, float) else number


def _number(value: Any) -> float | None:
    if isinstance(value, bool | str):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def value(scores: dict[str, Any], metric: str | None) -> float:
    """Evaluate a metric expression such as `a,none + b,none` or `c,none[2]` on a task's scores."""
    total = 0.0
    for term in (metric or "").split("+"):
        match = TERM.fullmatch(term)
        number = scores.get(match[1]) if match else None
        if match and match[2] and isinstance(number, list) and int(match[2]) < len(number):
            number = number[int(match[2])]
        if not isinstance(number, float):
            raise UserError(f"no metric {term.strip()!r} among {', '.join(scores) or 'no numbers'}: set tasks.metrics")
        total += number
    return total
