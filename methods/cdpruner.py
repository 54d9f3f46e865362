"""CDPruner: diversity conditioned on the question, as a determinantal point process."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.grids import frames, per_image
from methods.kernels.cosine import Cosine, CosineRows, directions
from methods.kernels.dpp import greedy_map

EPSILON = 1e-6  # above 0, so that the least relevant token can be picked

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class CDPruner(Method):
    """Greedy MAP of a DPP over cosines, weighted by relevance to the question. Paper: arXiv 2506.10967.

        c    = cos(visual token, mean question embedding)
        r    = (c - min c + 1e-6) / (max c - min c)
        pick = argmax over unpicked i of det L[picked + i],  L = diag(r) S diag(r),  S_ij = cos(x_i, x_j)

    Args:
        relevance_sign: "positive", "negative" (c enters as -c, as the code has it for CLIP's text tower, with which
            patches align inversely) or "auto" (default): positive, as the question comes in embeddings of the LLM.
            What the authors ran on models without a text tower is not public.
        text_pool: "mean_embedding" (default) averages the question's embeddings, "mean_cosine" its cosines (the code's
            rule for the segments of a long question). What the authors ran without a text tower is not public.
        norm_scope: r is scaled over "all_tiles" (default, the code) or "per_tile": each image, each step of a video.
        scope: "sample" (default) picks K of all tokens; "per_image" shares K among images and steps of a video in
            proportion to their tokens, at least one each where K allows (the code: equal K for tiles of equal size).
        theta: balance in (0, 1): r becomes exp(r theta / (2 (1 - theta))), commented out in the code; default none.

    Deviation: CLIP's text tower gives way to the LLM's embeddings of the question, the paper's own rule for models
    without one. Where the code would divide by zero or take the root of a rounding error: constant relevance and an
    empty question have r = 1; where no gain exceeds 1e-5 of the largest r squared, the most relevant are kept.
    Similarities are float32, as in the code, but rounded to 2^-20; ties go to the lowest index.
    Code: Theia-4869/CDPruner @ 9541616.
    """

    name = "cdpruner"
    version = 2
    fidelity = "adapted: the LLM's embeddings of the question instead of CLIP's text tower"
    needs = frozenset({Signal.TEXT})
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"relevance_sign", "text_pool"})

    relevance_sign: Literal["auto", "positive", "negative"] = "auto"
    text_pool: Literal["mean_embedding", "mean_cosine"] = "mean_embedding"
    norm_scope: Literal["all_tiles", "per_tile"] = "all_tiles"
    scope: Literal["sample", "per_image"] = "sample"
    theta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        number = isinstance(self.theta, int | float) and not isinstance(self.theta, bool)
        self.require("theta", self.theta is None or (number and 0 < self.theta < 1), "in (0, 1) or null")

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        parts = [self._parts(tokens, k) for tokens, k in zip(samples, ks, strict=True)]
        features, quality, shares = zip(*(part for sample in parts for _, *part in sample), strict=True)
        orders = iter(greedy_map(map(CosineRows, features), quality, shares))
        return [Selection.of(torch.cat([start + next(orders) for start, *_ in sample])) for sample in parts]

    def _parts(self, tokens: Tokens, k: int) -> list[tuple[int, Tensor, Tensor, int]]:
        """Return (start, features, quality, share of K) of each part that is selected from separately."""
        spans = frames(tokens.grids)
        tiles = [size for _, size in spans]
        raw = self._relevance(tokens)
        r = torch.cat([_scaled(part) for part in raw.split(tiles if self.norm_scope == "per_tile" else len(raw))])
        if self.theta is not None:
            r = ((r - r.max()) * self.theta / (2 * (1 - self.theta))).exp()  # a common factor changes no pick
        if self.scope == "sample":
            return [(0, tokens.features, r, k)]
        parts = per_image(spans, k, largest_remainder)
        return [(tile.start, tokens.features[tile], r[tile], share) for tile, share in parts]

    def _relevance(self, tokens: Tokens) -> Tensor:
        """Return the signed cosine [N] between each token and the question."""
        unit, text = directions(tokens.features), tokens.text
        assert text is not None
        if not len(text):
            log.warning("cdpruner: the question is empty, so every token counts as equally relevant")
            return unit.new_zeros(len(unit))
        text = text.double().mean(dim=0, keepdim=True) if self.text_pool == "mean_embedding" else text
        relevance = Cosine(unit).along(directions(text).mean(dim=0))  # the mean of cosines is the product with the mean
        return -relevance if self.relevance_sign == "negative" else relevance


def _scaled(relevance: Tensor) -> Tensor:
    low, high = relevance.aminmax()
    return torch.where(high > low, (relevance - low + EPSILON) / (high - low), 1.0)
