"""The lmms-eval model that prunes visual tokens and logs its answers, for our command and for lmms-eval's own."""

import hashlib
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import groupby, zip_longest
from typing import Any

import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from omegaconf import OmegaConf
from PIL import Image
from tqdm import tqdm

from harness.core.config import ModelConfig, validate
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, one_line
from harness.core.files import digest
from harness.core.timing import Stages
from harness.core.values import checked
from harness.evaluation.generation import answer_lengths, checked_draws, generation_arguments
from harness.evaluation.grounding import answer_fields, asks_where, scored_text, target_fields
from harness.evaluation.identity import Identity
from harness.evaluation.lmms_command import one_line_ending
from harness.evaluation.pruner import Pruner, pruner_of
from harness.evaluation.records import detailed, kept_fields, picking_details
from harness.evaluation.resize_baseline import ResizeHandle
from harness.evaluation.task_overrides import check_prompts
from harness.models import adapter_for, checkpoint
from harness.models.bad_input import BadInput, check_asked, check_some_answered, reading
from harness.models.calls import PIXELS, NonFiniteError
from harness.models.context import context_length
from harness.models.limits import Limits, limits_of
from harness.models.loading import Loaded, load
from harness.models.model_folder import ModelFolder
from harness.models.pictures import as_rgb
from harness.models.preprocessing import (
    Message,
    ShownVideo,
    media_of,
    messages_digest,
    to_inputs,
    visual_digest,
)
from harness.pruning.decoding_proof import Proof, prove
from harness.pruning.handle import Kept
from harness.pruning.vision_cache import VisionCache
from harness.results.response_log import ResponseLog

VIDEOS = "videos"  # among the inputs of a batch: what each question shows of its videos


@dataclass(frozen=True)
class QuestionDigest:
    """Digests of a question's content and of its pictures and videos alone; `failed` says why it cannot be shown."""

    shown: str | None = None
    visual: str | None = None
    failed: str | None = None


@dataclass(frozen=True)
class Request:
    """One question as the model sees it, and the key under which its answer is logged."""

    key: str
    task: str
    doc_id: int
    messages: Callable[[], list[Message]]  # decodes images and videos when called
    shown: str | None  # digest of the messages
    generation: dict[str, Any]
    failed: str | None = None  # why it cannot be shown to the model
    detailed: bool = False  # whether picking order and importance are recorded
    repeat: int = 0  # of a task with `repeats: K`, 0 to K - 1
    row: Callable[[], Mapping[str, Any]] = dict  # of the task's data set
    asks_where: bool = False  # whether the row has a target in the picture

    @property
    def name(self) -> dict[str, Any]:
        """The fields with which every logged line begins."""
        repeat = {"repeat": self.repeat} if self.repeat else {}
        return {"key": self.key, "task": self.task, "doc_id": self.doc_id, **repeat}


class WorkerDone(Exception):  # noqa: N818  (nothing went wrong)
    """Raised instead of scoring in all processes but the first, which has received their answers."""


class PrunedModel(lmms):
    """A model whose visual tokens are pruned while it answers lmms-eval's chat requests.

    On lmms-eval's command line: `--model harness --model_args pretrained=...,method=idpruner,keep=0.25`. Arguments are
    the fields of conf/model, `tokens`, `seed`, and a method's parameters as `method_<parameter>` (`method_lam=0.7`). A
    question that cannot be shown gets an empty answer; if `strict`, it stops the run. Unless `verify` is false, the
    first questions are decoded twice, the second time without a KV cache.
    """

    is_simple = False

    def __init__(
        self,
        loaded: Loaded,
        pruner: Pruner,
        identity: dict[str, Any],
        log: ResponseLog | None = None,
        strict: bool = False,
        stages: Stages | None = None,
        looked_at: dict[tuple[str, int], QuestionDigest] | None = None,
        verify: bool = True,
        proven: Callable[[Proof], None] = lambda proof: None,
        shared: VisionCache | None = None,
        answered: Callable[[int], None] | None = None,
    ):
        super().__init__()
        self.loaded = loaded
        self.shared = shared
        self.pruner = pruner
        self.log = log
        self.strict = strict
        self.stages = stages or Stages()
        self.device = loaded.device
        self.verify = verify
        self.proof = Proof()
        self._answered = answered  # called with the number of questions of each batch; None: a bar of our own
        self._stderr = sys.stderr  # for what methods print, while lmms-eval may not print
        self._proven = proven  # called before an answer that the proof covers is logged
        self.asked: list[str] = []  # keys of all answered questions, in order
        self._digests = {} if looked_at is None else looked_at  # by task and document
        self._detailed: set[tuple[str, int]] = set()  # task and document
        self._identity = digest(identity)
        self._prompts: str | None = None  # the family's prompts, to check tasks that our command did not load

    @classmethod
    @one_line_ending()
    def create_from_arg_string(cls, arg_string: str, additional_config: dict[str, Any] | None = None) -> "PrunedModel":
        """Build the model from `--model_args`; `additional_config` holds `--batch_size` and `--device`."""
        arguments = {k: v for k, v in (additional_config or {}).items() if v is not None and k != "max_batch_size"}
        arguments |= simple_parse_args_string(arg_string)
        if not str(size := arguments.get("batch_size", 1)).isdecimal():
            raise UserError(f"batch_size must be a whole number, since answers depend on it, got {size}: pass 1")
        strict, verify = bool(arguments.pop("strict", False)), bool(arguments.pop("verify", True))
        model = cls(*from_flat(arguments), strict=strict, verify=verify)
        model._prompts = adapter_for(model.loaded.model).prompts
        return model

    def __repr__(self) -> str:
        return f"PrunedModel({self._identity})"  # a key of lmms-eval's response cache: no memory address

    def clean(self) -> None:
        """Do nothing: lmms-eval would delete the model after the first task."""

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Raise NotImplementedError."""
        raise NotImplementedError("tasks scored by log-likelihood are not supported: choose a task that generates")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Raise NotImplementedError."""
        raise NotImplementedError("multi-round tasks are not supported: choose a task with output_type generate_until")

    @one_line_ending()
    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Answer every request, in order; answers in the log are not generated again.

        Of n processes, number i answers batches i, i + n, ... Only the first one returns, with all answers.
        """
        processes = launched()
        self._detailed = detailed((request.args[4], request.args[3]) for request in requests)
        mine = []
        with (
            self.stages("data"),
            self.pruner.attach(self.loaded.model, self.shared) as handle,
            self._showing(requests) as answered,
        ):
            for number, batch in enumerate(self._batches(requests)):
                if number % processes.count == processes.rank:
                    mine.append(self._pairs([self._request(*numbered) for numbered in batch], handle))
                answered(len(batch))
        shares, looked_at = processes.gather(mine), processes.gather(self._digests)
        if not processes.first:
            raise WorkerDone
        for digests in looked_at:
            self._digests.update(digests)
        pairs = [pair for turn in zip_longest(*shares, fillvalue=[]) for batch in turn for pair in batch]
        check_some_answered([line for line, _ in pairs])
        if self.log:
            self.log.add([line for line, _ in pairs], [kept for _, kept in pairs])
        self.asked += [line["key"] for line, _ in pairs]
        return [
            GenerationResult(scored_text(line), TokenCounts(line["input_tokens"], line["output_tokens"]))
            for line, _ in pairs
        ]

    @contextmanager
    def _showing(self, requests: list[Instance]) -> Iterator[Callable[[int], object]]:
        """Yield what shows how many questions are answered; methods may print within the block."""
        if self._answered is None:  # in lmms-eval's own command
            with tqdm(total=len(requests), desc=self._title(requests), disable=not launched().first) as progress:
                yield progress.update
        else:
            with redirect_stdout(self._stderr), redirect_stderr(self._stderr):
                yield self._answered

    def _title(self, requests: list[Instance]) -> str:
        tasks = {request.args[4] for request in requests}
        return f"{self.pruner.label} {tasks.pop() if len(tasks) == 1 else f'{len(tasks)} tasks'}"

    def _batches(self, requests: list[Instance]) -> Iterator[list[tuple[Instance, int]]]:
        """Batch the requests by their order alone, so that every process and a resumed run form the same batches.

        A request comes with its repeat: of a task with `repeats: K`, lmms-eval passes each request K times.
        """
        size = self.loaded.config.batch_size
        for _, group in groupby(_numbered(requests), key=lambda numbered: digest(numbered[0].args[2])):
            block = list(group)
            for start in range(0, len(block), size):
                yield block[start : start + size]

    def _request(self, instance: Instance, repeat: int = 0) -> Request:
        _, doc_to_messages, generation, doc_id, task, split = instance.args
        of_task = doc_to_messages.__self__
        if self._prompts is not None:
            check_prompts(of_task, self._prompts)

        @cache
        def row() -> Mapping[str, Any]:
            found: Mapping[str, Any] = self.task_dict[task][split][doc_id]
            return found

        @cache
        def messages() -> list[Message]:
            chat = ChatMessages(messages=doc_to_messages(row()))
            return [{"role": m.role, "content": [dict(part) for part in m.content]} for m in chat.messages]

        if (task, doc_id) not in self._digests:
            self._digests[task, doc_id] = _digest_question(messages)
        looked_at = self._digests[task, doc_id]
        of_repeat = [repeat] if repeat else []  # the key of a first answer is that of a task without repeats
        key = digest([self._identity, task, doc_id, instance.idx, looked_at.shown, generation, *of_repeat])
        in_detail = (task, doc_id) in self._detailed
        asked = looked_at.shown, generation, looked_at.failed, in_detail, repeat, row, asks_where(of_task)
        return Request(key, task, doc_id, messages, *asked)

    def _pairs(self, batch: list[Request], handle: Any) -> list[tuple[dict[str, Any], dict[str, Any]]]:
        """Return the (response, kept indices) lines of each question; lines on disk take precedence over new ones."""
        log = self.log
        if log is None:
            pairs = list(zip(*self._attempt(batch, handle), strict=True))
        else:
            if any(request.key not in log.responses for request in batch):
                log.add(*self._attempt(batch, handle))
            pairs = [(log.responses[request.key], log.kept[request.key]) for request in batch]
        for line in (line for line, _ in pairs if "failed" in line):
            about = f"task {line['task']}, question {line['doc_id']}: {line['failed']}"
            if self.strict:
                raise UserError(f"{about}; strict=false counts it as failed and goes on")
            logger.warning(f"failed, scored as an empty answer: {about}")
        return pairs

    def _attempt(self, batch: list[Request], handle: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Answer the questions that can be shown in one batch; the others get empty answers with the reason."""
        if not any(request.failed for request in batch):
            try:
                return self._answer(batch, handle)
            except BadInput:
                pass  # from which question, is checked below
        batch = [self._with_failure(request) for request in batch]
        readable = [request for request in batch if not request.failed]
        answers = zip(*self._answer(readable, handle), strict=True) if readable else ()
        pairs = dict(zip((request.key for request in readable), answers, strict=True))
        lines, kept = zip(*(pairs.get(request.key) or _empty_pair(request) for request in batch), strict=True)
        return list(lines), list(kept)

    def _with_failure(self, request: Request) -> Request:
        """Return the question, with the reason if it cannot be shown."""
        if request.failed:
            return request
        try:
            to_inputs(self.loaded.processor, [request.messages()], *self._limits)
        except BadInput as error:
            return replace(request, failed=str(error))
        return request

    @cached_property
    def _limits(self) -> tuple[Limits, int]:
        """Pixels of an image and tokens of a prompt, as `to_inputs` takes them."""
        return limits_of(self.loaded.processor, self.loaded.config), context_length(self.loaded.model.config)

    def _inputs(self, batch: list[Request], handle: Any) -> AbstractContextManager[Mapping[str, Any]]:
        """Preprocess a batch, once for all runs that show it to the same model; `VIDEOS` is no input."""
        processor, shared = self.loaded.processor, self.shared

        def prepare() -> Mapping[str, Any]:
            preprocess = handle.inputs if isinstance(handle, ResizeHandle) else to_inputs
            conversations = [request.messages() for request in batch]
            shown: list[list[ShownVideo]] = []
            inputs = preprocess(processor, conversations, *self._limits, shown=shown).to(self.loaded.device)
            return {**inputs, VIDEOS: shown}

        if shared is None or isinstance(handle, ResizeHandle):
            return nullcontext(prepare())
        return shared.inputs(digest([[request.shown, request.generation] for request in batch]), prepare)

    def _answer(self, batch: list[Request], handle: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        try:
            return self._generate(batch, handle)
        except NonFiniteError as error:
            first, others = batch[0], f" or one of the {len(batch) - 1} after it" if len(batch) > 1 else ""
            raise UserError(f"task {first.task}, question {first.doc_id}{others}: {one_line(error)}") from error

    @torch.inference_mode()
    def _generate(self, batch: list[Request], handle: Any) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        processor, model = self.loaded.processor, self.loaded.model
        seeds = [_seed(self.pruner.seed, request) for request in batch]
        tower = adapter_for(model).modules()["vision"]
        generation = generation_arguments(batch[0].generation, processor.tokenizer.pad_token_id)
        with self._inputs(batch, handle) as prepared:
            inputs = {name: value for name, value in prepared.items() if name != VIDEOS}
            shown = any(inputs.get(name) is not None for name in PIXELS.values())
            if shown and self.verify and not self.proof.complete(self.loaded.config.batch_size):
                handle.seed(seeds)
                with self.stages("verify"):
                    self._prove(inputs, handle)
            with self.stages("llm"), self.stages.watching("vision", tower):
                handle.seed(seeds)
                torch.manual_seed(seeds[0])
                output = model.generate(**inputs, **generation, **checked_draws(generation, handle))
        handle.settle()
        records = handle.take() if shown else [Kept(0, 0, [], [])] * len(batch)
        if len(records) != len(batch):
            raise RuntimeError(f"{len(batch)} samples went in but the pruner saw {len(records)}: nothing can be scored")
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lengths = zip(inputs["attention_mask"].sum(1).tolist(), answer_lengths(answers, processor), strict=True)
        names = [request.name for request in batch]
        lines = [
            {**name, "response": text, "input_tokens": before, "output_tokens": after}
            for name, text, (before, after) in zip(names, texts, lengths, strict=True)
        ]
        videos = prepared[VIDEOS]
        kept = [name | kept_fields(*told) for name, *told in zip(names, records, videos, strict=True)]
        for request, record, line, counts in zip(batch, records, lines, kept, strict=True):
            if request.asks_where:
                row, picture, family = request.row(), _first_picture(request), adapter_for(model)
                counts.update(target_fields(request.task, row, picture, processor))
                line.update(answer_fields(request.task, line["response"], picture, record, family, processor))
        if shown:
            for line, request, chosen in zip(kept, batch, handle.latest, strict=True):
                line.update(picking_details(*chosen) if request.detailed else {})
        return lines, kept

    def _prove(self, inputs: Mapping[str, Any], handle: Any) -> None:
        """Compare decoding through the KV cache with prefills; DecodingError if they differ."""
        model, shared = self.loaded.model, self.shared
        again = (lambda: None) if shared is None or isinstance(handle, ResizeHandle) else shared.again
        with handle.unrecorded():
            proof = prove(model, inputs, handle.replaying, adapter_for(model).placeholders, again)
        again()
        self.proof |= proof
        self._proven(self.proof)
        logger.info(f"decoding proven: {self.proof}")


def from_flat(arguments: dict[str, Any]) -> tuple[Loaded, Pruner, dict[str, Any]]:
    """Return the arguments of `PrunedModel` from flat `--model_args`, named as in conf/model and the main command."""
    only_one("a run by lmms-eval's own command line")  # processes would form other batches
    names = {field.name for field in fields(ModelConfig)} - {"name"}
    params = {key.removeprefix("method_"): value for key, value in arguments.items() if key.startswith("method_")}
    tree: dict[str, Any] = {
        "method": {"name": arguments.pop("method", "none"), **params},
        "model": {"name": "model_args", **{key: value for key, value in arguments.items() if key in names}},
        "tasks": {"name": "lmms_eval", "metrics": {"any": None}},
    }
    rest = {key: value for key, value in arguments.items() if key not in names and not key.startswith("method_")}
    if tree["method"]["name"] == "none" and not {"keep", "tokens", "per_tile"} & rest.keys():
        rest["keep"] = 1.0
    run = validate(checked(OmegaConf.create({**tree, **rest})))
    folder = ModelFolder(checkpoint.download(run.model))
    pruner = pruner_of(run, folder)
    return load(run.model, folder.path), pruner, Identity(run, folder).answers(pruner)


def _numbered(requests: Iterable[Instance]) -> Iterator[tuple[Instance, int]]:
    """Yield every request with the number of its earlier occurrences."""
    occurrences: Counter[tuple[Any, ...]] = Counter()
    for request in requests:
        question = (*request.args[3:5], request.idx)
        yield request, occurrences[question]
        occurrences[question] += 1


def _digest_question(messages: Callable[[], list[Message]]) -> QuestionDigest:
    """Return a question's digests, and the reason if it cannot be shown."""
    shown = visual = None
    try:
        with reading():
            shown, visual = messages_digest(messages()), visual_digest(messages())
        check_asked(messages())
    except BadInput as error:
        return QuestionDigest(shown, visual, str(error))
    return QuestionDigest(shown, visual)


def _first_picture(request: Request) -> Image.Image:
    """Return the picture of a question as the model gets it before any resizing; UserError if it shows none."""
    shown = media_of([request.messages()])
    if not shown or shown[0][0] != "image":
        first = f"{shown[0][0]} first" if shown else "none"
        raise UserError(f"task {request.task} asks where, so question {request.doc_id} needs a picture, got {first}")
    return as_rgb(shown[0][1])


def _empty_pair(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the (response, kept indices) lines of a question that failed."""
    line = {"response": "", "input_tokens": 0, "output_tokens": 0, "failed": request.failed}
    return request.name | line, request.name | kept_fields(Kept(0, 0, [], []))


def _seed(seed: int, request: Request) -> int:
    """Derive a seed for the question and its repeat, so that no answer depends on the order or on a restart."""
    text = f"{seed} {request.task} {request.doc_id}" + (f" {request.repeat}" if request.repeat else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
