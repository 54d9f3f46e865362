"""Attention recomputed from the q and k of a layer: no map [heads, N, N] is needed, whatever the kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from methods.kernels.cosine import first_equal

TILE = 2**24  # scores held at once: 64 MiB of float32
CPU_TILE = 2**20  # 4 MiB, which a core's cache holds: two thirds of the time


def attention_row(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention [S] that each key receives from one query: softmax over the S keys, mean over heads.

    In float64; equal keys receive equal attention, bit for bit, as kernels by themselves do not grant.

    Args:
        q: the query of each head [H, d], rotary positions applied.
        k: keys [KV, S, d], rotary positions applied; KV divides H, and head h reads keys h // (H / KV).
    """
    query = q.double().view(len(k), -1, q.shape[-1])  # [KV, H / KV, d]
    logits = query @ k.double().transpose(1, 2) / math.sqrt(q.shape[-1])
    # Not by rounding: where heads give all they have to one token each, real differences are as small as errors.
    return logits.softmax(dim=-1).mean(dim=(0, 1))[first_equal(k.transpose(0, 1).flatten(1))]


def attention_rows(q: Tensor, k: Tensor, at: Tensor) -> Tensor:
    """Return the attention [H, R, S] of several queries, each over the keys up to its own row; later keys get 0.

    In float64, as `attention_row` with the mean over heads left out; here, too, equal keys receive equal attention.

    Args:
        q: the queries of each head [H, R, d].
        k: keys [KV, S, d]; KV divides H, and head h reads keys h // (H / KV).
        at: rows [R] of the queries among the S.
    """
    heads, rows, width = q.shape
    queries = q.double().view(len(k), -1, width)  # [KV, H / KV * R, d]
    logits = (queries @ k.double().transpose(1, 2) / math.sqrt(width)).view(heads, rows, -1)
    later = torch.arange(k.shape[1], device=k.device) > at[:, None]  # [R, S]
    received = logits.masked_fill(later, -torch.inf).softmax(dim=-1)
    return received[..., first_equal(k.transpose(0, 1).flatten(1))].masked_fill(later, 0.0)


def last_text(length: int, visual_idx: Tensor) -> Tensor:
    """Return the index [1] of the last token of a sequence that is not visual, or of its last token if all are."""
    position = torch.arange(length, device=visual_idx.device).index_fill(0, visual_idx, -1)
    return position.amax(dim=0, keepdim=True) % length


def received_by_keys(q: Tensor, k: Tensor, scale: float, tile: int | None = None) -> Tensor:
    """Return the attention [M] that keys [H, M, d] receive from queries [H, Q, d]: mean over heads, sum over queries.

    Equal to `softmax(scale * q @ k.mT, -1).mean(0).sum(0)`, up to rounding, in float32 or, if that came, float64.
    Beyond what comes in, memory is two times `tile` scores, or two rows of one head where that is more, and a float32
    copy of q and k: linear in the number of tokens.
    """
    q, keys = _wide(q) * scale, _wide(k).mT
    h, _, m = keys.shape
    total = torch.zeros(m, dtype=torch.float64, device=k.device)
    tile = tile or (CPU_TILE if k.device.type == "cpu" else TILE)
    heads = min(h, max(1, tile // m))
    rows = max(1, tile // (heads * m))
    for some_q, some_keys in zip(q.split(heads), keys.split(heads), strict=True):
        for part in some_q.split(rows, dim=1):
            total += (part @ some_keys).softmax(-1).sum((0, 1))
    return (total / h).to(keys.dtype)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()
