"""Which models, scorers and data sets of conf/ are on this machine."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.core.config import SHIPPED, ModelConfig, TasksConfig, conf
from harness.core.errors import UserError, one_line
from harness.core.task_index import task_file
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.evaluation import datasets as data
from harness.models import checkpoint


def models() -> Iterator[tuple[Finding, Path | None]]:
    """Every model of conf/model, and the folder that it is in."""
    for name in _choices("model"):
        config = ModelConfig(**model(name))
        try:
            folder = checkpoint.local_folder(config)
        except UserError as error:
            yield Finding("models", name, BROKEN, one_line(error)), None
            continue
        if folder is None:
            download = f"hf download {config.pretrained}"
            yield Finding("models", name, ABSENT, f"not here: {download}, or model.pretrained=/folder"), None
        else:
            kind = "ships with the harness" if config.pretrained.startswith(SHIPPED) else f"in {folder}"
            yield Finding("models", name, OK, kind), folder


def model(name: str) -> dict[str, Any]:
    """A file of conf/model with those that it is based on; a command cannot compose a second configuration."""
    own = yaml.safe_load(conf("model", f"{name}.yaml").read_text(encoding="utf-8"))
    based: dict[str, Any] = {}
    for other in own.pop("defaults", []):
        based |= model(other)
    return based | own


def scorers(folders: dict[str, Path | None]) -> Iterator[Finding]:
    """The learned scorer, and D2Pruner's prior, beside each model that is here."""
    from harness.models.scorer import load_scorer, shipped_scorer

    for name, folder in folders.items():
        if folder is None:
            continue
        prior = " and a prior for d2pruner" * (folder / "d2prior.safetensors").is_file()
        try:
            scorer = shipped_scorer(str(folder))
            if scorer is None:
                said = f"no learned scorer beside the weights{prior}: methods that need one take model.scorer=/path"
                yield Finding("scorers", name, ABSENT, said)
                continue
            about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            found = load_scorer(scorer, about.get("text_config", about)["hidden_size"])
        except (ValueError, KeyError, OSError) as error:
            yield Finding("scorers", name, BROKEN, one_line(error))
        else:
            said = f"a learned scorer for tokens of width {found.in_features}{prior}"
            yield Finding("scorers", name, OK, said)


def datasets(data_root: data.DataRoot) -> Iterator[Finding]:
    """The data of every task of conf/tasks: in `data_root`, in the caches of the Hub's client, or beside the task."""
    seen = set()
    for suite in _choices("tasks"):
        about = yaml.safe_load(conf("tasks", f"{suite}.yaml").read_text(encoding="utf-8"))
        if about["include"] is not None:
            yield _shipped(suite, [task_file(task, about["include"]) for task in about["metrics"]])
            continue
        for task in about["metrics"]:
            if task not in seen:
                seen.add(task)
                yield _dataset(task, data_root)


def _shipped(suite: str, files: list[Path]) -> Finding:
    """A suite of tasks that name files beside them."""
    named = {
        file.parent / name for file in files for name in data.described(file)["dataset_kwargs"]["data_files"].values()
    }
    if lacking := sorted(str(path) for path in named if not path.is_file()):
        return Finding("datasets", suite, BROKEN, f"lacks {', '.join(lacking)}")
    return Finding("datasets", suite, OK, f"{len(files)} tasks with their data ship with the harness")


def _dataset(task: str, data_root: data.DataRoot) -> Finding:
    repository = str(data.described(task_file(task, None)).get("dataset_path", ""))
    root = data_root if data_root is None or isinstance(data_root, str) else _part(data_root, task)
    if root is not None:
        try:
            return Finding("datasets", task, OK, f"in {data.local(TasksConfig(metrics={task: None}), root)[task]}")
        except data.NoCopyError as error:
            return Finding("datasets", task, ABSENT, one_line(error))
        except UserError as error:
            return Finding("datasets", task, BROKEN, one_line(error))
    if cached := _cached(repository):
        return Finding("datasets", task, OK, f"in {cached}")
    return Finding("datasets", task, ABSENT, f"{repository} is not here: lmms-eval fetches it, or data_root=/folder")


def _part(data_root: Any, task: str) -> dict[str, str] | None:
    return {task: str(data_root[task])} if task in data_root else None


def _cached(repository: str) -> Path | None:
    """Where the Hub's client or `datasets` keep a data set; whether it is whole is only seen when it is loaded."""
    from huggingface_hub import constants

    prepared = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    places = [
        Path(constants.HF_HUB_CACHE, "datasets--" + repository.replace("/", "--"), "snapshots"),
        Path(prepared).expanduser() / repository.replace("/", "___"),
    ]
    return next((place for place in places if place.is_dir() and any(place.iterdir())), None)


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in conf(group).glob("*.yaml"))
