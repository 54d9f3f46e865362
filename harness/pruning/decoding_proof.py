"""Prove on a batch that decoding through a pruned key-value cache gives what a prefill of the whole sequence gives.

Both go through the same hooks and keep the same tokens: a fault of the prefill itself is in both, and not seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.calls import TOKEN_INPUTS, HookError

STEPS = 3  # tokens that the model answers with; the first comes from the prefill, the others from the cache
ENOUGH = 2  # questions, if each is a batch of its own
PATIENCE = 4  # batches to look at for one whose prompts differ in length
# Largest `deviation` for which both computations count as the same. Right decoding stays at least 8 times below
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
    """What was compared in one run, and how near it came."""

    questions: int = 0
    comparisons: int = 0  # rows of logits
    largest: float = 0.0  # deviation
    tolerance: float = 0.0
    batches: int = 0
    unequal: bool = False  # prompts of one batch differed in length

    def complete(self, batch_size: int) -> bool:
        """Tell whether a run with batches of this size needs no further comparison."""
        if batch_size == 1:
            return self.questions >= ENOUGH
        return self.unequal or self.batches >= PATIENCE

    def __or__(self, other: Proof) -> Proof:
        """Join what several processes, or several parts of a resumed run, compared."""
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

    The model answers greedily with three tokens, also where it would stop earlier; the second and third come through
    the cache. Then the prompt and the first one or two of them are prefilled together, which reads no cache.
    DecodingError if a row of logits deviates by more than the dtype's tolerance, or is not finite.

    Args:
        model: within a block that prunes it, or as it is.
        inputs: of `generate`, for a batch with visual tokens.
        replaying: a block in which prefills keep what the latest one kept, instead of choosing.
        placeholders: ids that must not be answered, since a prefill would take them for visual tokens.
        again: called before the same images are shown once more.
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
    tolerance, mask = tolerance_of(model.dtype), inputs["attention_mask"]
    if not largest <= tolerance:
        raise DecodingError(
            "decoding through the key-value cache is not what a prefill of the same tokens gives: "
            f"logits deviate by {largest:.2g}, {tolerance:g} is allowed in {str(model.dtype).removeprefix('torch.')}; "
            "install versions that were tested (constraints.txt), or pass verify=false and trust nothing"
        )
    unequal = len(set(mask.sum(1).tolist())) > 1
    return Proof(len(tokens), len(tokens) * (STEPS - 1), largest, tolerance, 1, unequal)


def tolerance_of(dtype: torch.dtype) -> float:
    """Return the largest deviation that is allowed; with TF32 products, float32 is as exact as float16."""
    if dtype == torch.float32 and torch.get_float32_matmul_precision() != "highest":
        dtype = torch.float16
    return TOLERANCE[dtype]


def deviation(logits: Tensor, expected: Tensor) -> float:
    """Return the largest of |a - b| / |b - mean of b| over rows a, b of logits [B, V].

    Infinite if a logit is not finite.
    """
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
            text = TOKEN_INPUTS[name]
            more = tokens if text is None else torch.full_like(tokens, text)
            extended[name] = torch.cat([value, more.to(value)], dim=1)
        elif isinstance(value, Tensor) and value.shape == inputs["input_ids"].shape:
            raise DecodingError(f"the processor made {name}, one entry per token, which cannot be prolonged here")
    return extended
