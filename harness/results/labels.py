"""What sets runs apart: names that tell them apart in a table, and notes where a table holds unlike ones."""

from collections.abc import Callable, Iterable, Sequence
from os.path import commonprefix
from typing import Any

from harness.results.method_groups import group_rank
from harness.results.result import Result

ASIDE = ("contract", "seed", "positions")  # of the pruned runs alone; the unpruned model has none of its own


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of settings as one level: {"tasks.limit": None, ...}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value for key, part in tree.items() for name, value in flat(part, f"{prefix}.{key}".strip(".")).items()
    }


def differing(results: Sequence[Result], parts: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Setting -> its values in the runs, first come first, where there are several; only below `parts` if any."""
    each = [flat({k: v for k, v in r.about["identity"].items() if not parts or k in parts}) for r in results]
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for one in each for name in one):
        values = [one.get(name) for one in each]
        if any(value != values[0] for value in values):
            found[name] = [value for place, value in enumerate(values) if value not in values[:place]]
    return found


def _remarks(results: Sequence[Result], group: Callable[[Result], Any], but: str = "") -> dict[str, list[str]]:
    """Return `Result.hash` -> settings in which a run differs from others of its `group`, all `but` one."""
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(group(result), []).append(result)
    remarks = {}
    for runs in groups.values():
        settings = [name for name in differing(runs) if name != but]
        for run in runs:
            own = flat(run.about["identity"])
            remarks[run.hash] = [f"{name.rpartition('.')[2]} {own.get(name)}" for name in settings]
    return remarks


def labels(results: Sequence[Result]) -> dict[str, str]:
    """`Result.hash` -> a name that no other run of its setting and budget has: "random (seed 1)" beside "random"."""
    remarks = _remarks(
        results,
        lambda run: (run.about["config"]["model"]["name"], run.setting, run.budget, run.label),
        but="method.params.lam",  # lambda has a column
    )
    parts = [(run.hash, *run.label.partition(" (")[::2]) for run in results]
    return {key: name + _in_brackets([remark.rstrip(")"), *remarks[key]]) for key, name, remark in parts}


def names(results: Sequence[Result]) -> dict[str, str]:
    """Hash -> the method, with the settings in which it differs from other runs of the same method and budget.

    A star marks one whose tokens are cut inside the language model: a layer sees more than K on average.
    """
    remarks = _remarks(results, lambda run: (run.setting, run.budget, run.method))
    stars = {run.hash: "*" * is_inside(run.tokens("kept"), run.tokens("per_layer")) for run in results}
    own = {run.hash: "unpruned" if run.is_baseline else run.method for run in results}
    return {key: f"{name}{stars[key]}{_in_brackets(remarks[key])}" for key, name in own.items()}


def _in_brackets(remarks: Sequence[str]) -> str:
    text = ", ".join(filter(None, remarks))
    return f" ({text})" if text else ""


def unlike(results: Sequence[Result]) -> list[str]:
    """Notes for one table: settings that are not the same in all its runs, by value."""
    found = differing(results, ("model", "tasks"))
    found |= differing([result for result in results if not result.is_baseline], ASIDE)
    if not found:
        return _other_sources(results)
    said = "; ".join(f"{name}: {' and '.join(map(_short, values))}" for name, values in found.items())
    return [f"not all rows were made alike ({said}); rows of different settings are ranked apart"]


def _other_sources(results: Sequence[Result]) -> list[str]:
    """Return a note where runs of equal settings come from different source text or patch versions."""
    recorded = [{"sources": r.about.get("sources", {}).get("harness"), **r.packages} for r in results]
    names = dict.fromkeys(name for one in recorded for name in one)
    found = {name: dict.fromkeys(one.get(name) for one in recorded) for name in names}
    said = [f"{name}: {' and '.join(map(_short, values))}" for name, values in found.items() if len(values) > 1]
    return [f"rows come from different code of the same declared versions ({'; '.join(said)})"] if said else []


def _short(value: Any) -> str:
    return "none" if value is None else str(value)


def is_inside(kept: float | None, per_layer: float | None) -> bool:
    """Return whether early decoder layers see more tokens than are kept, since the cut lies behind them."""
    return kept is not None and per_layer is not None and bool(per_layer > kept)


def ordered(groups: Sequence[str]) -> list[str]:
    """Groups of methods in the order of tables, each once."""
    return sorted(set(groups), key=lambda group: (group_rank(group), group))


def short(benchmarks: Sequence[str], blank: str = " ") -> dict[str, str]:
    """Return benchmark -> its name without what all names start with, up to an underscore; others become `blank`."""
    cut = commonprefix(list(benchmarks)).rfind("_") + 1 if len(set(benchmarks)) > 1 else 0  # noqa: RUF071
    return {name: name[cut:].replace("_", blank) for name in benchmarks}
