"""PruneSID: group tokens by principal components, drop what repeats within a group, and share K among the groups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.grids import images, per_image
from methods.kernels.cosine import BARE_NORM, Cosine, directions, first_equal
from methods.kernels.suppression import survivors
from methods.scores import ranked, top


@dataclass(kw_only=True)
class PruneSID(Method):
    """Keep the best of every principal component, few of which repeat each other. Paper: arXiv 2603.09480.

        X       = sigmoid(H), each row minus its mean;  V [N, G] = eigenvectors of X X^T of the G largest eigenvalues
        group_i = argmax over g of |V_ig|
        tau     = T / 32 * mean of cos(H_i, H_j) over i < j
        in a group, by descending a: a token survives if no survivor before it has a cosine above tau
        keep the first of each group's survivors, then its other tokens, as many as `quotas` gives it

    Each image or video has its share of K. T is K; G = T // 4.

    Args:
        program: "llava" has H before the projector and the attention in the last layer as a, from CLS where there is
            one. "qwen", for Qwen2-VL, has H at the LLM's entry and a_i = |V_ig| of the own group g; G is at least 4,
            T / 32 becomes max(18 T / N, 1), and the mean is that of the upper triangle and the diagonal over N^2.
            "auto" (default) is "llava" on towers with CLS, else "qwen".
        nominal: T of an image, at most its N; default 0: its share of K. The code's T counts the CLS token, so that
            K + 1 gives the code's patches.

    Deviation: the code draws random starts for its components, which are inexact; here they are exact, in float64, and
    those without variance have no tokens. CLS is no token here. G is at most K, the number of tokens, and their width.
    Kept tokens stay in raster order and keep their positions, where the LLaVA code orders them by group and numbers
    them again. The tiles of LLaVA-NeXT are one image, their mosaic, unless the budget is per_tile=, as in the code; it
    puts tiles on each other's places and pools the images of a prompt by mistake, which is not copied.
    Without any attention the first tokens of the groups stay. Cosines to 12 decimals, ties to the lowest index, halves
    of quotas to the even number. The paper's budget for each image is not in the code, nor here.
    Code: ZhengyaoFang/PruneSID @ 4ef17d9.
    """

    name = "prunesid"
    version = 1
    fidelity = "adapted: exact components instead of random ones, raster order instead of groups"
    needs = frozenset({Signal.VIT_FEATURES, Signal.VIT_ATTENTION})  # an instance for "qwen" needs neither

    program: Literal["auto", "llava", "qwen"] = "auto"
    nominal: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("nominal", self.nominal >= 0, "at least 0")
        if self.program == "qwen":
            object.__setattr__(self, "needs", frozenset())  # a class variable to the type checker

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        states, attention = tokens.features, None
        if self.program == "llava" or (self.program == "auto" and tokens.has_cls):
            assert tokens.vit_features is not None
            assert tokens.vit_attention is not None
            states, attention = tokens.vit_features, tokens.vit_attention["last"]
        kept = []
        for unit, share in per_image(images(tokens.grids), k):
            n = unit.stop - unit.start
            self.require("nominal", self.nominal <= n, f"at most the {n} tokens of an image")
            scores = None if attention is None else attention[unit]
            if share:
                kept.append(unit.start + self._prune(states[unit], scores, share))
        return Selection(kept=torch.cat(kept))

    def _prune(self, states: Tensor, attention: Tensor | None, k: int) -> Tensor:
        """Return the tokens [k] of one image to keep, ascending."""
        n, t = len(states), self.nominal or k
        groups = min(max(t // 4, 1 if attention is not None else 4), k, *states.shape)
        loading, group = components(states, groups).max(dim=1)
        unit = directions(states, floor=BARE_NORM)
        total, diagonal = unit.sum(dim=0).square().sum(), unit.square().sum()
        if attention is None:
            attention, tau = loading, max(18 * t / n, 1) * (total + diagonal) / (2 * n * n)
        else:
            tau = t / 32 * (total - diagonal) / (n * (n - 1))
        order = ranked(attention)
        cosine = Cosine(unit, table=True)
        alive = survivors(cosine, order, group[order], attention[order] > 0, tau.round(decimals=12))
        order = order[ranked(alive.int())]
        member = group[order, None] == torch.arange(groups, device=order.device)
        alive_first = member & (torch.arange(n, device=order.device) < alive.sum())[:, None]
        members, alive_members = torch.stack([member.sum(dim=0), alive_first.sum(dim=0)]).tolist()
        quota = torch.tensor(quotas(members, alive_members, k, t), device=order.device)
        return order[top(((member.cumsum(dim=0) <= quota) & member).any(dim=1), k)].sort().values


def components(states: Tensor, count: int) -> Tensor:
    """Return |V| [N, G], how far each token lies along each of the `count` components, to 10 decimals."""
    x = states.double().sigmoid()
    x = x - x.mean(dim=1, keepdim=True)
    n, width = x.shape
    values, vectors = torch.linalg.eigh(x @ x.T if n <= width else x.T @ x)  # ascending
    values, vectors = values.flip(0)[:count], vectors.flip(1)[:, :count]
    if n > width:
        vectors = x @ vectors / values.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
    noise = values[0] * max(n, width) * torch.finfo(x.dtype).eps
    return torch.where(values > noise, vectors.abs(), 0).round(decimals=10)[first_equal(states)]


def quotas(members: Sequence[int], survivors: Sequence[int], k: int, nominal: int) -> list[int]:
    """Divide `k` among groups of `members` tokens, in proportion to their `survivors`, within limits.

    Every group has at least one, and at most its survivors and 5 for each 64 of `nominal`. The limit rises where those
    of all groups are fewer than `nominal`. What the limits leave goes to the groups with most survivors.
    """
    low = [min(1, m) for m in members]
    high = [min(5 * -(-nominal // 64), m, s) for m, s in zip(members, survivors, strict=True)]
    while sum(high) < max(nominal, k):
        high = [min(h + 1, m) for h, m in zip(high, members, strict=True)]
    rest, total = k - sum(low), max(1, sum(survivors))
    bounds = [round(Fraction(rest * s, total)) for s in accumulate(survivors, initial=0)]
    quota = [min(b - a + one, h) for (a, b), one, h in zip(pairwise(bounds), low, high, strict=True)]
    missing = k - sum(quota)
    for group in sorted(range(len(quota)), key=lambda g: -survivors[g]):
        more = min(high[group] - quota[group], missing)
        quota[group], missing = quota[group] + more, missing - more
    return quota
