"""The bridge to lmms-eval: its tasks, its scoring, its registry; no fork and no copied task code."""

import re
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.choices import task_files
from harness.config import TasksConfig, shipped
from harness.errors import UserError, one_line

if TYPE_CHECKING:
    from harness.lmms_model import PrunedModel

MODEL_ID = "harness_qwen2_5_vl"
PROMPTS_OF = "qwen2_5_vl"  # tasks may carry prompts for a model id: ours are those of the model underneath


def manifests() -> list[Any]:
    """What lmms-eval's entry-point group `lmms_eval.models` reads."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return [ModelManifest(model_id=MODEL_ID, chat_class_path="harness.lmms_model.PrunedModel")]


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

    def check(self) -> None:
        """Load every task's data once, so that what is missing shows before the model runs."""
        from lmms_eval.tasks import get_task_dict

        for name in self.tasks.metrics:
            try:
                loaded = get_task_dict([name], self.manager, "chat")
            except Exception as error:  # lmms-eval and datasets raise anything here; the user needs the first cause
                raise UserError(f"cannot load task {name}: {_cause(error)}") from error
            if "generate_until" not in {task.OUTPUT_TYPE for task in loaded.values()}:
                raise UserError(f"task {name} is not of output_type generate_until: only those can be run")

    def run(self, model: "PrunedModel", limit: int | None, scratch: Path) -> dict[str, Any]:
        """Answer and score every task; returns what `metrics.json` holds."""
        scores, primary, counts = {}, {}, {}
        for name, metric in self.tasks.metrics.items():
            results = self._task(model, name, limit, scratch)
            scores[name] = numeric(results["results"][name])
            primary[name] = metric or next(iter(scores[name]), None)
            value(scores[name], primary[name])
            counts[name] = results["n-samples"][name]["effective"]
        return {"scores": scores, "primary": primary, "questions": counts}

    def _task(self, model: "PrunedModel", name: str, limit: int | None, scratch: Path) -> dict[str, Any]:
        """One task per call: lmms-eval keeps a fresh Task object, and nothing of one task leaks into the next."""
        from lmms_eval.evaluator import simple_evaluate
        from tenacity import RetryError

        try:
            results: dict[str, Any] = simple_evaluate(
                model=model,
                tasks=[name],
                limit=limit,
                task_manager=self.manager,
                bootstrap_iters=0,
                log_samples=False,
                batch_size=model.loaded.config.batch_size,
                process_docs_parallel=1,
                cli_args=Namespace(
                    output_path=str(scratch), process_with_media=False, reasoning_tags=None, agentic_trace_mode="basic"
                ),
            )
        except RetryError as error:
            raise RuntimeError(f"task {name}: {_cause(error)}") from error
        return results


def numeric(results: dict[str, Any]) -> dict[str, Any]:
    """The numbers, or lists of numbers, among a task's results, in lmms-eval's order and without standard errors."""
    kept: dict[str, Any] = {}
    for key, found in results.items():
        if "_stderr" in key or isinstance(found, bool | str) or found is None:
            continue
        if isinstance(found, list | tuple):
            kept[key] = [float(item) for item in found]
        elif hasattr(found, "__float__"):
            kept[key] = float(found)
    return kept


def value(scores: dict[str, Any], metric: str | None) -> float:
    """The number that a metric expression such as `a,none + b,none` or `c,none[2]` names among a task's scores."""
    total = 0.0
    for term in (metric or "").split("+"):
        match = re.fullmatch(r"\s*(.+?)(?:\[(\d+)\])?\s*", term)
        found = scores.get(match[1]) if match else None
        if match and match[2] and isinstance(found, list) and int(match[2]) < len(found):
            found = found[int(match[2])]
        if not isinstance(found, float):
            raise UserError(f"no metric {term.strip()!r} among {', '.join(scores) or 'no numbers'}: set tasks.metrics")
        total += found
    return total


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
