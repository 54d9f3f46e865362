"""Everything that a run resolves to before anything is loaded: device, model, data, pruners, identities, folders."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.config import RunConfig, shipped
from harness.core.distributed import launched
from harness.core.errors import UserError
from harness.core.files import digest, slug
from harness.core.task_index import task_files
from harness.evaluation import datasets, task_overrides
from harness.evaluation.grounding import scores_boxes, unit_of
from harness.evaluation.identity import Identity
from harness.evaluation.preflight import LocatedRun
from harness.evaluation.pruner import Pruner, pruner_of
from harness.models import checkpoint
from harness.models.loading import device_of
from harness.models.model_folder import ModelFolder
from harness.results.run_folder import RunFolder


@dataclass(frozen=True)
class PrunerRun:
    """One pruner on the tasks: what its answers depend on, and the folder that holds them."""

    pruner: Pruner
    answers: dict[str, Any]
    folder: RunFolder


@dataclass(frozen=True)
class RunPlan:
    """A configuration resolved; whoever runs, submits or estimates it looks nothing up again."""

    config: RunConfig
    device: str
    model: ModelFolder
    data: Mapping[str, Path]  # task -> local copy of its data set
    tasks: dict[str, Any]  # what scores depend on besides the answers
    runs: tuple[PrunerRun, ...]  # the baseline first, the configured run last

    @property
    def model_identity(self) -> dict[str, Any]:
        """What answers depend on besides the pruner."""
        model: dict[str, Any] = self.runs[0].answers["model"]
        return model


def plan(run: LocatedRun, device: str | None = None) -> RunPlan:
    """Resolve a run; its model is downloaded where needed. `device` replaces the configured one."""
    processes = launched()
    processes.gather()  # from here on, one process reports an error for all
    config = run.config if device is None else replace(run.config, model=replace(run.config.model, device=device))
    device = device_of(config.model)  # refuses a GPU that is not there before anything is downloaded
    model = processes.in_turn(lambda: run.model or ModelFolder(checkpoint.download(config.model)))
    identity = Identity(config, model)
    if len(set(processes.gather(digest([identity.model, identity.packages])))) > 1:
        raise UserError("the processes of this run differ in their kind of GPU or in the versions of their packages")
    pruners = [pruner_of(run.baseline.config, model)]
    if config.pruned:
        pruners.append(pruner_of(config, model))
    tasks = _tasks(run, model)
    runs = tuple(_pruner_run(config, pruner, identity.answers(pruner), tasks) for pruner in pruners)
    return RunPlan(config, device, model, run.data, tasks, runs)


def _tasks(run: LocatedRun, model: ModelFolder) -> dict[str, Any]:
    config, tasks = run.config, run.config.tasks
    reasoning = task_overrides.reasoning_tags(config.model.pretrained, tasks.include, tasks.metrics)
    include = shipped(tasks.include) if tasks.include else None
    return {
        "names": list(tasks.metrics),  # which metric the tables show changes no answer
        **config.question_sample.identity,
        "files": _files_digest(include) if include and set(tasks.metrics) & set(task_files(include)) else None,
        "prompts": model.adapter.prompts,
        "data": {name: datasets.fingerprint(copy) for name, copy in run.data.items()},
        "scoring": task_overrides.scoring(tasks.metrics),
        **({"reasoning_tags": reasoning} if reasoning else {}),
        **({"coordinates": unit_of(model.adapter)} if scores_boxes(tasks.metrics) else {}),
    }


def _pruner_run(config: RunConfig, pruner: Pruner, answers: dict[str, Any], tasks: dict[str, Any]) -> PrunerRun:
    whole = {**answers, "tasks": tasks}
    place = Path(config.runs) / slug(config.model.name) / slug(config.tasks.name)
    return PrunerRun(pruner, answers, RunFolder(place / f"{pruner.label}-{digest(whole)[:8]}", whole))


def _files_digest(folder: Path) -> str:
    """Digest of the task files, data and code below a folder, but not of what runs and tools leave there."""
    files = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith((".", "__pycache__"))]
        if "run.json" in names:
            folders.clear()
        else:
            files += [p for name in names if not name.startswith(".") and (p := Path(root, name)).is_file()]
    return digest([[str(p.relative_to(folder)), checkpoint.content_digest(p)] for p in sorted(files)])[:16]
