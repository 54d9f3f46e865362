"""SCOPE: pick salient tokens that cover what earlier picks leave uncovered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.budget import rounded
from methods.grids import images, per_image
from methods.kernels import model_dtype
from methods.kernels.cosine import BARE_NORM, CosineRows
from methods.kernels.coverage import coverage
from methods.kernels.model_dtype import is_half


@dataclass(kw_only=True)
class SCOPE(Method):
    """Repeatedly pick the token that adds most coverage, weighted by saliency. Paper: arXiv 2510.24214.

        gain_j = sum over i of max(0, cos(x_i, x_j) - covered_i)
        pick   = argmax over unpicked j of gain_j * saliency_j ** alpha
        covered_i = max(covered_i, cos(x_i, x_pick)), from 0

    Saliency is the attention a token receives in the last layer.

    Args:
        alpha: exponent of saliency, in [0, 4]; default 1.
        combined: "multi" (default) as above, "add" for gain_j + saliency_j ** alpha; the original sums saliency over
            heads, here it is their mean.
        variant: "official" (default) selects in each image or video separately, K divided evenly among them; "paper",
            the comparison in arXiv 2602.13315, selects from all at once, in half precision if that is the model's.

    Deviation: features are those at the entry of the LLM, as in the comparison; the original selects before the
    projector. It drops the remainder of K / images, which here goes to the first ones. Similarities are float32,
    rounded to 2^-20, where both have the model's dtype, as "paper" has in half precision; zero rows, which divide by
    zero there, cover nothing; saliency below 0, which attention never is, counts as 0. Gains are brought up to date
    instead of summed again, with the same picks; ties go to the lowest index. Code: kinredon/SCOPE.
    """

    name = "scope"
    version = 2
    fidelity = "adapted: compares tokens at the LLM's entry instead of before the projector"
    needs = frozenset({Signal.VIT_ATTENTION})
    revisions: ClassVar[Mapping[str, int]] = {"paper": 1}
    half_precision = frozenset({"paper"})

    alpha: float = 1.0
    combined: Literal["multi", "add"] = "multi"
    variant: Literal["official", "paper"] = "official"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", 0 <= self.alpha <= 4, "in [0, 4]")  # float64 holds the fourth power of any float32

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        if self.in_model_dtype and all(is_half(tokens.features) for tokens in samples):
            return [self._in_model_dtype(*sample) for sample in zip(samples, ks, strict=True)]
        parts = [self._parts(tokens, k) for tokens, k in zip(samples, ks, strict=True)]
        features, weights, shares = zip(*(part for sample in parts for _, *part in sample), strict=True)
        rows = (CosineRows(x, floor=BARE_NORM) for x in features)
        orders = iter(coverage(rows, weights, shares, additive=self.combined == "add"))
        return [Selection.of(torch.cat([start + next(orders) for start, *_ in sample])) for sample in parts]

    def _in_model_dtype(self, tokens: Tokens, k: int) -> Selection:
        assert tokens.vit_attention is not None
        weight = tokens.vit_attention["last"].to(tokens.features).clamp(min=0) ** self.alpha
        return Selection.of(model_dtype.coverage(tokens.features, weight, k, self.combined == "add"))

    def _parts(self, tokens: Tokens, k: int) -> list[tuple[int, Tensor, Tensor, int]]:
        """Return (start, features, weights, share of K) of each part that is selected from separately."""
        assert tokens.vit_attention is not None
        weight = tokens.vit_attention["last"].double().clamp(min=0) ** self.alpha
        spans = images(tokens.grids) if self.variant == "official" else [(0, len(weight))]
        parts = per_image(spans, k, partial(rounded, equal=True))
        return [(at.start, tokens.features[at], weight[at], share) for at, share in parts]
