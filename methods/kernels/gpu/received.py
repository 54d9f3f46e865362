"""Attention that keys receive, on a GPU: one pass over the scores for their sums by query, one for those by key."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

SHAPE: dict[str, Any] = {"MINE": 64, "OTHERS": 64, "enable_fp_fusion": True}


def received_by_keys(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """Return the attention [M], as `methods.kernels.received.received_by_keys`; sums are float32 within a head."""
    q, k = q.contiguous(), k.contiguous()
    heads, queries, width = q.shape
    keys = k.shape[1]
    factor = torch.full((1,), scale, device=q.device)
    total = torch.empty(heads, queries, device=q.device)
    given = torch.empty(heads, keys, device=q.device)
    shape = {"WIDTH": max(16, triton.next_power_of_2(width)), **SHAPE}
    _totals[(triton.cdiv(queries, SHAPE["MINE"]), heads)](q, k, factor, total, queries, keys, width, **shape)
    _given[(triton.cdiv(keys, SHAPE["MINE"]), heads)](q, k, factor, total, given, queries, keys, width, **shape)
    return given.double().mean(dim=0).float()


@triton.jit
def _rows(source, count, start, width, head, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    line = start + tl.arange(0, SIZE)
    at = tl.arange(0, WIDTH)
    where = (head * count + line[:, None]).to(tl.int64) * width + at
    return tl.load(source + where, mask=(line < count)[:, None] & (at < width), other=0.0)


@triton.jit
def _totals(q, k, scale, total, queries, keys, width, WIDTH: tl.constexpr, MINE: tl.constexpr, OTHERS: tl.constexpr):
    head = tl.program_id(1)
    start = tl.program_id(0) * MINE
    mine = _rows(q, queries, start, width, head, MINE, WIDTH)
    factor = tl.load(scale)
    top = tl.full([MINE], float("-inf"), tl.float32)
    mass = tl.zeros([MINE], tl.float32)
    for at in range(0, keys, OTHERS):
        others = _rows(k, keys, at, width, head, OTHERS, WIDTH)
        score = tl.dot(mine, tl.trans(others), input_precision="ieee") * factor
        score = tl.where(at + tl.arange(0, OTHERS)[None, :] < keys, score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(score - higher[:, None]), axis=1)
        top = higher
    line = start + tl.arange(0, MINE)
    tl.store(total + head * queries + line, top + tl.log(mass), mask=line < queries)


@triton.jit
def _given(
    q, k, scale, total, given, queries, keys, width, WIDTH: tl.constexpr, MINE: tl.constexpr, OTHERS: tl.constexpr
):  # fmt: skip
    head = tl.program_id(1)
    start = tl.program_id(0) * MINE
    mine = _rows(k, keys, start, width, head, MINE, WIDTH)
    factor = tl.load(scale)
    mass = tl.zeros([MINE], tl.float32)
    for at in range(0, queries, OTHERS):
        others = _rows(q, queries, at, width, head, OTHERS, WIDTH)
        score = tl.dot(mine, tl.trans(others), input_precision="ieee") * factor
        line = at + tl.arange(0, OTHERS)
        sums = tl.load(total + head * queries + line, mask=line < queries, other=float("inf"))
        mass += tl.sum(tl.exp(score - sums[None, :]), axis=1)
    line = start + tl.arange(0, MINE)
    tl.store(given + head * keys + line, mass, mask=line < keys)
