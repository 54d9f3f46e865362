"""Coverage on a GPU, in float64, several samples side by side: two launches a pick, of which the host waits for none.

Sums of similarities are exact in whatever order they are made: gains are brought up to date by what a pick lifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from methods.kernels.cosine import Cosine
from methods.kernels.dispatch import UnfitError
from methods.kernels.gpu.novelty import PICKING
from methods.kernels.rows import Rows

MOST = 4096  # tokens whose similarities to each other are kept: 128 MiB
KEPT = 2**27  # similarities of several samples: 1 GiB
TILE = 512  # rows of similarities computed at once
SHAPE = {"GAINS": 32, "COVERED": 64}
LIFTING: dict[str, Any] = {"enable_fp_fusion": False}


def coverage(
    samples: Sequence[Rows], weights: Sequence[Tensor], ks: Sequence[int], additive: bool, scale: float
) -> list[Tensor]:
    """Return the indices [k] of every sample, as `methods.kernels.coverage.coverage_batch`.

    Raises UnfitError for more than MOST tokens, and for more similarities than are kept.
    """
    n, device = max(len(rows) for rows in samples), samples[0].device
    if n > MOST or len(samples) * n**2 > KEPT:
        raise UnfitError(f"the similarities of {len(samples)} times {n} tokens are not kept")
    gain = torch.zeros(len(samples), n, dtype=torch.float64, device=device)
    similar = torch.zeros(len(samples), n, n, dtype=torch.float64, device=device)
    for mine, total, rows in zip(similar, gain, samples, strict=True):
        size, cosine = len(rows), Cosine(rows.unit(), scale=scale)
        every = torch.cat([cosine(part) for part in torch.arange(size, device=device).split(TILE)])
        mine[:size, :size] = torch.maximum(every, every.T)
        total.copy_(mine.clamp(min=0).sum(dim=1))
    weight = pad_sequence(list(weights), batch_first=True)
    open_ = pad_sequence([torch.zeros_like(one) for one in weights], batch_first=True, padding_value=-torch.inf)
    covered, lifted = torch.zeros_like(gain), torch.zeros_like(gain)
    order = torch.zeros(max(ks), len(samples), dtype=torch.int64, device=device)
    choosing, lifting = (len(samples),), (triton.cdiv(n, SHAPE["GAINS"]), len(samples))
    for pick in order:  # what a sample picks beyond its k is left out below
        _choose[choosing](gain, weight, open_, pick, n, ADD=additive, SIZE=triton.next_power_of_2(n), **PICKING)
        _lift[lifting](similar, pick, covered, lifted, gain, n, **SHAPE, **LIFTING)
        covered, lifted = lifted, covered
    return [picked[:k] for picked, k in zip(order.T.contiguous(), ks, strict=True)]


@triton.jit
def _choose(gain, weight, open_, pick, n, ADD: tl.constexpr, SIZE: tl.constexpr):
    sample = tl.program_id(0)
    token = tl.arange(0, SIZE)
    here = token < n
    own = sample * n + token
    steady = tl.load(gain + own, mask=here, other=0.0) * 1e9 + 6755399441055744.0 - 6755399441055744.0
    value = steady / 1e9  # to 9 decimals: 1.5 * 2^52 rounds to a whole number
    share = tl.load(weight + own, mask=here, other=0.0)
    score = value + share if ADD else value * share
    score = tl.where(here, score + tl.load(open_ + own, mask=here, other=0.0), float("-inf"))
    best = tl.max(score, axis=0)
    chosen = tl.min(tl.where(score == best, token, SIZE), axis=0)  # the first of equal maxima
    tl.store(pick + sample, chosen.to(tl.int64))
    tl.store(open_ + sample * n + chosen, float("-inf"))


@triton.jit
def _lift(similar, pick, covered, lifted, gain, n, GAINS: tl.constexpr, COVERED: tl.constexpr):
    sample = tl.program_id(1)
    mine = tl.program_id(0) * GAINS + tl.arange(0, GAINS)
    here = mine < n
    table = similar + sample.to(tl.int64) * n * n
    chosen = tl.load(pick + sample)
    lost = tl.zeros([GAINS], tl.float64)
    for start in range(0, n, COVERED):
        token = start + tl.arange(0, COVERED)
        there = token < n
        before = tl.load(covered + sample * n + token, mask=there, other=0.0)
        after = tl.maximum(before, tl.load(table + chosen * n + token, mask=there, other=0.0))
        if tl.program_id(0) == 0:
            tl.store(lifted + sample * n + token, after, mask=there)
        if tl.sum((after > before).to(tl.int32), axis=0) > 0:
            where = mine[:, None].to(tl.int64) * n + token
            part = tl.load(table + where, mask=here[:, None] & there, other=0.0)
            lost += tl.sum(tl.maximum(part - before, 0.0) - tl.maximum(part - after, 0.0), axis=1)
    old = tl.load(gain + sample * n + mine, mask=here, other=0.0)
    tl.store(gain + sample * n + mine, old - lost, mask=here)
