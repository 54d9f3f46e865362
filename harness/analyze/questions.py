"""The pictures of an analysis, each once, with a question about it in the form that the model gets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

import numpy as np

from harness.core.config import RunConfig
from harness.core.errors import UserError
from harness.evaluation.datasets import local
from harness.evaluation.task_suite import TaskSuite
from harness.models import adapter_class
from harness.models.limits import limits_of
from harness.models.loading import Loaded
from harness.models.preprocessing import Message, messages_digest, to_inputs


@dataclass(frozen=True)
class Prompt:
    """A question of a task, as the messages that the model gets."""

    task: str
    doc_id: int
    messages: list[Message]
    target: str  # the right answer, as the task has it

    @cached_property
    def pictures(self) -> str:
        """Digest of its pictures; empty without a picture, or with a video."""
        parts = [part for message in self.messages for part in message["content"] if part["type"] != "text"]
        if not parts or any(part["type"] != "image" for part in parts):
            return ""
        return messages_digest([{"role": "user", "content": parts}])

    def inputs(self, loaded: Loaded) -> Any:
        """Return the model's inputs for this question, on the model's device."""
        limits = limits_of(loaded.processor, loaded.config)
        return to_inputs(loaded.processor, [self.messages], limits).to(loaded.device)


class Source:
    """The tasks of a configuration, each loaded once."""

    def __init__(self, config: RunConfig, loaded: Loaded):
        family = adapter_class(loaded.model.config.model_type)
        self.suite = TaskSuite(config.tasks, family.prompts, local(config.tasks, config.data_root))
        self.tasks = {name: self.suite.load(name) for name in config.tasks.metrics}

    def prompt(self, task: str, doc_id: int) -> Prompt:
        """Return one question; UserError if the task has none of that number."""
        if task not in self.tasks:
            raise UserError(f"{task} is not among the tasks {', '.join(self.tasks)}: name it in tasks=")
        docs = self.tasks[task].task_docs
        if not 0 <= doc_id < len(docs):
            raise UserError(f"task {task} has {len(docs)} questions, there is no number {doc_id}")
        loaded, doc = self.tasks[task], docs[doc_id]
        return Prompt(task, doc_id, self.suite.messages(loaded, doc), str(loaded.doc_to_target(doc)))

    def drawn(self, seed: int) -> Iterator[Prompt]:
        """Yield questions in random order, from all tasks in turn; every picture once, no video."""
        shown = {""}
        rng = np.random.default_rng(seed)
        orders = [
            [(name, int(doc)) for doc in rng.permutation(len(task.task_docs))] for name, task in self.tasks.items()
        ]
        for turn in zip_longest(*orders):
            for place in (place for place in turn if place is not None):
                prompt = self.prompt(*place)
                if prompt.pictures not in shown:
                    shown.add(prompt.pictures)
                    yield prompt
