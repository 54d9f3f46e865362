"""The bridge to lmms-eval: its tasks, its scoring, its registry; no fork and no copied task code."""

import math
import os
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from harness.choices import lmms_eval_tasks, task_files
from harness.config import TasksConfig, shipped
from harness.errors import UserError, one_line

if TYPE_CHECKING:
    from harness.inputs import Message
    from harness.lmms_model import PrunedModel

MODEL_ID = "harness_qwen2_5_vl"
PROMPTS_OF = "qwen2_5_vl"  # tasks may carry prompts for a model id: ours are those of the model underneath


_JUDGED = re.compile(r"mmbench_((en|cn|ru|ko)_dev(_lite)?|cn_cc)")
_JUDGES = ("OPENAI_API_KEY", "AZURE_API_KEY")
_TERM = re.compile(r"\s*(.+?)(?:\[(\d+)\])?\s*")


def manifests() -> list[Any]:
    """What lmms-eval's entry-point group `lmms_eval.models` reads."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=MODEL_ID, chat_class_path="harness.lmms_model.PrunedModel")]


def check_scoring(tasks: TasksConfig, limit: int | None) -> None:
    """UserError where lmms-eval would answer every question and only then, or over the network, fail to score them."""
    local = task_files(shipped(tasks.include)) if tasks.include else {}
    for name in set(tasks.metrics) & set(lmms_eval_tasks()):
        if name in local:
            raise UserError(f"task {name} in tasks.include={tasks.include} has a name of lmms-eval's own: rename it")
        if name == "mme" and limit and limit % 2:
            raise UserError(f"task mme scores questions in pairs: limit={limit} must be even")
        if name == "vinoground" and limit:
            raise UserError(f"task vinoground scores all its questions together: leave limit={limit} out")
        if _JUDGED.fullmatch(name) and not any(map(os.environ.get, _JUDGES)):
            static = "; mmbench_en_dev_static needs none" if name == "mmbench_en_dev" else ""
            raise UserError(f"task {name} asks a judge over the network: set {' or '.join(_JUDGES)}{static}")


def refuse_group(name: str) -> None:
    """UserError if `name` is a group of lmms-eval: some members have no labels or need a judge, so none is guessed."""
    known = lmms_eval_tasks()
    if name in known:
        return
    line = re.compile(rf"^group:\s*[\"']?{re.escape(name)}[\"']?\s*$", re.MULTILINE)
    for file in Path(os.path.commonpath(known.values())).rglob("*.yaml"):
        text = file.read_text(encoding="utf-8")
        if line.search(text):
            members = yaml.safe_load(text.replace("!function", ""))["task"]
            names = [str(m["task"] if isinstance(m, dict) else m) for m in members]
            raise UserError(f"{name} is a group of tasks: choose some of tasks=[{','.join(names)}]")


class Suite:
    """The tasks of a configuration, loaded through lmms-eval's own task manager."""

    def __init__(self, tasks: TasksConfig):
        from lmms_eval.tasks import TaskManager

        _quiet_logger()
        self.tasks = tasks
        include = shipped(tasks.include) if tasks.include else None
        local = task_files(include) if include else {}
        self.manager = TaskManager(
            include_path=str(include) if include else None,
            include_defaults=not set(tasks.metrics) <= set(local),  # indexing lmms-eval's own takes seconds
            model_name=PROMPTS_OF,
        )

    def check(self, media: Collection[str] = ("image", "video")) -> None:
        """Load every task's data and first question, so that what is missing shows before the model runs.

        `media` is what the model can be shown besides text.
        """
        from lmms_eval.protocol import ChatMessages

        for name, metric in self.tasks.metrics.items():
            try:
                task = self.load(name)
                if task.OUTPUT_TYPE != "generate_until":
                    raise UserError(f"task {name} is not of output_type generate_until: only those can be run")
                first = ChatMessages(messages=task.doc_to_messages(task.task_docs[0]))
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # lmms-eval, its tasks and datasets raise anything here
                raise UserError(f"cannot load task {name}: {_cause(error)}") from error
            kinds = {part.type for message in first.messages for part in message.content}
            if other := kinds - {"text", "image", "video"}:
                raise UserError(f"task {name} asks about {', '.join(other)}: the model takes text, images and videos")
            if unseen := kinds - {"text", *media}:
                shown = f"the model takes {' and '.join(f'{kind}s' for kind in media)} only: try tasks=pocket_image"
                raise UserError(f"task {name} asks about {', '.join(unseen)}: {shown}")
            _check_metric(name, metric, task)

    def load(self, name: str) -> Any:
        """A task with its documents."""
        from lmms_eval.tasks import get_task_dict

        return get_task_dict([name], self.manager, "chat")[name]

    def messages(self, task: Any, doc: Any) -> "list[Message]":
        """What a model is asked about a document of a loaded task."""
        from lmms_eval.protocol import ChatMessages

        asked = ChatMessages(messages=task.doc_to_messages(doc)).messages
        return [{"role": message.role, "content": [dict(part) for part in message.content]} for message in asked]

    def images(self, name: str) -> Iterator[Any]:
        """The images that a task asks about, in its order."""
        task = self.load(name)
        for doc in task.task_docs:
            for message in self.messages(task, doc):
                yield from (part["url"] for part in message["content"] if part["type"] == "image")

    def run(self, model: "PrunedModel", limit: int | None, scratch: Path) -> tuple[dict[str, Any], dict[str, Any]]:
        """Answer and score every task; returns what `metrics.json` holds, and `scores.json`."""
        scores, counts, each = {}, {}, {}
        for name in self.tasks.metrics:
            results = self._task(model, name, limit, scratch)
            scores[name] = numeric(results["results"][name])
            counts[name] = results["n-samples"][name]["effective"]
            each[name] = per_question(results["samples"][name], list(results["results"][name]))
        return {"scores": scores, "primary": primary(scores, self.tasks.metrics), "questions": counts}, each

    def _task(self, model: "PrunedModel", name: str, limit: int | None, scratch: Path) -> dict[str, Any]:
        """One task per call: lmms-eval keeps a fresh Task object, and nothing of one task leaks into the next."""
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        from methods.checks import SelectionError

        try:
            results: dict[str, Any] = simple_evaluate(
                model=model,
                tasks=[name],
                limit=limit,
                task_manager=self.manager,
                bootstrap_iters=0,
                log_samples=True,
                batch_size=model.loaded.config.batch_size,
                process_docs_parallel=1,
                cli_args=Namespace(
                    output_path=str(scratch), process_with_media=False, reasoning_tags=None, agentic_trace_mode="basic"
                ),
            )
        except SelectionError as error:
            raise UserError(f"task {name}: {one_line(error)}") from error
        except RetryError as error:
            raise RuntimeError(f"task {name}: {_cause(error)}") from error
        except SystemExit as error:  # videomme leaves this way when a video is missing
            raise UserError(f"task {name} stopped: {one_line(error)}") from error
        return results


def primary(scores: dict[str, dict[str, Any]], metrics: dict[str, str | None]) -> dict[str, str | None]:
    """The metric of each task that the tables show: the one asked for, or the first; UserError if it is not there."""
    chosen = {name: metric or next(iter(scores[name]), None) for name, metric in metrics.items()}
    for name, metric in chosen.items():
        value(scores[name], metric)
    return chosen


def numeric(results: dict[str, Any]) -> dict[str, Any]:
    """The finite numbers, or lists of them, among a task's results, in lmms-eval's order, without standard errors."""
    kept: dict[str, Any] = {}
    for key, found in results.items():
        several = isinstance(found, list | tuple)
        numbers = [_number(item) for item in (found if several else [found])]
        if "_stderr" not in key and None not in numbers:
            kept[key] = numbers if several else numbers[0]
    return kept


def per_question(samples: list[dict[str, Any]], columns: list[str]) -> dict[str, list[Any]]:
    """What lmms-eval aggregates: `doc_id` and, for each metric of `columns` ("accuracy,none"), a value per question.

    A value is what the task's own `process_results` gave: mostly a number, for some tasks a record (MME's category and
    score). A document stands once per filter among lmms-eval's samples, in the order of the filters.
    """
    pairs = [column.rpartition(",")[::2] for column in columns if "," in column]
    filters = list(dict.fromkeys(kind for _, kind in pairs))
    seen: Counter[int] = Counter()
    rows: dict[int, dict[str, Any]] = {}
    for sample in samples:
        doc_id = int(sample["doc_id"])
        of = filters[seen[doc_id]]
        seen[doc_id] += 1
        found = {f"{key},{kind}": _plain(sample[key]) for key, kind in pairs if kind == of and key in sample}
        rows.setdefault(doc_id, {}).update(found)
    ids = sorted(rows)
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    return {"doc_id": ids} | {name: [rows[doc_id].get(name) for doc_id in ids] for name in names}


def _plain(found: Any) -> Any:
    """A value as JSON has it: NumPy's numbers as numbers, NaN as null, what JSON cannot hold as text."""
    if isinstance(found, dict):
        return {str(key): _plain(item) for key, item in found.items()}
    if isinstance(found, list | tuple | set):
        return [_plain(item) for item in found]
    if found is None or isinstance(found, str | bool | int):
        return found
    number = _number(found)
    return str(found) if number is None and not isinstance(found, float) else number


def _number(found: Any) -> float | None:
    if isinstance(found, bool | str):
        return None
    try:
        number = float(found)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def value(scores: dict[str, Any], metric: str | None) -> float:
    """The number that a metric expression such as `a,none + b,none` or `c,none[2]` names among a task's scores."""
    total = 0.0
    for term in (metric or "").split("+"):
        match = _TERM.fullmatch(term)
        found = scores.get(match[1]) if match else None
        if match and match[2] and isinstance(found, list) and int(match[2]) < len(found):
            found = found[int(match[2])]
        if not isinstance(found, float):
            raise UserError(f"no metric {term.strip()!r} among {', '.join(scores) or 'no numbers'}: set tasks.metrics")
        total += found
    return total


def _check_metric(name: str, metric: str | None, task: Any) -> None:
    known = [f"{key},{kind.name}" for key in task.aggregation() for kind in task._filters]
    if all(key.startswith("submission,") for key in known):
        raise UserError(f"task {name} has no labels, it only writes a file to submit: it cannot be scored here")
    for term in metric.split("+") if metric else ():
        match = _TERM.fullmatch(term)
        if not match or match[1] not in known:
            raise UserError(f"tasks.metrics.{name}: no metric {term.strip()!r} among {', '.join(known)}")


def _cause(error: BaseException) -> str:
    """The first line of what really went wrong below lmms-eval's retries."""
    from tenacity import RetryError

    while isinstance(error, RetryError):
        inner = error.last_attempt.exception()
        if inner is None:
            break
        error = inner
    return f"{type(error).__name__}: {one_line(error)}"


def _quiet_logger() -> None:
    """lmms-eval logs to stdout, where our last line belongs to programs."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")
