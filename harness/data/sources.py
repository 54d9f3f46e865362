"""What a task or a model reads from the Hub: repository, revision, subsets and split, as lmms-eval's task files say."""

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness.core.config import SHIPPED, ModelConfig, TasksConfig
from harness.core.task_index import task_file
from harness.evaluation.datasets import UNPACKED, NamedFunction, described
from harness.evaluation.video_tasks import SUB_TASKS

LOADER = "load_dataset"  # of `datasets`
PARTS = {"mvbench": SUB_TASKS}  # tasks of ours that read several subsets

FILTERED = {"seedbench_video"}  # tasks of ours that leave out rows


@dataclass(frozen=True)
class Source:
    """A repository that a task or a model reads."""

    kind: Literal["dataset", "model"]
    name: str  # of the task or the model
    repository: str  # owner/name
    revision: str | None = None
    subsets: tuple[str, ...] = ()  # configurations of a data set; none: its default
    split: str = ""
    archives: bool = False  # whether it holds archives, which have to be unpacked
    rows: bool = False  # whether the task makes its questions from the rows of the split, as many or not

    @property
    def folder(self) -> Path:
        """Where it lies below `to=`: data sets as `data_root=` finds them, models below models/."""
        return Path("models" if self.kind == "model" else "", self.repository)


def of_tasks(tasks: TasksConfig) -> Iterator[Source]:
    """Yield what each task reads; nothing for a task whose data lies next to its file."""
    for name in tasks.metrics:
        file = task_file(name, tasks.include)
        task = described(file)
        repository = str(task.get("dataset_path", ""))
        if "/" not in repository or Path(repository).is_absolute():
            continue
        kwargs = task.get("dataset_kwargs") or {}
        first = PARTS.get(name) or (str(task["dataset_name"]),) if task.get("dataset_name") else ()
        own = [subset for path, subset in _loaded_by_code(task) if Path(path).name == Path(repository).name]
        yield Source(
            "dataset",
            name,
            repository,
            kwargs.get("revision"),
            tuple(dict.fromkeys([*first, *own])),
            str(task.get("test_split") or task.get("validation_split") or ""),
            bool(kwargs.get("video")) or name in UNPACKED,
            "process_docs" in task or name in FILTERED,
        )


def of_model(model: ModelConfig) -> Source | None:
    """Return what a model reads from the Hub; None for a local folder, or one that ships with the harness."""
    from harness.models.checkpoint import is_hub_id

    name = model.pretrained
    if name.startswith((SHIPPED, "/", ".", "~")) or Path(name).exists() or not is_hub_id(name):
        return None
    return Source("model", model.name, name, model.revision)


def by_repository(sources: Iterable[Source]) -> list[list[Source]]:
    """Group what is read from one revision of one repository, in order of its first mention."""
    groups: dict[tuple[str, str, str | None], list[Source]] = {}
    for source in sources:
        groups.setdefault((source.kind, source.repository, source.revision), []).append(source)
    return list(groups.values())


def _loaded_by_code(task: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield repository and subset of each `load_dataset("owner/name", "subset")` in the files of a task's functions."""
    for file in {value.folder / f"{value.module}.py" for value in _functions(task)}:
        if not file.is_file():
            continue
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call) or getattr(call.func, "attr", getattr(call.func, "id", "")) != LOADER:
                continue
            texts = [argument.value for argument in call.args if isinstance(argument, ast.Constant)]
            if len(texts) > 1:
                yield str(texts[0]), str(texts[1])


def _functions(value: Any) -> Iterator[NamedFunction]:
    if isinstance(value, NamedFunction):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _functions(part)
