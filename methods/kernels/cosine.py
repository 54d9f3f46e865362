"""Cosine similarities, as exact in their ties as floating point allows."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.ties import DECIMALS

BARE_NORM = 1e-50  # the floor of a norm that leaves every float32 row its own, but for zero rows
TABLE = 2048  # tokens up to which the similarities of all pairs may be kept: 32 MiB
TILE = 2**24  # similarities held at once


def directions(features: Tensor, floor: float = 1e-8) -> Tensor:
    """Return `features` [N, D] over max(norm, `floor`), in float64; zero rows stay zero.

    Above the floor a positive factor on a row changes nothing, so that parallel rows tie. Adding to the norm, however
    little, would rank them by length.
    """
    features = features.double()
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(floor)


class Cosine:
    """Similarities between rows of `unit` [N, D] (float64, of unit length or zero), to 12 decimals.

    Matrix kernels add up the rows of one product in different orders, so each distinct row goes in once: equal rows
    have equal similarities, bit for bit. Different rows have them where exact arithmetic says so, but for the rare case
    that a rounding boundary lies between the two products.

    Building it waits for the device once, asking it never does.

    Args:
        unit: [N, D].
        table: keep the similarities of all pairs, if N is at most TABLE, for those who ask more than N / 2 times.
        scale: similarities are multiples of 1 / `scale`.
    """

    def __init__(self, unit: Tensor, table: bool = False, scale: float = 10.0**DECIMALS) -> None:
        self.unit = unit
        self.scale = scale
        self.rows, self.row_of, self.copies = torch.unique(unit, dim=0, return_inverse=True, return_counts=True)
        self.table: Tensor | None = None
        if table and len(unit) <= TABLE:
            every = self.between(self.rows, self.rows)
            self.table = torch.maximum(every, every.T)

    def __call__(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the similarities [A, B] of tokens `a` [A] to tokens `b` [B], or to all N."""
        if self.table is not None:
            return self.table[self.row_of[a]].index_select(1, self.row_of if b is None else self.row_of[b])
        if b is not None:  # too many for a table: equal rows may then differ where a rounding boundary lies between
            return self.between(self.unit[a], self.unit[b])
        return self.between(self.unit[a], self.rows).index_select(1, self.row_of)

    def nearest(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarity [A] of each token of `a` to the most similar of `b`, and where in `b` [A] it is.

        Of equally similar ones the first counts. Memory O(A + B) beyond TABLE.
        """
        found = [self(part, b).max(dim=1) for part in a.split(max(1, TILE // len(b)))]
        return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])

    def along(self, direction: Tensor) -> Tensor:
        """Return the products [N] of all tokens with `direction` [D]."""
        return self.between(self.rows, direction[None])[self.row_of, 0]

    def between(self, rows: Tensor, others: Tensor) -> Tensor:
        """Return the rounded products [R, O] of `rows` [R, D] with `others` [O, D]."""
        return (rows @ others.T).mul_(self.scale).round_().div_(self.scale)
