"""Farthest-point sampling: diversity alone, the other end of the trade-off from greedy importance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.maxmin import maxmin
from methods.scores import top


@dataclass(kw_only=True)
class FPS(Method):
    """Repeatedly pick the token farthest, by cosine distance, from all picks. Paper: arXiv 2602.13315 (Fig. 3).

        pick = argmax_i min over picked p of (1 - cos(x_i, x_p))

    All images and frames of a sample are one pool.

    Args:
        start: the first pick, which is not public. "maximin" (default) takes the token whose nearest neighbour is
            farthest, as the authors' own harness does for DivPrune; "max_importance" the most important one, which
            needs a scorer; "random" one drawn from the generator.

    Deviation: no released code. Distances are float32, rounded to 2^-20; ties go to the lowest index. Source: the
    paper's section 3.2.
    """

    name = "fps"
    version = 2
    fidelity = "adapted: no released code, and the first pick is not published"
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"start"})

    start: Literal["maximin", "max_importance", "random"] = "maximin"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start == "max_importance":  # for this instance only: the other starts run without a scorer
            vars(self)["needs"] = frozenset({Signal.IMPORTANCE})

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        first = None
        if self.start != "maximin":
            first = [self._first(tokens, generator) for tokens, generator in zip(samples, generators, strict=True)]
        return [Selection.of(order) for order in maxmin((CosineRows(tokens.features) for tokens in samples), ks, first)]

    def _first(self, tokens: Tokens, generator: torch.Generator) -> Tensor:
        if self.start == "random":
            return torch.randint(len(tokens.features), (1,), generator=generator, device=generator.device)
        assert tokens.importance is not None
        return top(tokens.importance, 1)
