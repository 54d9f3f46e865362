"""Naive hybrid: importance and diversity one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import floor
from typing import ClassVar, Literal

import torch

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.maxmin import maxmin
from methods.scores import top


@dataclass(kw_only=True)
class Hybrid(Method):
    """Take the M most important tokens, then K of them by farthest-point sampling. Paper: arXiv 2602.13315 (Table 7).

        pool = top M of importance,  M = N - round(lam (N - K))
        kept = farthest-point sampling of K inside the pool, from the token whose nearest neighbour there is farthest

    Args:
        lam: from 0, diversity only, to 1, importance only; default 0.5. The paper sweeps 0.1 to 0.9.
        mapping: what `lam` means, which is not public. "pool_linear" (default) is the formula above, halves rounded up:
            the reading nearest to the paper's scores at 0.1 and 0.9. "pool_inverse" has M = min(N, round(K / lam)).
            "quota" keeps the round(lam K) most important and fills up with the tokens farthest from them; halves go to
            the even number in these two.

    Deviation: no released code. The start inside the pool is not public either. `lam` counts as the decimal it is
    written as; distances are float32, rounded to 2^-20; ties go to the lowest index. Source: the paper's section 3.2.
    """

    name = "hybrid"
    version = 2
    fidelity = "adapted: no released code, and the meaning of lambda is not published"
    needs = frozenset({Signal.IMPORTANCE})
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"mapping"})

    lam: float = 0.5
    mapping: Literal["pool_linear", "pool_inverse", "quota"] = "pool_linear"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("lam", 0 <= self.lam <= 1, "in [0, 1]")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.importance is not None
        features = tokens.features
        if self.mapping == "quota":
            count = round(Fraction(str(self.lam)) * k)
            first = [top(tokens.importance, count)] if count else None
            return Selection.of(maxmin([CosineRows(features)], [k], first)[0])
        pool = top(tokens.importance, self.pool_size(len(features), k)).sort().values
        return Selection.of(pool[maxmin([CosineRows(features[pool])], [k])[0]])

    def pool_size(self, n: int, k: int) -> int:
        """Return M for `k` of `n` tokens, from k to n."""
        lam = Fraction(str(self.lam))
        if self.mapping == "pool_linear":
            return n - floor(lam * (n - k) + Fraction(1, 2))
        return min(n, round(k / lam)) if lam else n
