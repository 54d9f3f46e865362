"""DyCoke, stage 1: of every second frame, keep what differs from the frame before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Tokens
from methods.budget import largest_remainder
from methods.kernels.temporal import best_of_steps, budgets, clips, joined, same_place
from methods.uniform import centres


@dataclass(kw_only=True)
class DyCoke(Method):
    """Keep some frames whole, and of the others the tokens least like those of a whole one. Paper: arXiv 2411.15024.

        pairs (0, 1), (2, 3), ...       frame i+1 is compared with frame i
        quads 0, 4, 8, ... below T - 4  frame i+2 is compared with frame i
        of a compared frame, keep the tokens with the lowest cosine to the token at the same place; others are whole

    A frame is one time step. An image is a video of one frame, which is whole.

    Args:
        fit: "k" (default) keeps exactly K: what whole frames leave of it is shared evenly by the compared ones. K is
            divided among images and videos by largest remainder, so that all whole frames stay whole if K allows; below
            that, a video keeps K tokens spread evenly over its whole frames, whatever they show, and no others.
            "official" keeps int((1 - rate) P) of the P tokens of a compared frame, as the authors' code does, whatever
            K is: 49 % of 32 frames, and never less than 28 %.
        rate: share that "official" removes from a compared frame; default 0.7.

    Deviation: stage 2, which chooses cached keys and values at every decoding step, is left out: methods here choose
    what the prefill keeps. Kept tokens stay in raster order, where the code orders them by similarity and numbers them
    again. The code fails with four frames or fewer, where here there are no quads, and drops the last of an odd number,
    as "official" does; with "k" that frame is whole. Cosines are float64, to 12 decimals; ties go to the lowest index.
    Code: KD-TAO/DyCoke @ dd74634.
    """

    name = "dycoke"
    version = 1
    fidelity = "adapted: stage 1 alone, in raster order, and exactly K tokens"
    compares_frames = True

    fit: Literal["k", "official"] = "k"
    rate: float = 0.7

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("rate", 0 <= self.rate <= 1, "in [0, 1]")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        found = clips(tokens.grids)
        if self.fit == "official":
            parts = [self._official(clip.of(tokens.features)) for clip in found]
        else:
            whole = [clip.size * references(clip.steps).count(None) for clip in found]
            sizes = [clip.size * clip.steps for clip in found]
            shares = budgets(k, sizes, sizes, whole if k >= sum(whole) else None)
            parts = [exactly(clip.of(tokens.features), share) for clip, share in zip(found, shares, strict=True)]
        return joined((clip, Selection(kept=kept)) for clip, kept in zip(found, parts, strict=True))

    def _official(self, x: Tensor) -> Tensor:
        """Return what the authors' code keeps of the tokens `x` [T, P, D]."""
        t, p, _ = x.shape
        quotas = [p if other is None else int((1 - self.rate) * p) for other in references(t)]
        if t % 2 and t > 1:
            quotas[-1] = 0
        return best_of_steps(change(x), quotas)


def references(t: int) -> list[int | None]:
    """Return the frame with which each of `t` frames is compared, or None for those that are whole."""
    pairs = {i + 1: i for i in range(0, t - 1, 2)}
    quads = {i + 2: i for i in range(0, t - 4, 4)}
    return [(pairs | quads).get(i) for i in range(t)]


def change(x: Tensor) -> Tensor:
    """Return 1 - cosine [T, P] of tokens `x` [T, P, D] and those of the frame with which theirs is compared."""
    others = [i if other is None else other for i, other in enumerate(references(len(x)))]
    return 1 - same_place(x, x[others])


def exactly(x: Tensor, k: int) -> Tensor:
    """Return `k` of the tokens `x` [T, P, D]: whole frames and what changed; if these are too many, even places."""
    t, p, _ = x.shape
    whole = [i for i, other in enumerate(references(t)) if other is None]
    rest = k - len(whole) * p
    if rest < 0:
        place = torch.tensor(centres(len(whole) * p, k), dtype=torch.int64, device=x.device)
        return torch.tensor(whole, device=x.device)[place // p] * p + place % p
    quotas = [p] * t
    compared = [i for i in range(t) if i not in whole]
    for i, share in zip(compared, largest_remainder(rest, [p] * len(compared)) if compared else [], strict=True):
        quotas[i] = share
    return best_of_steps(change(x), quotas)
