"""Greedy volume on a GPU, in float64, samples of different N and K side by side.

Picks come from a pool of each sample's own, in one launch, and the factor of all tokens by products.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from methods.kernels.dispatch import UnfitError
from methods.kernels.gpu.novelty import PICKING, front
from methods.kernels.rows import Rows
from methods.kernels.ties import DECIMALS

POOL = 64  # a power of two


def greedy_map(samples: Sequence[Rows], quality: Sequence[Tensor], ks: Sequence[int], tolerance: float) -> list[Tensor]:
    """Return the indices [k] of every sample, as `methods.kernels.dpp.greedy_map`; the host waits once a round.

    Raises UnfitError where more tokens than a pool holds tie.
    """
    unit = pad_sequence([rows.unit() for rows in samples], batch_first=True)  # [B, N, D]
    left = pad_sequence(list(quality), batch_first=True, padding_value=-torch.inf)  # minus infinity once picked
    weight = pad_sequence(list(quality), batch_first=True).square()
    limit = tolerance * weight.amax(dim=1, keepdim=True)
    volume = torch.ones_like(weight)
    factor = unit.new_zeros(len(ks), max(ks), unit.shape[1])  # [B, K, N]
    order = torch.zeros(len(ks), max(ks), dtype=torch.int64, device=unit.device)
    done = [0] * len(ks)
    while any(made < k for made, k in zip(done, ks, strict=True)):
        gain = (weight * volume.round(decimals=DECIMALS)).masked_fill(left.isneginf(), -torch.inf)
        tokens, floor, rival = front(gain, POOL)
        before = factor[:, : max(done)]
        mine, seen = _rows_at(unit, tokens), _rows_at(before.mT, tokens)
        similar = mine @ mine.mT - seen @ seen.mT
        state = [each.gather(1, tokens) for each in (left, weight, volume)]
        most = torch.tensor([k - made for made, k in zip(done, ks, strict=True)], device=unit.device)
        told, members, part = pick(tokens, state, similar, floor, rival, limit, most)
        fresh, spent = told.T.tolist()
        width = max(fresh)
        if width:
            members = members[:, :width]
            chosen = torch.arange(width, device=unit.device) < told[:, :1]  # [B, F]
            picks = tokens.gather(1, members)
            # Of each pick, its parts by those before: [B, F, F] lower triangles; of what is no pick, the identity.
            corner = part[:, :width].gather(2, members[:, None].expand(-1, width, -1)).mT
            corner = torch.where(chosen[:, :, None] & chosen[:, None], corner, torch.eye(width).to(corner))
            unexplained = _rows_at(unit, picks) @ unit.mT - _rows_at(before.mT, picks) @ before
            unexplained = unexplained.masked_fill(~chosen[..., None], 0)
            new = torch.linalg.solve_triangular(corner, unexplained, upper=False)
            volume = volume - new.square().sum(dim=1)
        for sample, (made, count, k) in enumerate(zip(done, fresh, ks, strict=True)):
            if count:
                own = picks[sample, :count]
                order[sample, made : made + count] = own
                factor[sample, made : made + count] = new[sample, :count]
                left[sample, own] = -torch.inf
            elif made < k and not spent[sample]:
                raise UnfitError("more tokens than a pool holds are equal")
            done[sample] += count
            if spent[sample]:
                order[sample, done[sample] : k] = left[sample].argsort(descending=True, stable=True)[: k - done[sample]]
                done[sample] = k
    return [picked[:k] for picked, k in zip(order, ks, strict=True)]


def _rows_at(values: Tensor, places: Tensor) -> Tensor:
    """Return the rows [B, P, D] of `values` [B, N, D] at `places` [B, P]."""
    return values.gather(1, places[..., None].expand(-1, -1, values.shape[2]))


def pick(
    tokens: Tensor,
    state: Sequence[Tensor],
    similar: Tensor,
    floor: Tensor,
    rival: Tensor,
    limit: Tensor,
    most: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    """Pick from pools [B, P] until the next pick could lie outside, or gains no more than `limit`, at most `most` [B].

    `state` is what is left of them, their weights and their volumes [B, P], `similar` [B, P, P] what picks leave of it.
    Returns how many were picked and whether gains are spent [B, 2], the picks' places in the pool [B, P], and what they
    take [B, P, P].
    """
    samples, size = tokens.shape
    told = torch.zeros(samples, 2, dtype=torch.int64, device=tokens.device)
    members = torch.zeros_like(tokens)
    part = similar.new_zeros(samples, size, size)
    given = (tokens, *state, similar.contiguous(), floor.contiguous(), rival.contiguous(), limit, most)
    _pick[(samples,)](*given, members, part, told, size, SIZE=triton.next_power_of_2(size), **PICKING)
    return told, members, part


@triton.jit
def _pick(
    tokens, left, weight, volume, similar, floor, rival, limit, most, members, part, told, size, SIZE: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(0)
    member = tl.arange(0, SIZE)
    here = member < size
    own_pool, own_square = sample * size, sample * size * size
    square = own_square + member[:, None] * size + member
    unexplained = tl.load(similar + square, mask=here[:, None] & here, other=0.0)
    free = tl.load(volume + own_pool + member, mask=here, other=0.0)
    share = tl.load(weight + own_pool + member, mask=here, other=0.0)
    open_ = tl.load(left + own_pool + member, mask=here, other=float("-inf"))  # minus infinity once picked
    open_ = tl.where(open_ == float("-inf"), open_, 0.0)
    outside, first, least = tl.load(floor + sample), tl.load(rival + sample), tl.load(limit + sample)
    end = tl.load(most + sample)
    made = 0
    spent = 0
    more = end > 0
    while more:
        steady = free * 1e12 + 6755399441055744.0 - 6755399441055744.0  # 1.5 * 2^52: to the nearest whole number
        gain = share * (steady / 1e12) + open_
        best = tl.max(gain, axis=0)
        chosen = tl.min(tl.where(gain == best, member, SIZE), axis=0)  # the first of equal maxima
        token = tl.load(tokens + own_pool + chosen, mask=chosen < SIZE, other=0)
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
            tl.store(members + own_pool + made, chosen)
            tl.store(
                part + own_square + made * size + member, tl.where(own, root, row), mask=here
            )  # of a zero row, too
            made += 1
        more = more & (made < end)
    tl.store(told + 2 * sample, made)
    tl.store(told + 2 * sample + 1, spent)
