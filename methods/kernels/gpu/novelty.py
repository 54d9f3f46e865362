"""Novelty on a GPU: picks come from a pool in one launch, and all tokens are compared with them in another.

The cosine of every token to its nearest pick is float32 and bounds its score. The POOL tokens of highest bound are
taken again in float64, and picks are made among them, exactly, until the next could lie outside. The host waits once a
pool.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.paths import UnfitError
from methods.kernels.rows import SCALE, Rows
from methods.kernels.seen import ROUNDING

POOL = 256  # a power of two
TILE = 512  # tokens compared with all others at once
MOST_EQUAL = 64  # tokens that may be as lonely as the loneliest, in float32
UNSEEN = -1.5  # below any cosine
SHAPE = {"PICKS": 64, "TOKENS": 64, "WIDTH": 64}
COMPARING: dict[str, Any] = {"enable_fp_fusion": True}
PICKING: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}  # as torch rounds, one operation at a time


def novelty(rows: Rows, relevance: Tensor, weight: float, first: Tensor, k: int) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.novelty.novelty`; memory O((N + K) D).

    Raises UnfitError where float32 decides too little.
    """
    features, factor = _prepared(rows)
    n, slack = len(rows), weight * (_error(rows) + ROUNDING)
    order = torch.cat([first, first.new_empty(k - len(first))])
    seen = torch.empty(k, features.shape[1], dtype=torch.float64, device=rows.device)
    nearest = torch.full((n,), UNSEEN, device=rows.device)
    relevance = relevance.clone()
    made, fresh = 0, len(first)
    while True:
        picks = order[made : made + fresh]
        relevance[picks] = -torch.inf
        seen[made : made + fresh] = rows.unit(picks)
        compare(features, factor, picks, nearest)
        made += fresh
        if made == k:
            return order
        bound = relevance - weight * nearest.double().clamp_min(-1) + slack
        tokens, floor, rival = front(bound, POOL)
        unit = rows.unit(tokens)
        near, similar = (_rounded(unit @ others.T) for others in (seen[:made], unit))
        fresh = pick(tokens, relevance[tokens], near.amax(dim=1), similar, weight, floor, rival, order[made:])
        if not fresh:
            raise UnfitError("more tokens than a pool holds are as good as equal in float32")


def loneliest(rows: Rows) -> Tensor:
    """Return the token [1] whose nearest other one is farthest; of equals the first. Raises as `novelty` does."""
    features, factor = _prepared(rows)
    n, everyone = len(rows), torch.arange(len(rows), device=rows.device)
    nearest = torch.full((n,), UNSEEN, device=rows.device)
    compare(features, factor, everyone, nearest, selves=False)
    rivals = (nearest <= nearest.min() + 2 * _error(rows)).nonzero()[:, 0]
    if len(rivals) > MOST_EQUAL:
        raise UnfitError(f"{len(rivals)} tokens are as lonely as the loneliest in float32")
    unit = rows.unit(rivals)
    found = torch.cat([_rounded(unit @ rows.unit(part).T) for part in everyone.split(TILE)], dim=1)
    return rivals[found.scatter_(1, rivals[:, None], -torch.inf).amax(dim=1).argmin()].view(1)


def front(bound: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of highest bound, ascending, the highest bound [1] outside, and the first [1] that has it."""
    ranked = bound.sort(descending=True, stable=True)
    tokens = ranked.indices[:size].sort().values
    if size < len(bound):
        return tokens, ranked.values[size : size + 1], ranked.indices[size : size + 1]
    return tokens, bound.new_full((1,), -torch.inf), torch.zeros_like(tokens[:1])


def compare(features: Tensor, factor: Tensor, picks: Tensor, nearest: Tensor, selves: bool = True) -> None:
    """Raise `nearest` [N] to the cosines of picks where these are higher; a pick is near to itself if `selves`."""
    n, d = features.shape
    grid = (triton.cdiv(n, SHAPE["TOKENS"]),)
    _compare[grid](features, factor, picks, nearest, n, d, len(picks), SELVES=selves, **SHAPE, **COMPARING)


def pick(
    tokens: Tensor,
    relevance: Tensor,
    near: Tensor,
    similar: Tensor,
    weight: float,
    floor: Tensor,
    rival: Tensor,
    order: Tensor,
) -> int:
    """Pick from a pool until the next pick could lie outside, into `order`; return how many."""
    count = torch.zeros(1, dtype=torch.int64, device=tokens.device)
    size = len(tokens)
    weight_ = torch.full_like(floor, weight)  # a number would be passed in float32
    given = (tokens, relevance, near, similar.contiguous(), weight_, floor, rival, order, count)
    _pick[(1,)](*given, size, len(order), SIZE=triton.next_power_of_2(size), **PICKING)
    return int(count)


def _prepared(rows: Rows) -> tuple[Tensor, Tensor]:
    factor = rows.factor
    if not bool(factor.isfinite().all()):
        raise UnfitError("a row is too short or too long for float32")
    features = rows.features
    return (features.float() if features.dtype == torch.float64 else features).contiguous(), factor


def _error(rows: Rows) -> float:
    """How far a cosine may be off: tensor cores cut off where others round, up to two units after every 16 products."""
    return rows.error + rows.features.shape[1] / 8 * 2.0**-24


def _rounded(similar: Tensor) -> Tensor:
    return similar.mul_(SCALE).round_().div_(SCALE)


@triton.jit
def _compare(
    features, factor, picks, nearest, n, d, count,
    SELVES: tl.constexpr, PICKS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    here = tokens < n
    best = tl.load(nearest + tokens, mask=here, other=0.0)
    scale = tl.load(factor + tokens, mask=here, other=0.0)
    for start in range(0, count, PICKS):
        line = start + tl.arange(0, PICKS)
        there = line < count
        pick = tl.load(picks + line, mask=there, other=0)
        total = tl.zeros([PICKS, TOKENS], tl.float32)
        for at in range(0, d, WIDTH):
            width = at + tl.arange(0, WIDTH)
            inside = width < d
            a = tl.load(features + pick[:, None] * d + width, mask=there[:, None] & inside, other=0.0)
            where = tokens[None, :].to(tl.int64) * d + width[:, None]
            b = tl.load(features + where, mask=here & inside[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
        similar = total * tl.load(factor + pick, mask=there, other=0.0)[:, None] * scale
        counts = there[:, None]
        if not SELVES:
            counts = counts & (pick[:, None] != tokens)
        best = tl.maximum(best, tl.max(tl.where(counts, similar, -1.5), axis=0))
    tl.store(nearest + tokens, best, mask=here)


@triton.jit
def _pick(
    tokens, relevance, near, similar, weight, floor, rival, order, count, size, most, SIZE: tl.constexpr
):  # fmt: skip
    member = tl.arange(0, SIZE)
    here = member < size
    value = tl.load(relevance + member, mask=here, other=float("-inf"))
    nearest = tl.load(near + member, mask=here, other=0.0)
    share, outside, first = tl.load(weight), tl.load(floor), tl.load(rival)
    made = 0
    more = most > 0
    while more:
        score = value - share * nearest
        best = tl.max(score, axis=0)
        chosen = tl.min(tl.where(score == best, member, SIZE), axis=0)  # the first of equal maxima
        token = tl.load(tokens + chosen, mask=chosen < SIZE, other=0)
        more = (best > outside) | ((best == outside) & (token < first) & (best > float("-inf")))
        if more:
            tl.store(order + made, token)
            nearest = tl.maximum(nearest, tl.load(similar + chosen * size + member, mask=here, other=0.0))
            value = tl.where(member == chosen, float("-inf"), value)
            made += 1
        more = more & (made < most)
    tl.store(count, made)
