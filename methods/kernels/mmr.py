"""Maximal marginal relevance: greedy picks that are important and unlike what was picked before."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from methods.kernels.cosine import STEP, CosineRows
from methods.kernels.model_dtype import Distances
from methods.scores import top
from methods.selecting import refuse_nan


def mmr(
    rows: Iterable[CosineRows], importance: Iterable[Tensor], ks: Sequence[int], lam: float, parallel_k: int = 1
) -> list[Tensor]:
    """Return for each sample `k` distinct indices [K] in the order picked; ties go to the lowest index.

        first = argmax importance
        pick  = argmax over unpicked i of lam * importance_i - (1 - lam) * max over picked p of cos(i, p)

    Args:
        rows: N tokens of each sample; a generator keeps one sample's similarities in memory at a time.
        importance: [N] float64 in [0, 1] of each sample.
        ks: how many to pick of each sample, at most N.
        lam: weight of importance; 1 - lam is that of the similarity to the nearest pick.
        parallel_k: picks per round, the first one included; similarities are brought up to date once a round.
    """
    return [
        novelty(cosine, lam * scores, 1 - lam, top(scores, min(parallel_k, k)), k, parallel_k)
        for cosine, scores, k in zip(rows, importance, ks, strict=True)
    ]


def novelty(
    cosine: CosineRows | Distances, relevance: Tensor, weight: float, first: Tensor, k: int, parallel: int = 1
) -> Tensor:
    """Return `k` distinct indices [K] of one sample in the order picked, beginning with `first`.

        pick = argmax over unpicked i of relevance_i - weight * max over picked p of cos(i, p)

    Args:
        cosine: N tokens.
        relevance: [N].
        weight: at least 0.
        first: [F] distinct indices, F at least 1, on the device of the tokens.
        k: from F to N.
        parallel: picks per round.
    """
    refuse_nan(relevance)
    order = torch.cat([first, first.new_empty(k - len(first))])
    relevance = relevance[None].clone()  # [1, N] minus infinity once picked
    nearest = torch.full_like(relevance, -torch.inf, dtype=torch.float32)  # [1, N] similarity to the nearest pick
    latest = first
    for made in range(len(first), k, parallel):
        relevance.index_fill_(1, latest, -torch.inf)
        for pick in latest.split(1):
            torch.maximum(nearest, cosine(pick), out=nearest)
        score = torch.sub(relevance, nearest, alpha=weight * STEP)
        latest = order[made : made + parallel]
        for pick in latest.split(1):
            torch.argmax(score, dim=1, out=pick)  # the first of equal maxima
            if parallel > 1:
                score.index_fill_(1, pick, -torch.inf)
    return order
