"""VisPruner: keep the tokens that the vision tower attends to, and a diverse set of the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.budget import Budget, by_ratio, rounded
from methods.grids import count_per_image, images, per_image
from methods.kernels.cosine import BARE_NORM, Cosine, directions
from methods.scores import top
from methods.tokens import Grid

AT_ONCE = 8  # tokens dropped per computation of similarities, in the authors' code


@dataclass(kw_only=True)
class VisPruner(Method):
    """Keep important tokens by attention, then drop the most repetitive of the others. Paper: arXiv 2412.01818.

        important = the K * ratio tokens of highest attention in the last layer
        others    = the rest, of which K * (1 - ratio) stay:
            a, b = others[0::2], others[1::2]
            drop the 8 of a whose most similar token in b (by cosine) is most similar, until enough are dropped

    Each image or video has its share of K. With "paper" K is rounded for each by itself, so that their sum may differ.

    Args:
        ratio: share of K that is important, in [0, 1]; default 0.5.
        variant: "official" (default) truncates K * ratio, begins with the others by descending attention, and puts what
            is left of a, by descending similarity, before b. "paper", the comparison in arXiv 2602.13315, rounds
            K * ratio and leaves a token to the others if K > 1; these stand in raster order every time. It reads
            attention without the key of CLS, and in the model's dtype if that is half precision.

    Deviation: features are those at the entry of the LLM, as in the comparison; the original compares before the
    projector. It stops at an odd number of others, which here puts one more in a than in b. Similarities are float64,
    where the original has the model's dtype and the comparison float32; zero rows, which divide by zero there, are
    similar to none; ties go to the first in order. Code: Theia-4869/VisPruner.
    """

    name = "vispruner"
    version = 1
    fidelity = "adapted: compares tokens at the LLM's entry instead of before the projector"
    attention_maps = True  # the authors' code reads `attentions` of the vision tower
    needs = frozenset({Signal.VIT_ATTENTION})
    revisions: ClassVar[Mapping[str, int]] = {"paper": 2}

    ratio: float = 0.5
    variant: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("ratio", 0 <= self.ratio <= 1, "in [0, 1]")

    def count_kept(self, budget: Budget, grids: Sequence[Grid]) -> int:
        """Return K; with "paper" each image or video by itself has the share that `budget` gives, rounded."""
        return count_per_image(images(grids), budget) if self.variant == "paper" else super().count_kept(budget, grids)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        scores = tokens.vit_attention["last"]
        parts = per_image(images(tokens.grids), k, by_ratio if self.variant == "paper" else rounded)
        kept = [image.start + self._prune(scores[image], tokens.features[image], share) for image, share in parts]
        return Selection(kept=torch.cat(kept))

    def _prune(self, scores: Tensor, features: Tensor, k: int) -> Tensor:
        """Return the tokens [k] of one image to keep, ascending."""
        count = int(k * self.ratio)
        if self.variant == "paper":
            count = min(round(k * self.ratio), max(k - 1, 1), k)
        ranked = top(scores, len(scores))
        important, others = ranked[:count], ranked[count:]
        others = self._diverse(others, features, k - count) if k > count else others[:0]
        return torch.cat([important, others]).sort().values

    def _diverse(self, others: Tensor, features: Tensor, k: int) -> Tensor:
        """Return `k` >= 1 of the tokens `others`, given by descending attention."""
        cosine = Cosine(directions(features, floor=BARE_NORM), table=True)
        while True:
            if self.variant == "paper":
                others = others.sort().values
            excess = len(others) - k
            if not excess:
                return others
            a, b = others[0::2], others[1::2]
            similarity, _ = cosine.nearest(a, b)
            most = min(AT_ONCE, excess) if self.variant == "official" else min(AT_ONCE, excess, len(b))
            others = torch.cat([a[top(similarity, len(a))[most:]], b])
