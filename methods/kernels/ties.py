"""Ties made robust: what exact arithmetic finds equal shall be equal after rounding errors, too."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a cosine: matrix kernels add up rows in different orders, so the last bits of a similarity are theirs.
DECIMALS = 12
DROPPED = 12  # of the 52 bits behind the point: 2^-41 is left as relative error, about 5e-13


def snap(scores: Tensor) -> Tensor:
    """Round float64 `scores` to 40 bits behind the point, in relative precision, so that tiny values keep their order.

    Kernels treat the last elements of a tensor otherwise than the rest and add up in orders of their own: softmax,
    exponential and sums of equal values differ in their last bits, which would then decide a tie.
    """
    bits = scores.view(torch.int64)  # sign and magnitude, so adding half rounds to nearest on both sides of zero
    return (((bits + (1 << (DROPPED - 1))) >> DROPPED) << DROPPED).view(torch.float64)
