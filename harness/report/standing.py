"""How runs stand, as one long frame for plots and the overview: `harness.results.summary` and facts of each run."""

import json
import math
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.results.frames import budget_key
from harness.results.labels import differing, flat, unlike
from harness.results.method_groups import group_of, group_rank
from harness.results.result import Result, failures, unproven
from harness.results.stats import AVERAGE
from harness.results.summary import COLUMNS, summary

FACTS = ["hash", "model", "tasks", "method", "name", "group", "lambda", "params", "K", "per_layer", "questions"]


def standing(results: Sequence[Result], resamples: int = 2000) -> tuple[pd.DataFrame, list[str]]:
    """`summary` (a row per run and benchmark, and for their average) joined with FACTS; and its notes.

    `name` tells apart the runs of one setting and budget; `params` are a method's parameters but for lambda, as JSON.
    """
    frame, notes = summary(results, resamples)
    for model, tasks in dict.fromkeys(map(_place, results)):
        alike = [result for result in results if _place(result) == (model, tasks)]
        notes += [f"{model} on {tasks}: {note}" for note in [*unlike(alike), *failures(alike), *unproven(alike)]]
    called = names(results)
    facts = pd.DataFrame([_facts(result, called[result.hash]) for result in results], columns=FACTS)
    return frame.merge(facts, on="hash", how="left", validate="many_to_one"), notes


def _place(result: Result) -> tuple[str, str]:
    config = result.about["config"]
    return config["model"]["name"], config["tasks"]["name"]


def _facts(result: Result, name: str) -> dict[str, Any]:
    config = result.about["config"]
    params = {key: it for key, it in config["method"].items() if key not in ("name", "lam")}
    return {
        "hash": result.hash,
        "model": config["model"]["name"],
        "tasks": config["tasks"]["name"],
        "method": result.method,
        "name": name,
        "group": group_of(result.method),
        "lambda": config["method"].get("lam"),
        "params": json.dumps(params, sort_keys=True),
        "K": result.tokens("budget"),
        "per_layer": result.tokens("per_layer"),
        "questions": sum(result.metrics["questions"].values()),
    }


def names(results: Sequence[Result]) -> dict[str, str]:
    """Hash -> the method, with the settings in which it differs from other runs of the same method and budget.

    A star marks one whose tokens are cut inside the language model: a layer sees more than K on average.
    """
    found = {}
    for result in results:
        alike = [
            r for r in results if (r.setting, r.budget, r.method) == (result.setting, result.budget, result.method)
        ]
        own = flat(result.about["identity"])
        parts = ", ".join(f"{key.rpartition('.')[2]} {own.get(key)}" for key in differing(alike))
        label = "unpruned" if result.is_baseline else result.method
        found[result.hash] = label + "*" * inside(result) + (f" ({parts})" if parts else "")
    return found


def inside(result: Result) -> bool:
    """True if early decoder layers see more tokens than are kept."""
    seen, kept = result.tokens("per_layer"), result.tokens("kept")
    return seen is not None and kept is not None and seen > kept


def of_scores(raw: pd.DataFrame) -> pd.DataFrame:
    """The same columns from raw scores without questions (`frames.read_scores`): no intervals, no tests."""
    rows = raw.assign(setting=raw["model"] + " " + raw["tasks"], params="{}")
    rows["hash"] = rows["setting"] + " " + rows["budget"] + " " + rows["method"] + " " + rows["lambda"].map(str)
    several = rows.groupby(["setting", "budget", "method"])["lambda"].transform("nunique") > 1
    rows["name"] = rows["method"] + (" (lam " + rows["lambda"].map(str) + ")").where(several, "")
    rows["K"] = [count if kind == "tokens" else math.nan for kind, count in map(budget_key, rows["budget"])]
    whole = rows.drop_duplicates("hash").assign(benchmark=AVERAGE, score=math.nan)
    counts = rows["setting"].map(rows.groupby("setting")["benchmark"].nunique())
    there = rows.groupby("hash")["relative"].transform("count") == counts  # no average over what is missing
    means = rows[there].groupby("hash")["relative"].mean()
    whole["relative"] = whole["hash"].map(means)
    return pd.concat([rows, whole], ignore_index=True).reindex(columns=[*COLUMNS, *FACTS[1:]])


def ordered(groups: Sequence[str]) -> list[str]:
    """Groups of methods in the order of tables, each once."""
    return sorted(set(groups), key=lambda group: (group_rank(group), group))


def short(benchmarks: Sequence[str]) -> dict[str, str]:
    """Benchmark -> its name without what all names start with, up to an underscore."""
    first, last = min(benchmarks, default=""), max(benchmarks, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    cut = first[:same].rfind("_") + 1 if len(set(benchmarks)) > 1 else 0
    return {name: name[cut:].replace("_", " ") for name in benchmarks}
