"""Max-min distance: greedy picks that are each as far as can be from the picks before, by cosine distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from methods.kernels.cosine import DECIMALS, TILE, CosineRows
from methods.kernels.mmr import novelty
from methods.kernels.model_dtype import Distances
from methods.selecting import refuse_nan


def maxmin(
    rows: Iterable[CosineRows | Distances], ks: Sequence[int], first: Sequence[Tensor] | None = None
) -> list[Tensor]:
    """Return for each sample `k` distinct indices [K] in the order picked; ties go to the lowest index.

        pick = argmin over unpicked i of max over picked p of cos(i, p)

    Args:
        rows: N tokens of each sample; a generator keeps one sample's similarities in memory at a time.
        ks: how many to pick of each sample, at most N.
        first: [F] distinct indices of each sample, F from 1 to K, that count as picked; by default the token whose
            nearest neighbour is farthest.
    """
    orders = []
    for cosine, k, start in zip(rows, ks, repeat(None, len(ks)) if first is None else first, strict=True):
        start = cosine.nearest().argmin(dim=0, keepdim=True) if start is None else start.to(cosine.device)
        orders.append(novelty(cosine, torch.zeros(len(cosine), device=cosine.device), 1.0, start, k))
    return orders


def weighted_maxmin(unit: Tensor, weight: Tensor, k: int) -> Tensor:
    """Return for each of F frames `k` distinct tokens [F, k] in the order picked; ties go to the lowest index.

        d_ij  = (1 - cos(i, j)) * weight_j, in float64 with cosines to 12 decimals
        first = argmax_j of the second smallest d_ij over i
        pick  = argmax over unpicked j of min over picked i of d_ij

    All frames make their next pick at once. Memory is O(F P) and one tile.

    Args:
        unit: [F, P, D] float64, of unit length or zero.
        weight: [F, P] float64; distances of a token with a negative weight are negative, too.
        k: from 0 to P.
    """
    frames, size, _ = unit.shape

    def distances(rows: Tensor) -> Tensor:
        cosine = (rows @ unit.mT).round(decimals=DECIMALS)
        return (1 - cosine) * weight[:, None]

    if not k:
        return weight.new_empty(frames, 0, dtype=torch.int64)
    smallest = weight.new_full((frames, min(2, size), size), torch.inf)  # two of each column
    for rows in unit.split(max(1, TILE // (frames * size)), dim=1):
        columns = torch.cat([smallest, distances(rows)], dim=1)
        smallest = columns.topk(smallest.shape[1], dim=1, largest=False).values
    score = smallest.amax(dim=1)
    refuse_nan(score)
    picks, left = [score.argmax(dim=1, keepdim=True)], torch.full_like(score, torch.inf)
    for _ in range(k - 1):
        latest = picks[-1]
        row = unit.gather(1, latest[..., None].expand(-1, -1, unit.shape[2]))
        left = torch.minimum(left, distances(row)[:, 0]).scatter(1, latest, -torch.inf)
        picks.append(left.argmax(dim=1, keepdim=True))
    return torch.cat(picks, dim=1)
