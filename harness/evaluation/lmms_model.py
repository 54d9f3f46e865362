"""The lmms-eval model that prunes visual tokens and logs its answers, for our command and for lmms-eval's own."""

import base64
import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from itertools import groupby, islice, zip_longest
from typing import Any

import numpy as np
import torch
from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages
from lmms_eval.utils import simple_parse_args_string
from loguru import logger
from omegaconf import OmegaConf
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from harness.core.config import ModelConfig, validate
from harness.core.distributed import launched, only_one
from harness.core.errors import UserError, one_line
from harness.core.files import digest
from harness.core.timing import Stages
from harness.core.values import checked
from harness.evaluation.identity import Identity
from harness.evaluation.lmms_command import one_line_ending
from harness.evaluation.pruner import Pruner, pruner_of
from harness.evaluation.resize_baseline import ResizeHandle, ResizeRecord
from harness.evaluation.task_overrides import check_prompts
from harness.models import adapter_for, checkpoint
from harness.models.bad_input import BadInput, check_asked, check_some_answered, reading
from harness.models.calls import PIXELS, NonFiniteError
from harness.models.context import context_length
from harness.models.generation import check as check_generation
from harness.models.loading import Loaded, load
from harness.models.model_folder import ModelFolder
from harness.models.preprocessing import Message, PixelLimits, limits_of, messages_digest, to_inputs, visual_digest
from harness.pruning.decoding_proof import Proof, prove
from harness.pruning.handle import Kept
from harness.pruning.vision_cache import VisionCache
from harness.results.response_log import ResponseLog
from methods.base import Selection

DETAILED = 32  # questions of a task whose picking order and importance are recorded, for the gallery of the report
MAX_NEW_TOKENS = 128  # if the task sets none; the default of lmms-eval's own chat model


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
            tqdm(total=len(requests), desc=self._title(requests), disable=not processes.first) as progress,
        ):
            for number, batch in enumerate(self._batches(requests)):
                if number % processes.count == processes.rank:
                    mine.append(self._pairs([self._request(*numbered) for numbered in batch], handle))
                progress.update(len(batch))
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
            GenerationResult(line["response"], TokenCounts(line["input_tokens"], line["output_tokens"]))
            for line, _ in pairs
        ]

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
        if self._prompts is not None:
            check_prompts(doc_to_messages.__self__, self._prompts)

        @cache
        def messages() -> list[Message]:
            chat = ChatMessages(messages=doc_to_messages(self.task_dict[task][split][doc_id]))
            return [{"role": m.role, "content": [dict(part) for part in m.content]} for m in chat.messages]

        if (task, doc_id) not in self._digests:
            self._digests[task, doc_id] = _digest_question(messages)
        looked_at = self._digests[task, doc_id]
        of_repeat = [repeat] if repeat else []  # the key of a first answer is that of a task without repeats
        key = digest([self._identity, task, doc_id, instance.idx, looked_at.shown, generation, *of_repeat])
        in_detail = (task, doc_id) in self._detailed
        return Request(key, task, doc_id, messages, looked_at.shown, generation, looked_at.failed, in_detail, repeat)

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
    def _limits(self) -> tuple[PixelLimits | None, int]:
        """Pixels of an image and tokens of a prompt, as `to_inputs` takes them."""
        return limits_of(self.loaded.processor, self.loaded.config), context_length(self.loaded.model.config)

    def _inputs(self, batch: list[Request], handle: Any) -> AbstractContextManager[Mapping[str, Any]]:
        """Preprocess a batch, once for all runs that show it to the same model."""
        processor, shared = self.loaded.processor, self.shared

        def prepare() -> Any:
            preprocess = handle.inputs if isinstance(handle, ResizeHandle) else to_inputs
            conversations = [request.messages() for request in batch]
            return preprocess(processor, conversations, *self._limits).to(self.loaded.device)

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
        generation = _generation(batch[0].generation, processor.tokenizer.pad_token_id)
        with self._inputs(batch, handle) as inputs:
            shown = any(inputs.get(name) is not None for name in PIXELS.values())
            if shown and self.verify and not self.proof.complete(self.loaded.config.batch_size):
                handle.seed(seeds)
                with self.stages("verify"):
                    self._prove(inputs, handle)
            with self.stages("llm"), self.stages.watching("vision", tower):
                handle.seed(seeds)
                torch.manual_seed(seeds[0])
                output = model.generate(**inputs, **generation, **_checked_draws(generation, handle))
        handle.settle()
        records = handle.take() if shown else [Kept(0, 0, [], [])] * len(batch)
        if len(records) != len(batch):
            raise RuntimeError(f"{len(batch)} samples went in but the pruner saw {len(records)}: nothing can be scored")
        answers = output[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(answers, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        lengths = zip(inputs["attention_mask"].sum(1).tolist(), _lengths(answers, processor), strict=True)
        names = [request.name for request in batch]
        lines = [
            {**name, "response": text, "input_tokens": before, "output_tokens": after}
            for name, text, (before, after) in zip(names, texts, lengths, strict=True)
        ]
        kept = [name | _kept_fields(record) for name, record in zip(names, records, strict=True)]
        if shown:
            for line, request, chosen in zip(kept, batch, handle.latest, strict=True):
                line.update(_details(*chosen) if request.detailed else {})
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
    if tree["method"]["name"] == "none" and not {"keep", "tokens"} & rest.keys():
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


def _kept_fields(record: Kept) -> dict[str, Any]:
    """Return the fields of a line of kept.jsonl; `per_layer` is the mean number of visual tokens per decoder layer.

    `budget` and `shown`, the grids of the smaller images, are there only if images were resized: `k` may then differ.
    """
    grids = [list(grid) for grid in record.grids]
    line = {"n": record.n, "k": record.k, "per_layer": record.per_layer, "grids": grids, "kept": record.kept}
    if isinstance(record, ResizeRecord):
        line |= {"budget": record.budget, "shown": [list(grid) for grid in record.shown]}
    return line


def detailed(questions: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Choose `DETAILED` questions (task, document) of each task by digest, the same in every run of a sweep."""
    ranked = sorted(set(questions), key=lambda question: (question[0], digest(question)))
    tasks = groupby(ranked, key=lambda question: question[0])
    return {question for _, of_task in tasks for question in islice(of_task, DETAILED)}


def _details(selection: Selection, importance: torch.Tensor | None) -> dict[str, Any]:
    """Return the fields of kept.jsonl for a detailed question, as far as the method provides them.

    `order` lists the kept indices in picking order. `importance` has a byte per token, in base64: the logits, scaled to
    0 for the least important token and 255 for the most important one.
    """
    details: dict[str, Any] = {}
    if selection.order is not None:
        details["order"] = selection.order.tolist()
    if importance is not None:
        logits = importance.float().cpu().numpy()
        low, high = logits.min(), logits.max()
        levels = (255 * (logits - low) / (high - low or 1)).round().astype(np.uint8)
        details["importance"] = base64.b64encode(levels.tobytes()).decode()
    return details


def _empty_pair(request: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the (response, kept indices) lines of a question that failed."""
    line = {"response": "", "input_tokens": 0, "output_tokens": 0, "failed": request.failed}
    return request.name | line, request.name | _kept_fields(Kept(0, 0, [], []))


def _seed(seed: int, request: Request) -> int:
    """Derive a seed for the question and its repeat, so that no answer depends on the order or on a restart."""
    text = f"{seed} {request.task} {request.doc_id}" + (f" {request.repeat}" if request.repeat else "")
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _generation(task: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
    """Return the arguments of `generate` for a task's `generation_kwargs`: greedy unless it sets a temperature."""
    check_generation(task, "the task's generation_kwargs")
    temperature = task.get("temperature") or 0.0
    sample = bool(task.get("do_sample", temperature > 0)) and temperature > 0
    return {
        "max_new_tokens": task.get("max_new_tokens", MAX_NEW_TOKENS),
        "num_beams": task.get("num_beams", 1),
        "do_sample": sample,
        "temperature": temperature if sample else None,
        "top_p": task.get("top_p") if sample else None,
        "top_k": task.get("top_k") if sample else None,
        "pad_token_id": pad_token_id,
    }


class _BeforeDraws(LogitsProcessor):
    """Raise deferred errors before a token is drawn: CUDA aborts the process if it draws by NaN."""

    def __init__(self, handle: Any):
        self._handle = handle

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._handle.settle()
        return scores


def _checked_draws(generation: Mapping[str, Any], handle: Any) -> dict[str, Any]:
    return {"logits_processor": LogitsProcessorList([_BeforeDraws(handle)])} if generation["do_sample"] else {}


def _lengths(answers: torch.Tensor, processor: Any) -> list[int]:
    """Count the tokens of each answer [B, T], without the padding after its end."""
    padding = answers == processor.tokenizer.pad_token_id
    trailing = padding.flip(1).long().cumprod(1).sum(1)
    return [int(answers.shape[1] - n) for n in trailing.tolist()]
