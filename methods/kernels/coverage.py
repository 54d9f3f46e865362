"""Weighted coverage, a facility location: greedy picks that are each most similar to what earlier picks are not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from methods.kernels.cosine import STEP, TILE_32, CosineRows
from methods.selecting import refuse_nan

UNITS = 2.0**50  # whole numbers into which `TableRows` divides the sum of all entries; float64 adds them exactly
LEAST = 16  # tokens brought up to date in a round, if that many similarities may be held at once
SMALL = 2**15  # similarities above which torch shares an operation among threads, which wait for a busy core


class TableRows:
    """A table `entries` [R, N] in float64, at least 0: how much each token covers of each of R rows.

    Entries are whole numbers afterwards, `UNITS` in all, whatever they sum up to.
    """

    def __init__(self, entries: Tensor) -> None:
        total = entries.sum()
        self.table = (entries * (UNITS / torch.where(total > 0, total, 1.0))).round_()
        self.size, self.device, self.dtype = len(entries), entries.device, entries.dtype

    def __len__(self) -> int:
        return self.table.shape[1]

    def __call__(self, rows: Tensor) -> Tensor:
        """Return the entries [T, N] of `rows` [T], as a new tensor."""
        return self.table.index_select(0, rows)

    def column(self, token: Tensor) -> Tensor:
        """Return the entries [R] of `token` [1]."""
        return self.table.index_select(1, token)[:, 0]

    def tiles(self) -> tuple[Tensor, ...]:
        """Return all rows [R] in parts whose entries may be held at once."""
        return torch.arange(self.size, device=self.device).split(max(1, TILE_32 // len(self)))


def coverage(
    rows: Iterable[CosineRows | TableRows], weights: Iterable[Tensor], ks: Sequence[int], additive: bool = False
) -> list[Tensor]:
    """Return for each sample `k` distinct indices [K] in the order picked; ties go to the lowest index.

        gain_j = sum over i of max(0, cos(i, j) - covered_i)
        pick   = argmax over unpicked j of gain_j * weight_j  (additive: gain_j + weight_j)
        covered_i = max(covered_i, cos(i, pick)), from 0

    Args:
        rows: N tokens of each sample, with cos(i, j) as `CosineRows` computes it or as the entry of a table; a
            generator keeps one sample's similarities in memory at a time.
        weights: [N] float64 of each sample, at least 0.
        ks: how many to pick of each sample, at most N.
        additive: whether weight is added to the gain or multiplies it.
    """
    return [_coverage(*sample, additive) for sample in zip(rows, weights, ks, strict=True)]


def _coverage(cosine: CosineRows | TableRows, weight: Tensor, k: int, additive: bool) -> Tensor:
    """Return the picks [K] of one sample.

    Similarities are whole numbers, so sums of them in float64 are exact. Gains can therefore be brought up to date
    instead of summed again: a pick raises `covered` of some tokens, and only the share of these in the gains changes.

    A round updates the tokens that are farthest behind and makes the next pick if none is left. The r-th pick raises
    about N / r tokens, so round r takes at most 2 N / r of them: O(N^2 log K) similarities in all. The host asks only
    after K rounds how many picks are missing.
    """
    refuse_nan(weight)
    n, size, device = len(cosine), cosine.size, cosine.device
    gain = torch.zeros(n, dtype=torch.float64, device=device)
    for tile in cosine.tiles():
        gain += cosine(tile).clamp_(min=0).sum(dim=0, dtype=torch.float64)
    covered, goal = torch.zeros(2, size, dtype=cosine.dtype, device=device)  # what `gain` reflects, and what it has to
    barred = torch.zeros_like(gain)  # minus infinity once picked
    order = torch.empty(k, dtype=torch.int64, device=device)
    made = torch.zeros(1, dtype=torch.int64, device=device)
    most = max(1, (TILE_32 if cosine.table is None else SMALL) // n)
    rounds, missing = 0, k
    while missing:
        for done in range(rounds, rounds + missing):  # at most one pick each, so `made` stays below k inside
            behind = (goal - covered).topk(min(size, most, max(LEAST, 2 * size // (done + 1))), sorted=False).indices
            before, after = covered.index_select(0, behind), goal.index_select(0, behind)
            similar = torch.maximum(cosine(behind), before[:, None])
            similar = torch.minimum(similar, after[:, None], out=similar)
            gain += before.sum(dtype=torch.float64) - similar.sum(dim=0, dtype=torch.float64)
            covered.index_copy_(0, behind, after)
            ready = (covered == goal).all()
            score = barred.add(weight).add_(gain, alpha=STEP) if additive else torch.addcmul(barred, gain, weight)
            pick = score.argmax(dim=0, keepdim=True)  # the first of equal maxima
            order.index_copy_(0, made, pick)  # if not ready, a later round writes over it
            barred.index_add_(0, pick, torch.where(ready, -torch.inf, barred.new_zeros(1)))
            made += ready
            goal = torch.where(ready, torch.maximum(goal, cosine.column(pick)), goal)
        rounds, missing = rounds + missing, k - len(barred.nonzero())
    return order
