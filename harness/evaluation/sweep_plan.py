"""The runs of a sweep before any of them starts: each once, the unpruned ones that they are compared with first."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hydra.core.utils import filter_overrides

from harness.core.config import RunConfig
from harness.core.config_groups import typed
from harness.results.run_folder import RunFolder
from harness.results.submissions import PlannedRun, key_of

Run = tuple[RunConfig, PlannedRun]


def of_folders(config: RunConfig) -> list[PlannedRun]:
    """The baseline of a run and the run itself, by the folders that they have or will have; the model is here."""
    from harness.evaluation.runner import planned  # imports torch: nothing that is quickly found wrong waits for it

    here = replace(config, model=replace(config.model, device="cpu"))  # a login node has no GPU
    return [_plan(folder, config.runs) for _, folder in planned(here)[1]]


def wanted_runs(
    sweep: Sequence[tuple[RunConfig, list[str]]], plans: Callable[[RunConfig], list[PlannedRun]] = of_folders
) -> list[Run]:
    """The runs of a sweep and their baselines, every one once, baselines first."""
    baselines: dict[str, Run] = {}
    runs: dict[str, Run] = {}
    for config, overrides in sweep:
        *before, own = plans(config)
        baselines.update({plan.key: (unpruned(config), plan) for plan in before})
        runs.setdefault(own.key, (config, replace(own, overrides=overrides)))
    return list({**baselines, **runs}.values())  # a baseline that the sweep names, too, keeps its place


def unpruned(config: RunConfig) -> RunConfig:
    """What a run is compared with."""
    return replace(config, method={"name": "none"}, keep=None, tokens=None)


def shared(points: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The overrides that all points of a sweep have, and those that each has beside them, as they can be typed."""
    plain = [list(filter_overrides(list(point))) for point in points]
    common = set.intersection(*map(set, plain))
    return sorted(map(typed, common)), [[typed(text) for text in point if text not in common] for point in plain]


def _plan(folder: RunFolder, runs: str) -> PlannedRun:
    where = folder.path.relative_to(runs)
    return PlannedRun(key_of(folder.identity), str(where.parent / where.name.rpartition("-")[0]))
