"""Batches of questions with their answers, for a single forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.models.calls import TOKEN_INPUTS
from harness.models.limits import limits_of
from harness.models.loading import Loaded
from harness.models.preprocessing import to_inputs
from harness.train.conversations import Example

IGNORE = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Left-padded prompts with answers, [B, S] tokens; the last A are the answers, with `labels` [B, A]."""

    inputs: Mapping[str, Any]
    labels: Tensor  # IGNORE in front of shorter answers

    @property
    def answered(self) -> int:
        """The number of answer tokens."""
        return int((self.labels != IGNORE).sum())


def to_batch(loaded: Loaded, examples: Sequence[Example]) -> Batch:
    """Encode examples for the model; every answer ends with the end-of-turn token."""
    processor, limits = loaded.processor, limits_of(loaded.processor, loaded.config)
    inputs = to_inputs(processor, [example.messages for example in examples], limits)
    end, pad = _end(loaded.model), processor.tokenizer.pad_token_id
    encoded = [processor.tokenizer(e.answer, add_special_tokens=False)["input_ids"] for e in examples]
    answers = [torch.tensor([*ids, end]) for ids in encoded]
    longest = max(map(len, answers))
    for name, filler in TOKEN_INPUTS.items():  # aligned on the right, as pruned batches are; None: the ids themselves
        if name in inputs:
            added = answers if filler is None else [torch.full_like(answer, filler) for answer in answers]
            rows = [torch.cat(pair) for pair in zip(inputs[name], added, strict=True)]
            padded = [(row, longest - len(answer)) for row, answer in zip(rows, answers, strict=True)]
            value = pad if filler is None else 0
            inputs[name] = torch.stack([F.pad(row, (missing, 0), value=value) for row, missing in padded])
    labels = torch.stack([F.pad(answer, (longest - len(answer), 0), value=IGNORE) for answer in answers])
    return Batch(inputs.to(loaded.device), labels.to(loaded.device))


def answer_loss(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the answers, and whether greedy decoding gives each of them [B]."""
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=batch.labels.shape[1] + 1).logits[:, :-1].float()
    labels = batch.labels.to(logits.device)
    loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="sum")
    return loss, ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1)


def _end(model: Any) -> int:
    """Return the token that ends an answer: of several end tokens, the first one ends a turn."""
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)
