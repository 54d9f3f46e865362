"""QMMR: importance, relevance to the question and diversity in one greedy pass."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import Cosine, directions
from methods.kernels.mmr import mmr
from methods.kernels.rows import Rows
from methods.numerics import min_max

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class QMMR(Method):
    """IDPruner's greedy pass over an importance that knows the question. No paper: results/analysis/beyond.

        c_ij  = cos(visual token i, question token j)
        rel   = minmax over i of max over j of (c_ij - mean over i of c_ij)
        score = (1 - share) * minmax(scorer logits) + share * rel
        pick  = argmax  lam * score - (1 - lam) * max over picked p of cos(x, x_p)

    A word of which the picture shows nothing is equally near to all tokens, so taking the mean away leaves little of
    it; the maximum lets each of the other words name what it is about. The similarities are to embeddings of the LLM,
    which a model aligns with its visual tokens more or less well.

    Args:
        share: weight of relevance in the score, in [0, 1]; 0 is IDPruner.
        lam: weight of the score against redundancy, in [0, 1].
        relevance: "words" (default), or "mean", which takes c_i of the mean embedding of the question instead.
        epsilon: added to the spans in min-max scaling, which makes constant scores harmless; default 1e-6.

    Deviation: none; an empty question leaves the scorer's importance alone.
    """

    name = "qmmr"
    fidelity = "exact"
    needs = frozenset({Signal.IMPORTANCE, Signal.TEXT})

    share: float = 0.5
    lam: float = 0.5
    relevance: Literal["words", "mean"] = "words"
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("share", 0 <= self.share <= 1, "in [0, 1]")
        self.require("lam", 0 <= self.lam <= 1, "in [0, 1]")
        self.require("epsilon", self.epsilon > 0, "above 0")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        importance, relevance = self._scores(tokens)
        score = (1 - self.share) * importance + self.share * relevance
        return Selection.of(mmr(Rows(tokens.features, floor=0.0, plus=1e-8), score, k, self.lam))

    def _scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return importance and relevance [N], both in [0, 1)."""
        logits, text = tokens.importance, tokens.text
        assert logits is not None
        assert text is not None
        importance = min_max(logits, self.epsilon)
        if not len(text):
            log.warning("qmmr: the question is empty, so importance alone counts")
            return importance, importance
        return importance, min_max(self._relevance(tokens.features, text), self.epsilon)

    def _relevance(self, features: Tensor, text: Tensor) -> Tensor:
        """Return how much [N] each of the visual tokens [N, D] has to do with one of the question's [T, D]."""
        visual = Cosine(directions(features))
        if self.relevance == "mean":
            return visual.along(directions(text.double().mean(dim=0, keepdim=True))[0])
        nearness = visual.between(visual.rows, directions(text))[visual.row_of]
        return (nearness - nearness.mean(dim=0)).amax(dim=1)
