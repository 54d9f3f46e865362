"""Maximal marginal relevance: greedy picks that are important and unlike what was picked before."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.cosine import Cosine


def mmr(unit: Tensor, importance: Tensor, k: int, lam: float, parallel_k: int = 1) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

    One product of `unit` [N, D] (float64 rows of unit length) with each pick, O(K N D) in all: the N x N similarity is
    never formed. Indices stay on the device; it is waited for once, before the loop. Importance counts exactly,
    similarity to 12 decimals.

    Args:
        unit: normalised features [N, D].
        importance: [N] float64 in [0, 1].
        k: how many to pick, at most N.
        lam: weight of importance; 1 - lam is that of the similarity to the nearest pick.
        parallel_k: picks per round after the first; the similarities are brought up to date once a round.
    """
    cosine = Cosine(unit)
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    relevance = lam * importance  # [N], minus infinity once picked
    nearest = torch.full_like(relevance, -torch.inf)  # [N] similarity to the most similar pick
    picks = order[:1]
    picks.copy_(importance.argmax())
    for done in range(1, k, parallel_k):
        relevance.index_fill_(0, picks, -torch.inf)
        nearest = torch.maximum(nearest, cosine(picks).amax(dim=0))
        score = relevance - (1 - lam) * nearest
        picks = order[done : done + parallel_k]
        for pick in picks.split(1):
            pick.copy_(score.argmax())  # the first of equal maxima
            score.index_fill_(0, pick, -torch.inf)
    return order
