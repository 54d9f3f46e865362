"""Where the file of an lmms-eval task lies, without importing lmms-eval, which is slow."""

import json
import os
import re
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from harness.core.config import shipped
from harness.core.errors import UserError, as_user_error
from harness.core.files import digest, write_atomic

# Tasks of ours -> the task of lmms-eval from which they differ in their scorer alone
DERIVED = {"mmbench_cn_dev_static": "mmbench_cn_dev"}
TASK_LINE = re.compile(r"^task:[ \t]*[\"']?([\w.+-]+)", re.MULTILINE)


def task_file(name: str, include: str | None) -> Path:
    """The file of a known task."""
    local = task_files(shipped(include)) if include else {}
    return {**lmms_eval_tasks(), **local}[name]


@cache
def task_files(folder: Path) -> dict[str, Path]:
    """Task name -> yaml file for every lmms-eval task below `folder`; read as text: importing lmms-eval is slow."""
    found = {}
    for root, _, files in os.walk(folder):
        for file in sorted(files):
            if file.endswith(".yaml"):
                path = Path(root, file)
                match = TASK_LINE.search(_text(path))
                if match:
                    found[match[1]] = path
    return found


@cache
def lmms_eval_tasks() -> dict[str, Path]:
    """The tasks that come with lmms-eval, and those of ours that are one of them but for the scorer."""
    spec = find_spec("lmms_eval")
    if spec is None or spec.origin is None:
        raise UserError("lmms-eval is not installed: install the harness with its dependencies")
    found = _indexed(Path(spec.origin).parent / "tasks")
    return {**{name: found[base] for name, base in DERIVED.items() if base in found}, **found}


def _indexed(folder: Path) -> dict[str, Path]:
    """Return `task_files(folder)` from an index on disk, which is made again when a file came, went or changed."""
    seen = []
    for root, _, files in os.walk(folder):
        for file in (os.path.join(root, name) for name in files if name.endswith(".yaml")):
            status = os.stat(file)
            seen.append((file, status.st_mtime_ns, status.st_size))
    cache_root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    index = cache_root / "harness" / f"tasks-{digest(sorted(seen))[:16]}.json"
    try:
        return {name: folder / file for name, file in json.loads(index.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError):
        pass  # not made yet, or damaged
    tasks = task_files(folder)
    try:
        index.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(index, json.dumps({name: str(path.relative_to(folder)) for name, path in tasks.items()}))
    except (OSError, UserError):
        pass  # a home that cannot be written costs time, nothing else
    return tasks


def _text(path: Path) -> str:
    with as_user_error((UnicodeDecodeError, OSError), f"cannot read the task file {path}"):
        return path.read_text(encoding="utf-8")
