"""Local copies of the data sets that tasks read: find them, check that they are complete, and identify them.

`data_root` is a folder of copies, or a mapping of tasks to the folder of each; without it, lmms-eval asks the Hub.
"""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from harness.core.config import TasksConfig
from harness.core.errors import UserError
from harness.core.files import digest, expanded
from harness.core.task_index import task_file
from harness.models.checkpoint import content_digest

# What a task's code reads in addition to the rows, and what the Hub has in archives
UNPACKED = {
    "egoschema_subset": ("videos",),
    "longvideobench_val_i": ("videos", "subtitles"),
    "longvideobench_val_v": ("videos",),
    "videomme": ("data",),
    **dict.fromkeys(("videomme_w_subtitle", "videomme_long", "videomme_long_w_subtitle"), ("data", "subtitle")),
    "vinoground": (
        "vinoground_videos/vinoground_textscore.json",
        "vinoground_videos_concated/vinoground_videoscore.json",
    ),
}
MEDIA = {".mp4", ".mkv", ".avi", ".mov", ".webm", ".zip", ".tar", ".gz", ".srt"}  # compared by name and size


class NoCopyError(UserError):
    """`data_root` has no folder for a data set."""


DataRoot = str | Mapping[str, str] | None


def local(tasks: TasksConfig, data_root: DataRoot) -> dict[str, Path]:
    """Return task -> folder of its data set, for the tasks in `data_root`; UserError names what is missing."""
    if data_root is None:
        return {}
    if not isinstance(data_root, str) and (other := sorted(set(data_root) - set(tasks.metrics))):
        raise UserError(f"data_root has a folder for {', '.join(other)}, but the tasks are {', '.join(tasks.metrics)}")
    named = tasks.metrics if isinstance(data_root, str) else data_root
    repositories = {name: described(task_file(name, tasks.include)).get("dataset_path", "") for name in named}
    folders = {}
    for name, repository in repositories.items():
        if isinstance(data_root, str):
            if "/" not in repository or Path(repository).is_absolute():
                continue  # files next to the task's own
            folders[name] = _copy_of(repository, Path(data_root).expanduser(), name)
        else:
            folders[name] = Path(data_root[name]).expanduser()
        _check(name, folders[name])
    return folders


def cached(repository: str) -> Path | None:
    """Return where the Hub's client or `datasets` keeps a data set; only loading it shows whether it is complete."""
    from huggingface_hub import constants

    datasets_cache = os.environ.get("HF_DATASETS_CACHE") or Path(constants.HF_HOME, "datasets")
    places = [
        Path(constants.HF_HUB_CACHE, "datasets--" + repository.replace("/", "--"), "snapshots"),
        expanded(datasets_cache) / repository.replace("/", "___"),
    ]
    return next((place for place in places if place.is_dir() and any(place.iterdir())), None)


@cache  # the runs of a sweep share their data
def fingerprint(folder: Path) -> str:
    """Return the digest of a copy's content, which is independent of its path."""
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            content = path.stat().st_size if path.suffix.lower() in MEDIA else content_digest(path)
            files.append([str(relative), content])
    return digest(files)[:16]


def _copy_of(repository: str, root: Path, task: str) -> Path:
    """Find PATH/owner/name, PATH/name, that of another owner (the Hub redirects), or a snapshot in the Hub's cache."""
    name = repository.rpartition("/")[2]
    others = sorted(root.glob(f"*/{name}")) if root.is_dir() else []
    snapshots = [
        cached / "snapshots" / (cached / "refs" / "main").read_text(encoding="utf-8").strip()
        for cached in (sorted(root.glob(f"datasets--*--{name}")) if root.is_dir() else [])
        if (cached / "refs" / "main").is_file()
    ]
    for folder in (root / repository, root / name, *others, *snapshots):
        if folder.is_dir():
            return folder
    raise NoCopyError(
        f"no copy of {repository} (task {task}) in data_root={root}: python -m harness.data tasks={task} to={root}"
    )


def _check(task: str, folder: Path) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise UserError(f"data_root: no data set of task {task} in {folder}: pass the folder of its files")
    for needed in UNPACKED.get(task, ()):
        if not (folder / needed).exists():
            raise UserError(
                f"{folder} lacks {needed}, which task {task} reads: unpack the archives of the data set there"
            )


class NamedFunction(NamedTuple):
    """A function that a task file names as `!function module.name`."""

    folder: Path  # of the task file
    module: str
    name: str


def described(file: Path) -> dict[str, Any]:
    """Read a task file and those that it includes; lmms-eval's own reader imports what they name, which is slow."""

    class Loader(yaml.CSafeLoader):
        pass

    def function(loader: yaml.CSafeLoader, node: yaml.ScalarNode) -> NamedFunction:
        module, _, name = loader.construct_scalar(node).rpartition(".")
        return NamedFunction(file.parent, module, name)

    Loader.add_constructor("!function", function)
    own: dict[str, Any] = yaml.load(file.read_text(encoding="utf-8"), Loader)
    included = own.get("include", [])
    merged: dict[str, Any] = {}
    for path in reversed(included if isinstance(included, list) else [included]):
        merged |= described(file.parent / path)
    return merged | own
