"""Average pooling to the budget: the merging baseline that ignores the content."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from methods.base import Method, Selection, Tokens
from methods.grids import cells


@dataclass(kw_only=True)
class AvgPool(Method):
    """Average the tokens of every image over a lattice of cells, exactly K cells in all.

    K is shared among images and time steps in proportion to their tokens. A step of h x w tokens and budget k has
    round(sqrt(k h / w)) bands of rows, which have k cells side by side in all. Where k = h' w', this is a lattice of
    h' x w'; where h' and w' also divide h and w, it is adaptive average pooling. A video with fewer cells than time
    steps is averaged over runs of steps. A merged token takes the position of the token in the middle of its cell.

    Deviation: adaptive pooling lets cells overlap where the sides do not divide; here every token is in one cell.
    Source: ours.
    """

    name = "avg_pool"
    version = 1
    fidelity = "adapted: cells never overlap, so that there are exactly K"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        cell, middle = cells(tokens.grids, k, tokens.features.device)
        return Selection(kept=middle, owner=cell)
