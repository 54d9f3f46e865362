"""The runs of a sweep before any of them starts: each once, baselines first."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from hydra.core.utils import filter_overrides

from harness.core.config_groups import typed
from harness.evaluation.preflight import LocatedRun
from harness.results.run_folder import RunFolder
from harness.results.submissions import PlannedRun, key_of

Run = tuple[LocatedRun, PlannedRun]


def of_folders(run: LocatedRun) -> list[PlannedRun]:
    """Return the baseline of a run and the run itself, by their folders; the model has to be here."""
    from harness.evaluation.run_plan import plan  # imports torch, which quick checks do not wait for

    parts = plan(run, device="cpu").runs  # a login node has no GPU
    return [_planned(part.folder, run.config.runs) for part in parts]


def wanted_runs(
    sweep: Sequence[tuple[LocatedRun, list[str]]], plans: Callable[[LocatedRun], list[PlannedRun]] = of_folders
) -> list[Run]:
    """Return the runs of a sweep and their baselines, each once, baselines first."""
    baselines: dict[str, Run] = {}
    runs: dict[str, Run] = {}
    for run, overrides in sweep:
        *before, own = plans(run)
        baselines.update({baseline.key: (run.baseline, baseline) for baseline in before})
        runs.setdefault(own.key, (run, replace(own, overrides=overrides)))
    return list({**baselines, **runs}.values())  # a baseline that the sweep itself lists keeps its place


def shared(points: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the overrides that all points of a sweep share, and the others of each, as they can be typed."""
    plain = [list(filter_overrides(list(point))) for point in points]
    common = set.intersection(*map(set, plain))
    return sorted(map(typed, common)), [[typed(text) for text in point if text not in common] for point in plain]


def _planned(folder: RunFolder, runs: str) -> PlannedRun:
    where = folder.path.relative_to(runs)
    return PlannedRun(key_of(folder.identity), str(where.parent / where.name.rpartition("-")[0]))
