"""Coverage on the CPU, lazily: a pick only lowers the gains of others, so old ones are bounds, and few need to be new.

The similarities of all pairs are float32, of which half are computed. Where their error could decide, gains are summed
in float64, over the few tokens that are not covered yet: the picks are those of the plain loop, ties included.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.kernels.dispatch import UnfitError
from methods.kernels.rows import Rows
from methods.kernels.search import Floats, Ints
from methods.kernels.seen import kinds

MOST = 4096  # tokens whose similarities to each other are kept: 64 MiB
TILE = 256  # cosines taken in float64 at once
LOWEST = -np.finfo(np.float64).max  # of what can be picked
BATCH = 16  # gains brought up to date at once
SAMPLE = 256  # tokens by which the rounding error of sums is measured
SAFETY = 8.0  # times as much is taken for possible
SPARED = 16  # of the products of all pairs, one in so many may be taken again


def coverage(rows: Rows, weight: Tensor, k: int, additive: bool, scale: float, decimals: int) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.coverage.coverage`.

    Raises UnfitError for more than MOST tokens, and where float32 decides too little.
    """
    if len(rows) > MOST:
        raise UnfitError(f"the similarities of {len(rows)} tokens are not kept")
    search = Cover(rows, weight.numpy(), additive, scale, decimals)
    return torch.tensor([search.pick() for _ in range(k)], dtype=torch.int64)


class Cover:
    """Bounds [N] of the scores of tokens, and after how many picks their gains were summed."""

    def __init__(self, rows: Rows, weight: Floats, additive: bool, scale: float, decimals: int) -> None:
        n = len(rows)
        self.rows, self.weight, self.additive, self.scale, self.decimals = rows, weight, additive, scale, decimals
        self.kind = kinds(rows.features)
        self.had: dict[int, int] = {}  # of each kind picked, the first pick
        self.similar = _similar(rows)
        self.closed = (rows.factor == 0).numpy()  # what no later pick covers further: zero rows, and copies of picks
        self.error = rows.error
        self.covered = np.zeros(n, dtype=np.float32)
        self.exactly = np.zeros(n)  # `covered` in float64
        self.valid = np.ones(n, dtype=bool)  # whether `exactly` is up to date
        self.left = n * n // SPARED
        self.noise = SAFETY * self._noise()
        self.stamp = np.zeros(n, dtype=np.int64)
        self.high = np.empty(n)  # bounds of the scores, minus infinity once picked
        self.made, self.least = 0, -np.inf
        for start in range(0, n, BATCH):
            self.sum_up(np.arange(start, min(start + BATCH, n)))

    def _noise(self) -> float:
        """Return by how much one similarity is off, for what the sums of many show."""
        some = np.unique(np.linspace(0, len(self.rows) - 1, SAMPLE).astype(np.int64))
        unit = self.rows.unit(torch.from_numpy(some))
        exact = (unit @ unit.sum(dim=0)).numpy()
        off = np.abs(self.similar[np.ix_(some, some)].sum(axis=1, dtype=np.float64) - exact).max()
        return max(float(off) / len(some) ** 0.5, 2.0**-26)

    def score(self, gain: Floats, tokens: Ints) -> Floats:
        """Return the scores of tokens with such gains."""
        scores: Floats = gain + self.weight[tokens] if self.additive else gain * self.weight[tokens]
        return scores

    def sum_up(self, tokens: Ints) -> None:
        """Bring the bounds of tokens up to date, and `least`, which some score since the last pick is not below."""
        part = self.similar[tokens] - self.covered
        np.maximum(part, 0, out=part)
        gain = part.sum(axis=1).astype(np.float64)
        terms = np.sign(part).sum(axis=1)  # several times as fast as count_nonzero
        slack = self.noise * np.sqrt(1 + terms) + 2.0**-20 * gain
        self.high[tokens] = self.score(gain + slack, tokens)
        self.stamp[tokens] = self.made
        self.least = max(self.least, float(self.score(np.maximum(gain - slack, 0), tokens).max()))

    def pick(self) -> int:
        """Pick the token of highest score; of equals the first."""
        while True:
            rivals = np.flatnonzero(self.high >= max(self.least, LOWEST))
            stale = rivals[self.stamp[rivals] < self.made]
            if not len(stale):
                break
            if len(stale) > BATCH:
                stale = stale[np.argpartition(-self.high[stale], BATCH)[:BATCH]]
            self.sum_up(stale)
        chosen = int(rivals[0])
        if len(rivals) > 1 and not self.alike(rivals):
            chosen = int(rivals[self.exact_scores(rivals).argmax()])
        self.high[chosen], self.least = -np.inf, -np.inf
        self.made += 1
        if self.kind[chosen] not in self.had:  # else it covers nothing new
            self.had[int(self.kind[chosen])] = chosen
            self.valid &= self.similar[chosen] < self.covered - 2 * self.error
            np.maximum(self.covered, self.similar[chosen], out=self.covered)
            self.closed |= self.kind == self.kind[chosen]
        return chosen

    def alike(self, tokens: Ints) -> bool:
        """Whether tokens have equal features and equal weight."""
        return len(set(self.kind[tokens].tolist())) == 1 == len(set(self.weight[tokens].tolist()))

    def exact_scores(self, tokens: Ints) -> Floats:
        """Return the scores of tokens as the plain loop has them."""
        found: dict[int, float] = {}
        for kind, token in zip(self.kind[tokens].tolist(), tokens.tolist(), strict=True):
            if kind not in found and (self.weight[token] or self.additive):
                open_ = np.flatnonzero((self.similar[token] > self.covered - 2 * self.error) & ~self.closed)
                ahead = self.cosines(open_, np.array([token])) - self.exact_cover(open_)
                found[kind] = np.maximum(ahead, 0).sum().round(self.decimals)
        return self.score(np.array([found.get(kind, 0.0) for kind in self.kind[tokens].tolist()]), tokens)

    def exact_cover(self, tokens: Ints) -> Floats:
        """Return how far tokens are covered, in float64."""
        old, picks = tokens[~self.valid[tokens]], np.array(list(self.had.values()), dtype=np.int64)
        token, near = np.nonzero(self.similar[np.ix_(old, picks)] >= self.covered[old, None] - 2 * self.error)
        self.exactly[old] = 0
        np.maximum.at(self.exactly, old[token], self.cosines(old[token], picks[near]))
        self.valid[old] = True
        return self.exactly[tokens]

    def cosines(self, tokens: Ints, others: Ints) -> Floats:
        """Return the cosines [T] of tokens and as many others, or one, in float64."""
        self.left -= len(tokens)
        if self.left < 0:
            raise UnfitError("too many gains are as good as equal in float32")
        found = np.empty(len(tokens))
        for start in range(0, len(tokens), TILE):
            part = slice(start, start + TILE)
            theirs = self.rows.unit(torch.from_numpy(others if len(others) == 1 else others[part]))
            found[part] = (self.rows.unit(torch.from_numpy(tokens[part])) * theirs).sum(dim=1).numpy()
        return np.rint(found * self.scale) / self.scale


def _similar(rows: Rows) -> Floats:
    """Return the cosines [N, N] in float32, of which the half is computed."""
    if not rows.factor.isfinite().all():
        raise UnfitError("a row is too short or too long for float32")
    features = rows.features.float().numpy()
    found = features @ features.T  # by numpy, whose library computes one half; torch has no product that does
    torch.from_numpy(found).mul_(rows.factor).mul_(rows.factor[:, None])
    return found
