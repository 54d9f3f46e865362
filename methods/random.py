"""Uniform random pruning: the floor that every method must clear."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Method, Selection, Tokens


@dataclass(kw_only=True)
class Random(Method):
    """Keep K tokens drawn without replacement, each set equally likely.

    The draw is made where the generator lives (the CPU by default), so it is the same on every device.

    Deviation: none. Source: ours.
    """

    name = "random"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        drawn = torch.randperm(len(tokens.features), generator=generator, device=generator.device)[:k]
        return Selection(kept=drawn.sort().values.to(tokens.features.device))
