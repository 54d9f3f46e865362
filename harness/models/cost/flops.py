"""FLOPs of all parts of one prompt, for a method at a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Any

from harness.models.cost.decoder import DecoderShape, Rows
from harness.models.cost.selection import Case, scorer_flops, selection_flops
from harness.models.cost.vision import IN_CROPS, VisionShape, tokens_of_side, vision_shape
from methods import per_tile
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
    crops: int | None = None,
    newlines: tuple[int, int] = (0, 0),
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
        crops: number of crops that the tower sees instead of `grids`, of families that cut tiles.
        newlines: rows that close lines of patches, before the first cut and after it.
    """
    vision, decoder = vision_shape(config), DecoderShape.of(config)
    n, shown = num_tokens(grids), grids
    if config.model_type in IN_CROPS:
        if crops is None:
            raise ValueError(f"operations of {config.model_type} are counted only where the number of crops is known")
        side = tokens_of_side(config)
        shown = [(1, side, side)] * crops
    whole = Rows(0, text + newlines[0] + n)
    if method is None or budget is None or (k := per_tile.count(method, budget, grids, crops)) >= n:
        return _of(vision, decoder, shown, [whole], new_tokens)
    if method.stage == "pixels":
        grids = smaller(grids, k)
        return _of(vision, decoder, grids, [Rows(0, text + num_tokens(grids))], new_tokens)
    cuts, seen = method.cuts(n, k, decoder.layers), {0: whole}
    text += newlines[1]
    seen |= {cut.layer + 1: Rows(cut.layer + 1, text + cut.k, method.before_mlp) for cut in cuts}
    plain = _of(vision, decoder, shown, list(seen.values()), new_tokens)
    width, hidden = decoder.hidden, scorer_hidden or decoder.hidden // 2
    states, left = vision.block.hidden, [n, *(cut.k for cut in cuts)]
    keys, heads, kv = states // vision.heads, decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
    cases = [Case(method, *pair, width, text + pair[0], heads, kv, keys, grids, states) for pair in pairwise(left)]
    parts = [selection_flops(case) for case in cases]
    selection = None if None in parts else sum(part or 0 for part in parts)
    signals = vision.signals(shown, method) + scorer_flops(method, n, width, hidden)
    return Flops(plain.vit, plain.projector, signals, selection, plain.prefill, plain.decode, plain.paper)


def _of(
    vision: VisionShape, decoder: DecoderShape, grids: Sequence[Grid], seen: Sequence[Rows], new_tokens: int
) -> Flops:
    return Flops(
        vision.tower(grids),
        vision.projector(grids),
        0,
        0,
        decoder.prefill(seen),
        decoder.decode(seen, new_tokens - 1),
        decoder.paper_style(seen),
    )
