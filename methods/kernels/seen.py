"""Bounds of the largest cosine to a pick by float32 products, and the exact value where these leave a choice open."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.kernels.dispatch import UnfitError
from methods.kernels.rows import SCALE, Rows
from methods.kernels.search import Floats, Ints, Search

SPARED = 16  # of the products of all tokens and picks, one in so many may be taken again
KEPT = 512  # directions kept in float64
UNSEEN = -1.5  # below any cosine
ROUNDING = 1e-11  # of float64, in cosines
AROUND = 16  # tokens in a row whose neighbours are looked at together


class Seen(Search):
    """Of the picks that each token has seen: the most similar, its cosine, and that of the next.

    The score is relevance - weight * (largest cosine to a pick). Of picks with equal features the first counts.

    Args:
        rows: N tokens.
        relevance: [N] float64.
        weight: at least 0.
        k: how many picks there will be.
    """

    def __init__(self, rows: Rows, relevance: Floats, weight: float, k: int) -> None:
        features = rows.features.float()
        self.factor: Floats = rows.factor.numpy()
        if not np.isfinite(self.factor).all():
            raise UnfitError("a row is too short or too long for float32")
        n = len(rows)
        self.rows = rows
        self.error = rows.error
        self.relevance, self.weight = relevance, weight
        self.slack = weight * (self.error + ROUNDING)  # how far a score may be from the exact one
        super().__init__(features, relevance + weight + self.slack, k, torch.float32)
        self.kind = kinds(rows.features)
        self.repeats = np.zeros(k, dtype=bool)  # whether an earlier pick has the same features
        self.had: set[int] = set()  # kinds picked
        self.best = np.full(n, UNSEEN, dtype=np.float32)
        self.next = np.full(n, UNSEEN, dtype=np.float32)
        self.owner = np.zeros(n, dtype=np.int64)  # the column of `best`
        self.zero = self.factor == 0
        self.known = dict.fromkeys(np.flatnonzero(self.zero).tolist(), 0.0)  # largest cosines that need no search
        self.units: dict[int, Floats] = {}
        self.left = n * k // SPARED

    def add(self, picks: Ints) -> None:
        """Count `picks` as picked."""
        for i, kind in enumerate(self.kind[picks].tolist(), self.made):
            self.repeats[i] = kind in self.had
            self.had.add(kind)
        super().add(picks)

    def products(self, a: Ints, b: Ints, features: Tensor, others: Tensor) -> Floats:
        """Return the cosines [A, B] of tokens `a` and `b`, whose features these are, to within `error`."""
        found: Floats = torch.mm(features, others.T).numpy()
        found *= self.factor[a, None]
        found *= self.factor[b]
        return found

    def see(self, tokens: Ints, features: Tensor, start: int, stop: int) -> None:
        """Compare tokens with picks start..stop."""
        picks, stamp = self.column[start:stop], self.stamp[tokens]
        similar = self.products(tokens, picks, features, self.memory[start:stop])
        if stamp[-1] > start:
            similar[np.arange(start, stop) < stamp[:, None]] = UNSEEN
        similar[tokens[:, None] == picks] = UNSEEN  # a token is no neighbour of itself
        self.absorb(tokens, similar, start, stop)

    def absorb(self, tokens: Ints, similar: Floats, start: int, stop: int) -> None:
        """Note the cosines [T, stop - start] of `tokens` and picks start..stop, and spoil them."""
        similar[:, self.repeats[start:stop]] = UNSEEN
        line = np.arange(len(tokens))
        at = similar.argmax(axis=1)
        top = similar[line, at]
        similar[line, at] = UNSEEN
        best = self.best[tokens]
        second = np.maximum(self.next[tokens], similar.max(axis=1))
        self.next[tokens] = np.maximum(second, np.minimum(best, top))
        self.owner[tokens] = np.where(top > best, start + at, self.owner[tokens])
        self.best[tokens] = np.maximum(best, top)
        self.stamp[tokens] = stop
        self.tighten(tokens, self.best[tokens])

    def tighten(self, tokens: Ints, near: Floats) -> None:
        """Lower the bounds of tokens to those that cosines `near` to a pick leave."""
        near = np.maximum(near.astype(np.float64), -1.0)
        self.bound[tokens] = np.minimum(self.bound[tokens], self.relevance[tokens] - self.weight * near + self.slack)

    def know(self, tokens: Ints, nearest: float) -> None:
        """Take `nearest` for the largest cosine of tokens to all picks."""
        self.known |= dict.fromkeys(tokens.tolist(), nearest)
        self.best[tokens], self.stamp[tokens] = nearest, len(self.column)
        self.tighten(tokens, self.best[tokens])

    def look_around(self) -> None:
        """Bound scores by the cosines of tokens in a row: where all are picks, the nearest is often there."""
        near, every = np.full(len(self.bound), UNSEEN, dtype=np.float32), np.arange(len(self.bound))
        for start in range(0, len(near), AROUND):
            here, there = slice(start, start + AROUND), slice(start, start + 2 * AROUND)
            similar = self.products(every[here], every[there], self.features[here], self.features[there])
            np.fill_diagonal(similar, UNSEEN)
            near[here] = np.maximum(near[here], similar.max(axis=1))
            near[there] = np.maximum(near[there], similar.max(axis=0))
        self.tighten(every, near)

    def alike(self, tokens: Ints) -> bool:
        """Whether tokens have equal features and equal relevance."""
        return len(set(self.kind[tokens].tolist())) == 1 == len(set(self.relevance[tokens].tolist()))

    def exactly(self, token: int, peak: float, more: Ints) -> float:
        """Return the largest cosine of a token, which is near `peak`, in float64 to 12 decimals.

        Args:
            token: which has seen the picks up to its stamp.
            peak: its largest cosine by float32 products, `more` included.
            more: the columns of further picks.
        """
        if token in self.known:
            return self.known[token]
        columns, near = more, peak - 2 * self.error
        if self.next[token] >= near:
            seen, here = np.arange(self.stamp[token]), np.array([token])
            features = self.features[token : token + 1]
            similar = self.products(here, self.column[seen], features, self.memory[: len(seen)])
            columns = np.append(seen[similar[0] >= near], more)
            self.left -= len(seen)
        elif self.best[token] >= near:
            columns = np.append(self.owner[token], more)
        others = self.column[columns]
        others = others[others != token]
        if len(others) > 1:
            others = others[np.unique(self.kind[others], return_index=True)[1]]
        self.left -= len(others)
        if self.left < 0:
            raise UnfitError("too many cosines are as good as equal in float32")
        row = self.unit(token)
        found = max(float(np.rint((row * self.unit(other)).sum() * SCALE) / SCALE) for other in others)
        if found >= 1:  # no later pick is nearer
            self.known[token] = found
        return found

    def unit(self, token: int) -> Floats:
        """Return the direction [D] of a token in float64."""
        if token not in self.units:
            if len(self.units) == KEPT:
                self.units.clear()
            self.units[token] = self.rows.unit(torch.tensor([token]))[0].numpy()
        return self.units[token]


def kinds(features: Tensor) -> Ints:
    """Return a number [N] that rows of equal features share: the index of the first of them."""
    kind = np.arange(len(features))
    features = features if features.dtype == torch.float64 else features.float()
    sketch = features[:, :: max(1, features.shape[1] // 4)].numpy()  # four columns or so tell most apart
    ranked = np.lexsort(sketch.T)
    alike = np.flatnonzero((sketch[ranked[1:]] == sketch[ranked[:-1]]).all(axis=1))
    first: dict[bytes, int] = {}
    for token in np.unique(ranked[np.concatenate([alike, alike + 1])]):
        kind[token] = first.setdefault(features[token].numpy().tobytes(), token)
    return kind
