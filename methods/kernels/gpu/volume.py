"""Greedy volume on a GPU, in float64: picks come from a pool in one launch, the factor of all tokens by products."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.gpu.novelty import PICKING, front
from methods.kernels.paths import UnfitError
from methods.kernels.rows import Rows
from methods.kernels.ties import DECIMALS

POOL = 64  # a power of two


def greedy_map(rows: Rows, quality: Tensor, k: int, tolerance: float) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.dpp.greedy_map`; the host waits once a pool.

    Raises UnfitError where more tokens than a pool holds tie.
    """
    unit = rows.unit()
    order = torch.empty(k, dtype=torch.int64, device=unit.device)
    factor = unit.new_empty(k, len(unit))
    volume, weight, left = torch.ones_like(quality), quality.square(), quality.clone()
    limit = (tolerance * weight.max()).view(1)
    made = 0
    while made < k:
        gain = (weight * volume.round(decimals=DECIMALS)).masked_fill(left.isneginf(), -torch.inf)
        tokens, floor, rival = front(gain, POOL)
        seen = factor[:made, tokens]
        similar = unit[tokens] @ unit[tokens].T - seen.T @ seen
        given = (tokens, left[tokens], weight[tokens], volume[tokens], similar, floor, rival, limit)
        fresh, spent, members, part = pick(*given, min(k - made, len(tokens)))
        if fresh:
            picks = tokens[members[:fresh]]
            order[made : made + fresh] = picks
            left[picks] = -torch.inf
            corner = part[:fresh, members[:fresh]].T  # [F, F] lower triangle: of each pick, its parts by those before
            unexplained = unit[picks] @ unit.T - factor[:made, picks].T @ factor[:made]
            new = torch.linalg.solve_triangular(corner, unexplained, upper=False)
            factor[made : made + fresh] = new
            volume = volume - new.square().sum(dim=0)
            made += fresh
        if spent:
            order[made:] = left.argsort(descending=True, stable=True)[: k - made]
            return order
        if not fresh:
            raise UnfitError("more tokens than a pool holds are equal")
    return order


def pick(
    tokens: Tensor,
    left: Tensor,
    weight: Tensor,
    volume: Tensor,
    similar: Tensor,
    floor: Tensor,
    rival: Tensor,
    limit: Tensor,
    most: int,
) -> tuple[int, bool, Tensor, Tensor]:
    """Pick from a pool until the next pick could lie outside, or gains no more than `limit`.

    Returns how many were picked, whether gains are spent, the picks' places in the pool, and what they take [F, P].
    """
    size = len(tokens)
    told = torch.zeros(2, dtype=torch.int64, device=tokens.device)
    members = torch.zeros_like(tokens)
    part = similar.new_zeros(size, size)
    given = (tokens, left, weight, volume, similar.contiguous(), floor, rival, limit, members, part, told)
    _pick[(1,)](*given, size, most, SIZE=triton.next_power_of_2(size), **PICKING)
    fresh, spent = told.tolist()
    return fresh, bool(spent), members, part


@triton.jit
def _pick(
    tokens, left, weight, volume, similar, floor, rival, limit, members, part, told, size, most, SIZE: tl.constexpr
):  # fmt: skip
    member = tl.arange(0, SIZE)
    here = member < size
    square = member[:, None] * size + member
    unexplained = tl.load(similar + square, mask=here[:, None] & here, other=0.0)
    free = tl.load(volume + member, mask=here, other=0.0)
    share = tl.load(weight + member, mask=here, other=0.0)
    open_ = tl.load(left + member, mask=here, other=float("-inf"))  # minus infinity once picked
    open_ = tl.where(open_ == float("-inf"), open_, 0.0)
    outside, first, least = tl.load(floor), tl.load(rival), tl.load(limit)
    made = 0
    spent = 0
    more = most > 0
    while more:
        steady = free * 1e12 + 6755399441055744.0 - 6755399441055744.0  # 1.5 * 2^52: to the nearest whole number
        gain = share * (steady / 1e12) + open_
        best = tl.max(gain, axis=0)
        chosen = tl.min(tl.where(gain == best, member, SIZE), axis=0)  # the first of equal maxima
        token = tl.load(tokens + chosen, mask=chosen < SIZE, other=0)
        more = (best > outside) | ((best == outside) & (token < first) & (best > float("-inf")))
        if more & (best <= least):
            spent = 1
            more = best > least
        if more:
            own = member == chosen
            root = tl.sqrt(tl.sum(tl.where(own, free, 0.0), axis=0))
            row = tl.sum(tl.where(own[:, None], unexplained, 0.0), axis=0) / root
            unexplained = unexplained - row[:, None] * row
            free = free - row * row
            open_ = tl.where(own, float("-inf"), open_)
            tl.store(members + made, chosen)
            tl.store(part + made * size + member, tl.where(own, root, row), mask=here)  # of a zero row, too
            made += 1
        more = more & (made < most)
    tl.store(told, made)
    tl.store(told + 1, spent)
