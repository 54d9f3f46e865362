"""Checks which models, scorers and data sets of conf/ are on this machine."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from harness.core.config import SHIPPED, ModelConfig, TasksConfig, conf
from harness.core.errors import UserError, one_line
from harness.core.overrides import compose
from harness.core.task_index import task_file
from harness.doctor import ABSENT, BROKEN, OK, Finding
from harness.evaluation import datasets as data
from harness.models import checkpoint


def models() -> Iterator[tuple[Finding, Path | None]]:
    """Look for every model of conf/model; yield a finding and the model's folder."""
    for name in _choices("model"):
        config = ModelConfig(**compose("config", [f"model={name}"]).model)
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


def scorers(folders: dict[str, Path | None]) -> Iterator[Finding]:
    """Look for the learned scorer and D2Pruner's prior next to each model that is here."""
    from harness.models.scorer import load_scorer, shipped_scorer

    for name, folder in folders.items():
        if folder is None:
            continue
        prior = " and a prior for d2pruner" * (folder / "d2prior.safetensors").is_file()
        try:
            scorer = shipped_scorer(str(folder))
            if scorer is None:
                text = f"no learned scorer next to the weights{prior}: methods that need one take model.scorer=/path"
                yield Finding("scorers", name, ABSENT, text)
                continue
            config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            module = load_scorer(scorer, config.get("text_config", config)["hidden_size"])
        except (ValueError, KeyError, OSError) as error:
            yield Finding("scorers", name, BROKEN, one_line(error))
        else:
            yield Finding("scorers", name, OK, f"a learned scorer for tokens of width {module.in_features}{prior}")


def datasets(data_root: data.DataRoot) -> Iterator[Finding]:
    """Look for the data of every task of conf/tasks: in `data_root`, in the Hub's caches, or next to the task file."""
    seen = set()
    for suite in _choices("tasks"):
        config = yaml.safe_load(conf("tasks", f"{suite}.yaml").read_text(encoding="utf-8"))
        if config["include"] is not None:
            yield _shipped(suite, [task_file(task, config["include"]) for task in config["metrics"]])
            continue
        for task in config["metrics"]:
            if task not in seen:
                seen.add(task)
                yield _dataset(task, data_root)


def _shipped(suite: str, files: list[Path]) -> Finding:
    """Check a suite whose tasks name data files next to them."""
    paths = {
        file.parent / name for file in files for name in data.described(file)["dataset_kwargs"]["data_files"].values()
    }
    if lacking := sorted(str(path) for path in paths if not path.is_file()):
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
    if cached := data.cached(repository):
        return Finding("datasets", task, OK, f"in {cached}")
    return Finding("datasets", task, ABSENT, f"{repository} is not here: lmms-eval downloads it, or data_root=/folder")


def _part(data_root: Any, task: str) -> dict[str, str] | None:
    return {task: str(data_root[task])} if task in data_root else None


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in conf(group).glob("*.yaml"))
