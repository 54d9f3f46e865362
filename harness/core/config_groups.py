"""Choices without a file in conf/: third-party and private methods, single lmms-eval tasks, lists of tasks."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import QuotedString

import methods
from harness.core.config import TasksConfig, conf, shipped
from harness.core.errors import UserError, did_you_mean
from harness.core.files import expanded
from harness.core.overrides import parse
from harness.core.task_index import lmms_eval_tasks, task_files

POCKET_TASKS = tuple(f"harness://pocket/{folder}" for folder in ("tasks", "clip_tasks", "photo_tasks"))
_typed: dict[str, str] = {}  # override after `register` -> as the user typed it


def register(overrides: list[str]) -> list[str]:
    """Make `method=`, `model=` and `tasks=` resolvable; return the overrides with composite choices renamed."""
    parsed = parse(overrides)
    values_by_key = {str(o.key_or_group): None if o.is_sweep_override() else o.value() for o in parsed}
    resolve = {"method": _method, "model": _model, "tasks": _tasks}
    result = []
    for override in parsed:
        group = override.key_or_group
        if group in resolve and not override.is_delete():
            swept = override.is_sweep_override()
            values = list(override.sweep_iterator()) if swept else [override.value()]
            texts = override.sweep_string_iterator() if swept else [override.get_value_string()]
            options = [resolve[group](_plain(value), values_by_key) for value in values]
            for value, text, option in zip(values, texts, options, strict=True):
                _typed[f"{group}={option}"] = f"{group}={value if isinstance(value, str) else text}"  # no \: in a path
            result.append(f"{group}=" + ",".join(options))
        else:
            result.append(str(override.input_line))
    return result


def typed(override: str) -> str:
    """Return an override as the user typed it: `register` renames choices without a file in conf/."""
    return _typed.get(override, override)


def check_tasks(tasks: TasksConfig) -> None:
    """Check that every task is one of lmms-eval, of the pocket suite or of `tasks.include`."""
    if tasks.include is not None and not shipped(tasks.include).is_dir():
        raise UserError(f"no folder at tasks.include={tasks.include}: pass the folder of the lmms-eval task files")
    local = task_files(shipped(tasks.include)) if tasks.include else {}
    for name in tasks.metrics:
        if name not in local and name not in lmms_eval_tasks():
            raise UserError(f"unknown task {name}: {_task_hint(name, local)}")


def _task_hint(name: str, local: Iterable[str]) -> str:
    return did_you_mean(name, local, lmms_eval_tasks(), "python -m lmms_eval --tasks list")


def options(group: str) -> list[str]:
    """Return the choices of a group that have a file in conf/."""
    return sorted(path.stem for path in conf(group).glob("*.yaml"))


def module_of(config_name: str) -> str:
    """Return the module whose configuration this is."""
    return "harness" if config_name == "config" else f"harness.{config_name}"


def command_of(experiment: str) -> str:
    """Return the module that an experiment is for: the one that its file names, else the main job."""
    file = conf("experiment", f"{experiment}.yaml")
    if not file.is_file():
        raise UserError(f"unknown experiment={experiment}: {did_you_mean(experiment, options('experiment'))}")
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    return str(content.get("hydra", {}).get("job", {}).get("name", "harness"))


def _model(value: Any, values_by_key: dict[str, Any]) -> str:
    if value not in options("model"):
        hint = "; for a local folder keep model= and pass model.pretrained=FOLDER"
        raise UserError(f"unknown model {value}: {did_you_mean(str(value), options('model'))}{hint}")
    return str(value)


def _plain(value: Any) -> Any:
    """Strip Hydra's record of the quotes from a value."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def _with_parameters(value: dict[str, Any], values_by_key: dict[str, Any]) -> str:
    """Register a method with its parameters, as in `{name: fastv, variant: paper}`; a sweep may hold several."""
    if "name" not in value:
        raise UserError(f"method={value} has no name: write it as in method={{name: fastv, variant: paper}}")
    params = {key: item for key, item in value.items() if key != "name"}
    base = _method(value["name"], values_by_key)
    option = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join([base, *(f"{key}-{item}" for key, item in params.items())]))
    ConfigStore.instance().store(group="method", name=option, node={"defaults": [base, "_self_"], **params})
    return option


def _method(value: Any, values_by_key: dict[str, Any]) -> str:
    if isinstance(value, dict):
        return _with_parameters(value, values_by_key)
    name = str(value)
    if name in options("method"):
        return name
    option = name
    if ".py" in name:
        file, _, cls = name.rpartition(":")
        path = Path(os.path.realpath(expanded(file)))
        if not path.is_file() or not cls:
            raise UserError(f"no method at {name}: a private method is given as method=path/to/file.py:Class")
        path_hash = hashlib.sha256(f"{path}:{cls}".encode()).hexdigest()[:6]  # two folders may have files of one name
        option = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{path.stem}-{cls}-{path_hash}")
    elif name not in methods.names() and name in methods.UNAVAILABLE:
        raise UserError(f"method '{name}' is not available: {methods.UNAVAILABLE[name]}")
    elif name not in methods.names():
        raise UserError(f"unknown method {name}: {did_you_mean(name, {*methods.names(), *options('method')})}")
    # Importing the class may need torch: its parameters are taken as they come and checked when it is loaded.
    params = {key.removeprefix("method."): None for key in values_by_key if key.startswith("method.")}
    ConfigStore.instance().store(group="method", name=option, node={"name": name, **params})
    return option


def _suite(name: str) -> list[str]:
    """Return the tasks of a suite in conf/tasks; any other name is a task itself."""
    if name not in options("tasks"):
        return [name]
    return list(yaml.safe_load(conf("tasks", f"{name}.yaml").read_text(encoding="utf-8"))["metrics"])


def _tasks(value: Any, values_by_key: dict[str, Any]) -> str:
    if isinstance(value, str) and value in options("tasks"):
        return value
    listed = [str(name) for name in value] if isinstance(value, list) else [str(value)]
    names = [task for name in listed for task in _suite(name)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise UserError(f"tasks=[{','.join(listed)}] has {', '.join(twice)} twice: name every task once")
    include = values_by_key.get("tasks.include")
    pocket = {name: folder for folder in POCKET_TASKS for name in task_files(shipped(folder))}
    if include is None:
        include = next((pocket[name] for name in names if name in pocket), None)
    try:
        check_tasks(TasksConfig(include=include, metrics=dict.fromkeys(names)))
    except UserError as error:
        if include is not None or len(names) > 1:
            raise
        choices = [*options("tasks"), *pocket]
        raise UserError(f"unknown tasks {names[0]}: {_task_hint(names[0], choices)}") from error
    option = "-".join(listed)
    node = {"name": "+".join(listed), "include": include, "metrics": dict.fromkeys(names)}
    ConfigStore.instance().store(group="tasks", name=option, node=node)
    return option
