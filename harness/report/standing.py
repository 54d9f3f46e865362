"""How runs stand, as one long frame that plots and the overview read: `harness.summary` with what each run is."""

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from harness.groups import group_of, group_rank
from harness.results import Result
from harness.summary import summary

FACTS = ["hash", "model", "tasks", "method", "name", "group", "lambda", "params", "K", "per_layer", "questions"]


def standing(results: Sequence[Result], resamples: int = 2000) -> tuple[pd.DataFrame, list[str]]:
    """`summary` (a row per run and benchmark, and for their average) joined with FACTS; and its notes.

    `name` tells apart the runs of one setting and budget; `params` are a method's parameters but for lambda, as JSON.
    """
    frame, notes = summary(results, resamples)
    called = names(results)
    facts = pd.DataFrame([_facts(result, called[result.hash]) for result in results], columns=FACTS)
    return frame.merge(facts, on="hash", how="left", validate="many_to_one"), notes


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
        mine = _settings(result)
        alike = [
            r for r in results if (r.setting, r.budget, r.method) == (result.setting, result.budget, result.method)
        ]
        others = [_settings(other) for other in alike]
        parts = [f"{key}={it}" for key, it in mine.items() if any(other.get(key) != it for other in others)]
        label = "unpruned" if result.is_baseline else result.method
        found[result.hash] = " ".join([label + "*" * inside(result), *parts])
        if [_settings(other) for other in alike].count(mine) > 1:  # they differ in versions or code
            found[result.hash] += f" #{result.hash[:4]}"
    return found


def inside(result: Result) -> bool:
    """True if early decoder layers see more tokens than are kept."""
    seen, kept = result.tokens("per_layer"), result.tokens("kept")
    return seen is not None and kept is not None and seen > kept


def _settings(result: Result) -> dict[str, Any]:
    config = result.about["config"]
    params = {key: it for key, it in config["method"].items() if key != "name"}
    digests = {key: about["digest"][:8] for key, about in result.about["made_from"].items()}
    return {**params, **digests, "positions": config["positions"], "seed": config["seed"]}


def ordered(groups: Sequence[str]) -> list[str]:
    """Groups of methods in the order of tables, each once."""
    return sorted(set(groups), key=lambda group: (group_rank(group), group))


def short(benchmarks: Sequence[str]) -> dict[str, str]:
    """Benchmark -> its name without what all names start with, up to an underscore."""
    first, last = min(benchmarks, default=""), max(benchmarks, default="")
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), 0)
    cut = first[:same].rfind("_") + 1 if len(set(benchmarks)) > 1 else 0
    return {name: name[cut:].replace("_", " ") for name in benchmarks}
