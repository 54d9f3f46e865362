"""Attention that keys receive, recomputed from q and k in tiles: no map [heads, N, N] is ever there.

A tile holds whole rows of scores, so that its softmax needs one pass. Beyond what comes in, memory is TILE scores, or
one row of one head where that is more, a float32 copy of q and k, and [N] sums: linear in the number of tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import Received

TILE = 2**24  # scores held at once: 64 MiB of float32


def received(q: Tensor, k: Tensor, scale: float, wanted: Received, has_cls: bool) -> Tensor:
    """Return the attention [P] that the patches of one image receive, as `wanted` defines it.

    Mean over heads, sum over queries.

    Args:
        q: queries [H, T, d] of one image or one step of a video, positions applied.
        k: keys [H, T, d].
        scale: factor of q . k in the softmax.
        wanted: whose attention counts.
        has_cls: True if the first of the T rows is CLS, and P = T - 1; else P = T.
    """
    patches = k.shape[1] - has_cls
    keys = k if wanted.cls_key else k[:, -patches:]
    if has_cls and wanted.queries == "cls":
        q = q[:, :1]
    elif not has_cls and wanted.mean_query_from is not None and patches >= wanted.mean_query_from:
        q = _wide(q).mean(1, keepdim=True)
    return received_by_keys(q, keys, scale)[-patches:]


def received_by_keys(q: Tensor, k: Tensor, scale: float, tile: int = TILE) -> Tensor:
    """Return the attention [M] that keys [H, M, d] receive from queries [H, Q, d]: mean over heads, sum over queries.

    Equal to `softmax(scale * q @ k.mT, -1).mean(0).sum(0)`. Computed in float32, or float64 if that came.
    """
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
