"""Max-min distance: greedy picks that are each as far as can be from the picks before, by cosine distance."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.cosine import Cosine

TILE = 256  # rows whose similarities to all others are held at once


def maxmin(unit: Tensor, k: int, first: Tensor | None = None) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

        pick = argmin over unpicked i of max over picked p of cos(i, p)

    One product of `unit` with each pick, O(K N D) in all. Indices stay on the device; it is waited for once, before
    the loop. Similarities count to 12 decimals, so that rounding of the products decides no tie.

    Args:
        unit: rows of unit length or zero [N, D], float64.
        k: how many to pick, at most N.
        first: [F] distinct indices, F <= k, that count as picked; by default the token whose nearest neighbour is
            farthest, which takes the similarities of all pairs, O(N^2 D), in tiles.
    """
    cosine = Cosine(unit)
    if first is None:
        first = nearest_other(cosine).argmin().view(1)
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    order[: len(first)] = first
    nearest = torch.full_like(unit[:, 0], -torch.inf)  # [N] similarity to the closest pick, infinity once picked
    for done in range(k):
        pick = order[done : done + 1]
        if done >= len(first):
            pick.copy_(nearest.argmin())  # the first of equal minima
        nearest = torch.maximum(nearest, cosine(pick)[0]).index_fill_(0, pick, torch.inf)
    return order


def nearest_other(cosine: Cosine) -> Tensor:
    """Return the similarity [N] of each token to the nearest other one; memory O(TILE x N)."""
    nearest = torch.empty_like(cosine.rows[:, 0])  # of each distinct row
    for start in range(0, len(nearest), TILE):
        tile = slice(start, start + TILE)
        similarity = cosine.between(cosine.rows[tile], cosine.rows)
        similarity.diagonal(start).masked_fill_(cosine.copies[tile] == 1, -torch.inf)  # a copy is its own neighbour
        nearest[tile] = similarity.amax(dim=1)
    return nearest[cosine.row_of]
