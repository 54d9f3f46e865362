"""Novelty on a GPU, samples of different N and K side by side, two launches a round for all of them.

In one, each picks from a pool of its own; in the other, all tokens are compared with the picks of their sample. The
cosine of every token to its nearest pick is float32 and bounds its score. The POOL tokens of highest bound are taken
again in float64, and picks are made among them, exactly, until the next could lie outside. The host waits once a round.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.dispatch import UnfitError
from methods.kernels.gpu.batch import Batch, error
from methods.kernels.rows import SCALE, Rows
from methods.kernels.seen import ROUNDING

if TYPE_CHECKING:
    from methods.kernels.novelty import Job

POOL = 256  # a power of two
TILE = 512  # tokens compared with all others at once
MOST_EQUAL = 64  # tokens that may be as lonely as the loneliest, in float32
PICKING: dict[str, Any] = {"num_warps": 8, "enable_fp_fusion": False}  # as torch rounds, one operation at a time


def novelties(jobs: Sequence[Job]) -> list[Tensor]:
    """Return the indices of every job, as `methods.kernels.novelty.novelties`; memory O(B (N + K) D).

    Raises UnfitError where float32 decides too little.
    """
    batch = Batch([job.rows for job in jobs])
    goal, done = [job.k for job in jobs], [len(job.first) for job in jobs]
    weight = batch.numbers([job.weight for job in jobs])
    slack = batch.numbers([job.weight * (error(job.rows) + ROUNDING) for job in jobs])
    relevance = batch.padded([job.relevance for job in jobs], -torch.inf)  # minus infinity once picked
    order = batch.padded([torch.cat([job.first, job.first.new_zeros(job.k - len(job.first))]) for job in jobs], 0)
    seen = torch.zeros(*order.shape, batch.features.shape[1], dtype=torch.float64, device=order.device)
    place = torch.arange(order.shape[1], device=order.device)
    last, made = batch.numbers(goal, torch.int64), batch.numbers(done, torch.int64)
    before = torch.zeros_like(made)
    while True:
        sample, at = ((place >= before) & (place < made)).nonzero(as_tuple=True)
        picks = order[sample, at]
        relevance[sample, picks] = -torch.inf
        seen[sample, at] = batch.unit(sample, picks)
        batch.compare(order, before, made)
        if done == goal:
            return [picked[:k] for picked, k in zip(order, goal, strict=True)]
        bound = relevance - weight * batch.nearest.double().clamp_min(-1) + slack
        tokens, floor, rival = front(bound, POOL)
        unit = batch.unit(batch.everyone, tokens)
        near, similar = (_rounded(unit @ others.mT) for others in (seen[:, : max(done)], unit))
        near = near.masked_fill(place[: max(done)] >= made[..., None], -torch.inf).amax(dim=-1)
        relevant = relevance.gather(1, tokens)
        fresh = pick(tokens, relevant, near, similar, weight, floor, rival, order, made, last - made)
        before, made = made, made + fresh
        done, old = made[:, 0].tolist(), done
        if any(now == then < k for now, then, k in zip(done, old, goal, strict=True)):
            raise UnfitError("more tokens than a pool holds are as good as equal in float32")


def loneliest(samples: Sequence[Rows]) -> list[Tensor]:
    """Return of each sample the token [1] whose nearest other one is farthest; of equals the first.

    Raises as `novelties` does.
    """
    batch = Batch(samples)
    n = batch.nearest.shape[1]
    everyone = torch.arange(n, device=batch.nearest.device).repeat(len(samples), 1)
    sizes = batch.numbers([len(rows) for rows in samples], torch.int64)
    batch.compare(everyone, torch.zeros_like(sizes), sizes, selves=False)
    return [_loneliest(rows, nearest[: len(rows)]) for rows, nearest in zip(samples, batch.nearest, strict=True)]


def _loneliest(rows: Rows, nearest: Tensor) -> Tensor:
    """Choose by the float32 cosine of each token to its nearest other one."""
    rivals = (nearest <= nearest.min() + 2 * error(rows)).nonzero()[:, 0]
    if len(rivals) > MOST_EQUAL:
        raise UnfitError(f"{len(rivals)} tokens are as lonely as the loneliest in float32")
    unit, everyone = rows.unit(rivals), torch.arange(len(rows), device=rows.device)
    found = torch.cat([_rounded(unit @ rows.unit(part).T) for part in everyone.split(TILE)], dim=1)
    return rivals[found.scatter_(1, rivals[:, None], -torch.inf).amax(dim=1).argmin()].view(1)


def front(bound: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens of highest bound, ascending, the highest bound outside, and the first that has it.

    Of bounds [..., N] they are [..., `size`], or N if that is less, and [..., 1] both.
    """
    ranked = bound.sort(dim=-1, descending=True, stable=True)
    tokens = ranked.indices[..., :size].sort(dim=-1).values
    if size < bound.shape[-1]:
        return tokens, ranked.values[..., size : size + 1], ranked.indices[..., size : size + 1]
    return tokens, torch.full_like(bound[..., :1], -torch.inf), torch.zeros_like(tokens[..., :1])


def pick(
    tokens: Tensor,
    relevance: Tensor,
    near: Tensor,
    similar: Tensor,
    weight: Tensor,
    floor: Tensor,
    rival: Tensor,
    order: Tensor,
    made: Tensor,
    most: Tensor,
) -> Tensor:
    """Pick from pools [B, P] until the next pick could lie outside, into `order` [B, K] behind `made`; how many [B, 1].

    `weight`, `floor`, `rival`, `made` and `most`, how many there may be, are [B, 1].
    """
    samples, size = tokens.shape
    count = torch.zeros_like(made)
    given = (tokens, relevance, near, similar.contiguous(), weight, floor.contiguous(), rival.contiguous(), order)
    sizes = (size, order.shape[1])
    _pick[(samples,)](*given, made, most, count, *sizes, SIZE=triton.next_power_of_2(size), **PICKING)
    return count


def _rounded(similar: Tensor) -> Tensor:
    return similar.mul_(SCALE).round_().div_(SCALE)


@triton.jit
def _pick(
    tokens, relevance, near, similar, weight, floor, rival, order, made, most, count, size, room, SIZE: tl.constexpr
):  # fmt: skip
    sample = tl.program_id(0)
    member = tl.arange(0, SIZE)
    here = member < size
    value = tl.load(relevance + sample * size + member, mask=here, other=float("-inf"))
    nearest = tl.load(near + sample * size + member, mask=here, other=0.0)
    share, outside, first = tl.load(weight + sample), tl.load(floor + sample), tl.load(rival + sample)
    behind = order + sample * room + tl.load(made + sample)
    end = tl.load(most + sample)
    fresh = 0
    more = end > 0
    while more:
        score = value - share * nearest
        best = tl.max(score, axis=0)
        chosen = tl.min(tl.where(score == best, member, SIZE), axis=0)  # the first of equal maxima
        token = tl.load(tokens + sample * size + chosen, mask=chosen < SIZE, other=0)
        more = (best > outside) | ((best == outside) & (token < first) & (best > float("-inf")))
        if more:
            tl.store(behind + fresh, token)
            row = similar + (sample * size + chosen) * size
            nearest = tl.maximum(nearest, tl.load(row + member, mask=here, other=0.0))
            value = tl.where(member == chosen, float("-inf"), value)
            fresh += 1
        more = more & (fresh < end)
    tl.store(count + sample, fresh)
