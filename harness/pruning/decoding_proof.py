"""Prove on a batch that decoding through a pruned KV cache gives the logits of a prefill of the whole sequence.

Both go through the same hooks and keep the same tokens, so an error in the prefill itself is not detected here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.calls import TOKEN_INPUTS, HookError

STEPS = 3  # tokens of an answer; the first comes from the prefill, the others through the cache
MIN_QUESTIONS = 2  # questions to compare, for batches of one
MAX_BATCHES = 4  # batches to compare if none has prompts of different lengths
# Largest `deviation` for which both computations count as the same. Correct decoding stays at least 8 times below
# (`python scripts/decoding_tolerance.py`, table in docs/versions.md); generate() gives logits in float32 at best.
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
GREEDY: dict[str, Any] = {
    **{"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None},
    **{"return_dict_in_generate": True, "output_logits": True},
}


class DecodingError(HookError):
    """Decoding through the cache gives other logits than a prefill of the same sequence."""


@dataclass
class Proof:
    """How much was compared in one run, and the largest deviation."""

    questions: int = 0
    comparisons: int = 0  # rows of logits
    largest: float = 0.0  # deviation
    tolerance: float = 0.0
    batches: int = 0
    unequal: bool = False  # True if prompts of one batch differed in length

    def complete(self, batch_size: int) -> bool:
        """Tell whether a run with batches of this size has compared enough."""
        if batch_size == 1:
            return self.questions >= MIN_QUESTIONS
        return self.unequal or self.batches >= MAX_BATCHES

    def __or__(self, other: Proof) -> Proof:
        """Combine the proofs of several processes, or of several parts of a resumed run."""
        return Proof(
            self.questions + other.questions,
            self.comparisons + other.comparisons,
            max(self.largest, other.largest),
            max(self.tolerance, other.tolerance),
            self.batches + other.batches,
            self.unequal or other.unequal,
        )


def prove(
    model: Any,
    inputs: Mapping[str, Any],
    replaying: Callable[[], AbstractContextManager[Any]],
    placeholders: list[int],
    again: Callable[[], None] = lambda: None,
) -> Proof:
    """Compare the logits of the second and third token of each answer with those of fresh prefills.

    The model answers greedily with three tokens, even if it would stop earlier; the second and third come through the
    cache. Then the prompt is prefilled together with the first one or two of them, without a cache.
    DecodingError if a row of logits deviates by more than the dtype's tolerance, or is not finite.

    Args:
        model: the model, inside or outside a prune block.
        inputs: arguments of `generate` for a batch with visual tokens.
        replaying: returns a block in which prefills keep the tokens of the latest one.
        placeholders: ids that must not be in the answer, because a prefill would take them for visual tokens.
        again: called before the same images are shown again.
    """
    length = inputs["input_ids"].shape[1]
    forced = {"suppress_tokens": placeholders} if placeholders else {}
    answer = model.generate(**inputs, **GREEDY, **forced, max_new_tokens=STEPS, min_new_tokens=STEPS)
    tokens = answer.sequences[:, length:]
    if tokens.shape[1] != STEPS:
        raise DecodingError(f"{tokens.shape[1]} tokens were decoded where {STEPS} were asked for")
    largest = 0.0
    for step in range(1, STEPS):
        again()
        with replaying():
            fresh = model.generate(**_extended(inputs, tokens[:, :step]), **GREEDY, max_new_tokens=1)
        largest = max(largest, deviation(answer.logits[step], fresh.logits[0]))
    # With int8 weights of bitsandbytes, inputs of layers are rounded to 8 bits, each by the largest of its row.
    dtype = torch.bfloat16 if getattr(model, "is_loaded_in_8bit", False) else model.dtype
    tolerance, mask = tolerance_of(dtype), inputs["attention_mask"]
    if not largest <= tolerance:
        raise DecodingError(
            "decoding through the key-value cache is not what a prefill of the same tokens gives: "
            f"logits deviate by {largest:.2g}, {tolerance:g} is allowed in {str(dtype).removeprefix('torch.')}; "
            "install versions that were tested (constraints.txt), or pass verify=false and trust nothing"
        )
    unequal = len(set(mask.sum(1).tolist())) > 1
    return Proof(len(tokens), len(tokens) * (STEPS - 1), largest, tolerance, 1, unequal)


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest deviation that is allowed; with TF32 products, float32 counts as float16."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float16
    return TOLERANCE[dtype]


def deviation(logits: Tensor, expected: Tensor) -> float:
    """Return the largest |a - b| / |b - mean of b| over rows a, b of logits [B, V]; infinite if one is not finite."""
    a, b = logits.double().cpu(), expected.double().cpu()
    if not (bool(a.isfinite().all()) and bool(b.isfinite().all())):
        return float("inf")
    spread = (b - b.mean(1, keepdim=True)).norm(dim=1).clamp(min=torch.finfo(torch.float64).tiny)
    return float(((a - b).norm(dim=1) / spread).max())


def _extended(inputs: Mapping[str, Any], tokens: Tensor) -> dict[str, Any]:
    """Append `tokens` [B, T] to the prompts."""
    extended = dict(inputs)
    for name, value in inputs.items():
        if name in TOKEN_INPUTS:
            text_entry = TOKEN_INPUTS[name]
            entries = tokens if text_entry is None else torch.full_like(tokens, text_entry)
            extended[name] = torch.cat([value, entries.to(value)], dim=1)
        elif isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape:
            raise DecodingError(f"the processor made {name}, one entry per token, which cannot be extended here")
    return extended
