"""Attention that the patches of one image receive, as published methods define it, recomputed from q and k."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import AttentionSpec
from methods.kernels.attention import received_by_keys


def received(q: Tensor, k: Tensor, scale: float, wanted: AttentionSpec, has_cls: bool) -> Tensor:
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
        q = (q if q.dtype == torch.float64 else q.float()).mean(1, keepdim=True)
    return received_by_keys(q, keys, scale)[-patches:]
