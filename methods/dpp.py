"""DPP: importance and diversity as the volume that weighted tokens span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.dpp import greedy_map
from methods.scores import min_max, soft_top_k

EPSILON = 1e-6  # added to the span in min-max scaling, and to the result: no token has quality 0


@dataclass(kw_only=True)
class DPP(Method):
    """Greedy MAP of a determinantal point process over importance and cosines. Paper: arXiv 2602.13315 (Table 7).

        L    = diag(q) S diag(q),  S_ij = cos(x_i, x_j)
        pick = argmax over unpicked i of det L[picked + i]

    All images and frames of a sample are one pool.

    Args:
        quality: q, which is not public. "minmax" (default) is minmax(importance) + 1e-6, the construction of CDPruner;
            "exp" is exp(minmax(importance) / 2), whose bounded ratio favours diversity; "uniform" is 1, the plain DPP.
        importance: "raw" (default) takes the scorer's logits, "soft_topk" their DiffTopK weights; not public.
        soft_topk_ratio: soft count of DiffTopK as a share of N, in (0, 1); default 0.2.

    Deviation: no released code. Where no gain exceeds 1e-5 of the largest quality squared, the rest are the tokens of
    highest quality. Similarities are float32, rounded to 2^-20; ties go to the lowest index. Source: the paper's
    section 3.2.
    """

    name = "dpp"
    version = 2
    fidelity = "adapted: no released code, and the kernel is not published"
    needs = frozenset({Signal.IMPORTANCE})
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"quality", "importance"})

    quality: Literal["minmax", "exp", "uniform"] = "minmax"
    importance: Literal["raw", "soft_topk"] = "raw"
    soft_topk_ratio: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("soft_topk_ratio", 0 < self.soft_topk_ratio < 1, "in (0, 1)")

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        rows = (CosineRows(tokens.features) for tokens in samples)
        return [Selection.of(order) for order in greedy_map(rows, map(self._quality, samples), ks)]

    def _quality(self, tokens: Tokens) -> Tensor:
        scores = tokens.importance
        assert scores is not None
        if self.importance == "soft_topk":
            scores = soft_top_k(scores, self.soft_topk_ratio * len(scores))
        scaled = min_max(scores, EPSILON)
        return {"minmax": scaled + EPSILON, "exp": (scaled / 2).exp(), "uniform": torch.ones_like(scaled)}[self.quality]
