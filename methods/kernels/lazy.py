"""Novelty on the CPU, lazily: a pick only raises the cosine of a token to its nearest pick.

Most similarities are never computed, unless features are as good as noise: then the loneliest token alone asks for
many, and tokens fall behind others late. Products are float32; where their error could decide, the few that matter are
taken in float64: the picks are those of the plain loop, ties included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.kernels.rows import Rows
from methods.kernels.search import Floats, Ints, Pool
from methods.kernels.seen import Seen


def novelty(rows: Rows, relevance: Tensor, weight: float, first: Tensor, k: int) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.novelty.novelty`; memory O(N D).

    Raises UnfitError where float32 decides too little.
    """
    search = Greedy(rows, relevance.numpy(), weight, k)
    search.add(first.numpy())
    while search.made < k:
        search.pick()
    return torch.from_numpy(search.column)


def loneliest(rows: Rows) -> Tensor:
    """Return the token [1] whose nearest other one is farthest; of equals the first. Raises as `novelty` does."""
    search = Loneliest(rows)
    while True:
        pool = Near(search)
        chosen = search.winner(pool)
        if chosen is not None:
            return torch.from_numpy(pool.tokens[chosen : chosen + 1])


class Near(Pool):
    """A pool with the cosines [P] of its members to their nearest picks, and [P, P] to each other."""

    def __init__(self, search: Seen) -> None:
        super().__init__(search)
        self.relevance = search.relevance[self.tokens]
        self.near = search.best[self.tokens].astype(np.float64)
        self.similar: Floats = np.empty((len(self.tokens), 0), dtype=np.float32)


class Greedy(Seen):
    """Picks from one pool after the other."""

    def pick(self) -> None:
        """Pick from a pool until the next pick could lie outside."""
        pool, before = Near(self), self.made
        tokens, taken = pool.tokens, pool.taken
        features = self.features[torch.from_numpy(tokens)]
        pool.similar = self.products(tokens, tokens, features, features)
        while len(taken) < min(len(tokens), len(self.column) - before):
            chosen = self.winner(pool)
            if chosen is None:
                break
            self.column[before + len(taken)] = tokens[chosen]
            taken.append(chosen)
            pool.relevance[chosen] = -np.inf
            np.maximum(pool.near, pool.similar[chosen], out=pool.near)
        if taken:
            self.add(tokens[taken])
            rest = np.delete(np.arange(len(tokens)), taken)
            self.absorb(tokens[rest], pool.similar[np.ix_(rest, np.array(taken))], before, self.made)

    def winner(self, pool: Near) -> int | None:
        """Return which of the pool has the highest score, or None if one outside may have it."""
        score = pool.relevance - self.weight * pool.near
        best = int(score.argmax())
        rivals = np.flatnonzero(score >= score[best] - 2 * self.slack)
        alike = len(rivals) == 1 or self.alike(pool.tokens[rivals])
        if alike and score[best] - self.slack > pool.floor:
            return int(rivals[0])
        if score[best] + self.slack < pool.floor:
            return None
        exact = pool.relevance[rivals] - self.weight * self.nearest(pool, rivals)
        at = int(exact.argmax())  # the first of equal maxima
        if pool.beats_others(exact[at], rivals[at]):
            return int(rivals[at])
        self.bound[pool.tokens[rivals]] = exact
        return None

    def nearest(self, pool: Near, members: Ints) -> Floats:
        """Return the cosines [M] of members of the pool and the nearest pick, as the plain loop has them."""
        found: dict[int, float] = {}
        kinds = self.kind[pool.tokens[members]] if self.weight else members * 0  # what has no weight is not looked for
        for kind, i in zip(kinds.tolist(), members.tolist(), strict=True):
            if kind not in found:
                since = np.flatnonzero(pool.similar[i, pool.taken] >= pool.near[i] - 2 * self.error)
                found[kind] = self.exactly(int(pool.tokens[i]), pool.near[i], self.made + since)
        return np.array([found[kind] for kind in kinds.tolist()])


class Loneliest(Greedy):
    """All tokens count as picks, and none has seen them."""

    enough = 1
    wide = 32

    def __init__(self, rows: Rows) -> None:
        n = len(rows)
        super().__init__(rows, np.zeros(n), 1.0, n)
        self.column, self.memory, self.made = np.arange(n), self.features, n
        self.repeats = self.kind != self.column
        self.look_around()
        copied = np.bincount(self.kind, minlength=n)[self.kind] > 1
        self.know(np.flatnonzero(self.zero), 0.0)
        self.know(np.flatnonzero(copied & ~self.zero), 1.0)
