"""Farthest-point sampling: diversity alone, the other end of the trade-off from greedy importance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.maxmin import maxmin
from methods.kernels.rows import Rows
from methods.numerics import top


@dataclass(kw_only=True)
class FPS(Method):
    """Pick again and again the token farthest, by cosine distance, from all picked. Paper: arXiv 2602.13315 (Fig. 3).

        pick = argmax_i min over picked p of (1 - cos(x_i, x_p))

    All images and frames of a sample are one pool.

    Args:
        start: the first pick, which is not public. "maximin" (default) takes the token whose nearest neighbour is
            farthest, as the authors' own harness does for DivPrune; "max_importance" the most important one, which
            needs a scorer; "random" one drawn from the generator.

    Deviation: no released code. Distances are float64 to 12 decimals, ties go to the lowest index. Source: the paper's
    section 3.2.
    """

    name = "fps"
    fidelity = "adapted: no released code, and the first pick is not published"
    not_public: ClassVar[frozenset[str]] = frozenset({"start"})

    start: Literal["maximin", "max_importance", "random"] = "maximin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "max_importance":  # of this instance: the other starts run without a scorer
            vars(self)["needs"] = frozenset({Signal.IMPORTANCE})

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        first = None
        if self.start == "max_importance":
            assert tokens.importance is not None
            first = top(tokens.importance, 1)
        elif self.start == "random":
            first = torch.randint(len(tokens.features), (1,), generator=generator, device=generator.device)
        return Selection.of(maxmin(Rows(tokens.features), k, first))
