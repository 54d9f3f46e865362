"""A smaller image: what a budget is worth without any pruning."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor

import torch

from methods.base import Method, Selection, Tokens
from methods.tokens import Grid, num_tokens


@dataclass(kw_only=True)
class Resize(Method):
    """Show the model smaller images, and keep every token of them.

        image or video of (t, h, w) tokens -> (t, a, b),   a = max(1, [s h]), b = max(1, [s w]),   [.] rounds halves up
        s <= 1: one for all images of a question, the largest with at most K tokens in all

    So the shape of an image stays, to the half of a token a side, frames shrink alike, and no frame is left out: K is
    rarely met exactly, and missed where even one token for each image and time step is more. A run records the tokens
    that there were beside K. The image itself is resized once, from its own pixels.

    Deviation: none. Source: ours; the control that every model with a dynamic resolution has for nothing.
    """

    name = "resize"
    version = 1
    fidelity = "exact"

    @property
    def stage(self) -> str:
        """Where tokens become fewer: in the pixels, before the vision tower."""
        return "pixels"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        raise ValueError(f"{self.name} makes images smaller before there are tokens: it cannot choose among them")


def smaller(grids: Sequence[Grid], k: int) -> list[Grid]:
    """Return the grids (t, a, b) that images and videos of `grids` (t, h, w) are shown in, by the rule above."""

    def shown(scale: Fraction) -> list[Grid]:
        return [(t, _side(scale * h), _side(scale * w)) for t, h, w in grids]

    def count(scale: Fraction) -> int:
        return num_tokens(shown(scale))

    sides = {side for _, h, w in grids for side in (h, w)}
    # One side gains a token at each of these, and nothing changes between them.
    steps = sorted({Fraction(2 * m + 1, 2 * side) for side in sides for m in range(1, side)})
    fitting = bisect_right(steps, k, key=count)
    return shown(steps[fitting - 1] if fitting else Fraction(0))


def _side(tokens: Fraction) -> int:
    return max(1, floor(tokens + Fraction(1, 2)))
