"""Max-min distance: greedy picks that are each as far as can be from the picks before, by cosine distance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat

import torch
from torch import Tensor

from methods.kernels.cosine import CosineRows
from methods.kernels.mmr import novelty
from methods.kernels.model_dtype import Distances


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
