"""Greedy importance: importance alone, the other end of the trade-off from farthest-point sampling."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Method, Selection, Signal, Tokens
from methods.scores import top


@dataclass(kw_only=True)
class Greedy(Method):
    """Keep the K tokens of highest importance, whatever computed it. Paper: arXiv 2602.13315 (Fig. 3).

    With the scores of a VisionSelector scorer this is VisionSelector. Here it is the strategy to which MMR, the hybrid
    and the DPP are compared on the same importance.

    Deviation: none; ties go to the lowest index. Source: the paper's section 3.2, no released code.
    """

    name = "greedy"
    version = 1
    fidelity = "exact"
    needs = frozenset({Signal.IMPORTANCE})

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.importance is not None
        return Selection.of(top(tokens.importance, k))
