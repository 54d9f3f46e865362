"""VisionZip: keep the tokens that the vision tower attends to, and merge all others into a few."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.budget import Budget, by_ratio, rounded
from methods.grids import count_per_image, frames, merged_per_image
from methods.kernels.cosine import BARE_NORM, Cosine, directions
from methods.scores import top
from methods.tokens import Grid


@dataclass(kw_only=True)
class VisionZip(Method):
    """Keep dominant tokens as they are; every other joins the contextual one most like it. Paper: arXiv 2412.04467.

        contextual = max(1, round(K * 10 / 64)),  dominant = K - contextual
        dominant tokens:   highest attention received in the last layer
        contextual tokens: the rest in raster order, every step-th,  step = max(1, len(rest) // contextual)
        each other token:  merged into the contextual token of highest cosine between their head-mean keys

    Each image and each time step of a video is a separate unit, with its share of K.

    Args:
        contextual: share of K that is contextual; default 10/64, as in the presets of 54 + 10, 108 + 20 and 162 + 30.
        variant: "official" (default) or "paper", the comparison in arXiv 2602.13315, which reads attention differently:
            no key of CLS in the softmax, without CLS the mean query alone from 6,144 patches on, and in the model's
            dtype, as it does keys, if that is half precision. It rounds K for each unit by itself, at least to 1, so
            that the sum may differ.

    Deviation: a merged row is the average of its tokens' embeddings, as in the comparison, which rounds its weights to
    the model's dtype; the original adds the mean
    of the others to the contextual token itself, and merges before the projector. It also keeps CLS as one of the
    dominant tokens; here that place goes to the next patch. With K below the number of units all of them are one.
    Similarities are float64, ties go to the lowest index.
    Code: dvlab-research/VisionZip.
    """

    name = "visionzip"
    version = 1
    fidelity = "adapted: averages tokens at the LLM's entry, and keeps a patch in the place of CLS"
    attention_maps = True  # the authors' code reads `attentions` of the vision tower
    needs = frozenset({Signal.VIT_ATTENTION, Signal.VIT_KEYS})
    revisions: ClassVar[Mapping[str, int]] = {"paper": 2}

    contextual: float = 10 / 64
    variant: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("contextual", 0 < self.contextual <= 1, "in (0, 1]")

    def count_kept(self, budget: Budget, grids: Sequence[Grid]) -> int:
        """Return K; with "paper" each image or time step by itself has the share that `budget` gives, rounded."""
        return count_per_image(frames(grids), budget) if self.variant == "paper" else super().count_kept(budget, grids)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        assert tokens.vit_keys is not None
        scores, keys = tokens.vit_attention["last"], tokens.vit_keys
        share = by_ratio if self.variant == "paper" else rounded
        return merged_per_image(frames(tokens.grids), k, lambda at, part: self._zip(scores[at], keys[at], part), share)

    def _zip(self, scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Return the kept tokens [k] of one unit, ascending, and which of these each of its tokens [n] joins."""
        n, contextual = len(scores), min(k, max(1, round(k * self.contextual)))
        ranked = top(scores, n)
        dominant, rest = ranked[: k - contextual], ranked[k - contextual :].sort().values
        targets = rest[:: max(1, len(rest) // contextual)][:contextual]
        kept = torch.cat([dominant, targets]).sort().values
        cosine = Cosine(directions(keys, floor=BARE_NORM), table=True)
        _, nearest = cosine.nearest(torch.arange(n, device=keys.device), targets)
        joins = targets[nearest]
        joins[kept] = kept
        return kept, torch.searchsorted(kept, joins)
