"""What can be wrong with a configuration, found before anything is loaded."""

import importlib.util
import os
import re
from importlib.metadata import version
from pathlib import Path

import yaml
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

import methods
from harness.core.config import TasksConfig, shipped, validate
from harness.core.config_groups import check_tasks, register
from harness.core.errors import UserError, one_line
from harness.core.files import check_place
from harness.core.overrides import parse
from harness.core.task_index import lmms_eval_tasks, task_files
from harness.evaluation import datasets
from harness.models import checkpoint

_JUDGED = re.compile(r"mmbench_((en|cn|ru|ko)_dev(_lite)?|cn_cc)")
_JUDGES = ("OPENAI_API_KEY", "AZURE_API_KEY")


def prepare(overrides: list[str]) -> list[str]:
    """Choices that need no file in conf/, and the folder's name for weights that would else be called pocket."""
    parsed = parse(overrides)
    for name in (name for o in parsed if o.key_or_group == "tasks" for name in _listed(o)):
        refuse_group(name)
    given = {override.key_or_group for override in parsed}
    if "model.pretrained" in given and not given & {"model", "model.name"}:
        overrides = [*overrides, "model.name='${basename:${model.pretrained}}'"]
    return register(overrides)


def _listed(override: Override) -> list[str]:
    """The names in `tasks=`, be it one, a list or a sweep."""
    values = list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]
    if [] in values:
        raise UserError("tasks=[] names no task: choose at least one, as in tasks=pocket_existence")
    return [str(name) for value in values for name in (value if isinstance(value, list) else [value])]


def check(cfg: DictConfig) -> None:
    """Everything that can be found wrong without importing torch."""
    config = validate(cfg)
    check_tasks(config.tasks)
    check_versions()
    check_scoring(config.tasks, config.limit)
    datasets.local(config.tasks, config.data_root)
    check_place(Path(config.runs))
    (checkpoint.local_folder if config.dry_run else checkpoint.check)(config.model)


def check_parameters(cfg: DictConfig) -> None:
    """The method refuses what it does not know or cannot work with; this imports torch."""
    config = validate(cfg)
    try:
        methods.load(config.method["name"], **config.params)
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error


def check_family(cfg: DictConfig) -> None:
    """The model's family refuses what it cannot supply, from config.json alone, and the method what nobody said."""
    from harness.evaluation import reuse
    from harness.evaluation.pruner import checked_method, missing_companions

    config = validate(cfg)
    if config.dry_run:
        return  # which says it of a model that is not here, too
    beside = missing_companions(config).values()
    reuse.expect(config.model, checked_method(config, checkpoint.config_folder(config.model, beside)))


def check_scoring(tasks: TasksConfig, limit: int | None) -> None:
    """UserError where lmms-eval would answer every question and only then, or over the network, fail to score them."""
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
    """UserError where lmms-eval cannot run on another library's version: it would say so only when it begins to ask."""
    if importlib.util.find_spec("filelock._api") is None:
        versions = f"lmms-eval {version('lmms-eval')} does not run with filelock {version('filelock')}"
        raise UserError(f"{versions}, which lacks filelock._api: pip install 'filelock<4'")


def refuse_group(name: str) -> None:
    """UserError if `name` is a group of lmms-eval: some members have no labels or need a judge, so none is guessed."""
    known = lmms_eval_tasks()
    if name in known:
        return
    line = re.compile(rf"^group:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for file in Path(os.path.commonpath(known.values())).rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if line.search(text):
            members = yaml.safe_load(text.replace("!function", ""))["task"]
            names = [str(m["task"] if isinstance(m, dict) else m) for m in members]
            raise UserError(f"{name} is a group of tasks: choose some of tasks=[{','.join(names)}]")
