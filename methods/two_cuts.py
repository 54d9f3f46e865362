"""The base class of methods that cut before the LLM, and once more inside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch

from methods.base import Cut, Method, Selection, Signal, Tokens
from methods.schedules import solved

INSIDE = frozenset({Signal.LLM, Signal.TEXT_AFTER})  # signals that the second cut alone reads


@dataclass(kw_only=True)
class TwoCuts(Method):
    """A method that cuts, and often merges, before layer 0, and cuts again after a decoder layer.

    Args:
        stages: "both" cuts, or the one at the "input" alone, which is the method's stage then.
        budget_at: what K counts with both cuts: "mean", the tokens that a decoder layer sees on average, met in
            (K - 1, K]; "entry", what the first cut leaves; "end", what the second one leaves.
        inner_layer: 0-based decoder layer after which the second cut is; null takes the published share of the depth.
        inner_keep: share of the tokens left that the second cut keeps, before it is rounded to meet the budget.
    """

    depth: ClassVar[Fraction]  # share of the decoder's layers in front of the second cut, as published

    stages: Literal["both", "input"] = "both"
    budget_at: Literal["mean", "entry", "end"] = "mean"
    inner_layer: int | None = None
    inner_keep: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        whole = isinstance(self.inner_layer, int) and not isinstance(self.inner_layer, bool)
        at_least_0 = self.inner_layer is None or (whole and self.inner_layer >= 0)
        self.require("inner_layer", at_least_0, "an integer of at least 0, or null")
        self.require("inner_keep", 0 < self.inner_keep <= 1, "above 0 and at most 1")
        if self.stages == "input":
            object.__setattr__(self, "needs", self.needs - INSIDE)  # a class variable to the type checker

    @property
    def stage(self) -> str:
        """Where tokens are cut: "layers", or "input" with the first cut alone."""
        return "input" if self.stages == "input" else "layers"

    @property
    def inner_share(self) -> Fraction:
        """`inner_keep` as it was typed: 0.3 is 3/10, not its binary neighbour."""
        return Fraction(str(self.inner_keep))

    def schedule(self, n: int, k: int, layers: int) -> Sequence[Cut]:
        """Return the cut at the input, and the one inside."""
        if self.stages == "input":
            return [Cut(-1, k)]
        layer, last = self.inner_layer, layers - 2
        if layer is None:
            layer = min(max(round(self.depth * layers), 1) - 1, last)
        self.require("inner_layer", layer <= last, f"at most {last} in a decoder of {layers} layers")
        return solved(n, k, layers, self.budget_at, (0, layer + 1), lambda r: (r, r * self.inner_share))

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        if tokens.at_input or self.stages == "input":
            return self._before(tokens, k)
        return self._inside(tokens, k)

    def _before(self, tokens: Tokens, k: int) -> Selection:
        """Choose and merge at the input."""
        raise NotImplementedError

    def _inside(self, tokens: Tokens, k: int) -> Selection:
        """Choose, and perhaps merge, after the decoder layer whose state is `tokens.llm`."""
        raise NotImplementedError
