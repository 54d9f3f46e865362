"""Checks of a configuration before anything is loaded, and the places of its model and data."""

import importlib.util
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

import methods
from harness.core.config import RunConfig, TasksConfig, shipped, validate
from harness.core.config_groups import check_tasks, register
from harness.core.errors import UserError, one_line
from harness.core.files import check_place
from harness.core.overrides import parse
from harness.core.task_index import lmms_eval_tasks, task_files
from harness.evaluation import datasets
from harness.models import checkpoint
from harness.models.model_folder import ModelFolder

if TYPE_CHECKING:
    from methods.base import Method

_JUDGED = re.compile(r"mmbench_((en|cn|ru|ko)_dev(_lite)?|cn_cc)")
_JUDGES = ("OPENAI_API_KEY", "AZURE_API_KEY")


@dataclass(frozen=True)
class LocatedRun:
    """A configuration with the local places of what it reads, which are looked up once."""

    config: RunConfig
    data: Mapping[str, Path]  # task -> local copy of its data set
    model: ModelFolder | None  # None: to be downloaded

    @property
    def baseline(self) -> "LocatedRun":
        """The run of the unpruned model, with which this one is compared."""
        return replace(self, config=replace(self.config, method={"name": "none"}, keep=None, tokens=None))


def prepare(overrides: list[str]) -> list[str]:
    """Register choices that have no file in conf/, and name a model of the user's own after its folder."""
    parsed = parse(overrides)
    for name in (name for o in parsed if o.key_or_group == "tasks" for name in _listed(o)):
        refuse_group(name)
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
    check_scoring(config.tasks, config.limit)
    data = datasets.local(config.tasks, config.data_root)
    check_place(Path(config.runs))
    return LocatedRun(config, data, _model_folder(config))


def check_parameters(config: RunConfig) -> None:
    """Refuse parameters that the method does not know or cannot work with; this imports torch."""
    try:
        methods.load(config.method["name"], **config.params)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def check_family(run: LocatedRun) -> "Method":
    """Return the method of a run; UserError if a parameter is left open or the model's family cannot supply a need.

    Of a model that is not here yet, only config.json and companion files of the method are downloaded.
    """
    from harness.evaluation.pruner import checked_method, missing_companions

    config, model = run.config, run.model
    if model is None:
        model = ModelFolder(checkpoint.download_config(config.model, missing_companions(config).values()))
    return checked_method(config, model)


def check_scoring(tasks: TasksConfig, limit: int | None) -> None:
    """Refuse tasks that lmms-eval would fail to score after all answers are there, or would score over the network."""
    local = task_files(shipped(tasks.include)) if tasks.include else {}
    for name in set(tasks.metrics) & set(lmms_eval_tasks()):
        if name in local:
            raise UserError(f"task {name} in tasks.include={tasks.include} has a name of lmms-eval's own: rename it")
        if name == "mme" and limit and limit % 2:
            raise UserError(f"task mme scores questions in pairs: limit={limit} must be even")
        if name == "vinoground" and limit:
            raise UserError(f"task vinoground scores all its questions together: leave limit={limit} out")
        if _JUDGED.fullmatch(name) and not any(map(os.environ.get, _JUDGES)):
            static = f"; {name}_static needs none" if f"{name}_static" in lmms_eval_tasks() else ""
            raise UserError(f"task {name} asks a judge over the network: set {' or '.join(_JUDGES)}{static}")


def check_versions() -> None:
    """Refuse versions of libraries that lmms-eval cannot run with; it would fail only when it asks the model."""
    if importlib.util.find_spec("filelock._api") is None:
        versions = f"lmms-eval {version('lmms-eval')} does not run with filelock {version('filelock')}"
        raise UserError(f"{versions}, which lacks filelock._api: pip install 'filelock<4'")


def refuse_group(name: str) -> None:
    """Refuse a group of lmms-eval's: some members have no labels or need a judge, so the user has to choose."""
    tasks = lmms_eval_tasks()
    if name in tasks:
        return
    line = re.compile(rf"^group:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for file in Path(os.path.commonpath(tasks.values())).rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if line.search(text):
            members = yaml.safe_load(text.replace("!function", ""))["task"]
            names = [str(m["task"] if isinstance(m, dict) else m) for m in members]
            raise UserError(f"{name} is a group of tasks: choose some of tasks=[{','.join(names)}]")


def _model_folder(config: RunConfig) -> ModelFolder | None:
    folder = (checkpoint.local_folder if config.dry_run else checkpoint.check)(config.model)
    return None if folder is None else ModelFolder(folder)
