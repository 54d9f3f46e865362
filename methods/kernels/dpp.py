"""Greedy maximum a posteriori of a determinantal point process: picks that span the largest volume, weighted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from methods.kernels.cosine import STEP, CosineRows
from methods.selecting import refuse_nan

TOLERANCE = 1e-5  # of the largest initial gain: what float32 leaves below it is mostly rounding error


def greedy_map(rows: Iterable[CosineRows], quality: Iterable[Tensor], ks: Sequence[int]) -> list[Tensor]:
    """Return for each sample `k` distinct indices [K] in the order picked; ties go to the lowest index.

        L = diag(q) S diag(q),  S = cosines with ones on the diagonal
        pick = argmax over unpicked i of det L[picked + i] / det L[picked] = q_i^2 (1 - sum over picked e_i^2)

    where e are the rows of the incremental Cholesky factor of S (Chen et al., NeurIPS 2018): the weights enter the gain
    alone, so that equal rows share one column of the factor. Once no gain exceeds `TOLERANCE` of the first, as after D
    picks from D dimensions, the rest are picked by descending quality.

    Args:
        rows: N tokens of each sample; a generator keeps one sample's similarities in memory at a time. A zero row is
            unlike every other token, zero ones included.
        quality: [N] float64 of each sample, above 0.
        ks: how many to pick of each sample, at most N.
    """
    return [_greedy_map(*sample) for sample in zip(rows, quality, ks, strict=True)]


def _greedy_map(cosine: CosineRows, quality: Tensor, k: int) -> Tensor:
    """Return the picks [K] of one sample."""
    refuse_nan(quality)
    order = torch.empty(k, dtype=torch.int64, device=cosine.device)
    volume = torch.ones(len(cosine.unit), device=cosine.device)  # [U] what the picks leave of the unit diagonal
    factor = volume.new_empty(k, len(volume))  # [K, U] e of every pick
    weight = quality.square()
    limit = TOLERANCE * weight.max()
    left = quality.clone()  # minus infinity once picked
    for made in range(k):
        pick = order[made : made + 1]
        gain = (weight * cosine.of_tokens(volume)).masked_fill_(left.isneginf(), -torch.inf)
        spent = gain.max() <= limit
        torch.argmax(torch.where(spent, left, gain), dim=0, keepdim=True, out=pick)  # the first of equal maxima
        left.index_fill_(0, pick, -torch.inf)
        row, earlier = cosine.rows(pick), factor[:made]
        part = STEP * cosine.distinct(pick)[0] - earlier.index_select(1, row)[:, 0] @ earlier
        part /= volume.index_select(0, row).clamp_min(TOLERANCE).sqrt()
        factor[made] = part.masked_fill_(spent, 0)
        volume.addcmul_(part, part, value=-1)
    return order
