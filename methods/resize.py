"""Smaller images: the control that meets a budget without pruning."""

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
    """Make images smaller, and keep all of their tokens.

        image or video of (t, h, w) tokens -> (t, a, b),   a = max(1, [s h]), b = max(1, [s w]),   [.] rounds halves up
        s <= 1: the same for all images of a question, the largest with at most K tokens in all

    Images keep their aspect ratio, up to half a token per side, and no frame is left out. K is rarely met exactly, and
    it is exceeded where one token per image and time step is already more. A run therefore records the number of tokens
    next to K. An image is resized once, from its original pixels.

    Deviation: none. Source: ours; the control that every model with a dynamic resolution has for nothing.
    """

    name = "resize"
    version = 1
    fidelity = "exact"

    @property
    def stage(self) -> str:
        """Where tokens become fewer: in the image, before the vision tower."""
        return "pixels"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        raise ValueError(f"{self.name} makes images smaller before there are tokens: it cannot choose among them")


def smaller(grids: Sequence[Grid], k: int) -> list[Grid]:
    """Return the smaller grids (t, a, b) of images and videos of `grids` (t, h, w), by the rule above."""

    def scaled(scale: Fraction) -> list[Grid]:
        return [(t, _side(scale * h), _side(scale * w)) for t, h, w in grids]

    def count(scale: Fraction) -> int:
        return num_tokens(scaled(scale))

    sides = {side for _, h, w in grids for side in (h, w)}
    # The scales at which a side gains a token; between two of them no grid changes.
    steps = sorted({Fraction(2 * m + 1, 2 * side) for side in sides for m in range(1, side)})
    fitting = bisect_right(steps, k, key=count)
    return scaled(steps[fitting - 1] if fitting else Fraction(0))


def _side(tokens: Fraction) -> int:
    return max(1, floor(tokens + Fraction(1, 2)))
