"""Even spatial sub-sampling: the pruning baseline that ignores the content."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, product
from typing import Literal

import torch

from methods.base import Method, Selection, Tokens
from methods.budget import largest_remainder


@dataclass(kw_only=True)
class Uniform(Method):
    """Keep tokens spread evenly over every image and every time step.

    K is divided among the images and time steps in proportion to their tokens, by largest remainder, at least one each.
    With fewer tokens than steps, K steps spread evenly keep one token each. A step of h x w tokens and budget k has a
    lattice of round(sqrt(k h / w)) rows and as many columns as fit, at the centres of equal cells. What remains of k is
    spread evenly over the tokens that the lattice did not take.

    Args:
        layout: "grid" (default) as above, or "flat": the centres of K equal pieces of the flattened sequence, a
            naive control that falls on the same few columns whenever N / K divides the width of the image.

    Deviation: none. Source: ours.
    """

    name = "uniform"
    version = 1
    fidelity = "exact"

    layout: Literal["grid", "flat"] = "grid"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        n = len(tokens.features)
        if self.layout == "flat":
            kept = centres(n, k)
        else:
            steps = [(h, w) for t, h, w in tokens.grids for _ in range(t) if h * w]
            sizes, chosen = [h * w for h, w in steps], set(centres(len(steps), min(k, len(steps))))
            quotas = largest_remainder(k, sizes) if k > len(steps) else [int(i in chosen) for i in range(len(steps))]
            parts = zip(accumulate(sizes, initial=0), steps, quotas, strict=False)
            kept = [start + index for start, (h, w), quota in parts for index in lattice(h, w, quota)]
        return Selection(kept=torch.tensor(kept, dtype=torch.int64, device=tokens.features.device))


def centres(n: int, k: int) -> list[int]:
    """Return the centres of `k` equal pieces of 0..n-1; distinct for k <= n."""
    return [(2 * i + 1) * n // (2 * k) for i in range(k)]


def lattice(h: int, w: int, k: int) -> list[int]:
    """Return `k` raster positions spread over `h` x `w`, ascending."""
    if k == 0:
        return []
    rows = min(max(round(math.sqrt(k * h / w)), 1), h, k)
    columns = min(k // rows, w)
    taken = [row * w + column for row, column in product(centres(h, rows), centres(w, columns))]
    rest = sorted(set(range(h * w)) - set(taken))
    return sorted(taken + [rest[i] for i in centres(len(rest), k - len(taken))])
