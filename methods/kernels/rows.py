"""Rows of features as the kernels take them: what each is divided by, so that products are cosines."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from methods.kernels.ties import DECIMALS

SCALE = 10.0**DECIMALS  # cosines are multiples of 1 / SCALE
TAME = (1e-12, 1e18)  # lengths whose squares float32 holds
WALK, SLACK = 4.0, 32.0  # of the error of a product: times sqrt(D), and besides, in units of 2^-24
SAMPLE = 64  # tokens whose products are looked at for larger errors
SAFETY = 16.0  # times as much is taken for possible: larger products run on other kernels, one of which lost 4 times


class Rows:
    """The directions of `features` [N, D], a float64 copy of which is made of as many rows as are asked for.

    A row is divided by max(norm, floor) + plus. Above the floor a positive factor on a row changes nothing, so that
    parallel rows tie; adding to the norm, however little, ranks them by length. `plus` is there for the released code
    of IDPruner, which does.
    """

    def __init__(self, features: Tensor, floor: float = 1e-8, plus: float = 0.0) -> None:
        self.features = features.detach()
        self.floor = floor
        self.plus = plus

    def __len__(self) -> int:
        return len(self.features)

    @property
    def device(self) -> torch.device:
        """Where the features are."""
        return self.features.device

    def unit(self, idx: Tensor | None = None) -> Tensor:
        """Return rows `idx` [I], or all, in float64 [I, D]; zero rows stay zero."""
        rows = (self.features if idx is None else self.features.index_select(0, idx)).double()
        return rows / (torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(self.floor) + self.plus)

    @cached_property
    def factor(self) -> Tensor:
        """The float32 factor [N] that makes each row a direction; infinite where float32 cannot do that."""
        dtype = torch.promote_types(self.features.dtype, torch.float32)
        norm = torch.linalg.vector_norm(self.features, dim=1, dtype=dtype)
        factor = 1 / (norm.clamp_min(self.floor) + self.plus)
        tame = (norm >= TAME[0]) & (norm <= TAME[1])
        return torch.where(tame, factor, torch.where(norm == 0, 0.0, torch.inf)).float()

    @cached_property
    def error(self) -> float:
        """How far a cosine by a float32 product is taken to be from the exact one, at most.

        Rounding errors of a sum add up like a random walk, to sqrt(D) units of 2^-24 (Higham & Mary, SIAM J. Sci.
        Comput. 41, 2019); a few times that, and SLACK for what is short, is the floor. Where one dimension outweighs
        all others by far, what is lost has one sign: so the largest error among some tokens counts, several times.
        The worst case, D units each, would let nothing be decided in float32.
        """
        some = torch.linspace(0, len(self) - 1, min(SAMPLE, len(self)), device=self.device).long()
        factor, features = self.factor[some], self.features[some].float()
        exact = self.unit(some)
        off = ((features @ features.T) * factor[:, None] * factor - exact @ exact.T).abs().amax()
        walk = (WALK * self.features.shape[1] ** 0.5 + SLACK) * 2.0**-24
        return max(walk, SAFETY * float(off.nan_to_num()))
