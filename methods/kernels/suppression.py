"""Suppression in groups: of tokens in order of rank, those stay that resemble no better one that stays."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.cosine import TILE, Cosine

ROUNDS = 8  # between two questions of the host whether anything changed


def survivors(cosine: Cosine, order: Tensor, group: Tensor, eligible: Tensor, threshold: Tensor) -> Tensor:
    """Return for each rank whether its token survives [N].

        token i survives if it is eligible and no survivor of its group and of better rank has cos(i, j) > threshold

    That is non-maximum suppression. All ranks are decided at once, again and again until nothing changes, which is as
    often as a token's fate depends on another's in a chain. Memory: two tables of booleans [N, N].

    Args:
        cosine: similarities of N tokens.
        order: [N] tokens by rank, best first.
        group: [N] group of each rank.
        eligible: [N] False for ranks that cannot survive.
        threshold: [] float64.
    """
    rank = torch.arange(len(order), device=order.device)
    tiles = rank.split(max(1, TILE // len(order)))
    conflict = torch.cat([cosine(order[tile])[:, order] > threshold for tile in tiles])
    conflict &= (group[:, None] == group) & (rank[:, None] < rank)
    alive, changed = eligible, [True]
    while any(changed):
        for _ in range(ROUNDS):
            before, alive = alive, eligible & ~(conflict & alive[:, None]).any(dim=0)
        changed = (before != alive).any(dim=0, keepdim=True).tolist()
    return alive
