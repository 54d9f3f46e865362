"""Find the YAML files of lmms-eval tasks without importing lmms-eval, which is slow."""

import json
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from harness.core.config import shipped
from harness.core.errors import UserError, as_user_error
from harness.core.files import digest, json_line, write_atomic

# Tasks of ours -> the lmms-eval task whose file they start from; `task_overrides` says what differs
DERIVED = {
    "mmbench_cn_dev_static": "mmbench_cn_dev",
    "mvbench": "mvbench_action_sequence",
    "seedbench_video": "seedbench",
}
TASK_LINE = re.compile(r"^task:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


def task_file(name: str, include: str | None) -> Path:
    """Return the file of a task that exists."""
    local = task_files(shipped(include)) if include else {}
    return {**lmms_eval_tasks(), **local}[name]


@cache
def task_files(folder: Path) -> dict[str, Path]:
    """Map the names of all tasks below `folder` to their YAML files, which are read as text."""
    tasks = {}
    for root, _, files in os.walk(folder):
        for file in sorted(files):
            if file.endswith(".yaml"):
                path = Path(root, file)
                with as_user_error((UnicodeDecodeError, OSError), f"cannot read the task file {path}"):
                    match = TASK_LINE.search(path.read_text(encoding="utf-8"))
                if match:
                    tasks[match[1]] = path
    return tasks


@cache
def lmms_eval_tasks() -> dict[str, Path]:
    """Map the tasks of lmms-eval, and ours in `DERIVED`, to their YAML files."""
    spec = find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        raise UserError("lmms-eval is not installed: install the harness with its dependencies")
    tasks = _indexed(Path(spec.origin).parent / "tasks")
    return {**{name: tasks[base] for name, base in DERIVED.items() if base in tasks}, **tasks}


@cache
def collection_of(name: str) -> tuple[str, list[str]] | None:
    """Return whether lmms-eval calls several tasks by `name` as a "group" or a "tag", and which; None if not.

    A group has a file of its own, which lists tasks, other groups and tags. A tag stands in the files of its tasks.
    """
    tagged = []
    for text in (text for text in _texts() if name in text):
        entry = yaml.safe_load(text.replace("!function", ""))
        task, tags = entry.get("task"), entry.get("tag", [])
        if isinstance(task, list) and entry.get("group") == name:
            return "group", list(dict.fromkeys(leaf for member in task for leaf in _leaves(member)))
        if isinstance(task, str) and name in ([tags] if isinstance(tags, str) else tags):
            tagged.append(task)
    return ("tag", tagged) if tagged else None


@cache
def _texts() -> list[str]:
    """Return the contents of lmms-eval's task and group files."""
    files = sorted(Path(os.path.commonpath(lmms_eval_tasks().values())).rglob("*.yaml"))
    return [file.read_text(encoding="utf-8") for file in files]


def _leaves(member: Any) -> list[str]:
    """Return the tasks of a group's member: of a task, another collection, or a group that is written out there."""
    task = member["task"] if isinstance(member, dict) else member
    if isinstance(task, list):
        return [leaf for inner in task for leaf in _leaves(inner)]
    collection = None if task in lmms_eval_tasks() else collection_of(task)
    return collection[1] if collection else [str(task)]


def _indexed(folder: Path) -> dict[str, Path]:
    """Return `task_files(folder)` from an index on disk, which is rebuilt when a file is added, removed or changed."""
    stamps = []
    for root, _, files in os.walk(folder):
        for file in (os.path.join(root, name) for name in files if name.endswith(".yaml")):
            status = os.stat(file)
            stamps.append((file, status.st_mtime_ns, status.st_size))
    cache_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    index = cache_root / "harness" / f"tasks-{digest(sorted(stamps))[:16]}.json"
    try:
        return {name: folder / file for name, file in json.loads(index.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError):
        pass  # missing or damaged: rebuilt below
    tasks = task_files(folder)
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(index, json_line({name: str(path.relative_to(folder)) for name, path in tasks.items()}))
    except (OSError, UserError):
        pass  # without a writable home, every process rebuilds the index
    return tasks
