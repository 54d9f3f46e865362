"""Cosine similarity of all tokens with a few of them, one product per pick."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.cosine import directions
from methods.kernels.mmr import DECIMALS


class Cosine:
    """Cosine similarity between rows of `features` [N, D]; equal rows have equal similarities, bit for bit.

    Norms have a floor of 1e-8, so that a zero row is similar to nothing. Similarities are float64 to 12 decimals.
    Building it waits for the device once, asking it never does.
    """

    def __init__(self, features: Tensor) -> None:
        self.unit = directions(features)
        # A matrix product may add up equal rows in different orders, so each distinct one goes in once.
        self.rows, self.row_of = torch.unique(self.unit, dim=0, return_inverse=True)

    def __call__(self, picks: Tensor) -> Tensor:
        """Return the similarities [P, N] of tokens `picks` [P] with all."""
        product = self.unit[picks] @ self.rows.T
        return product.index_select(1, self.row_of).round(decimals=DECIMALS).clamp(-1, 1)
