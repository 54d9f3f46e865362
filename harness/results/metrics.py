"""The numbers that lmms-eval reports of a task, and the one of them that tables show."""

import math
import re
from collections import Counter
from typing import Any

from harness.core.errors import UserError

TERM = re.compile(r"\s*(.+?)(?:\[(\d+)\])?\s*")  # of a metric expression: a name, and an index into a list


def primary(scores: dict[str, dict[str, Any]], metrics: dict[str, str | None]) -> dict[str, str | None]:
    """The metric of each task that the tables show: the one asked for, or the first; UserError if it is not there."""
    chosen = {name: metric or next(iter(scores[name]), None) for name, metric in metrics.items()}
    for name, metric in chosen.items():
        value(scores[name], metric)
    return chosen


def numeric(results: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers, or lists of them, among a task's results, in lmms-eval's order, without standard errors."""
    kept: dict[str, Any] = {}
    for key, found in results.items():
        several = isinstance(found, list | tuple)
        numbers = [_number(item) for item in (found if several else [found])]
        if "_stderr" not in key and None not in numbers:
            kept[key] = numbers if several else numbers[0]
    return kept


def per_question(samples: list[dict[str, Any]], columns: list[str]) -> dict[str, list[Any]]:
    """What lmms-eval aggregates: `doc_id` and, for each metric of `columns` ("accuracy,none"), a value per question.

    A value is what the task's own `process_results` gave: mostly a number, for some tasks a record (MME's category and
    score). A document stands once per filter among lmms-eval's samples, in the order of the filters.
    """
    pairs = [column.rpartition(",")[::2] for column in columns if "," in column]
    filters = list(dict.fromkeys(kind for _, kind in pairs))
    seen: Counter[int] = Counter()
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        doc_id = int(sample["doc_id"])
        of = filters[seen[doc_id]]
        seen[doc_id] += 1
        found = {f"{key},{kind}": _plain(sample[key]) for key, kind in pairs if kind == of and key in sample}
        rows.setdefault(doc_id, {}).update(found)
    ids = sorted(rows)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return {"doc_id": ids} | {name: [rows[doc_id].get(name) for doc_id in ids] for name in names}


def _plain(found: Any) -> Any:
    """A value as JSON has it: NumPy's numbers as numbers, NaN as null, what JSON cannot hold as text."""
    if isinstance(found, dict):
        return {str(key): _plain(item) for key, item in found.items()}
    if isinstance(found, list | tuple | set):
        return [_plain(item) for item in found]
    if found is None or isinstance(found, str | bool | int):
        return found
    number = _number(found)
    return str(found) if number is None and not isinstance(found, float) else number


def _number(found: Any) -> float | None:
    if isinstance(found, bool | str):
        return None
    try:
        number = float(found)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def value(scores: dict[str, Any], metric: str | None) -> float:
    """The number that a metric expression such as `a,none + b,none` or `c,none[2]` names among a task's scores."""
    total = 0.0
    for term in (metric or "").split("+"):
        match = TERM.fullmatch(term)
        found = scores.get(match[1]) if match else None
        if match and match[2] and isinstance(found, list) and int(match[2]) < len(found):
            found = found[int(match[2])]
        if not isinstance(found, float):
            raise UserError(f"no metric {term.strip()!r} among {', '.join(scores) or 'no numbers'}: set tasks.metrics")
        total += found
    return total
