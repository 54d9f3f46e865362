"""Differences between runs: names that distinguish the rows of a table, and notes on settings that differ."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from os.path import commonprefix
from typing import Any

from harness.results.method_groups import group_rank
from harness.results.parameters import LAMBDA, in_words, unusual
from harness.results.result import Result

SHOWN = 3  # differences between settings that a row names
PARAMS = "method.params"  # begins the names of a method's parameters in an identity
PRUNED_ONLY = ("contract", "seed", "positions", "newlines")  # settings that the unpruned model does not have


class Remark(str):
    """A note that says how numbers were made; others warn of what changes how they are read."""


def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of settings: {"tasks.limit": None, ...}."""
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {
        name: value for key, part in tree.items() for name, value in flat(part, f"{prefix}.{key}".strip(".")).items()
    }


def differing(results: Sequence[Result], parts: Iterable[str] = ()) -> dict[str, list[Any]]:
    """Return each setting that differs between runs with its values, in the order of the runs.

    `parts` limits this to some parts of a run's identity.
    """
    settings = [flat({k: v for k, v in r.about["identity"].items() if not parts or k in parts}) for r in results]
    values_by_name: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for setting in settings for name in setting):
        values = [setting.get(name) for setting in settings]
        if any(value != values[0] for value in values):
            values_by_name[name] = [value for place, value in enumerate(values) if value not in values[:place]]
    return values_by_name


def _suffixes(results: Sequence[Result], group: Callable[[Result], Any], without: str = "") -> dict[str, list[str]]:
    """Return `Result.hash` -> settings to name, except `without`.

    They are those in which a run differs from others of its `group`, and parameters that are not the method's defaults.
    """
    groups: dict[Any, list[Result]] = {}
    for result in results:
        groups.setdefault(group(result), []).append(result)
    suffixes = {}
    for runs in groups.values():
        different = list(differing(runs))
        for run in runs:
            own = flat(unusual(run.about), PARAMS)
            # The identity leaves out parameters that a method got later, at their default.
            values = {**flat(run.about["config"]["method"], PARAMS), **flat(run.about["identity"]), **own}
            shown = [name for name in dict.fromkeys([*different, *own]) if name != without]
            suffixes[run.hash] = [in_words(name.rpartition(".")[2], values.get(name)) for name in shown]
    return suffixes


def labels(results: Sequence[Result]) -> dict[str, str]:
    """Return `Result.hash` -> a name that is unique within its setting and budget, such as "random (seed 1)".

    It also names parameters that are not the method's defaults, except lambda, which has a column.
    """
    suffixes = _suffixes(
        results,
        lambda run: (run.about["config"]["model"]["name"], run.setting, run.budget, run.label),
        without=f"{PARAMS}.{LAMBDA}",
    )
    return {run.hash: _with_files(run.label, suffixes[run.hash]) for run in results}


def title(result: Result) -> str:
    """Return the method with its files and all parameters that are not its defaults, as "idpruner (lam 0.7)"."""
    return _with_files(result.label, [in_words(*item) for item in unusual(result.about).items()])


def _with_files(label: str, suffixes: Sequence[str]) -> str:
    """Add to a label, as "d2pruner (prior 103a2a3e)", what else it names."""
    name, _, files = label.partition(" (")
    return name + _in_brackets([files.rstrip(")"), *suffixes])


def names(results: Sequence[Result]) -> dict[str, str]:
    """Return `Result.hash` -> the method, with parameters that are not its defaults, and what else tells runs apart.

    A star marks a method that cuts inside the language model, where a layer sees more than K tokens on average.
    """
    suffixes = _suffixes(results, lambda run: (run.setting, run.budget, run.method))
    stars = {run.hash: "*" * is_inside(run.tokens("budget"), run.tokens("per_layer")) for run in results}
    methods = {run.hash: "unpruned" if run.is_baseline else run.method for run in results}
    return {key: f"{name}{stars[key]}{_in_brackets(suffixes[key])}" for key, name in methods.items()}


def qualified(name: str, more: str) -> str:
    """Add text to what a name has in brackets: "fps (seed 1, limit 20)" for "fps (seed 1)" and "limit 20"."""
    method, _, suffix = name.partition(" (")
    return method + _in_brackets([suffix.removesuffix(")"), more])


def _in_brackets(suffixes: Sequence[str]) -> str:
    text = ", ".join(filter(None, suffixes))
    return f" ({text})" if text else ""


def settings(results: Sequence[Result]) -> dict[str, str]:
    """Return `Result.setting` -> in what it differs from others of its model and tasks, as "torch 2.10, limit 20".

    The text is empty where all runs of a model and its tasks have one setting.
    """
    groups: dict[Any, list[Result]] = {}
    for result in results:
        config = result.about["config"]
        groups.setdefault((config["model"]["name"], config["tasks"]["name"]), []).append(result)
    texts = {}
    for runs in groups.values():
        different = list(differing(runs, ("model", "tasks")))
        for run in runs:
            values = flat(run.about["identity"])
            parts = [_in_words(name.rpartition(".")[2], values.get(name)) for name in different[:SHOWN]]
            more = [f"and {len(different) - SHOWN} more"] * (len(different) > SHOWN)
            texts[run.setting] = ", ".join([*parts, *more])
    return texts


def _in_words(name: str, value: Any) -> str:
    text = str(value)
    return f"no {name}" if value is None else f"{name} {text if len(text) <= 16 else text[:8] + '…'}"


def versions(results: Sequence[Result]) -> str:
    """Return the releases of lmms-eval and transformers, and the dtype, as "lmms-eval 0.7.3, float32"."""
    texts = []
    for result in results:
        releases = ((name, result.packages.get(name)) for name in ("lmms-eval", "transformers"))
        dtype = str(result.about["identity"]["model"].get("dtype"))
        texts.append(", ".join([*(f"{name} {release}" for name, release in releases if release), dtype]))
    return " and ".join(dict.fromkeys(texts))


def setting_notes(results: Sequence[Result]) -> list[str]:
    """Return notes for a table of first questions, and for one whose runs differ in settings or in code."""
    notes = sample_notes(results)
    settings = differing(results, ("model", "tasks"))
    settings |= differing([result for result in results if not result.is_baseline], PRUNED_ONLY)
    if not settings:
        return [*notes, *_source_notes(results)]
    return [*notes, f"rows differ in settings ({_listed(settings)}); rows of different settings are ranked separately"]


def sample_notes(results: Sequence[Result]) -> list[str]:
    """Return a note for each limit with which runs asked the first questions."""
    samples = [run.sample for run in results if run.sample.get("limit") is not None]
    limits = dict.fromkeys(sample["limit"] for sample in samples if sample.get("sample", "first") == "first")
    sorted_tasks = "many tasks are sorted, so this is no random sample (sample=random draws one)"
    return [f"limit={limit} asks the first questions of each task; {sorted_tasks}" for limit in limits]


def _source_notes(results: Sequence[Result]) -> list[str]:
    """Return a note where runs of equal settings come from different source text or patch versions."""
    recorded = [{"sources": r.about.get("sources", {}).get("harness"), **r.packages} for r in results]
    names = dict.fromkeys(name for versions in recorded for name in versions)
    values_by_name = {name: dict.fromkeys(versions.get(name) for versions in recorded) for name in names}
    differences = {name: values for name, values in values_by_name.items() if len(values) > 1}
    note = f"rows come from different code of the same declared versions ({_listed(differences)})"
    return [Remark(note)] if differences else []


def _listed(values_by_name: Mapping[str, Iterable[Any]]) -> str:
    return "; ".join(
        f"{name}: {' and '.join('none' if value is None else str(value) for value in values)}"
        for name, values in values_by_name.items()
    )


def is_inside(budget: float | None, per_layer: float | None) -> bool:
    """Return whether a decoder layer sees more tokens on average than K, since the cut comes after some of them."""
    return budget is not None and per_layer is not None and bool(per_layer > budget)


def ranked_apart(budget: float | None, per_layer: float | None) -> float:
    """Return the tokens per layer of a row that `is_inside`, which is ranked among rows with as many; 0 for others."""
    return per_layer if per_layer is not None and is_inside(budget, per_layer) else 0.0


def ordered(groups: Sequence[str]) -> list[str]:
    """Return groups of methods without repetition, in the order of tables."""
    return sorted(set(groups), key=lambda group: (group_rank(group), group))


def short(benchmarks: Sequence[str], blank: str = " ") -> dict[str, str]:
    """Return benchmark -> its name without the prefix that all names share, up to an underscore.

    Other underscores become `blank`.
    """
    cut = commonprefix(list(benchmarks)).rfind("_") + 1 if len(set(benchmarks)) > 1 else 0  # noqa: RUF071
    return {name: name[cut:].replace("_", blank) for name in benchmarks}
