"""Weighted coverage: greedy picks that are each as similar as can be to what no earlier pick is similar to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from methods.kernels import cover
from methods.kernels.cosine import Cosine
from methods.kernels.dispatch import gpu, run, run_several
from methods.kernels.rows import Rows

BITS = 38  # of a similarity, 4e-12: above the errors of a product
DECIMALS = 9  # of a gain, above what the last bits of N similarities add up to
ROWS = 64  # tokens whose coverage is brought up to date at once


def coverage(rows: Rows, weight: Tensor, k: int, additive: bool = False) -> Tensor:
    """Return `k` distinct indices [k] in the order picked; ties go to the lowest index.

        gain_j = sum over i of max(0, cos(i, j) - covered_i)
        pick   = argmax over unpicked j of gain_j * weight_j  (additive: gain_j + weight_j)
        covered_i = max(covered_i, cos(i, pick)), from 0

    Similarities are multiples of 2^-38 (of more for N > 2^15), so that every sum of N of them is exact, in whatever
    order it is made; gains count to 9 decimals.

    Args:
        rows: N tokens.
        weight: [N] float64, at least 0.
        k: how many to pick, at most N.
        additive: whether weight is added to the gain or multiplies it.
    """
    scale = _scale(len(rows))
    ways = {
        "plain": lambda: plain(rows, weight, k, additive, scale),
        "cpu": lambda: cover.coverage(rows, weight, k, additive, scale, DECIMALS),
        "gpu": lambda: gpu("cover").coverage([rows], [weight], [k], additive, scale)[0],
    }
    return run(rows.features, ways)


def coverage_batch(
    rows: Sequence[Rows], weight: Sequence[Tensor], ks: Sequence[int], additive: bool = False
) -> list[Tensor]:
    """Return what `coverage` does for each of several samples, which may differ in N and k."""
    scales = {_scale(len(one)) for one in rows}
    given = list(zip(rows, weight, ks, strict=True))
    together = (lambda: gpu("cover").coverage(rows, weight, ks, additive, *scales)) if len(scales) == 1 else None
    return run_several([one.features for one in rows], lambda: [coverage(*one, additive) for one in given], together)


def _scale(n: int) -> float:
    return 2.0 ** min(BITS, 53 - n.bit_length())


def plain(rows: Rows, weight: Tensor, k: int, additive: bool, scale: float) -> Tensor:
    """As `coverage`, with gains brought up to date instead of summed anew for each pick.

    A pick lifts `covered` of some tokens; only the share of these in the gains is replaced, ROWS tokens at a time, and
    the next pick is made when none is left. A token is lifted about log K times, so all takes O(N^2 log K) similarities
    instead of O(N^2 K), and memory O(ROWS x N).

    The device is waited for a few times in all: the rounds that are left after K, and after the rest, and so on.
    """
    n = len(rows)
    cosine = Cosine(rows.unit(), table=True, scale=scale)
    everyone = torch.arange(n, device=rows.device).split(ROWS)
    gain = torch.cat([cosine(part).clamp_(min=0).sum(dim=1) for part in everyone])
    covered, goal = torch.zeros_like(gain), torch.zeros_like(gain)  # [N] what gain reflects, and what it should
    picked = torch.zeros_like(gain, dtype=torch.bool)
    order = torch.empty(k, dtype=torch.int64, device=rows.device)
    made = torch.zeros(1, dtype=torch.int64, device=rows.device)
    rounds = k
    while rounds:
        for _ in range(rounds):  # at most one pick each, so `made` stays below k inside
            lifted = (goal - covered).topk(min(n, ROWS)).indices
            similar, before, after = cosine(lifted), covered[lifted, None], goal[lifted, None]
            gain -= ((similar - before).clamp_(min=0) - (similar - after).clamp_(min=0)).sum(dim=0)
            covered[lifted] = goal[lifted]
            ready = (covered == goal).all()
            score = gain.round(decimals=DECIMALS)
            score = score + weight if additive else score * weight
            pick = score.masked_fill(picked, -torch.inf).argmax().view(1)  # the first of equal maxima
            order.index_copy_(0, made, pick)  # if not ready, a later round writes over it
            picked[pick] |= ready
            made += ready
            goal = torch.where(ready, torch.maximum(goal, cosine(pick)[0]), goal)
        rounds = k - len(picked.nonzero())
    return order
