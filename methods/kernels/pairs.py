"""Cosine similarities between two sets of tokens, as exact in their ties as floating point allows."""

from __future__ import annotations

import torch
from torch import Tensor

BARE_NORM = 1e-50  # the floor of a norm that leaves every float32 row its own, but for zero rows
BITS = 38  # of a similarity, 4e-12
TABLE = 2048  # tokens up to which the similarities of all pairs are computed once and kept: 32 MiB
TILE = 2**24  # similarities held at once beyond that


class Pairs:
    """Similarities between rows of `unit` [N, D] (float64, of unit length or zero).

    They are multiples of 2^-38 (of more for N > 2^15), which is above the errors of a product and leaves every sum of N
    of them exact, in whatever order. Up to TABLE tokens equal rows have equal similarities, and that of i to j is that
    of j to i, bit for bit. Beyond, and for rows that are equal but for their length, a product may rarely lie on a
    rounding boundary.
    """

    def __init__(self, unit: Tensor) -> None:
        self.scale = 2.0 ** min(BITS, 53 - len(unit).bit_length())
        self.rows = unit
        self.table: Tensor | None = None
        if len(unit) <= TABLE:
            # A matrix product may add up equal rows in different orders, so each distinct one goes in once.
            distinct, self.row_of = torch.unique(unit, dim=0, return_inverse=True)
            table = distinct @ distinct.T
            self.table = self._rounded(torch.maximum(table, table.T))

    def between(self, a: Tensor, b: Tensor | None = None) -> Tensor:
        """Return the similarities [A, B] of tokens `a` [A] to tokens `b` [B], or to all N."""
        if self.table is not None:
            return self.table[self.row_of[a]].index_select(1, self.row_of if b is None else self.row_of[b])
        return self._rounded(self.rows[a] @ (self.rows if b is None else self.rows[b]).T)

    def nearest(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """Return the similarity [A] of each token of `a` to the most similar of `b`, and where in `b` [A] it is.

        Of equally similar ones the first counts. Memory O(A + B) beyond TABLE.
        """
        found = [self.between(part, b).max(dim=1) for part in a.split(max(1, TILE // len(b)))]
        return torch.cat([best.values for best in found]), torch.cat([best.indices for best in found])

    def _rounded(self, similarity: Tensor) -> Tensor:
        return similarity.mul_(self.scale).round_().div_(self.scale)
