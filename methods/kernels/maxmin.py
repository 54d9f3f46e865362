"""Max-min distance: greedy picks that are each as far as can be from the picks before, by cosine distance."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels import lazy
from methods.kernels.cosine import Cosine
from methods.kernels.novelty import novelty
from methods.kernels.paths import gpu, run
from methods.kernels.rows import Rows

TILE = 256  # rows whose similarities to all others are held at once


def maxmin(rows: Rows, k: int, first: Tensor | None = None) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

        pick = argmin over unpicked i of max over picked p of cos(i, p)

    Args:
        rows: N tokens.
        k: how many to pick, at most N.
        first: [F] distinct indices, F <= k, that count as picked; by default the token whose nearest neighbour is
            farthest.
    """
    first = loneliest(rows) if first is None else first.to(rows.device)
    relevance = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    return novelty(rows, relevance, 1.0, first, k)


def loneliest(rows: Rows) -> Tensor:
    """Return the token [1] whose nearest other one is farthest; of equals the first."""
    ways = {
        "plain": lambda: plain_loneliest(rows),
        "cpu": lambda: lazy.loneliest(rows),
        "gpu": lambda: gpu("novelty").loneliest(rows),
    }
    return run(rows.features, ways)


def plain_loneliest(rows: Rows) -> Tensor:
    """As `loneliest`, by the similarities of all pairs in float64: O(N^2 D), memory O(TILE x N)."""
    cosine = Cosine(rows.unit())
    nearest = torch.empty_like(cosine.rows[:, 0])  # of each distinct row
    for start in range(0, len(nearest), TILE):
        tile = slice(start, start + TILE)
        similarity = cosine.between(cosine.rows[tile], cosine.rows)
        similarity.diagonal(start).masked_fill_(cosine.copies[tile] == 1, -torch.inf)  # a copy is its own neighbour
        nearest[tile] = similarity.amax(dim=1)
    return nearest[cosine.row_of].argmin().view(1)
