"""Checks of a configuration before anything is loaded, and the places of its model and data."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

import methods
from harness.core.config import RunConfig, TasksConfig, shipped, validate
from harness.core.config_groups import check_tasks, register
from harness.core.errors import UserError, as_user_error
from harness.core.files import check_place
from harness.core.overrides import parse
from harness.core.question_sample import QuestionSample
from harness.core.task_index import collection_of, lmms_eval_tasks, task_file, task_files
from harness.evaluation import datasets, judges
from harness.models import checkpoint
from harness.models.model_folder import ModelFolder

if TYPE_CHECKING:
    from methods.base import Method


@dataclass(frozen=True)
class LocatedRun:
    """A configuration with the local places of what it reads, which are looked up once."""

    config: RunConfig
    data: Mapping[str, Path]  # task -> local copy of its data set
    model: ModelFolder | None  # None: to be downloaded

    @property
    def baseline(self) -> "LocatedRun":
        """The run of the unpruned model, with which this one is compared."""
        config = replace(self.config, keep=None, tokens=None, per_tile=None)
        return replace(self, config=replace(config, method={"name": "none"}))


def prepare(overrides: list[str]) -> list[str]:
    """Register choices that have no file in conf/, and name a model of the user's own after its folder."""
    parsed = parse(overrides)
    for name in (name for o in parsed if o.key_or_group == "tasks" for name in _listed(o)):
        refuse_collection(name)
    keys = {override.key_or_group for override in parsed}
    if "model.pretrained" in keys and not keys & {"model", "model.name"}:
        overrides = [*overrides, "model.name='${basename:${model.pretrained}}'"]
    return register(overrides)


def _listed(override: Override) -> list[str]:
    """Return the names in `tasks=`: of one task, a list or a sweep."""
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    if [] in values:
        raise UserError("tasks=[] names no task: choose at least one, as in tasks=pocket_existence")
    return [str(name) for value in values for name in (value if isinstance(value, list) else [value])]


def locate(config: RunConfig) -> LocatedRun:
    """Look up the model and the copies of the data sets; UserError names what is missing or cut short."""
    return LocatedRun(config, datasets.local(config.tasks, config.data_root), _model_folder(config))


def check(cfg: DictConfig) -> LocatedRun:
    """Refuse everything that can be found wrong without importing torch."""
    config = validate(cfg)
    check_tasks(config.tasks)
    check_versions()
    check_scoring(config.tasks, config.question_sample)
    data = datasets.local(config.tasks, config.data_root)
    check_place(Path(config.runs))
    return LocatedRun(config, data, _model_folder(config))


def check_parameters(config: RunConfig) -> None:
    """Refuse parameters that the method does not know or cannot work with; this imports torch."""
    with as_user_error((ValueError, TypeError)):
        methods.load(config.method["name"], **config.params)


def check_family(run: LocatedRun) -> "Method":
    """Return the method of a run; UserError if a parameter is left open or the model's family cannot supply a need.

    Of a model that is not here yet, only config.json and companion files of the method are downloaded.
    """
    from harness.evaluation import grounding
    from harness.evaluation.pruner import checked_method, missing_companions

    config, model = run.config, run.model
    if model is None:
        model = ModelFolder(checkpoint.download_config(config.model, missing_companions(config).values()))
    if grounding.scores_boxes(config.tasks.metrics):
        grounding.unit_of(model.adapter)
    return checked_method(config, model)


def check_scoring(tasks: TasksConfig, sample: QuestionSample) -> None:
    """Refuse tasks that lmms-eval would fail to score after all answers are there, or would score over the network."""
    local = task_files(shipped(tasks.include)) if tasks.include else {}
    for name in set(tasks.metrics) & set(lmms_eval_tasks()):
        if name in local:
            raise UserError(f"task {name} in tasks.include={tasks.include} has a name of lmms-eval's own: rename it")
        if name == "mme" and (limit := sample.limit) and limit >= 1 and limit % 2:
            raise UserError(f"task mme scores questions in pairs: limit={limit} must be even")
        if name == "vinoground" and not sample.whole:
            choice = f"limit={sample.limit}" if sample.limit else "questions="
            others = ",".join(task for task in tasks.metrics if task != name)
            rest = f", or ask the others: 'tasks=[{others}]'" if others else ""
            raise UserError(f"task vinoground scores all its questions together: leave {choice} out{rest}")
    for name in tasks.metrics:
        judges.check_key(name, task_file(name, tasks.include))


def check_versions() -> None:
    """Refuse versions of libraries that lmms-eval cannot run with; it would fail only when it asks the model."""
    if importlib.util.find_spec("filelock._api") is None:
        versions = f"lmms-eval {version('lmms-eval')} does not run with filelock {version('filelock')}"
        raise UserError(f"{versions}, which lacks filelock._api: pip install 'filelock<4'")


def refuse_collection(name: str) -> None:
    """Refuse a group or a tag of lmms-eval's: some tasks have no labels or need a judge, so the user has to choose."""
    if name not in lmms_eval_tasks() and (collection := collection_of(name)):
        kind, members = collection
        raise UserError(f"{name} is a {kind} of tasks: choose some of tasks=[{','.join(members)}]")


def _model_folder(config: RunConfig) -> ModelFolder | None:
    folder = (checkpoint.local_folder if config.dry_run else checkpoint.check)(config.model)
    return None if folder is None else ModelFolder(folder)
