"""VLM-Pruner: from a few pivots outwards, keep what is unlike all that is kept so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from methods.base import HiddenState, Mix, Selection, Tokens
from methods.kernels.cosine import Cosine, directions, snap
from methods.layer_method import LayerMethod
from methods.scores import top
from methods.tokens import Grid

Array = NDArray[Any]
Rows = Callable[[Array], Array]  # from tokens [T] to a number for each pair with all tokens, [T, N]
CHANNELS = 256  # of the hidden states that are compared
FARTHER = 0.5  # a token one diagonal away counts as so much more similar
STEPS = 10  # in which a threshold rises by 1
OWN, RECOVERED = 0.3, 0.7  # what becomes of a kept token that others join


@dataclass(kw_only=True)
class VLMPruner(LayerMethod):
    """Keep pivots, then what is unlike the kept tokens, where nearness helps; merge the rest. Paper: arXiv 2512.02700.

        pivots: the token whose key has the largest L1 norm, then repeatedly the one farthest from them (Euclidean)
        b_i = (max over kept j of c_ij) * (1 + 0.5 * (min over kept j of d_ij) / D)
        pass p = 0, 1, ..: sort the other tokens by b; of each batch, keep those whose b is now below theta + p / 10
        each token left joins the kept one of highest c:  h <- 0.3 h + 0.7 * sum(c h_joined) / sum(c)

    c is the cosine of the states that enter layer j+1, over the 256 channels of largest variance; d is the distance in
    cells of the grid, and D the grid's diagonal. Tokens of different images or time steps are D apart. A pass also ends
    where its first batch has none to keep.

    Args:
        layer: 0-based decoder layer j whose keys are read; layers 0..j see all tokens, later ones the kept. Default
            none: 1, since the authors cut before layer 2.
        pivots: default 4, at most K.
        theta: threshold of the first pass; default 0.8.
        batch: tokens that are compared with the kept ones, and not with each other, at a time; default 16.
        fit: "k" (default) keeps exactly K: after a pass that kept none comes the next. "official" stops there, as the
            authors' code does, with fewer than K tokens.

    Deviation: places and D are those of each image's own grid; the original takes 24 columns (LLaVA), or the grid
    before patches are merged (Qwen2-VL), for all. A token with a cosine below 0 to all kept ones joins none; in the
    original it has a negative weight. A model with fewer than 256 channels is compared in all. Float64 instead of the
    model's dtype, norms and distances to 40 bits, cosines to 12 decimals, ties to the lowest index.
    Code: read in the public copy xipingyan/VLMPruner.
    """

    name = "vlmpruner"
    version = 1
    fidelity = "adapted: goes on to exactly K tokens, with the places of each image's own grid"
    attention_maps = False  # the authors' code reads keys and hidden states
    hidden: ClassVar[Mapping[str, HiddenState]] = {"official": "output"}

    pivots: int = 4
    theta: float = 0.8
    batch: int = 16
    fit: Literal["k", "official"] = "k"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("pivots", self.pivots >= 1, "at least 1")
        self.require("theta", self.theta > 0, "above 0")
        self.require("batch", self.batch >= 1, "at least 1")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.llm is not None
        state = tokens.llm
        hidden = state.hidden[state.visual_idx].double()
        spread = snap(hidden.var(dim=0, correction=0))
        cosine = Cosine(directions(hidden[:, top(spread, CHANNELS)]), table=True)
        pivots = self._pivots(state.k[:, state.visual_idx].double(), min(self.pivots, k))
        kept = _Kept(_similarity(cosine), _distance(tokens.grids), pivots.cpu().numpy())
        self._grow(kept, k)
        order = torch.from_numpy(kept.order).to(hidden.device)
        selection = Selection.of(order)
        return replace(selection, mix=_recover(cosine, selection.kept, len(hidden)))

    def _pivots(self, keys: Tensor, number: int) -> Tensor:
        """Return the pivots [P], by their `keys` [KV, N, d]."""
        pivots = top(snap(keys.abs().sum(dim=(0, 2))), 1)
        nearest = torch.full_like(keys[0, :, 0], torch.inf)
        for _ in range(number - 1):
            distance = (keys - keys[:, pivots[-1:]]).square().sum(dim=(0, 2))
            nearest = torch.minimum(nearest, snap(distance)).index_fill(0, pivots, -torch.inf)
            pivots = torch.cat([pivots, top(nearest, 1)])
        return pivots

    def _grow(self, kept: _Kept, k: int) -> None:
        """Add tokens to `kept` until there are `k`, pass by pass."""
        number, grew = 0, True
        while len(kept.order) < k and (grew or self.fit == "k"):
            before = len(kept.order)
            self._pass(kept, self.theta + number / STEPS, k)
            number, grew = number + 1, len(kept.order) > before

    def _pass(self, kept: _Kept, threshold: float, k: int) -> None:
        left = kept.candidates()
        for start in range(0, len(left), self.batch):
            some = left[start : start + self.batch]
            values = kept.buffered(some)
            low, room = some[values < threshold], k - len(kept.order)
            if len(low) > room:
                low = some[np.lexsort((some, values))][:room]
            if start == 0 and not len(low):
                return
            kept.add(low)


class _Kept:
    """The tokens that are kept so far, and what all N tokens are to them.

    Each decision depends on the one before. On the host, none of them waits for the device.
    """

    def __init__(self, similarity: Rows, distance: Rows, first: Array) -> None:
        self._similarity, self._distance = similarity, distance
        self.order = first[:0]
        self._alike, self._apart = np.array(-np.inf), np.array(np.inf)  # of each token to the nearest kept one
        self.add(first)

    def add(self, tokens: Array) -> None:
        """Keep `tokens` [T], too."""
        if len(tokens):
            self.order = np.concatenate([self.order, tokens])
            self._alike = np.maximum(self._alike, self._similarity(tokens).max(axis=0))
            self._apart = np.minimum(self._apart, self._distance(tokens).min(axis=0))

    def buffered(self, tokens: Array) -> Array:
        """Return the similarity b [T] of `tokens` [T]."""
        return self._alike[tokens] * (1 + FARTHER * self._apart[tokens])

    def candidates(self) -> Array:
        """Return all other tokens, the least similar first."""
        others = np.setdiff1d(np.arange(len(self._alike)), self.order)
        return others[np.argsort(self.buffered(others), kind="stable")]


def _similarity(cosine: Cosine) -> Rows:
    rows, row_of = cosine.rows.cpu().numpy(), cosine.row_of.cpu().numpy()

    def similarity(tokens: Array) -> Array:
        return (np.rint(rows[row_of[tokens]] @ rows.T * cosine.scale) / cosine.scale)[:, row_of]

    return similarity


def _distance(grids: Sequence[Grid]) -> Rows:
    """Return the function from tokens [T] to their distances [T, N] to all, in diagonals of their image."""
    parts, steps = [], 0
    for t, h, w in grids:
        step, y, x = np.indices((t, h, w)).reshape(3, -1)
        parts.append([step + steps, y, x, np.full(t * h * w, math.hypot(h, w))])
        steps += t
    step, y, x, diagonal = np.concatenate(parts, axis=1)

    def distance(tokens: Array) -> Array:
        cells = np.hypot(y[tokens, None] - y, x[tokens, None] - x)
        return np.where(step[tokens, None] == step, cells / diagonal, 1.0)

    return distance


def _recover(cosine: Cosine, kept: Tensor, n: int) -> Mix:
    """Merge each of `n` tokens into the most similar of `kept` [K]; one that nothing joins stays as it is."""
    every, rows = torch.arange(n, device=kept.device), torch.arange(len(kept), device=kept.device)
    weight, row = cosine.nearest(every, kept)
    weight, row = weight.clamp(min=0).index_fill(0, kept, 0.0), row.index_copy(0, kept, rows)
    sums = weight.new_zeros(len(kept)).index_add(0, row, weight)
    weight = RECOVERED * weight / sums.clamp(min=1e-8)[row]
    return Mix(row, every, weight.index_copy(0, kept, torch.where(sums > 0, OWN, 1.0).to(weight)))
