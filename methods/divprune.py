"""DivPrune: keep the tokens that are farthest from each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.maxmin import maxmin
from methods.kernels.model_dtype import Distances, is_half

# The released code divides by the bare norm, the comparison's through `normalize`; 1e-50 is below any float32.
NORM_FLOOR = {"official": 1e-50, "paper": 1e-12}


@dataclass(kw_only=True)
class DivPrune(Method):
    """Greedy solution of the max-min diversity problem: no importance, no text. Paper: arXiv 2503.02175.

        d(i, j) = 1 - cos(x_i, x_j)
        first   = argmax_i min over j != i of d(i, j)
        pick    = argmax_i min over picked p of d(i, p)

    All images and frames of a sample are one pool.

    Args:
        variant: "official" (default) or "paper", the comparison in arXiv 2602.13315. Both pick the same tokens unless a
            row is shorter than 1e-12, which the comparison's code treats as nearly zero, or the features are bfloat16
            or float16: "paper" then computes in that dtype, in the comparison's order, where most distances tie.

    Deviation: the original does not exclude what it has picked and keeps fewer than K where tokens repeat; here, as in
    the comparison, picks are distinct. A zero row divides by zero there and is at distance 1 from every other here.
    Distances are float32, rounded to 2^-20, where both have the model's dtype, and ties go to the lowest index. Code:
    vbdi/divprune.
    """

    name = "divprune"
    version = 2
    fidelity = "exact"
    revisions: ClassVar[Mapping[str, int]] = {"paper": 1}
    half_precision = frozenset({"paper"})

    variant: Literal["official", "paper"] = "official"

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        return [Selection.of(order) for order in maxmin((self._rows(tokens.features) for tokens in samples), ks)]

    def _rows(self, features: Tensor) -> CosineRows | Distances:
        if self.in_model_dtype and is_half(features):
            return Distances(features)
        return CosineRows(features, NORM_FLOOR[self.variant])
