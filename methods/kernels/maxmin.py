"""Max-min distance: greedy picks that are each as far as can be from the picks before, by cosine distance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kernels import lazy
from methods.kernels.cosine import Cosine
from methods.kernels.dispatch import gpu, run, run_several
from methods.kernels.novelty import Job, novelties, novelty
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
    return novelty(*_job(rows, k, loneliest(rows) if first is None else first))


def maxmin_batch(rows: Sequence[Rows], ks: Sequence[int], first: Sequence[Tensor] | None = None) -> list[Tensor]:
    """Return what `maxmin` does for each of several samples, which may differ in N and k."""
    if first is None:
        first = loneliest_batch(rows)
    return novelties([_job(x, k, start) for x, k, start in zip(rows, ks, first, strict=True)])


def _job(rows: Rows, k: int, first: Tensor) -> Job:
    relevance = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    return Job(rows, relevance, 1.0, first.to(rows.device), k)


def loneliest(rows: Rows) -> Tensor:
    """Return the token [1] whose nearest other one is farthest; of equals the first."""
    ways = {
        "plain": lambda: plain_loneliest(rows),
        "cpu": lambda: lazy.loneliest(rows),
        "gpu": lambda: gpu("novelty").loneliest([rows])[0],
    }
    return run(rows.features, ways)


def loneliest_batch(samples: Sequence[Rows]) -> list[Tensor]:
    """Return what `loneliest` does for each of several samples."""
    features = [rows.features for rows in samples]
    return run_several(
        features, lambda: [loneliest(rows) for rows in samples], lambda: gpu("novelty").loneliest(samples)
    )


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
