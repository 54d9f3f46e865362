"""Greedy maximum a posteriori of a determinantal point process: picks that span the largest volume, weighted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kernels import volume
from methods.kernels.cosine import Cosine
from methods.kernels.dispatch import gpu, run, run_several
from methods.kernels.rows import Rows
from methods.kernels.ties import DECIMALS

TOLERANCE = 1e-6  # of the largest initial gain: below it the kernel is numerically singular


def greedy_map(rows: Rows, quality: Tensor, k: int) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

        L = diag(q) S diag(q),  S = cosines with ones on the diagonal
        pick = argmax over unpicked i of det L[picked + i] / det L[picked] = q_i^2 (1 - sum over picked e_i^2)

    where e are the rows of the incremental Cholesky factor of S: the weights enter the gain alone, so that equal rows
    share one column of the factor. Once no gain exceeds `TOLERANCE` of the first, as after D picks from D dimensions,
    the rest are picked by descending quality. Gains are float64 to 12 decimals, so that rounding decides no tie.
    Memory O(K N).

    Args:
        rows: N tokens; a zero row is unlike every other token, zero ones included.
        quality: [N] float64, above 0.
        k: how many to pick, at most N.
    """
    ways = {
        "plain": lambda: plain(rows, quality, k),
        "cpu": lambda: volume.greedy_map(rows, quality, k, TOLERANCE),
        "gpu": lambda: gpu("volume").greedy_map([rows], [quality], [k], TOLERANCE)[0],
    }
    return run(rows.features, ways)


def greedy_map_batch(rows: Sequence[Rows], quality: Sequence[Tensor], ks: Sequence[int]) -> list[Tensor]:
    """Return what `greedy_map` does for each of several samples, which may differ in N and k."""
    given = list(zip(rows, quality, ks, strict=True))
    return run_several(
        [one.features for one in rows],
        lambda: [greedy_map(*one) for one in given],
        lambda: gpu("volume").greedy_map(rows, quality, ks, TOLERANCE),
    )


def plain(rows: Rows, quality: Tensor, k: int) -> Tensor:
    """As `greedy_map`, O(K N (D + K)): indices stay on the device, which is waited for once, before the loop."""
    cosine = Cosine(rows.unit())
    unit, row_of = cosine.rows, cosine.row_of
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    factor = unit.new_zeros(k, len(unit))  # [K, U] e of every pick
    volume = unit.new_ones(len(unit))  # [U] what the picks leave of the unit diagonal
    weight = quality.square()
    floor = TOLERANCE * weight.max()
    left = quality.clone()  # [N] quality, minus infinity once picked
    for done in range(k):
        gain = weight * volume.round(decimals=DECIMALS)[row_of]
        gain.masked_fill_(left.isneginf(), -torch.inf)
        spent = gain.max() <= floor
        pick = order[done : done + 1]
        pick.copy_(torch.where(spent, left, gain).argmax())  # the first of equal maxima
        left.index_fill_(0, pick, -torch.inf)
        row = row_of[pick]
        unexplained = (unit @ unit[row].T - factor[:done].T @ factor[:done, row])[:, 0]
        part = unexplained / volume[row].clamp_min(TOLERANCE).sqrt()
        factor[done] = part.masked_fill(spent, 0)
        volume = volume - factor[done].square()
    return order
