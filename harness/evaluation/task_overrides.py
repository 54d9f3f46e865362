"""Load lmms-eval's tasks from its own files, with local data, and corrected where they score wrongly.

What is changed is the configuration of the one Task object that a run gets, never a file, module or class of lmms-eval.
The files' Python is executed again for every Task, so nothing that one run counts reaches the next.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any
from unittest.mock import patch

from harness.core.config import SHIPPED, shipped
from harness.core.config_groups import POCKET_TASKS
from harness.core.errors import UserError
from harness.core.task_index import task_files
from harness.evaluation.datasets import described, fingerprint
from harness.evaluation.video_tasks import CORRECTIONS, read_from
from harness.models.bad_input import BadInput, reading

SCORING = 1  # raise it when a task of ADAPTED gets another score for the same answers
# Reasoning between these is no part of an answer that is scored, as in lmms-eval's own command
REASONING_TAGS = '[["<think>", "</think>"], ["<analysis>", "</analysis>"]]'
OCRBENCH = 1000  # questions, by which lmms-eval divides however many were asked
PART = 256  # rows with pictures that are held at once
VINOGROUND = 500  # groups of four questions, by which lmms-eval divides
_LOCAL = ("cache_dir", "video", "From_YouTube", "create_link", "force_download", "force_unzip", "token", "revision")


def load(name: str, file: Path, prompts: str, folder: Path | None = None, rows: dict[str, Any] | None = None) -> Any:
    """Load a new lmms-eval Task from `file`, with the prompts meant for model id `prompts`.

    `folder` holds a copy of its data set, which is then read from nowhere else. `rows` collects the data sets that were
    read, by task, for the next one.
    """
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    import_module("lmms_eval.api.metrics")  # fills the registry in which a task looks up its metrics
    from_copy = partial(_from_copy, described(file).get("dataset_path", ""), folder)
    with from_copy():
        config = load_yaml_config(str(file), mode="full")  # executes the task's code
    if "class" in config:
        raise UserError(f"task {name} is a Python class of its own: only tasks described by their file can be run")
    config["task"] = name
    config.pop("group", None)  # of tasks that lmms-eval can add up, which is not done here; it warns in every load
    _drop_submission(config)
    if folder is not None:
        _point_to(config, folder)
    if name in ADAPTED:
        ADAPTED[name](config)
    datasets = {} if rows is None else rows

    class Task(ConfigurableMessagesTask):
        """A task that takes the rows of an earlier one, and asks the questions `asked`: their numbers, in order.

        What `process_docs` notes reaches no other function of a task: lmms-eval reads the file for each of them.
        """

        asked: Sequence[int]
        _instances: list[Any]
        _docs: Any
        _ready = False

        def __init__(self, **settings: Any) -> None:
            super().__init__(**settings)
            self._ready = True

        @property
        def task_docs(self) -> Any:
            """The questions; while lmms-eval tries the task on the first one, that may have an undecoded picture."""
            return self._docs if self._ready else _Undecoded(self._docs)

        @task_docs.setter
        def task_docs(self, docs: Any) -> None:
            self._docs = docs

        def build_all_requests(self, **settings: Any) -> None:
            super().build_all_requests(**settings)
            asked = set(self.asked)
            self._instances = [instance for instance in self._instances if instance.doc_id in asked]

        def apply_filters(self) -> None:
            docs = self.task_docs.select(self.asked)  # filters go through requests and documents in parallel
            for ensemble in self._filters:
                ensemble.apply(self._instances, docs)

        def download(self, dataset_kwargs: Any = None) -> None:
            if name not in datasets:
                super().download(dataset_kwargs)
                datasets[name] = vars(self)["dataset"], vars(self)["dataset_no_image"]
            self.dataset, self.dataset_no_image = datasets[name]

        def doc_to_messages(self, doc: Any, **settings: Any) -> Any:
            with from_copy(), _shown(doc, self._docs.features):
                return super().doc_to_messages(doc, **settings)

        def process_results(self, doc: Any, results: list[str], **settings: Any) -> Any:
            with from_copy():
                return super().process_results(doc, results, **settings)

    with from_copy():
        return Task(config=config, model_name=prompts)


@contextmanager
def _shown(row: Mapping[str, Any], features: Mapping[str, Any]) -> Iterator[None]:
    """Raise BadInput in place of what a task's code raises about a row that has no picture at all."""
    from datasets.features.features import require_decoding

    try:
        yield
    except Exception as error:  # a task's code may do anything with None
        pictures = [name for name, feature in features.items() if require_decoding(feature)]
        if not pictures or any(row.get(name) for name in pictures):
            raise
        raise BadInput(f"the row has no picture in {' or '.join(pictures)}") from error


class _Undecoded:
    """Rows of a data set; one whose picture does not decode comes with the picture's bytes instead."""

    def __init__(self, rows: Any):
        self._rows = rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._rows, name)

    def __getitem__(self, number: int) -> Any:
        try:
            with reading():
                return self._rows[number]
        except BadInput:
            return self._rows.with_format("arrow")[number].to_pylist()[0]


def scoring(names: Iterable[str]) -> int | None:
    """Return the version of this file if one of the tasks is scored by it."""
    return SCORING if set(names) & set(ADAPTED) else None


def reasoning_tags(pretrained: str, include: str | None, names: Iterable[str]) -> str | None:
    """Return the tags as a part of what scores depend on; None for an embedded model on the pocket tasks.

    Such a model writes no tags, so its runs from before they were taken out have the same scores.
    """
    pocket = include in POCKET_TASKS and set(names) <= set(task_files(shipped(include)))
    return None if pocket and pretrained.startswith(SHIPPED) else REASONING_TAGS


def version_of(task: Any) -> str | None:
    """Return the version in a task's metadata, which lmms-eval raises when its scores change."""
    return next((str(entry["version"]) for entry in metadata_of(task) if "version" in entry), None)


def metadata_of(task: Any) -> list[Mapping[str, Any]]:
    """Return the entries of a task's metadata, of which most tasks have a list."""
    metadata = task.config.metadata or {}
    entries = metadata if isinstance(metadata, list) else [metadata]
    return [entry for entry in entries if isinstance(entry, Mapping)]


def check_asked(name: str, task: Any, asked: Sequence[int]) -> None:
    """Refuse questions that split a pair of MME's, or of which none has a score that the tables show."""
    if name != "mme" or len(asked) == len(task.task_docs):
        return
    columns = [task.task_docs[key] for key in ("category", "question_id")]
    pairs = list(zip(*columns, strict=True))
    last = {pair: place for place, pair in enumerate(pairs)}
    shown = task.config.process_results.__globals__["eval_type_dict"]["Perception"]
    ends = [place + 1 for place, pair in enumerate(pairs) if last[pair] == place and pair[0] in shown]
    counts = Counter(pairs)
    asked_pairs = Counter(pairs[place] for place in asked)
    split = any(counts[pair] != count for pair, count in asked_pairs.items())
    if split or not any(category in shown for category, _ in asked_pairs):
        which = f"its {len(asked)} chosen questions split a pair or are not of perception"
        raise UserError(f"task mme: {which}: try limit={min(ends)}")


def check_prompts(task: Any, prompts: str) -> None:
    """Refuse a task that lmms-eval's own command loaded without the prompts of the model's family.

    That command knows no family of ours, so the question would not be the one that `load` asks a model of id `prompts`.
    """
    if task.model_name != prompts and prompts in (task.config.lmms_eval_specific_kwargs or {}):
        name = task.config.task
        other = f"lmms-eval's own command has the default ones for --model {task.model_name}"
        raise UserError(f"task {name} has prompts for {prompts}, {other}: run it by python -m harness tasks={name}")


def _drop_submission(config: dict[str, Any]) -> None:
    """Leave out files for a leaderboard: they are no score, and a control character in an answer makes them fail."""
    scored = [metric for metric in config.get("metric_list") or [] if metric["metric"] != "submission"]
    if scored:
        config["metric_list"] = scored


def _point_to(config: dict[str, Any], folder: Path) -> None:
    """Read the data set, and the videos that its rows name, from a copy of its repository."""
    kwargs = dict(config.get("dataset_kwargs") or {})
    config["dataset_path"] = str(folder)
    config["dataset_kwargs"] = {key: value for key, value in kwargs.items() if key not in _LOCAL}
    config["dataset_kwargs"]["cache_dir"] = _cache_of(folder)
    if kwargs.get("video"):
        cache = kwargs.get("cache_dir", "")
        if not any([read_from(folder, function.__globals__, cache) for function in _functions(config)]):  # noqa: C419
            alone = f"$HF_HOME/{cache} alone"
            raise UserError(f"task {config['task']} reads its videos from {alone}: leave data_root out for it")


@contextmanager
def _from_copy(repository: str, folder: Path | None) -> Iterator[None]:
    """Let a task's own code read the copy of its data set, too: GQA's loads pictures in `process_docs`.

    Other repositories are read from the Hub: code that imports these functions by name in this block keeps them.
    """
    import datasets
    import huggingface_hub

    if folder is None:
        yield
        return
    is_own = lambda path: "/" in path and not Path(path).exists() and Path(path).name == Path(repository).name  # noqa: E731
    load_dataset, snapshot_download = datasets.load_dataset, huggingface_hub.snapshot_download
    hf_hub_download = huggingface_hub.hf_hub_download

    def load(path: str, *args: Any, **settings: Any) -> Any:
        if not is_own(path):
            return load_dataset(path, *args, **settings)
        return load_dataset(str(folder), *args, **{**settings, "token": None, "cache_dir": _cache_of(folder)})

    def snapshot(repo_id: str, *args: Any, **settings: Any) -> str:
        return str(folder) if is_own(repo_id) else snapshot_download(repo_id, *args, **settings)

    def download(repo_id: str, filename: str, *args: Any, **settings: Any) -> str:
        return str(folder / filename) if is_own(repo_id) else hf_hub_download(repo_id, filename, *args, **settings)

    with (
        patch.object(datasets, "load_dataset", load),
        patch.object(huggingface_hub, "snapshot_download", snapshot),
        patch.object(huggingface_hub, "hf_hub_download", download),
    ):
        yield


def _cache_of(folder: Path) -> str:
    """Return a cache of `datasets`, which knows local repositories by name and card, even after rows have changed."""
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    return str(Path(_resolve_hf_datasets_cache_dir(), "local", fingerprint(folder)))


def _functions(config: dict[str, Any]) -> list[FunctionType]:
    values = [*config.values(), *(metric.get("aggregation") for metric in config.get("metric_list") or [])]
    plain = [value.func if isinstance(value, partial) else value for value in values]
    return [value for value in plain if isinstance(value, FunctionType)]


def _static_mmbench(config: dict[str, Any]) -> None:
    """Read answers by rule alone, as `mmbench_en_dev_static` does: no judge over the network, no guess."""
    evaluator = config["process_results"].__globals__["mmbench_evaluator"]

    def accuracy(results: list[dict[str, Any]]) -> float:
        return float(evaluator.eval_result(results, eval_method="static")[0] * 100)

    config["metric_list"] = [{"metric": "gpt_eval_score", "aggregation": accuracy, "higher_is_better": True}]


def _ocrbench(config: dict[str, Any]) -> None:
    """Divide by the questions that were asked; lmms-eval divides by 1,000, and adds up all calls."""
    (metric,) = config["metric_list"]
    of_all = metric["aggregation"]
    counts = of_all.__globals__["OCRBench_score"]

    def accuracy(results: list[dict[str, Any]], args: Any) -> float:
        counts.update(dict.fromkeys(counts, 0))
        return float(of_all(results, args) * (OCRBENCH / len(results)))

    metric["aggregation"] = accuracy


def _vinoground(config: dict[str, Any]) -> None:
    """Count an empty answer as wrong, and score some of the groups; lmms-eval fails at both."""
    process = config["process_results"]
    config["process_results"] = lambda doc, results: process(doc, [results[0] or " "])
    (metric,) = config["metric_list"]
    of_all = metric["aggregation"]

    def shares(results: list[dict[str, Any]]) -> list[float]:
        asked = {int(result["index"].partition("_")[0]) for result in results}
        wrong = {"categories": [], "question_type": "text", "pred": " "}
        missing = [{"index": f"{group}_pos", **wrong} for group in range(VINOGROUND) if group not in asked]
        return [share * VINOGROUND / len(asked) for share in of_all(results + missing)]

    metric["aggregation"] = shares


def _boxes(config: dict[str, Any]) -> None:
    """Read the rows in parts: lmms-eval holds the decoded pictures of all of them at once, 8 GB of RefCOCO's."""
    process = config["process_docs"]

    def in_parts(rows: Any) -> Any:
        from datasets import concatenate_datasets

        parts = [range(start, min(start + PART, len(rows))) for start in range(0, len(rows), PART)]
        with redirect_stdout(sys.stderr):  # it prints how many rows it has made
            return concatenate_datasets([process(rows.select(part)) for part in parts])

    config["process_docs"] = in_parts


REC = [f"refcoco_bbox_rec_{split}" for split in ("val", "test", "testA", "testB")]
REC += [f"refcoco+_bbox_rec_{split}" for split in ("val", "testA", "testB")]
REC += [f"refcocog_bbox_rec_{split}" for split in ("val", "test")]
ADAPTED: dict[str, Callable[[dict[str, Any]], None]] = {
    **dict.fromkeys(REC, _boxes),
    "mmbench_cn_dev_static": _static_mmbench,
    "ocrbench": _ocrbench,
    "vinoground": _vinoground,
    **CORRECTIONS,
}
