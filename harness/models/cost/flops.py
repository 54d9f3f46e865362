"""FLOPs of all parts of one prompt, for a method at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

from harness.models.adapter import cut_layer
from harness.models.cost.decoder import CutPoint, DecoderShape, paper_style
from harness.models.cost.selection import Case, scorer_flops, selection_flops
from harness.models.cost.vision import vision_shape
from methods.base import Method
from methods.budget import Budget
from methods.resize import smaller
from methods.tokens import Grid, num_tokens


@dataclass(frozen=True)
class Flops:
    """Operations of one sample; `paper` is the prefill by the formula of published papers."""

    vit: int
    projector: int
    signals: int
    selection: int | None  # None if there is no formula for the method
    prefill: int
    decode: int
    paper: int

    @property
    def total(self) -> int:
        """Sum of all parts but `paper`."""
        return sum(part or 0 for part in astuple(self)[:-1])


def count(
    config: Any,
    grids: Sequence[Grid],
    text: int,
    method: Method | None = None,
    budget: Budget | None = None,
    new_tokens: int = 1,
    scorer_hidden: int | None = None,
) -> Flops:
    """Count the operations of one prompt with images or videos.

    Args:
        config: configuration of the model; ValueError if the vision tower of its family cannot be counted.
        grids: (t, h, w) in tokens of each image or video.
        text: number of tokens that are not visual.
        method: the method, or None for the unpruned model.
        budget: the budget, or None for the unpruned model.
        new_tokens: tokens of the answer; the first of them comes from the prefill.
        scorer_hidden: hidden units of the learned scorer; by default half the width of a token, as in the released
            ones.
    """
    vision, decoder = vision_shape(config), DecoderShape.of(config)
    n = num_tokens(grids)
    if method is None or budget is None or (k := budget.count(n)) >= n:
        return _of(vision, decoder, grids, text, n, new_tokens)
    if method.stage == "pixels":
        grids = smaller(grids, k)
        return _of(vision, decoder, grids, text, num_tokens(grids), new_tokens)
    layer = cut_layer(method)
    cut = CutPoint() if layer is None else CutPoint(layer + 1, method.before_mlp)
    plain = _of(vision, decoder, grids, text, k, new_tokens, n, cut)
    width, hidden = decoder.hidden, scorer_hidden or decoder.hidden // 2
    keys = vision.block.hidden // vision.heads
    case = Case(method, n, k, width, text + n, decoder.heads * decoder.head_dim, keys, grids)
    signals = vision.signals(grids, method) + scorer_flops(method, n, width, hidden)
    return Flops(plain.vit, plain.projector, signals, selection_flops(case), plain.prefill, plain.decode, plain.paper)


def _of(
    vision: Any,
    decoder: DecoderShape,
    grids: Sequence[Grid],
    text: int,
    kept: int,
    new_tokens: int,
    visual: int | None = None,
    cut: CutPoint = CutPoint(),  # noqa: B008 (frozen)
) -> Flops:
    before, after = text + (kept if visual is None else visual), text + kept
    return Flops(
        vision.tower(grids),
        vision.projector(grids),
        0,
        0,
        decoder.prefill(before, after, cut),
        decoder.decode(before, after, new_tokens - 1, cut),
        paper_style(decoder, before, after, cut),
    )
