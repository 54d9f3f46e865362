"""VisionSelector: keep what a learned scorer finds important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from methods.base import Method, Selection, Signal, Tokens
from methods.scores import soft_top_k, top

COMPARISON_RATIO = 0.2  # of N, whatever the budget: the setting of the comparison in arXiv 2602.13315


@dataclass(kw_only=True)
class VisionSelector(Method):
    """Keep the K tokens of highest scorer logit. Paper: arXiv 2510.16598; code: JulietChoo/VisionSelector.

    Args:
        variant: "official" (default) ranks the raw logits; "paper" ranks their DiffTopK weights at a soft count of
            0.2 N, as the comparison in arXiv 2602.13315 did. The weights are monotone in the logits, so the two differ
            only where weights saturate in float32 and tie.

    Deviation: the original truncates N * keep to an integer, here K follows the harness's budget; ties go to the lowest
    index, the original leaves them to the sort.
    """

    name = "visionselector"
    version = 1
    fidelity = "exact"
    needs = frozenset({Signal.IMPORTANCE})

    variant: Literal["official", "paper"] = "official"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        scores = tokens.importance
        assert scores is not None
        if self.variant == "paper":
            scores = soft_top_k(scores, COMPARISON_RATIO * len(scores))
        return Selection.of(top(scores, k))
