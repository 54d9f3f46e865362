"""Attention of one query, recomputed from the q and k of a layer: no attention map is needed, whatever the kernel."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def attention_row(q: Tensor, k: Tensor) -> Tensor:
    """Return the attention [S] that each key receives from one query: softmax over the S keys, mean over heads.

    In float64; equal keys receive equal attention, bit for bit, as kernels by themselves do not grant.

    Args:
        q: the query of each head [H, d], rotary positions applied.
        k: keys [KV, S, d], rotary positions applied; KV divides H, and head h reads keys h // (H / KV).
    """
    query = q.double().view(len(k), -1, q.shape[-1])  # [KV, H / KV, d]
    logits = query @ k.double().transpose(1, 2) / math.sqrt(q.shape[-1])
    received = logits.softmax(dim=-1).mean(dim=(0, 1))
    # Not by rounding: where heads give all they have to one token each, real differences are as small as errors.
    distinct, row_of = torch.unique(k.transpose(0, 1).flatten(1), dim=0, return_inverse=True)
    position = torch.arange(len(received), device=k.device)
    first = position.new_full((len(distinct),), len(received)).scatter_reduce(0, row_of, position, "amin")
    return received[first[row_of]]


def last_text(length: int, visual_idx: Tensor) -> Tensor:
    """Return the index [1] of the last token of a sequence that is not visual, or of its last token if all are."""
    position = torch.arange(length, device=visual_idx.device).index_fill(0, visual_idx, -1)
    return position.amax(dim=0, keepdim=True) % length
