"""No pruning: the reference every relative score is divided by."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Method, Selection, Tokens


@dataclass(kw_only=True)
class KeepAll(Method):
    """Keep every visual token.

    A budget below N is refused rather than ignored: a pruner that silently does nothing is the classic failure here.

    Deviation: none. Source: ours.
    """

    name = "none"
    version = 1
    fidelity = "exact"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        n = len(tokens.features)
        raise ValueError(f"method 'none' keeps all {n} tokens, not {k}: use keep=1.0 or another method")
