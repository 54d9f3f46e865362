"""Average pooling to the budget: what merging is worth when nothing is known about the content."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Method, Selection, Tokens
from methods.grids import cells


@dataclass(kw_only=True)
class AvgPool(Method):
    """Average every image over a lattice of cells, exactly K in all.

    K is shared among images and time steps in proportion to their tokens. One of h x w tokens and budget k is divided
    into round(sqrt(k h / w)) bands of rows, and these into k cells side by side: where k = h' w', a lattice of h' x w',
    and where both also divide h and w, adaptive average pooling. A video with fewer cells than time steps is averaged
    over runs of steps. Every merged token stands where the middle of its cell stood.

    Deviation: adaptive pooling lets cells overlap where the sides do not divide; here every token is in one cell.
    Source: ours.
    """

    name = "avg_pool"
    version = 1
    fidelity = "adapted: cells never overlap, so that there are exactly K"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        cell, middle = cells(tokens.grids, k, tokens.features.device)
        return Selection(kept=middle, owner=cell)
