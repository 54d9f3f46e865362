"""Summarise timed answers: medians, and the sizes from which on a method saves time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Spread:
    """Median and interquartile range."""

    median: float
    iqr: float

    @classmethod
    def of(cls, values: Sequence[float] | pd.Series) -> Spread:
        """Summarise at least one value."""
        low, median, high = np.percentile(values, [25, 50, 75])
        return cls(float(median), float(high - low))


def break_even(sizes: Sequence[float], saved: Sequence[float]) -> float | None:
    """Return from how many visual tokens on a method saves time; None if it saves none at the largest size.

    The saving is interpolated linearly between the last size without a saving and the next one. A method that saves at
    all sizes has the smallest size as its upper bound, which is returned.
    """
    points = sorted(zip(sizes, saved, strict=True))
    if not points or points[-1][1] <= 0:
        return None
    for (low, loss), (high, gain) in reversed(list(pairwise(points))):
        if loss <= 0:
            return low + (high - low) * -loss / (gain - loss)
    return points[0][0]


def verdict(sizes: Sequence[float], saved: Sequence[float]) -> str:
    """Say in words at which sizes a method saves time; `saved` holds milliseconds at `sizes` visual tokens."""
    size = break_even(sizes, saved)
    smallest, largest = min(sizes), max(sizes)
    if size is None:
        paying = [f"{n:.0f}" for n, gain in sorted(zip(sizes, saved, strict=True)) if gain > 0]
        if paying:
            return f"pays at {', '.join(paying)} visual tokens, but not at the largest size, {largest:.0f}"
        return f"never pays in this range, {smallest:.0f} to {largest:.0f} visual tokens"
    if size <= smallest:
        return f"pays at all sizes, from {smallest:.0f} visual tokens on"
    return f"pays from about {size:.0f} visual tokens on"
