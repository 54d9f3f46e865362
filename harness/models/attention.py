"""Attention that the patches of an image receive, recomputed from q and k as published methods define it."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.base import AttentionSpec
from methods.kernels import model_dtype
from methods.kernels.attention import received_by_keys


def attention_received(q: Tensor, k: Tensor, scale: float, spec: AttentionSpec, has_cls: bool) -> Tensor:
    """Return the attention [P] that the patches of one image receive: mean over heads, sum over queries.

    Args:
        q: queries [H, T, d] of one image or one time step of a video, positions applied.
        k: keys [H, T, d].
        scale: factor of q . k in the softmax.
        spec: which queries and keys count.
        has_cls: True if the first of the T rows is CLS, and P = T - 1; else P = T.
    """
    patches = k.shape[1] - has_cls
    keys = k if spec.cls_key else k[:, -patches:]
    rounded = spec.in_model_dtype and model_dtype.is_half(q)
    if has_cls and spec.queries == "cls":
        q = q[:, :1]
    elif not has_cls and spec.mean_query_from is not None and patches >= spec.mean_query_from:
        q = (q if rounded or q.dtype == torch.float64 else q.float()).mean(1, keepdim=True)
    received = model_dtype.received_by_keys if rounded else received_by_keys
    return received(q, keys, scale)[-patches:]
