"""QMMR: importance, relevance to the question and diversity in one greedy pass."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from methods.base import Signal, Tokens
from methods.idpruner import IDPruner
from methods.kernels.cosine import Cosine, directions
from methods.scores import min_max

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class QMMR(IDPruner):
    """IDPruner's greedy pass over an importance that knows the question. No paper: results/analysis/beyond.

        c_ij  = cos(visual token i, question token j)
        rel   = minmax over i of max over j of (c_ij - mean over i of c_ij)
        score = (1 - share) * minmax(scorer logits) + share * rel
        pick  = argmax  lam * score - (1 - lam) * max over picked p of cos(x, x_p)

    A word that the picture does not show is about equally similar to all tokens, so subtracting the mean removes it.
    The maximum lets every other word select its own tokens. Similarities are to embeddings of the LLM, which models
    align with their visual tokens more or less well.

    Args:
        share: weight of relevance in the score, in [0, 1]; default 0.5, 0 is IDPruner.
        relevance: "words" (default), or "mean", which takes c_i of the mean embedding of the question instead.
        lam, parallel_k, importance, soft_topk_ratio, epsilon: as in IDPruner.

    Deviation: none; an empty question leaves the scorer's importance alone.
    """

    name = "qmmr"
    version = 2
    fidelity = "exact"
    needs = frozenset({Signal.IMPORTANCE, Signal.TEXT})

    share: float = 0.5
    relevance: Literal["words", "mean"] = "words"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("share", 0 <= self.share <= 1, "in [0, 1]")

    def _importance(self, tokens: Tokens) -> Tensor:
        importance, relevance = self._scores(tokens)
        return (1 - self.share) * importance + self.share * relevance

    def _scores(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Return importance and relevance [N], both in [0, 1)."""
        importance, text = super()._importance(tokens), tokens.text
        assert text is not None
        if not len(text):
            log.warning("qmmr: the question is empty, so importance alone counts")
            return importance, importance
        return importance, min_max(self._relevance(tokens.features, text), self.epsilon)

    def _relevance(self, features: Tensor, text: Tensor) -> Tensor:
        """Return the relevance [N] of visual tokens [N, D] to the embeddings [T, D] of the question."""
        visual = Cosine(directions(features))
        if self.relevance == "mean":
            return visual.along(directions(text.double().mean(dim=0, keepdim=True))[0])
        cosine = visual.between(visual.rows, directions(text))[visual.row_of]
        return (cosine - cosine.mean(dim=0)).amax(dim=1)
