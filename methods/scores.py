"""Functions of scores that several methods share; ties go to the lowest index."""

from __future__ import annotations

import torch
from torch import Tensor

from methods.selecting import refuse_nan

BISECTIONS = 64  # DiffTopK, arXiv 2510.16598
MARGIN = 10.0  # its search starts this far beyond the extreme logits


def ranked(scores: Tensor) -> Tensor:
    """Return the indices that sort `scores` [..., N] along the last dimension, best first; NaN is refused.

    `torch.topk` has no rule for ties, and sorts NaN as the largest value.
    """
    values, order = scores.sort(dim=-1, descending=True, stable=True)
    refuse_nan(values[..., :1])  # where NaN would be
    return order


def top(scores: Tensor, k: int) -> Tensor:
    """Return the indices [k] of the largest of `scores` [N], best first; NaN is refused."""
    return ranked(scores)[:k]


def min_max(scores: Tensor, epsilon: float) -> Tensor:
    """Scale `scores` [N] to [0, 1) in float64, where the span of any float32 values is finite; constants give 0."""
    scores = scores.double()
    low = scores.min()
    return (scores - low) / (scores.max() - low + epsilon)


def soft_top_k(logits: Tensor, k: float) -> Tensor:
    """Return DiffTopK weights [N] in [0, 1] that sum to `k`: sigmoid(logits + t), t found by bisection.

    As published: float32, k held within [1e-4, N - 1e-4], t searched in [-max - 10, -min + 10]. Logits some 17 above
    the threshold become exactly 1 and tie. Where t lies outside (k very near 0 or N) the sum is off, the order is not.
    """
    logits = logits.float()
    k = min(max(k, 1e-4), len(logits) - 1e-4)
    low, high = -logits.max() - MARGIN, -logits.min() + MARGIN
    for _ in range(BISECTIONS):
        middle = low / 2 + high / 2  # the sum of two huge ends would overflow
        too_many = torch.sigmoid(logits + middle).sum() > k
        low, high = torch.where(too_many, low, middle), torch.where(too_many, middle, high)
    # Steps of float32, for its ties; exp() through float64, since vector and remainder loops round it differently.
    return 1 / (1 + (-(logits + (low / 2 + high / 2)).double()).exp().float())
