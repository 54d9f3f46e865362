"""In which order a run picked its tokens, and which importance it saw: not stored, so its questions are asked again."""

import gc
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from omegaconf import OmegaConf

import methods
from harness.core.config import RunConfig, validate
from harness.core.errors import UserError, one_line
from harness.evaluation.datasets import local
from harness.evaluation.pruner import Pruner, pruner_of
from harness.evaluation.task_suite import TaskSuite
from harness.models import checkpoint
from harness.models.loading import Loaded, load
from harness.models.model_folder import ModelFolder
from harness.report.answers import text
from harness.report.html import plural
from harness.results.result import Result
from methods.base import Method


def replay(setting: dict[str, Any], results: Mapping[str, Result]) -> list[str]:
    """Add "orders" (one for each run, or null) and "importance" to the questions of a setting; returns what failed.

    An order is shown only where the tokens picked now are those that the run recorded.
    """
    failed: list[str] = []
    runs = [results[name] for name in setting["runs"]]
    config = configuration(runs[0])
    folder = ModelFolder(checkpoint.download(config.model))
    suite = TaskSuite(config.tasks, folder.adapter.prompts, local(config.tasks, config.data_root))
    loaded = load(config.model, folder.path)
    tasks = {name: suite.load(name) for name in dict.fromkeys(question["task"] for question in setting["questions"])}
    for question in setting["questions"]:
        question.update(orders=[None] * len(runs), importance=None)
    for index, run in enumerate(runs):
        if run.is_baseline:
            continue
        try:
            config = configuration(run)
            pruner = pruner_of(config, ModelFolder(checkpoint.download(config.model)))
            if pruner.method.stage != "pixels":
                differ = _ask(setting["questions"], index, pruner, tasks, loaded)
                failed += [f"{run.folder.name}: {plural(differ, 'selection')} other than recorded"] * bool(differ)
        except UserError as error:
            failed.append(f"{run.folder.name}: {one_line(error)}")
    del loaded
    gc.collect()
    return failed


def configuration(run: Result) -> RunConfig:
    """What a run was started with; a file beside the weights is found there again."""
    config = dict(run.about["config"])
    name = config["method"]["name"]
    params = {key: config["method"][key] for key in run.about["identity"]["method"]["params"]}
    try:
        beside = methods.get(name).companion_files
    except ValueError as error:
        raise UserError(one_line(error)) from error
    params.update({key: None for key, file in beside.items() if params.get(key) == file})
    return validate(OmegaConf.create({**config, "method": {"name": name, **params}}))


def _ask(questions: list[dict[str, Any]], index: int, pruner: Pruner, tasks: dict[str, Any], loaded: Loaded) -> int:
    """Ask one run's questions again; returns how many selections came out otherwise."""
    from harness.evaluation.lmms_model import PrunedModel

    differ = 0
    for name, task in tasks.items():
        those = [question for question in questions if question["task"] == name and question["answers"][index]]
        model = PrunedModel(loaded, pruner, {}, verify=False)  # the run that is shown has done it
        requests = TaskSuite.requests(task, [question["doc_id"] for question in those], model)
        with watched(pruner.method) as seen:
            model.generate_until(requests)
        shown = [question for question in those if question["n"]]
        for question, (kept, order, importance) in zip(shown, seen, strict=True):
            if text(np.packbits(kept).tobytes()) != question["answers"][index][3]:
                differ += 1
                continue
            question["orders"][index] = None if order is None else text(order.astype("<u2").tobytes())
            if importance is not None:
                question["importance"] = text(levels(importance).tobytes())
    return differ


@contextmanager
def watched(method: Method) -> Iterator[list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]]]:
    """Note each selection of `method` within the block: kept [n] as booleans, order [K], importance [n]."""
    seen: list[tuple[np.ndarray, np.ndarray | None, np.ndarray | None]] = []
    select_batch = method.select_batch

    def noted(samples: Iterable[Any], *args: Any) -> Any:
        samples = list(samples)
        selections = select_batch(samples, *args)
        for tokens, selection in zip(samples, selections, strict=True):
            kept = np.zeros(len(tokens.features), bool)
            kept[selection.kept.cpu().numpy()] = True
            order = None if selection.order is None else selection.order.cpu().numpy()
            importance = None if tokens.importance is None else tokens.importance.float().cpu().numpy()
            seen.append((kept, order, importance))
        return selections

    vars(method)["select_batch"] = noted
    try:
        yield seen
    finally:
        del vars(method)["select_batch"]  # the class's own again


def levels(importance: np.ndarray) -> np.ndarray:
    """Logits [n] as 0 to 255, from the least to the most important token of the picture."""
    low, high = importance.min(), importance.max()
    return (255 * (importance - low) / (high - low or 1)).round().astype(np.uint8)
