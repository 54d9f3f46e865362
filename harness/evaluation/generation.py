"""How answers are generated: the arguments of `generate`, a check before each draw, and the length of answers."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList

from harness.models.generation import check as check_generation

MAX_NEW_TOKENS = 128  # if the task sets none; the default of lmms-eval's own chat model


def generation_arguments(task: dict[str, Any], pad_token_id: int) -> dict[str, Any]:
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


def checked_draws(generation: Mapping[str, Any], handle: Any) -> dict[str, Any]:
    """Return the argument of `generate` that raises deferred errors before each draw; none if nothing is drawn."""
    return {"logits_processor": LogitsProcessorList([_BeforeDraws(handle)])} if generation["do_sample"] else {}


def answer_lengths(answers: torch.Tensor, processor: Any) -> list[int]:
    """Count the tokens of each answer [B, T], without the padding after its end."""
    padding = answers == processor.tokenizer.pad_token_id
    trailing = padding.flip(1).long().cumprod(1).sum(1)
    return [int(answers.shape[1] - n) for n in trailing.tolist()]
