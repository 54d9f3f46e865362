"""IDPruner: importance and diversity in one greedy pass, by maximal marginal relevance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.mmr import mmr
from methods.scores import min_max, soft_top_k


@dataclass(kw_only=True)
class IDPruner(Method):
    """Pick the most important token, then repeatedly the one that adds most. Paper: arXiv 2602.13315.

        imp  = minmax(scorer logits)
        pick = argmax  lam * imp - (1 - lam) * max over picked p of cos(x, x_p)

    Args:
        lam: weight of importance against redundancy, in [0, 1]; default 0.5, the paper finds 0.5 to 0.7 best.
        parallel_k: tokens picked per round, by importance alone in the first; default 1, the exact greedy.
        importance: "raw" (default) takes the scorer's logits, as the released code does; "soft_topk" takes their
            DiffTopK weights, as the paper writes. Which of them made the paper's tables is not known.
        soft_topk_ratio: soft count of DiffTopK as a share of N, in (0, 1); default 0.2.
        epsilon: added to the span in min-max scaling, which makes constant importance harmless; default 1e-6.

    Deviation: similarities are float32, as in the released code, but rounded to 2^-20, and ties go to the lowest index,
    where it has no rule: the same picks up to its rounding. Code: YF-T/IDPruner.
    """

    name = "idpruner"
    version = 2
    fidelity = "exact"
    needs = frozenset({Signal.IMPORTANCE})

    lam: float = 0.5
    parallel_k: int = 1
    importance: Literal["raw", "soft_topk"] = "raw"
    soft_topk_ratio: float = 0.2
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", 0 <= self.lam <= 1, "in [0, 1]")
        self.require("parallel_k", self.parallel_k >= 1, "at least 1")
        self.require("soft_topk_ratio", 0 < self.soft_topk_ratio < 1, "in (0, 1)")
        self.require("epsilon", self.epsilon > 0, "above 0")

    @property
    def revision(self) -> int:
        """1 with `parallel_k`: since then the first round picks as many as the others."""
        return int(self.parallel_k > 1)

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        rows = (CosineRows(tokens.features, floor=0.0, plus=1e-8) for tokens in samples)
        importance = [self._importance(tokens) for tokens in samples]
        return [Selection.of(order) for order in mmr(rows, importance, ks, self.lam, self.parallel_k)]

    def _importance(self, tokens: Tokens) -> Tensor:
        scores = tokens.importance
        assert scores is not None
        if self.importance == "soft_topk":
            scores = soft_top_k(scores, self.soft_topk_ratio * len(scores))
        return min_max(scores, self.epsilon)
