"""Attention that keys receive, in a stream: no map [heads, N, N] is ever there."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels.dispatch import gpu, run

TILE = 2**24  # scores held at once: 64 MiB of float32


def received_by_keys(q: Tensor, k: Tensor, scale: float, tile: int = TILE) -> Tensor:
    """Return the attention [M] that keys [H, M, d] receive from queries [H, Q, d]: mean over heads, sum over queries.

    Equal to `softmax(scale * q @ k.mT, -1).mean(0).sum(0)`, up to rounding, in float32 or, if that came, float64.
    Beyond what comes in, memory is `tile` scores, or one row of one head where that is more, and a float32 copy of q
    and k: linear in the number of tokens.
    """
    ways = {"plain": lambda: plain(q, k, scale, tile)}
    if q.dtype != torch.float64:
        ways["gpu"] = lambda: gpu("received").received_by_keys(q, k, scale)
    return run(q, ways)


def plain(q: Tensor, k: Tensor, scale: float, tile: int) -> Tensor:
    """As `received_by_keys`: a tile holds whole rows of scores, so that its softmax needs one pass."""
    q, k = _wide(q) * scale, _wide(k)
    h, m, _ = k.shape
    total = torch.zeros(m, dtype=torch.float64, device=k.device)
    heads = min(h, max(1, tile // m))
    rows = max(1, tile // (heads * m))
    for some_q, some_k in zip(q.split(heads), k.split(heads), strict=True):
        for part in some_q.split(rows, dim=1):
            scores = part @ some_k.mT  # [heads, rows, M]
            scores.sub_(scores.amax(-1, keepdim=True)).exp_()
            total += (scores.sum(-1).reciprocal().unsqueeze(1) @ scores).sum((0, 1))
    return (total / h).to(k.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
