"""Greedy volume on the CPU, lazily: a pick only lowers what the picks leave of a token.

In float64: rounding errors grow as the volume shrinks, and float32 would decide nothing where it is small. That is half
as fast, and sets the limit: first comparing all tokens in float32 saves none of what the pools then ask for.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from methods.kernels.rows import Rows
from methods.kernels.search import GONE, TILE, Floats, Ints, Pool, Search
from methods.kernels.seen import kinds
from methods.kernels.ties import DECIMALS

SLACK = 10.0**-DECIMALS  # how far a volume that is older may be above one anew, but for what picks took


def greedy_map(rows: Rows, quality: Tensor, k: int, tolerance: float) -> Tensor:
    """Return `k` indices [k], as `methods.kernels.dpp.greedy_map`."""
    search = Volume(rows, quality.square().numpy(), k, tolerance)
    while search.made < k and not search.spent:
        search.pick()
    ranked = quality.argsort(descending=True, stable=True).numpy()
    rest = ranked[~np.isin(ranked, search.column[: search.made])]
    return torch.from_numpy(np.append(search.column[: search.made], rest[: k - search.made]))


class Volume(Search):
    """The gain of a token is its weight times the volume that the picks it has seen leave of it.

    factor: [N, K] the rows of the Cholesky factor of the cosines, as far as a token has seen the picks.
    """

    def __init__(self, rows: Rows, weight: Floats, k: int, tolerance: float) -> None:
        n = len(rows)
        parts = rows.features.split(TILE)  # in one piece, the copy in float64 would be as large as it is slow
        norm = torch.cat([torch.linalg.vector_norm(part.double(), dim=1) for part in parts]).numpy()
        super().__init__(rows.features, weight + SLACK * weight, k, torch.float64)
        self.length = np.maximum(norm, rows.floor) + rows.plus
        self.weight = weight
        self.limit = tolerance * weight.max()
        self.spent = False  # whether no gain is above the limit
        self.volume = np.ones(n)
        self.factor = torch.from_numpy(np.zeros((n, k)))
        ranked = np.argsort(-weight, kind="stable")
        kind = kinds(rows.features)
        first = ranked[np.unique(kind[ranked], return_index=True)[1]]
        copies = np.setdiff1d(np.flatnonzero(norm), first)  # the best of equal rows leaves nothing of the others
        self.stamp[copies], self.bound[copies] = GONE, -np.inf

    def add(self, picks: Ints) -> None:
        """Count `picks` as picked."""
        new = slice(self.made, self.made + len(picks))
        super().add(picks)
        self.memory[new] /= torch.from_numpy(self.length[picks, None])

    def see(self, tokens: Ints, features: Tensor, start: int, stop: int) -> None:
        """Extend the factor of tokens by picks start..stop."""
        picks, here = torch.from_numpy(self.column[start:stop]), torch.from_numpy(tokens)
        similar = features @ self.memory[start:stop].T / torch.from_numpy(self.length[tokens, None])
        done = self.factor[here, :start]
        similar -= done @ self.factor[picks, :start].T
        block = self.factor[picks, start:stop]
        new = torch.linalg.solve_triangular(block, similar.T, upper=False).T
        self.factor[here, start:stop] = new
        self.volume[tokens] = (1 - done.square().sum(dim=1) - new.square().sum(dim=1)).numpy()
        self.stamp[tokens] = stop
        self.bound[tokens] = self.gain(tokens) + SLACK * self.weight[tokens]

    def gain(self, tokens: Ints) -> Floats:
        """Return the gains of tokens, their volumes to 12 decimals."""
        found: Floats = self.weight[tokens] * self.volume[tokens].round(DECIMALS)
        return found

    def pick(self) -> None:
        """Pick from a pool until the next pick could lie outside, or none is left that gains."""
        pool, before = Pool(self), self.made
        tokens, taken = pool.tokens, pool.taken
        self.spent = not len(tokens)  # but for copies of picks
        here = torch.from_numpy(tokens)
        features = self.features[here].double() / torch.from_numpy(self.length[tokens, None])
        seen = self.factor[here, :before]
        left = (features @ features.T - seen @ seen.T).numpy()  # [P, P] what the picks leave of cosines
        open_ = np.zeros(len(tokens))
        while len(taken) < min(len(tokens), len(self.column) - before):
            gain = self.gain(tokens) + open_
            best = int(gain.argmax())  # the first of equal maxima
            if not pool.beats_others(gain[best], best):
                break
            if gain[best] <= self.limit:
                self.spent = True
                break
            part = left[best] / np.sqrt(self.volume[tokens[best]])
            left -= part[:, None] * part
            self.factor[here, before + len(taken)] = torch.from_numpy(part)
            self.factor[here[best], before + len(taken)] = self.volume[tokens[best]] ** 0.5  # of a zero row, too
            self.volume[tokens] -= part**2
            taken.append(best)
            open_[best] = -np.inf
        rest = np.delete(tokens, taken)
        self.add(tokens[taken])
        self.stamp[rest] = self.made
        self.bound[rest] = self.gain(rest)
