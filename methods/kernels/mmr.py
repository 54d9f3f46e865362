"""Maximal marginal relevance: greedy picks that are important and unlike what was picked before."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from methods.kernels.novelty import Job, novelties, novelty
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
    return novelty(*_job(rows, importance, k, lam), parallel_k)


def mmr_batch(
    rows: Sequence[Rows], importance: Sequence[Tensor], ks: Sequence[int], lam: float, parallel_k: int = 1
) -> list[Tensor]:
    """Return what `mmr` does for each of several samples, which may differ in N and k."""
    jobs = [_job(x, scores, k, lam) for x, scores, k in zip(rows, importance, ks, strict=True)]
    return novelties(jobs, parallel_k)


def _job(rows: Rows, importance: Tensor, k: int, lam: float) -> Job:
    first = importance.argmax().view(1)  # of equal maxima
    return Job(rows, lam * importance, 1 - lam, first, k)
