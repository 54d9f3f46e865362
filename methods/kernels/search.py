"""Lazy greedy search on the CPU: scores only fall as picks are made, so old ones are bounds, and few need to be new.

Tokens are compared with further picks, CHUNK at a time, while their bound says that they could win; those that have
seen all picks and stand above the bounds of all others make a pool, from which the next picks come.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.floating]
Ints = NDArray[np.int64]

CHUNK = 64  # picks that a token sees at once
POOL = 96  # tokens in a pool at most
ENOUGH = 24  # tokens that make a pool
WIDE, WIDEST = 256, 2048  # tokens whose bounds are looked into at once, to begin with and at most
TILE = 512  # tokens that see picks together
CROWDED = 0.75  # the share of these that must be left, or else the rest moves together
GONE = 2**40  # the stamp of what cannot be picked any more


class Pool:
    """Tokens [P], ascending, that have seen all picks and stand above all others, and what was picked of them since."""

    def __init__(self, search: Search) -> None:
        tokens = search.front()
        others = search.bound.copy()
        others[tokens] = -np.inf
        self.tokens = tokens
        self.rival = int(others.argmax())  # the first of those outside that have the highest bound
        self.floor = float(others[self.rival])
        self.taken: list[int] = []

    def beats_others(self, score: float, member: int) -> bool:
        """Whether the exact score of a member is above those of all outside, or the same at a lower index."""
        return bool(score > self.floor or (score == self.floor and self.tokens[member] < self.rival))


class Search:
    """What is known of N tokens: `bound` [N] of the score, `stamp` [N], how many picks it reflects; and of the picks.

    These are named in `column` [K], `made` of them so far, and have their features in `memory` [K, D].

    Args:
        features: [N, D].
        bound: of the score of each token before any pick.
        k: how many picks there will be.
        dtype: that products are taken in.
    """

    enough = ENOUGH
    wide = WIDE
    growth = 2  # times more tokens are looked into each time that it did not suffice

    def __init__(self, features: Tensor, bound: Floats, k: int, dtype: torch.dtype) -> None:
        n, d = features.shape
        self.features = features
        self.bound = bound
        self.stamp = np.zeros(n, dtype=np.int64)
        self.column = np.empty(k, dtype=np.int64)
        self.memory = features.new_empty(k, d, dtype=dtype)
        self.made = 0
        self.scratch = features.new_empty(2, min(TILE, n), d, dtype=dtype)

    def see(self, tokens: Ints, features: Tensor, start: int, stop: int) -> None:
        """Let tokens with these features [T, D] see picks start..stop, some of which they may have seen."""
        raise NotImplementedError

    def add(self, picks: Ints) -> None:
        """Count `picks` as picked."""
        new = slice(self.made, self.made + len(picks))
        self.column[new] = picks
        self.memory[new] = self.features[torch.from_numpy(picks)]
        self.stamp[picks], self.bound[picks] = GONE, -np.inf
        self.made += len(picks)

    def front(self) -> Ints:
        """Tokens, ascending, that saw all picks and stand above all others; others see picks until there are some."""
        wide = self.wide
        while True:
            fresh, stale = np.flatnonzero(self.stamp == self.made), np.flatnonzero(self.stamp < self.made)
            score, bound = self.bound[fresh], self.bound[stale]
            above = fresh[score > bound.max(initial=-np.inf)]
            if len(above) >= min(self.enough, len(fresh) + len(stale)):
                if len(above) > POOL:
                    above = np.sort(above[np.argsort(-self.bound[above], kind="stable")[:POOL]])
                return above
            threshold = _largest(bound, min(wide, len(bound)))
            if len(fresh) >= self.enough:
                threshold = max(threshold, _largest(score, self.enough))
            chosen = stale[bound >= threshold]
            for start in range(0, len(chosen), TILE):
                self.compare(chosen[start : start + TILE], threshold)
            wide = min(self.growth * wide, WIDEST)

    def compare(self, tokens: Ints, threshold: float) -> None:
        """Let tokens see the picks that are new to them, in turn, while their bound is not below `threshold`."""
        tokens = tokens[np.argsort(self.stamp[tokens], kind="stable")]
        here, spare = self.scratch
        _take(self.features, tokens, here)
        for start in range(int(self.stamp[tokens[0]]) // CHUNK * CHUNK, self.made, CHUNK):
            stop = min(start + CHUNK, self.made)
            hopeful = np.flatnonzero(self.bound[tokens] >= threshold)
            if not len(hopeful):
                return
            if len(hopeful) < CROWDED * len(tokens):
                _take(here, hopeful, spare)
                tokens, here, spare = tokens[hopeful], spare, here
            some = tokens[: np.searchsorted(self.stamp[tokens], stop)]  # the others have seen these picks
            if len(some):
                self.see(some, here[: len(some)], start, stop)


def _take(source: Tensor, rows: Ints, target: Tensor) -> None:
    """Copy `rows` of `source` to the head of `target`, which may be of a wider dtype."""
    idx, head = torch.from_numpy(rows), target[: len(rows)]
    if source.dtype == target.dtype:
        torch.index_select(source, 0, idx, out=head)
    else:
        head.copy_(source.index_select(0, idx))


def _largest(values: Floats, rank: int) -> float:
    """Return the value of that rank from above."""
    return float(np.partition(values, -rank)[-rank])
