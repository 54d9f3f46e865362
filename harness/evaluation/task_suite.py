"""The bridge to lmms-eval: its tasks, its scoring, its registry; no fork and no copied task code."""

import os
import sys
from argparse import Namespace
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from harness.core.config import TasksConfig
from harness.core.errors import UserError, one_line
from harness.core.question_sample import QuestionSample
from harness.core.task_index import task_file
from harness.core.timing import importing
from harness.evaluation import task_overrides
from harness.evaluation.judges import with_answers
from harness.evaluation.noise import noise
from harness.results.metrics import TERM, aggregated, numeric, per_question, primary

if TYPE_CHECKING:
    from harness.evaluation.lmms_model import PrunedModel, QuestionDigest
    from harness.models.preprocessing import Message

MODEL_ID = "harness"
ALIASES = ("harness_qwen2_5_vl",)  # its name when there was one family
EVERY = QuestionSample()
CHECKED = 16  # questions that are checked of a task whose rows hold pictures, which take time to decode


def manifests() -> list[Any]:
    """Return what lmms-eval's entry-point group `lmms_eval.models` reads."""
    from lmms_eval.models.registry_v2 import ModelManifest

    address = "harness.evaluation.lmms_model.PrunedModel"
    return [ModelManifest(model_id=MODEL_ID, aliases=ALIASES, chat_class_path=address)]


class TaskSuite:
    """The tasks of a configuration, with lmms-eval's own prompts, scoring and data, or the local copies in `data`.

    Tasks may carry prompts for one of lmms-eval's model ids: `prompts` is that of the model underneath. Unless
    `verbose`, nothing is shown of what lmms-eval and its tasks print, nor the bars of datasets, but for downloads.
    """

    def __init__(
        self,
        tasks: TasksConfig,
        prompts: str = "",
        data: Mapping[str, Path] = MappingProxyType({}),
        verbose: bool = False,
    ):
        self.verbose = verbose
        self._set_logger()
        with importing():
            import_module("lmms_eval.evaluator")  # takes seconds, which are no part of reading or scoring
        datasets = import_module("datasets")
        (datasets.enable_progress_bars if verbose else datasets.disable_progress_bars)()
        self.questions: dict[str, int] = {}  # task -> how many are asked of it, once it is checked
        self.tasks = tasks
        self.prompts = prompts
        self.data = data
        self._rows: dict[str, Any] = {}  # read once for all Task objects
        self.looked_at: dict[tuple[str, int], QuestionDigest] = {}  # questions, once for all runs

    def load(self, name: str) -> Any:
        """Return a new Task object: no run sees what another leaves in a task's code."""
        file = task_file(name, self.tasks.include)
        return task_overrides.load(name, file, self.prompts, self.data.get(name), self._rows)

    def check(self, media: Collection[str] = ("image", "video"), sample: QuestionSample = EVERY) -> None:
        """Load every task's data and look at its questions, so that what is missing shows before the model runs.

        All of `sample` where that takes no decoding, so that a missing video shows; `CHECKED` of them, spread over all,
        where the rows bring pictures. `media` is what the model can be shown besides text.
        """
        for name, metric in self.tasks.metrics.items():
            try:
                task = self.load(name)
                if task.OUTPUT_TYPE != "generate_until":
                    raise UserError(f"task {name} is not of output_type generate_until: only those can be run")
                asked = sample.numbers(name, len(task.task_docs))
                if not asked:
                    raise UserError(f"task {name} has no questions")
                self.questions[name] = len(asked) * task.config.repeats
                kinds = [_kinds(task, doc_id) for doc_id in _to_check(task, asked)]
            except UserError:
                raise
            except (Exception, SystemExit) as error:  # lmms-eval, its tasks and datasets raise anything here
                raise UserError(_not_loaded(name, error)) from error
            unseen = [of_question - {"text", *media} for of_question in kinds if of_question]
            if unseen and all(unseen):  # a single question is counted as failed when it is asked
                shown = f"the model takes {' and '.join(f'{kind}s' for kind in media)} only: try tasks=pocket_image"
                raise UserError(f"task {name} asks about {', '.join(sorted(set.union(*unseen)))}: {shown}")
            _check_metric(name, metric, task)
            task_overrides.check_asked(name, task, asked)

    def messages(self, task: Any, doc: Any) -> "list[Message]":
        """Return what a model is asked about a document of a loaded task."""
        from lmms_eval.protocol import ChatMessages

        chat = ChatMessages(messages=task.doc_to_messages(doc)).messages
        return [{"role": message.role, "content": [dict(part) for part in message.content]} for message in chat]

    @staticmethod
    def requests(task: Any, doc_ids: Iterable[int], model: "PrunedModel") -> list[Any]:
        """Return lmms-eval's requests about documents of a loaded task; `model` gets the rows that they refer to."""
        name = task.config.task
        split = task.config.test_split if task.has_test_docs() else task.config.validation_split
        model.task_dict[name] = {split: task.task_docs}
        entries = [{"task": name, "doc_id": doc_id, "repeats": 1, "split": split} for doc_id in doc_ids]
        return [task.construct_requests(doc_id=entry["doc_id"], ctx="", metadata=entry) for entry in entries]

    def images(self, name: str) -> Iterator[Any]:
        """Yield the images that a task asks about, in its order."""
        task = self.load(name)
        for doc in task.task_docs:
            for message in self.messages(task, doc):
                yield from (part["url"] for part in message["content"] if part["type"] == "image")

    def run(
        self, model: "PrunedModel", sample: QuestionSample, scratch: Path
    ) -> tuple[dict[str, Any], dict[str, Any]] | None:
        """Answer and score every task; return what `metrics.json` and `scores.json` hold.

        None in a process that is not the first: it answers its share, and the first one scores.
        """
        from harness.evaluation.lmms_model import WorkerDone

        scores, counts, values, versions, unjudged = {}, {}, {}, {}, {}
        measures: dict[str, Callable[[], dict[str, Any]]] = {}  # called last, when no other process waits for answers
        for name in self.tasks.metrics:
            task = self.load(name)
            task.asked = sample.numbers(name, len(task.task_docs))
            try:
                results, unjudged[name] = self._score(task, name, model, scratch)
            except WorkerDone:
                continue
            versions[name] = task_overrides.version_of(task)
            scores[name] = numeric(results["results"][name])
            counts[name] = len(task.asked)
            pictures = {doc_id: seen.visual for (of_task, doc_id), seen in self.looked_at.items() if of_task == name}
            samples, columns = results["samples"][name], list(results["results"][name])
            values[name] = per_question(samples, columns, pictures)
            scored = task.args, aggregated(samples, columns), scores[name], values[name], self.tasks.metrics[name]
            measures[name] = partial(noise, partial(self.load, name), *scored)
        if not scores:
            return None
        metrics = {
            "scores": scores,
            "primary": primary(scores, self.tasks.metrics),
            "questions": counts,
            "noise": {name: measure() for name, measure in measures.items()},
            "scored_by": {"lmms-eval": version("lmms-eval"), "tasks": versions},
        }
        if any(unjudged.values()):  # task -> document -> why no judge has scored it
            metrics["unjudged"] = {
                name: {str(doc_id): why for doc_id, why in docs.items()} for name, docs in unjudged.items() if docs
            }
        return metrics, values

    def _score(
        self, task: Any, name: str, model: "PrunedModel", scratch: Path
    ) -> tuple[dict[str, Any], dict[int, str]]:
        """Return lmms-eval's results, and the questions that a judge has refused.

        One task per call, so that its limit is its own and its answers are on disk before the next begins.
        """
        from lmms_eval.evaluator import simple_evaluate
        from lmms_eval.tasks import TaskManager
        from tenacity import RetryError

        from harness.models.calls import HookError
        from methods.checks import SelectionError

        self._set_logger()  # importing more of lmms-eval has undone it
        try:
            with self._aside(), with_answers(name) as refused:
                results: dict[str, Any] = simple_evaluate(
                    model=model,
                    tasks=[task],
                    limit=task.asked[-1] + 1,  # the task leaves out what is not asked before that
                    task_manager=TaskManager(include_defaults=False),  # to index lmms-eval's own takes seconds
                    bootstrap_iters=0,
                    log_samples=True,
                    batch_size=model.loaded.config.batch_size,
                    process_docs_parallel=1,
                    cli_args=Namespace(
                        output_path=str(scratch),
                        process_with_media=False,
                        reasoning_tags=task_overrides.REASONING_TAGS,
                        agentic_trace_mode="basic",
                    ),
                )
        except (SelectionError, HookError) as error:
            raise UserError(f"task {name}: {one_line(error)}") from error
        except FileNotFoundError as error:
            raise UserError(f"task {name}: {one_line(error)}: its data set is not whole") from error
        except RetryError as error:
            cause = _cause(error)
            raise RuntimeError(f"task {name}: {type(cause).__name__}: {one_line(cause)}") from error
        except SystemExit as error:  # videomme leaves this way when a video is missing
            raise UserError(f"task {name} stopped: {one_line(error)}") from error
        return results, refused

    @contextmanager
    def _aside(self) -> Iterator[None]:
        """Keep what lmms-eval and its tasks print, such as bars and tables, from stdout; and from stderr if quiet."""
        with open(os.devnull, "w") as nowhere:
            stream = sys.stderr if self.verbose else nowhere
            with redirect_stdout(stream), redirect_stderr(stream):
                yield

    def _set_logger(self) -> None:
        """Send lmms-eval's log to stderr: on stdout, programs read our last line. Warnings of ours are always shown."""
        from loguru import logger

        stream, least = sys.stderr, logger.level("INFO" if self.verbose else "ERROR").no

        def shown(record: Any) -> bool:
            ours = str(record["name"]).partition(".")[0] in ("harness", "methods")
            return bool(record["level"].no >= (logger.level("WARNING").no if ours else least))

        logger.remove()
        logger.add(lambda text: tqdm.write(text, stream, ""), level=0, filter=shown, format="{level}: {message}")


def _check_metric(name: str, metric: str | None, task: Any) -> None:
    metrics = [f"{key},{kind.name}" for key in task.aggregation() for kind in task._filters]
    if all(key.startswith("submission,") for key in metrics):
        raise UserError(f"task {name} has no labels, it only writes a file to submit: it cannot be scored here")
    for term in metric.split("+") if metric else ():
        match = TERM.fullmatch(term)
        if not match or match[1] not in metrics:
            raise UserError(f"tasks.metrics.{name}: no metric {term.strip()!r} among {', '.join(metrics)}")


def _to_check(task: Any, asked: Sequence[int]) -> Sequence[int]:
    from datasets.features.features import require_decoding

    decoded = any(map(require_decoding, task.task_docs.features.values()))
    return asked[:: max(1, len(asked) // CHECKED)] if decoded else asked


def _kinds(task: Any, doc_id: int) -> set[str]:
    """Return what a question consists of (text, image, video, audio); nothing if a picture does not decode.

    FileNotFoundError if a picture or video is a file that is not there.
    """
    from lmms_eval.protocol import ChatMessages

    from harness.models.bad_input import BadInput, reading
    from harness.models.pictures import check_files

    try:
        with reading():
            messages = ChatMessages(messages=task.doc_to_messages(task.task_docs[doc_id])).messages
    except BadInput:
        return set()  # counted as failed when it is asked
    parts = [part for message in messages for part in message.content]
    check_files(part.url for part in parts if part.type in ("image", "video"))
    return {part.type for part in parts}


def _not_loaded(name: str, error: BaseException) -> str:
    """Say as one line why a task was not loaded, and what to do."""
    from datasets.exceptions import DatasetNotFoundError
    from huggingface_hub.errors import LocalTokenNotFoundError

    error = _cause(error)
    if isinstance(error, ConnectionError | DatasetNotFoundError | LocalTokenNotFoundError):
        fetch = f"python -m harness.data tasks={name} to=FOLDER where the Hub can be reached"
        remedy = f"{fetch} (some data want hf auth login), and data_root=FOLDER here"
        return f"cannot load task {name}: {one_line(error)}: {remedy}"
    if isinstance(error, FileNotFoundError):
        return f"task {name}: {one_line(error)}: its data set is not whole"
    return f"cannot load task {name}: {type(error).__name__}: {one_line(error)}"


def _cause(error: BaseException) -> BaseException:
    """Return the error below lmms-eval's retries."""
    from tenacity import RetryError

    while isinstance(error, RetryError) and (inner := error.last_attempt.exception()) is not None:
        error = inner
    return error
