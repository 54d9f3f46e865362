"""Find the YAML files of lmms-eval tasks without importing lmms-eval, which is slow."""

import json
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.core.config import shipped
from harness.core.errors import UserError, as_user_error
from harness.core.files import digest, write_atomic

# Tasks of ours -> the lmms-eval task from which only their scoring differs
DERIVED = {"mmbench_cn_dev_static": "mmbench_cn_dev"}
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
        write_atomic(index, json.dumps({name: str(path.relative_to(folder)) for name, path in tasks.items()}))
    except (OSError, UserError):
        pass  # without a writable home, every process rebuilds the index
    return tasks
