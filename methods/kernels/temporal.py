"""Videos as steps of equal size: clips of a prompt, similarities over time, segments, static windows, budgets.

A step is a frame of a video, or the two frames that Qwen's towers merge into one. An image is a clip of one step.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from methods.budget import largest_remainder
from methods.kernels.cosine import BARE_NORM, DECIMALS, TILE, directions
from methods.scores import ranked
from methods.tokens import Grid, Mix, Selection


class Clip(NamedTuple):
    """Where the tokens of one video lie: T steps of P tokens each. An image is a clip with T = 1."""

    start: int  # its first token
    steps: int  # T
    size: int  # P

    @property
    def tokens(self) -> slice:
        """Its T * P tokens among those of the sample."""
        return slice(self.start, self.start + self.steps * self.size)

    def of(self, rows: Tensor) -> Tensor:
        """Return the rows [T, P, ...] of the clip among those [N, ...] of the sample."""
        return rows[self.tokens].unflatten(0, (self.steps, self.size))

    def cut(self, lengths: Sequence[int]) -> list[Clip]:
        """Cut it into clips of so many steps, which add up to T."""
        starts = accumulate(lengths, initial=0)
        return [Clip(self.start + first * self.size, t, self.size) for first, t in zip(starts, lengths, strict=False)]


def clips(grids: Sequence[Grid]) -> list[Clip]:
    """Return the clip of each image and video that has tokens."""
    found, start = [], 0
    for t, h, w in grids:
        if t * h * w:
            found.append(Clip(start, t, h * w))
        start += t * h * w
    return found


def per_clip(grids: Sequence[Grid], k: int) -> list[tuple[Clip, int]]:
    """Return each clip with its part of `k`: by largest remainder of its tokens, at least one where `k` allows."""
    found = clips(grids)
    return list(zip(found, largest_remainder(k, [clip.steps * clip.size for clip in found]), strict=True))


def joined(parts: Iterable[tuple[Clip, Selection]]) -> Selection:
    """Return the selection of a sample from those of its clips in order, each of which counts from its first token.

    Only `kept` and `mix` of the parts are read.
    """
    kept: list[Tensor] = []
    mixes: list[Mix] = []
    for clip, part in parts:
        if part.mix is not None:
            row, source, weight = part.mix
            mixes.append(Mix(row + sum(map(len, kept)), source + clip.start, weight))
        kept.append(part.kept + clip.start)
    return Selection(kept=torch.cat(kept), mix=Mix(*map(torch.cat, zip(*mixes, strict=True))) if mixes else None)


def step_means(x: Tensor) -> Tensor:
    """Return the mean token [T, D] of each step of `x` [T, P, D] in float64, which stands for the whole frame."""
    return x.double().mean(dim=1)


def same_place(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine [...] of each row of `a` [..., D] and the same row of `b`, in float64 to 12 decimals.

    A zero row is similar to none. `same_place(x[1:], x[:-1])` compares neighbours in time.
    """
    width = a.shape[-1]
    parts = (rows.reshape(-1, width).split(max(1, TILE // width)) for rows in (a, b))
    units = zip(*(map(partial(directions, floor=BARE_NORM), tiles) for tiles in parts), strict=True)
    return torch.cat([torch.linalg.vecdot(*pair) for pair in units]).round(decimals=DECIMALS).view(a.shape[:-1])


def best_of_steps(scores: Tensor, quotas: Sequence[int]) -> Tensor:
    """Return the tokens of highest `scores` [T, P] of each step, ascending in 0..TP-1: `quotas` [T], at most P each."""
    (t, p), device = scores.shape, scores.device
    taken = torch.arange(p, device=device) < torch.tensor(quotas, device=device)[:, None]
    return (ranked(scores) + p * torch.arange(t, device=device)[:, None])[taken].sort().values


def cuts(similarity: Sequence[float], tau: float, at_least: int = 1) -> list[int]:
    """Return the lengths of the segments into which T steps of `similarity` [T - 1] to the next one are cut.

    A cut is where the similarity is below `tau`. If that makes fewer than `at_least` segments, the least similar places
    are cut, the first of equal ones; there are at most T segments.
    """
    places = [i for i, value in enumerate(similarity) if value < tau]
    if len(places) + 1 < at_least:
        places = sorted(sorted(range(len(similarity)), key=lambda i: similarity[i])[: at_least - 1])
    return [end - start for start, end in pairwise([0, *(place + 1 for place in places), len(similarity) + 1])]


def static_windows(still: Tensor, longest: int = 1024) -> list[tuple[int, int]]:
    """Partition T steps into windows (first, last) with the most tokens to save; `still` [T - 1, P] says what repeats.

    A window of steps s..e saves (e - s) tokens at each place that repeats from s to e. Of partitions that save the same
    the one with the shorter last window is taken, and so on for what is before it. The authors' dynamic programme.
    """
    t = len(still) + 1
    saved = torch.zeros(t, t, dtype=torch.int64, device=still.device)
    for last in range(1, t):
        repeats = still[max(0, last - longest + 1) : last].flip(0).int().cumprod(dim=0).sum(dim=1)
        length = torch.arange(1, len(repeats) + 1, device=still.device)
        saved[last, last - length] = length * repeats
    table, best, start = saved.tolist(), [0], [0]  # best[e]: what a partition of the first e steps saves at most
    for last in range(t):
        gain, first = max((best[s] + table[last][s], s) for s in range(max(0, last - longest + 1), last + 1))
        best.append(gain)
        start.append(first)
    windows, end = [], t
    while end:
        windows.append((start[end], end - 1))
        end = start[end]
    return windows[::-1]


def budgets(k: int, weights: Sequence[float], most: Sequence[int], least: Sequence[int] | None = None) -> list[int]:
    """Divide `k` in proportion to `weights` >= 0, by largest remainder, each part between its `least` and `most`.

    What the limits of some parts take or leave goes to the others in proportion; where all of those weigh nothing, in
    proportion to their `most`. `k` lies between the sums of `least` (by default 0) and `most`. Ties go to the first.
    """
    least = least or [0] * len(most)
    share = [high if low == high else -1 for low, high in zip(least, most, strict=True)]
    while free := [i for i, part in enumerate(share) if part < 0]:
        rest = k - sum(part for part in share if part >= 0)
        weight = [Fraction(weights[i]) for i in free]
        weight = weight if any(weight) else [Fraction(most[i]) for i in free]
        parts = dict(zip(free, largest_remainder(rest, weight), strict=True))
        over = {i: most[i] for i in free if parts[i] > most[i]}
        under = {i: least[i] for i in free if parts[i] < least[i]}
        excess = sum(parts[i] - most[i] for i in over) - sum(least[i] - parts[i] for i in under)
        for i, part in ((over if excess >= 0 else under) if over or under else parts).items():
            share[i] = part
    return share
