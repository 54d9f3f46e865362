"""Coverage on a GPU, in float64: two launches a pick, of which the host waits for none.

Sums of similarities are exact in whatever order they are made: gains are brought up to date by what a pick lifts.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.cosine import Cosine
from methods.kernels.gpu.novelty import PICKING
from methods.kernels.paths import UnfitError
from methods.kernels.rows import Rows

MOST = 4096  # tokens whose similarities to each other are kept: 128 MiB
TILE = 512  # rows of similarities computed at once
SHAPE = {"GAINS": 32, "COVERED": 64}
LIFTING: dict[str, Any] = {"enable_fp_fusion": False}


def coverage(rows: Rows, weight: Tensor, k: int, additive: bool, scale: float) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.coverage.coverage`. Raises UnfitError for more than MOST tokens."""
    n = len(rows)
    if n > MOST:
        raise UnfitError(f"the similarities of {n} tokens are not kept")
    cosine = Cosine(rows.unit(), scale=scale)
    similar = torch.cat([cosine(part) for part in torch.arange(n, device=rows.device).split(TILE)])
    similar = torch.maximum(similar, similar.T).contiguous()
    gain = similar.clamp(min=0).sum(dim=1)
    weight = weight.clone()
    covered, lifted = torch.zeros_like(gain), torch.zeros_like(gain)
    order = torch.zeros(k, dtype=torch.int64, device=rows.device)
    open_ = torch.zeros_like(gain)
    size = triton.next_power_of_2(n)
    for made in range(k):
        pick = order[made:]
        _choose[(1,)](gain, weight, open_, pick, n, ADD=additive, SIZE=size, **PICKING)
        _lift[(triton.cdiv(n, SHAPE["GAINS"]),)](similar, pick, covered, lifted, gain, n, **SHAPE, **LIFTING)
        covered, lifted = lifted, covered
    return order


@triton.jit
def _choose(gain, weight, open_, pick, n, ADD: tl.constexpr, SIZE: tl.constexpr):
    token = tl.arange(0, SIZE)
    here = token < n
    steady = tl.load(gain + token, mask=here, other=0.0) * 1e9 + 6755399441055744.0 - 6755399441055744.0
    value = steady / 1e9  # to 9 decimals: 1.5 * 2^52 rounds to a whole number
    share = tl.load(weight + token, mask=here, other=0.0)
    score = value + share if ADD else value * share
    score = tl.where(here, score + tl.load(open_ + token, mask=here, other=0.0), float("-inf"))
    best = tl.max(score, axis=0)
    chosen = tl.min(tl.where(score == best, token, SIZE), axis=0)  # the first of equal maxima
    tl.store(pick, chosen.to(tl.int64))
    tl.store(open_ + chosen, float("-inf"))


@triton.jit
def _lift(similar, pick, covered, lifted, gain, n, GAINS: tl.constexpr, COVERED: tl.constexpr):
    mine = tl.program_id(0) * GAINS + tl.arange(0, GAINS)
    here = mine < n
    chosen = tl.load(pick)
    lost = tl.zeros([GAINS], tl.float64)
    for start in range(0, n, COVERED):
        token = start + tl.arange(0, COVERED)
        there = token < n
        before = tl.load(covered + token, mask=there, other=0.0)
        after = tl.maximum(before, tl.load(similar + chosen * n + token, mask=there, other=0.0))
        if tl.program_id(0) == 0:
            tl.store(lifted + token, after, mask=there)
        if tl.sum((after > before).to(tl.int32), axis=0) > 0:
            where = mine[:, None].to(tl.int64) * n + token
            part = tl.load(similar + where, mask=here[:, None] & there, other=0.0)
            lost += tl.sum(tl.maximum(part - before, 0.0) - tl.maximum(part - after, 0.0), axis=1)
    old = tl.load(gain + mine, mask=here, other=0.0)
    tl.store(gain + mine, old - lost, mask=here)
