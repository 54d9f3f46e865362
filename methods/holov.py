"""HoloV: every band of the image keeps a share, so that the kept tokens cannot all lie in one place."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from methods.base import OFFICIAL, AttentionSpec, Method, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.kernels.cosine import directions, snap
from methods.scores import ranked, top

TILE = 2**22  # similarities held at once


@dataclass(kw_only=True)
class HoloV(Method):
    """Divide K among contiguous bands by their attention A, then keep the best of each. Paper: arXiv 2510.02912.

        V_i = sum_j (G_ij - mean_i)^2 / (M - 1),  G cosines inside a band of M tokens with zero diagonal
        H   = A + beta (mean A / mean V) V,   quota of a band = floor(K mean(H)^tau / sum), leftovers to the heaviest

    Args:
        variant: both are HoloV's own; the comparison in arXiv 2602.13315 does not have it. "official" (default, known
            as holov_code) is the released code, which ranks by A inside a band; "paper" (known as holov_paper) ranks by
            H with beta = 1, as the paper writes. mean V cancels in mean(H) = (1 + beta) mean(A), so quotas follow A.
        crops: bands per image or step of a video; default 0, the released rule for Qwen, int(1024 / 576 N / K), which
            is also the 16 of the released LLaVA file at its 64 of 576 tokens.
        beta: weight of V in the quotas; default 0.09. It matters only where bands of one and two tokens meet.
        tau: exponent of a band's weight; default 1.

    Deviation: a quota above the size of its band goes on to the next heaviest ones with room, where the code pads with
    zero vectors; several images share K by largest remainder, the steps of a video are bands of one image, where the
    code has one image; without any attention bands weigh what they hold. Float64, ties to the lowest index; weights and
    H to 40 bits. The paper's refetching of pruned content is not in the code, nor here. Code: obananas/HoloV @ 1d2e65e.
    """

    name = "holov"
    version = 1
    fidelity = "exact"
    needs = frozenset({Signal.VIT_ATTENTION})

    variant: Literal["official", "paper"] = "official"
    crops: int = 0
    beta: float = 0.09
    tau: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("crops", self.crops >= 0, "at least 0")
        self.require("beta", self.beta >= 0, "at least 0")
        self.require("tau", self.tau > 0, "above 0")

    @property
    def attention_spec(self) -> AttentionSpec:
        """The authors' attention: both variants are theirs."""
        return OFFICIAL

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        sizes = [t * h * w for t, h, w in tokens.grids]
        starts, shares = accumulate(sizes, initial=0), largest_remainder(k, sizes)
        attention, features = tokens.vit_attention["last"].double().split(sizes), tokens.features.split(sizes)
        images = zip(starts, attention, features, tokens.grids, shares, strict=False)
        picks = [start + self._image(a, x, grid[0], share) for start, a, x, grid, share in images if share]
        return Selection(kept=torch.cat(picks).sort().values)

    def _image(self, attention: Tensor, features: Tensor, steps: int, k: int) -> Tensor:
        """Return `k` of the tokens of one image or video; the matrices below have a row per band and M columns."""
        n, step = len(attention), len(attention) // steps
        crops = min(self.crops or max(1, int((1024 / 576) * n / k)), step)
        size = torch.tensor(([step // crops + 1] * (step % crops) + [step // crops] * (crops - step % crops)) * steps)
        start, size = (column.to(attention.device)[:, None] for column in (size.cumsum(0) - size, size))
        place = torch.arange(-(-step // crops), device=attention.device)
        member, valid = (start + place).clamp_max(n - 1), place < size

        score = attention[member].masked_fill(~valid, 0)  # attention is not negative
        mean = score.sum(dim=1, keepdim=True) / size
        quota = quotas(mean * torch.where(size > 1, 1 + self.beta, 1.0), size, k, self.tau)
        if self.variant == "paper":
            v = spread(directions(features), member, valid)
            mean_v = v.sum(dim=1, keepdim=True) / size
            score = snap(score + torch.where(mean_v > 0, mean / mean_v, 0.0) * v)
        best = ranked(score.masked_fill(~valid, -torch.inf))
        kept = (place < quota).flatten()  # per band, in the order of `best`
        return member.gather(1, best).flatten()[top(kept, k)]


def quotas(score: Tensor, size: Tensor, k: int, tau: float) -> Tensor:
    """Divide `k` among bands of `size` [C, 1] in proportion to `score` [C, 1] to the power `tau`."""
    weight = torch.where(score.max() > 0, (score / score.max()) ** tau, size.double())
    weight = snap((weight / weight.sum()).flatten())
    quota = (weight * k).round(decimals=9).floor().long()  # a rounding error must not turn 4 into 3
    heaviest = ranked(weight)
    quota[heaviest] += torch.arange(len(quota), device=quota.device) < k - quota.sum()
    room = (size.flatten() - quota)[heaviest]
    excess, room = (-room).clamp_min(0).sum(), room.clamp_min(0)
    quota[heaviest] += torch.minimum((excess - (room.cumsum(0) - room)).clamp_min(0), room)
    return torch.minimum(quota, size.flatten())[:, None]


def spread(unit: Tensor, member: Tensor, valid: Tensor) -> Tensor:
    """Return V [C, M] of unit rows [N, D] in bands of tokens `member` [C, M]; entries that are not `valid` give 0."""
    v = torch.zeros_like(member, dtype=unit.dtype)
    place = torch.arange(member.shape[1], device=unit.device)
    bands = TILE // len(place) ** 2 + 1
    for first in range(0, len(member), bands):
        tile = slice(first, first + bands)
        real = valid[tile, None]  # [B, 1, M]
        rows, others = unit[member[tile]], (real.sum(dim=2, keepdim=True) - 1).clamp_min(1)  # a band of one has V = 0
        for at in place.split(TILE // (len(rows) * len(place)) + 1):
            cosine = (rows[:, at] @ rows.mT).masked_fill(~real | (at[:, None] == place), 0)
            mean = cosine.sum(dim=2, keepdim=True) / others
            v[tile, at] = ((cosine - mean).square() * real).sum(dim=2) / others[:, 0]
    return v * valid
