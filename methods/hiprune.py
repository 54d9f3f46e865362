"""HiPrune: anchors from a middle layer of the vision tower, the tokens around them, and registers from its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isqrt
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import OFFICIAL, PAPER, AttentionSpec, Method, Selection, Signal, Tokens
from methods.budget import Budget, by_ratio, rounded
from methods.grids import count_per_image, images, per_image
from methods.scores import top
from methods.tokens import Grid


@dataclass(kw_only=True)
class HiPrune(Method):
    """Keep what two layers of the vision tower attend to, from details to the whole. Paper: arXiv 2508.00553.

        anchors   = the round(K * alpha / 5) tokens of highest attention in the middle layer
        buffers   = their neighbours in raster order: one to the left and right, one row up and down
        registers = of all others, those of highest attention in the last layer, as many as are left of K

    Neighbours are taken by index, as the authors do: they wrap around the edge of a row, cross from one time step to
    the next, and fall on the first or last token instead of outside.

    Args:
        alpha: share of K for anchors and buffers, in [0, 1]; default 0.1.
        variant: "official" (default) takes all images and videos of a sample as one sequence of rows as long as the
            first image's; "paper", as in the comparison of arXiv 2602.13315, takes each alone, with K rounded for
            each by itself, and at least one anchor if that is 5 or more; it leaves the key of CLS out of the softmax,
            numbers the middle layer otherwise, without CLS takes the mean query alone from 6,144 patches on, and
            computes attention in the model's dtype if that is half precision.
        row: length of a row, "grid" (default) the image's, or "sqrt", the root of its number of tokens, which the
            comparison used on LLaVA-OneVision-1.5: no neighbours above and below unless the image is square.

    Deviation: the original bars anchors and buffers from being picked again by subtracting 1 from their attention,
    which on Qwen2.5-VL is not always enough, so that fewer than K remain; here they are barred. Where anchors and
    buffers exceed K, those buffers stay that the last layer attends to most, where the original stops and the
    comparison keeps more than K. Ties go to the lowest index. Code: Danielement321/HiPrune.
    """

    name = "hiprune"
    version = 1
    fidelity = "exact"
    attention_maps = True  # the authors' code reads `attentions` of the vision tower
    needs = frozenset({Signal.VIT_ATTENTION})
    revisions: ClassVar[Mapping[str, int]] = {"paper": 2}

    alpha: float = 0.1
    variant: Literal["official", "paper"] = "official"
    row: Literal["grid", "sqrt"] = "grid"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")

    @property
    def attention_spec(self) -> AttentionSpec:
        """Attention in both layers: of all queries, or, in the comparison, of CLS where there is one."""
        spec = PAPER if self.variant == "paper" else replace(OFFICIAL, queries="all")
        return replace(spec, roles=("last", "middle"))

    def count_kept(self, budget: Budget, grids: Sequence[Grid]) -> int:
        """Return K; with "paper" each image or video by itself has the share that `budget` gives, rounded."""
        return count_per_image(images(grids), budget) if self.variant == "paper" else super().count_kept(budget, grids)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        middle, last = tokens.vit_attention["middle"], tokens.vit_attention["last"]
        widths = [w for t, h, w in tokens.grids if t * h * w]
        spans = images(tokens.grids) if self.variant == "paper" else [(0, len(last))]
        kept = []
        parts = per_image(spans, k, by_ratio if self.variant == "paper" else rounded)
        for (image, share), width in zip(parts, widths, strict=False):
            row = isqrt(image.stop - image.start) if self.row == "sqrt" else width
            kept.append(image.start + self._hierarchy(middle[image], last[image], row, share))
        return Selection(kept=torch.cat(kept))

    def _hierarchy(self, middle: Tensor, last: Tensor, width: int, k: int) -> Tensor:
        """Return the tokens [k] of one image to keep, ascending."""
        count = round(k * self.alpha / 5)
        if self.variant == "paper" and self.alpha > 0 and k >= 5:
            count = max(count, 1)
        anchors = top(middle, count)
        around = torch.tensor([-1, 1, -width, width], device=last.device)
        buffers = (anchors[:, None] + around).clamp(0, len(last) - 1).flatten()
        rank = torch.zeros_like(last, dtype=torch.int64).index_fill_(0, buffers, 1).index_fill_(0, anchors, 2)
        order = top(last, len(last))
        return order[top(rank[order], k)].sort().values  # by rank, then by attention in the last layer
