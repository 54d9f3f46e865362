"""Printed names and units of benchmarks; conf/tables/paper.yaml has those of the published tables."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import yaml

from harness.core.config import conf
from harness.results.labels import short

NO_SHARE = re.compile(r"cider|loss|perplexity|error|\bm[as]e\b", re.IGNORECASE)  # metrics that 1 does not bound


@cache
def facts() -> dict[str, Any]:
    """Read conf/tables/paper.yaml."""
    content: dict[str, Any] = yaml.safe_load(conf("tables", "paper.yaml").read_text(encoding="utf-8"))
    return content


def titles(tasks: Sequence[str], blank: str = " ") -> dict[str, str]:
    """Return task -> its printed name; where it has none, or shares it, what `short` makes of the task's name."""
    entries = facts()["benchmarks"].items()
    listed = {task: entry["name"] for benchmark, entry in entries for task in (benchmark, *entry["tasks"])}
    counts = Counter(listed.get(task) for task in tasks)
    own = short(tasks, blank)
    return {task: listed[task] if task in listed and counts[listed[task]] == 1 else own[task] for task in tasks}


def percent_scale(task: str, metric: str, scores: Iterable[float]) -> int:
    """Return 100 for a metric that is a share between 0 and 1, which is printed in percent; else 1."""
    listed = {task: entry["scale"] for entry in facts()["benchmarks"].values() for task in entry["tasks"]}
    known = [abs(score) for score in scores if score == score]
    is_share = bool(known) and max(known) <= 1 and not NO_SHARE.search(metric)
    return 100 if is_share and listed.get(task, 100) == 100 else 1


def greatest(task: str, metric: str, score: float) -> float:
    """Return the greatest score that a task's metric can reach, infinity if it is unknown."""
    if percent_scale(task, metric, [score]) == 100:
        return 1.0
    for entry in facts()["benchmarks"].values():
        if task in entry["tasks"] and entry.get("metric", metric) == metric:
            most = float(entry.get("of", 100) / entry["scale"])
            return most if score <= most else math.inf
    return math.inf
