"""Questions with their answers as one batch that a model reads in a single pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.models.calls import TOKEN_INPUTS
from harness.models.loading import Loaded
from harness.models.preprocessing import limits_of, to_inputs
from harness.train.conversations import Example

IGNORE = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """Prompts and answers, all of which end in the last column: [B, S] tokens, of which `labels` [B, A] are learned."""

    inputs: Mapping[str, Any]
    labels: Tensor  # IGNORE in front of shorter answers

    @property
    def answered(self) -> int:
        """The number of tokens to learn."""
        return int((self.labels != IGNORE).sum())


def to_batch(loaded: Loaded, examples: Sequence[Example]) -> Batch:
    """Encode `examples` for the model, each answer with the token that ends a turn."""
    processor, limits = loaded.processor, limits_of(loaded.processor, loaded.config)
    inputs = to_inputs(processor, [example.messages for example in examples], limits)
    end, pad = _end(loaded.model), processor.tokenizer.pad_token_id
    encoded = [processor.tokenizer(e.answer, add_special_tokens=False)["input_ids"] for e in examples]
    answers = [torch.tensor([*ids, end]) for ids in encoded]
    longest = max(map(len, answers))
    # On the right, where a pruned batch is aligned, too.
    shifted = {
        name: torch.stack(
            [
                F.pad(torch.cat([row, _behind(name, answer)]), (longest - len(answer), 0), value=_padding(name, pad))
                for row, answer in zip(inputs[name], answers, strict=True)
            ]
        )
        for name in TOKEN_INPUTS
        if name in inputs
    }
    inputs.update(shifted)
    labels = torch.stack([F.pad(answer, (longest - len(answer), 0), value=IGNORE) for answer in answers])
    return Batch(inputs.to(loaded.device), labels.to(loaded.device))


def read(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the summed cross-entropy of the answers, and whether each is what greedy decoding would say [B]."""
    logits = model(**batch.inputs, use_cache=False, logits_to_keep=batch.labels.shape[1] + 1).logits[:, :-1].float()
    labels = batch.labels.to(logits.device)
    loss = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=IGNORE, reduction="sum")
    return loss, ((logits.argmax(-1) == labels) | (labels == IGNORE)).all(1)


def _behind(name: str, answer: Tensor) -> Tensor:
    value = TOKEN_INPUTS[name]
    return answer if value is None else torch.full_like(answer, value)


def _padding(name: str, pad: int) -> int:
    return pad if TOKEN_INPUTS[name] is None else 0


def _end(model: Any) -> int:
    """The token that ends an answer; a model may stop at several, of which the first ends a turn."""
    end = model.generation_config.eos_token_id
    return int(end[0] if isinstance(end, list) else end)
