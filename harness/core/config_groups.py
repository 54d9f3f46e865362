"""Choices that need no file in conf/: third-party and private methods, single lmms-eval tasks, lists of tasks."""

import hashlib
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
from harness.core.overrides import parse
from harness.core.task_index import lmms_eval_tasks, task_files

POCKET_TASKS = "harness://pocket/tasks"
_typed: dict[str, str] = {}  # override -> what it was before `register`, where that changed it


def register(overrides: list[str]) -> list[str]:
    """Make `method=`, `model=` and `tasks=` resolvable; returns the overrides with composite choices renamed."""
    parsed = parse(overrides)
    given = {str(o.key_or_group): None if o.is_sweep_override() else o.value() for o in parsed}
    resolve = {"method": _method, "model": _model, "tasks": _tasks}
    result = []
    for override in parsed:
        group = override.key_or_group
        if group in resolve and not override.is_delete():
            swept = override.is_sweep_override()
            values = list(override.sweep_iterator()) if swept else [override.value()]
            texts = override.sweep_string_iterator() if swept else [override.get_value_string()]
            options = [resolve[group](_plain(value), given) for value in values]
            for value, text, option in zip(values, texts, options, strict=True):
                _typed[f"{group}={option}"] = f"{group}={value if isinstance(value, str) else text}"  # no \: in a path
            result.append(f"{group}=" + ",".join(options))
        else:
            result.append(str(override.input_line))
    return result


def typed(override: str) -> str:
    """An override of one job as it can be typed again; what has no file in conf/ has another name after `register`."""
    return _typed.get(override, override)


def check_tasks(tasks: TasksConfig) -> None:
    """UserError unless every task is known to lmms-eval, to the shipped suite or to `tasks.include`."""
    if tasks.include is not None and not shipped(tasks.include).is_dir():
        raise UserError(f"no folder at tasks.include={tasks.include}: pass the folder of the lmms-eval task files")
    local = task_files(shipped(tasks.include)) if tasks.include else {}
    for name in tasks.metrics:
        if name not in local and name not in lmms_eval_tasks():
            raise UserError(f"unknown task {name}: {_task_hint(name, local)}")


def _task_hint(name: str, ours: Iterable[str]) -> str:
    return did_you_mean(name, ours, lmms_eval_tasks(), "python -m lmms_eval --tasks list")


def _options(group: str) -> list[str]:
    return sorted(path.stem for path in conf(group).glob("*.yaml"))


def _model(value: Any, given: dict[str, Any]) -> str:
    if value not in _options("model"):
        hint = "; for a local folder keep model= and pass model.pretrained=FOLDER"
        raise UserError(f"unknown model {value}: {did_you_mean(str(value), _options('model'))}{hint}")
    return str(value)


def _plain(value: Any) -> Any:
    """A value without Hydra's note of how it was quoted."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.text if isinstance(value, QuotedString) else value


def _with_parameters(value: dict[str, Any], given: dict[str, Any]) -> str:
    """`{name: fastv, variant: paper}`: a method with parameters of its own, so that a sweep can have several."""
    if "name" not in value:
        raise UserError(f"method={value} has no name: write it as in method={{name: fastv, variant: paper}}")
    params = {key: item for key, item in value.items() if key != "name"}
    base = _method(value["name"], given)
    option = re.sub(r"[^A-Za-z0-9_.-]+", "_", "-".join([base, *(f"{key}-{item}" for key, item in params.items())]))
    ConfigStore.instance().store(group="method", name=option, node={"defaults": [base, "_self_"], **params})
    return option


def _method(value: Any, given: dict[str, Any]) -> str:
    if isinstance(value, dict):
        return _with_parameters(value, given)
    name = str(value)
    if name in _options("method"):
        return name
    option = name
    if ".py" in name:
        file, _, cls = name.rpartition(":")
        path = Path(file).expanduser().resolve()
        if not path.is_file() or not cls:
            raise UserError(f"no method at {name}: a private method is given as method=path/to/file.py:Class")
        place = hashlib.sha256(f"{path}:{cls}".encode()).hexdigest()[:6]  # files in two folders may share a name
        option = re.sub(r"[^A-Za-z0-9_-]+", "_", f"{path.stem}-{cls}-{place}")
    elif name not in methods.names():
        raise UserError(f"unknown method {name}: {did_you_mean(name, {*methods.names(), *_options('method')})}")
    # The class is not imported yet: its parameters are whatever is given, and checked when it is loaded.
    params = {key.removeprefix("method."): None for key in given if key.startswith("method.")}
    ConfigStore.instance().store(group="method", name=option, node={"name": name, **params})
    return option


def _suite(name: str) -> list[str]:
    """The tasks of a suite in conf/tasks; any other name stands for itself."""
    if name not in _options("tasks"):
        return [name]
    return list(yaml.safe_load(conf("tasks", f"{name}.yaml").read_text(encoding="utf-8"))["metrics"])


def _tasks(value: Any, given: dict[str, Any]) -> str:
    if isinstance(value, str) and value in _options("tasks"):
        return value
    listed = [str(name) for name in value] if isinstance(value, list) else [str(value)]
    names = [task for name in listed for task in _suite(name)]
    include = given.get("tasks.include")
    pocket = task_files(shipped(POCKET_TASKS))
    if include is None and any(name in pocket for name in names):
        include = POCKET_TASKS
    try:
        check_tasks(TasksConfig(include=include, metrics=dict.fromkeys(names)))
    except UserError as error:
        if include is not None or len(names) > 1:
            raise
        known = [*_options("tasks"), *pocket]
        raise UserError(f"unknown tasks {names[0]}: {_task_hint(names[0], known)}") from error
    option = "-".join(listed)
    node = {"name": "+".join(listed), "include": include, "metrics": dict.fromkeys(names)}
    ConfigStore.instance().store(group="tasks", name=option, node=node)
    return option
