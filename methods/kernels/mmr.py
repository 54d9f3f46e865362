"""Maximal marginal relevance: greedy picks that are important and unlike what was picked before."""

from __future__ import annotations

from torch import Tensor

from methods.kernels.novelty import novelty
from methods.kernels.rows import Rows


def mmr(rows: Rows, importance: Tensor, k: int, lam: float, parallel_k: int = 1) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

        first = argmax importance
        pick  = argmax over unpicked i of lam * importance_i - (1 - lam) * max over picked p of cos(i, p)

    Args:
        rows: N tokens.
        importance: [N] float64 in [0, 1].
        k: how many to pick, at most N.
        lam: weight of importance; 1 - lam is that of the similarity to the nearest pick.
        parallel_k: picks per round after the first; the similarities are brought up to date once a round.
    """
    first = importance.argmax().view(1)  # the first of equal maxima
    return novelty(rows, lam * importance, 1 - lam, first, k, parallel_k)
