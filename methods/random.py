"""Random pruning: the baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from methods.base import Method, Selection, Tokens
from methods.grids import cells


@dataclass(kw_only=True)
class Random(Method):
    """Keep K tokens drawn without replacement; every set of K is equally likely.

    Numbers are drawn on the generator's device (the CPU by default), so the choice does not depend on the model's.

    Args:
        layout: "free" (default) as above, or "stratified": one token from each of the K cells that average pooling to
            the budget would form, each token of a cell equally likely.

    Deviation: none. Source: ours.
    """

    name = "random"
    version = 1
    fidelity = "exact"

    layout: Literal["free", "stratified"] = "free"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        n, device = len(tokens.features), generator.device
        shuffled = torch.randperm(n, generator=generator, device=device)
        if self.layout == "stratified":
            cell, _ = cells(tokens.grids, k, device)
            first = torch.full((k,), n, device=device).scatter_reduce(0, cell, shuffled.argsort(), "amin")
            shuffled = shuffled[first]  # the first token of each cell
        return Selection(kept=shuffled[:k].sort().values.to(tokens.features.device))
