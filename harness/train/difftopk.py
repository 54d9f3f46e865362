"""DiffTopK (arXiv 2510.16598): a soft top-k whose weights sum to k, with its exact gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from methods.scores import soft_top_k


class _DiffTopK(torch.autograd.Function):
    """Forward: p = sigmoid(s + t) with sum p = k. Backward: t moves with s so that the sum stays."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, k: float) -> Tensor:
        weights = soft_top_k(logits, k)
        ctx.save_for_backward(weights)
        return weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (weights,) = ctx.saved_tensors
        slope = weights * (1 - weights)
        moved = grads[0] * slope
        return moved - slope * moved.sum() / slope.sum().clamp(min=torch.finfo(slope.dtype).tiny), None


def diff_top_k(logits: Tensor, k: float) -> Tensor:
    """Weights [N] in (0, 1) of `logits` [N] that sum to `k`, differentiable; 0 < k < N."""
    weights = _DiffTopK.apply(logits, k)
    assert isinstance(weights, Tensor)
    return weights
