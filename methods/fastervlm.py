"""FasterVLM: keep the tokens that the CLS token of the vision tower attends to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from methods.base import Method, Selection, Signal, Tokens
from methods.grids import images, per_image
from methods.scores import top


@dataclass(kw_only=True)
class FasterVLM(Method):
    """Keep the tokens of highest attention in the last layer. Paper: arXiv 2412.01818v1, which VisPruner replaced.

    Args:
        scope: "unit" (default) gives each image or video its share of K by size; "sample" has one pool.

    Deviation: the tiles of LLaVA-NeXT are one unit, their mosaic; the code keeps equally many of each crop, as a budget
    per_tile= does. Ties, for which the code has no rule, go to the lowest index. Code: Theia-4869/FasterVLM @ f5d5f12.
    """

    name = "fastervlm"
    version = 1
    fidelity = "exact"
    attention_maps = True  # the authors' code reads `attentions` of the vision tower
    needs = frozenset({Signal.VIT_ATTENTION})

    scope: Literal["unit", "sample"] = "unit"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        scores = tokens.vit_attention["last"]
        spans = images(tokens.grids) if self.scope == "unit" else [(0, len(scores))]
        return Selection.of(torch.cat([unit.start + top(scores[unit], share) for unit, share in per_image(spans, k)]))
