"""Load lmms-eval's tasks from its own files, with local data and without the traps in them.

What is changed is the configuration of the one Task object that a run gets, never a file, module or class of lmms-eval.
The files' Python is executed again for every Task, so nothing that one run counts reaches the next.
"""

from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from types import FunctionType
from typing import Any

from harness.core.errors import UserError
from harness.evaluation.datasets import fingerprint

SCORING = 1  # raise it when a task of ADAPTED gets another score for the same answers
OCRBENCH = 1000  # questions, by which lmms-eval divides however many were asked
VINOGROUND = 500  # groups of four questions, by which lmms-eval divides
_LOCAL = ("cache_dir", "video", "From_YouTube", "create_link", "force_download", "force_unzip", "token")


def load(name: str, file: Path, prompts: str, folder: Path | None = None, rows: dict[str, Any] | None = None) -> Any:
    """Load a new lmms-eval Task from `file`, with the prompts meant for model id `prompts`.

    `folder` holds a copy of its data set, which is then read from nowhere else. `rows` collects the data sets that were
    read, by task, for the next one.
    """
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    import_module("lmms_eval.api.metrics")  # fills the registry in which a task looks up its metrics
    config = load_yaml_config(str(file), mode="full")
    if "class" in config:
        raise UserError(f"task {name} is a Python class of its own: only tasks described by their file can be run")
    config["task"] = name
    _drop_submission(config)
    if folder is not None:
        _point_to(config, folder)
    if name in ADAPTED:
        ADAPTED[name](config)
    datasets = {} if rows is None else rows

    class Task(ConfigurableMessagesTask):
        """A task that takes the rows of an earlier one.

        What `process_docs` notes reaches no other function of a task: lmms-eval reads the file for each of them.
        """

        def download(self, dataset_kwargs: Any = None) -> None:
            if name not in datasets:
                super().download(dataset_kwargs)
                datasets[name] = vars(self)["dataset"], vars(self)["dataset_no_image"]
            self.dataset, self.dataset_no_image = datasets[name]

    return Task(config=config, model_name=prompts)


def scoring(names: Iterable[str]) -> int | None:
    """Return the version of this file if one of the tasks is scored by it."""
    return SCORING if set(names) & set(ADAPTED) else None


def version_of(task: Any) -> str | None:
    """Return the version in a task's metadata, which lmms-eval raises when its scores change."""
    metadata = task.config.metadata or {}
    entries = metadata if isinstance(metadata, list) else [metadata]  # most tasks have a list
    return next((str(entry["version"]) for entry in entries if "version" in entry), None)


def check_limit(name: str, task: Any, limit: int | None) -> None:
    """Refuse a limit that splits a pair of MME's questions, or leaves none whose score the tables show."""
    if name != "mme" or limit is None:
        return
    columns = [task.task_docs[key] for key in ("category", "question_id")]
    pairs = list(zip(*columns, strict=True))
    last = {pair: place for place, pair in enumerate(pairs)}
    shown = task.config.process_results.__globals__["eval_type_dict"]["Perception"]
    ends = [place + 1 for place, pair in enumerate(pairs) if last[pair] == place and pair[0] in shown]
    whole = {pair for pair in pairs[:limit] if last[pair] < limit}
    if whole != set(pairs[:limit]) or limit < min(ends, default=0):
        raise UserError(f"task mme: its first {limit} questions split a pair or are not of perception: try {min(ends)}")


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
    from lmms_eval.api.task import _resolve_hf_datasets_cache_dir

    kwargs = dict(config.get("dataset_kwargs") or {})
    config["dataset_path"] = str(folder)
    config["dataset_kwargs"] = {key: value for key, value in kwargs.items() if key not in _LOCAL}
    # `datasets` finds its cache of a local repository by folder name and card, even after the rows have changed.
    config["dataset_kwargs"]["cache_dir"] = str(Path(_resolve_hf_datasets_cache_dir(), "local", fingerprint(folder)))
    if kwargs.get("video"):
        # A task's code looks for videos below base_cache_dir / cache_name: an absolute second part voids the first.
        modules = [function.__globals__ for function in _functions(config) if "cache_name" in function.__globals__]
        if not modules:
            where = f"$HF_HOME/{kwargs.get('cache_dir', '')}"
            raise UserError(f"task {config['task']} reads its videos from {where} alone: leave data_root out for it")
        for module in modules:
            module["cache_name"] = str(folder)


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


ADAPTED: dict[str, Callable[[dict[str, Any]], None]] = {
    "mmbench_cn_dev_static": _static_mmbench,
    "ocrbench": _ocrbench,
    "vinoground": _vinoground,
}
