"""Rows as directions, for methods whose norms have a floor; `numerics.unit_rows` adds to them instead."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.mmr import DECIMALS


def directions(features: Tensor, floor: float = 1e-8) -> Tensor:
    """Return `features` [N, D] over max(norm, `floor`), in float64; zero rows stay zero.

    Above the floor a positive factor on a row changes nothing, so that parallel rows tie. Adding to the norm, however
    little, would rank them by length.
    """
    features = features.double()
    return features / torch.linalg.vector_norm(features, dim=1, keepdim=True).clamp_min(floor)


def cosines(unit: Tensor, direction: Tensor) -> Tensor:
    """Return the products [N] of the rows of `unit` [N, D] with `direction` [D], to the decimals that are reliable.

    A sum along each row, not a matrix product: that one may add up equal rows in different orders.
    """
    return (unit * direction).sum(dim=1).round(decimals=DECIMALS)
