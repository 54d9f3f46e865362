"""Greedy picks by relevance and by what they add to the picks before: what MMR and max-min distance share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from methods.kernels import lazy
from methods.kernels.cosine import Cosine
from methods.kernels.dispatch import gpu, run, run_several
from methods.kernels.rows import Rows


class Job(NamedTuple):
    """What `novelty` takes of one sample."""

    rows: Rows
    relevance: Tensor
    weight: float
    first: Tensor
    k: int


def novelty(rows: Rows, relevance: Tensor, weight: float, first: Tensor, k: int, parallel: int = 1) -> Tensor:
    """Return `k` distinct indices [k] in the order picked, those of `first` [F] to begin with.

        pick = argmax over unpicked i of relevance_i - weight * max over picked p of cos(i, p)

    Ties go to the lowest index. Similarities count to 12 decimals, so that rounding of products decides no tie.

    Args:
        rows: N tokens.
        relevance: [N] float64.
        weight: at least 0.
        first: distinct indices, at least one, on the device of the tokens.
        k: how many to pick, from F to N.
        parallel: picks per round; similarities are brought up to date once a round.
    """
    ways = {"plain": lambda: plain(rows, relevance, weight, first, k, parallel)}
    if parallel == 1:
        ways["cpu"] = lambda: lazy.novelty(rows, relevance, weight, first, k)
        ways["gpu"] = lambda: gpu("novelty").novelties([Job(rows, relevance, weight, first, k)])[0]
    return run(rows.features, ways)


def novelties(jobs: Sequence[Job], parallel: int = 1) -> list[Tensor]:
    """Return what `novelty` does for each sample: side by side on a GPU, one after the other elsewhere."""
    together = (lambda: gpu("novelty").novelties(jobs)) if parallel == 1 else None
    features = [job.rows.features for job in jobs]
    return run_several(features, lambda: [novelty(*job, parallel) for job in jobs], together)


def plain(rows: Rows, relevance: Tensor, weight: float, first: Tensor, k: int, parallel: int = 1) -> Tensor:
    """As `novelty`: one product of all tokens with each pick, O(K N D) in all, in float64.

    The N x N similarity is never formed. Indices stay on the device; it is waited for once, before the loop.
    """
    cosine = Cosine(rows.unit())
    order = torch.empty(k, dtype=torch.int64, device=rows.device)
    order[: len(first)] = first
    relevance = relevance.clone()  # minus infinity once picked
    nearest = torch.full_like(relevance, -torch.inf)  # [N] similarity to the most similar pick
    made, fresh = len(first), len(first)
    while True:
        for pick in order[made - fresh : made].split(1):
            relevance.index_fill_(0, pick, -torch.inf)
            nearest = torch.maximum(nearest, cosine(pick)[0])
        if made == k:
            return order
        score = relevance - weight * nearest
        fresh = min(parallel, k - made)
        for pick in order[made : made + fresh].split(1):
            pick.copy_(score.argmax())  # the first of equal maxima
            score.index_fill_(0, pick, -torch.inf)
        made += fresh
