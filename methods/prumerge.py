"""PruMerge and PruMerge+: keep what CLS attends to, and add to each kept token those whose keys are like its own."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import AttentionSpec, Method, Mix, Selection, Signal, Tokens
from methods.grids import frames, per_image
from methods.kernels.cosine import BARE_NORM, Cosine, directions
from methods.scores import ranked, top

FENCE = 1.5  # interquartile ranges above the third quartile, from which on attention is an outlier


@dataclass(kw_only=True)
class PruMerge(Method):
    """Keep the tokens that CLS attends to, each with what is like it, and one of all others. Paper: arXiv 2403.15388.

        a       = attention of CLS in the layer after the features, all heads as one
        picks I = the n = K - 1 tokens of highest a
        y_i     = x_i + sum of a_j x_j over the 32 tokens j != i whose keys are most like that of i   (for i in I)
        extra   = sum of a_j x_j over all j that are not in I, at the place of the one of highest a

    Each image and each time step of a video is a separate unit, with its share of K. A share of all tokens merges none.

    Args:
        fit: "k" (default) keeps exactly K. "official" keeps what the authors' code does, whatever K is: n is the number
            of outliers, those of a above Q3 + 1.5 (Q3 - Q1), in each unit.
        neighbours: tokens that are added to each pick, which may be picks, too; default 32.

    Deviation: rows are merged after the projector, at the LLM's entry, in raster order; the original merges features
    before the projector and orders them by a, the extra one last. Without CLS, a is the mean attention of all patches;
    without a layer after the features, that of the last layer. With K below the number of units all of them are one.
    The tiles of LLaVA-NeXT are one unit, their mosaic, unless the budget is per_tile=; the original takes each by
    itself. Cosines are float64, ties go to the lowest index. Code: 42Shawn/LLaVA-PruMerge.
    """

    name = "prumerge"
    version = 1
    fidelity = "adapted: merges at the LLM's entry, keeps the order of the image, and exactly K tokens"
    needs = frozenset({Signal.VIT_ATTENTION, Signal.VIT_KEYS})

    fit: Literal["k", "official"] = "k"
    neighbours: int = 32

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("neighbours", self.neighbours >= 0, "at least 0")

    @property
    def attention_spec(self) -> AttentionSpec:
        """Attention and keys of the layer after the features, all heads as one."""
        return AttentionSpec(roles=("after",), heads="joined")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        assert tokens.vit_keys is not None
        orders, mixes, start = [], [], 0
        for unit, share in self._units(tokens, k):
            scores = tokens.vit_attention["after"][unit].double()
            if not tokens.has_cls:  # then it is a sum over all patches
                scores = scores / scores.sum().clamp(min=BARE_NORM)
            order, mix = self._merged(scores, tokens.vit_keys[unit], share)
            orders.append(unit.start + order)
            mixes.append(Mix(start + mix.row, unit.start + mix.source, mix.weight))
            start += len(order)
        mix = Mix(*map(torch.cat, zip(*mixes, strict=True)))
        return replace(Selection.of(torch.cat(orders)), mix=mix)

    def _units(self, tokens: Tokens, k: int) -> list[tuple[slice, int]]:
        """Return the tokens of each unit, and how many of them stay; what stays with fit="official" shows later."""
        spans = frames(tokens.grids)
        if self.fit == "official":
            return [(slice(start, start + size), 0) for start, size in spans]
        return per_image(spans if k >= len(spans) else [(0, len(tokens.features))], k)

    def _picks(self, scores: Tensor, k: int) -> Tensor:
        """Return the picks of a unit with attention `scores` [N]: `k` - 1 of them, or as many as are outliers."""
        return top(scores, k - 1 if self.fit == "k" else outliers(scores))

    def _merged(self, scores: Tensor, keys: Tensor, k: int) -> tuple[Tensor, Mix]:
        """Return the kept tokens of a unit in the order picked, the extra one last, and what is merged into them."""
        n, every = len(scores), torch.arange(len(scores), device=scores.device)
        if k == n:
            return every, Mix(every[:0], every[:0], scores[:0])
        picks = self._picks(scores, k)
        extra = top(scores.index_fill(0, picks, -torch.inf), min(1, n - len(picks)))
        order = torch.cat([picks, extra])
        row = torch.searchsorted(order.sort().values, order)  # of each among the kept tokens, ascending
        similar = Cosine(directions(keys, floor=BARE_NORM), table=True)(picks).scatter(1, picks[:, None], -torch.inf)
        near = ranked(similar)[:, : min(self.neighbours, n - 1)]
        picked, last = row[: len(picks)], row[len(picks) :]
        weights = [torch.ones_like(scores[picks]), scores[near.flatten()]]
        weights.append(scores.index_fill(0, picks, 0.0).repeat(len(extra)))
        return order, Mix(
            row=torch.cat([picked, picked.repeat_interleave(near.shape[1]), last.repeat_interleave(n)]),
            source=torch.cat([picks, near.flatten(), every.repeat(len(extra))]),
            weight=torch.cat(weights),
        )


@dataclass(kw_only=True)
class PruMergePlus(PruMerge):
    """PruMerge with picks that also cover the image evenly. Paper: arXiv 2403.15388.

        a       = attention of CLS in the layer after the features, all heads as one
        picks I = the tokens of highest a, a quarter of K, and an even sample of all others: K - 1 in all
        y_i     = x_i + sum of a_j x_j over the 32 tokens j != i whose keys are most like that of i   (for i in I)
        extra   = sum of a_j x_j over all j that are not in I, at the place of the one of highest a

    Each image and each time step of a video is a separate unit, with its share of K. A share of all tokens merges none.

    Args:
        fit: "k" (default) keeps exactly K. "official" keeps what the authors' code does, whatever K is: in each unit
            the n outliers, those of a above Q3 + 1.5 (Q3 - Q1), and every token whose number N / n / 3 divides.
        neighbours: tokens that are added to each pick, which may be picks, too; default 32.
        share: part of K that is picked by attention; default 0.25.

    Deviation: as for PruMerge. With a number of tokens to keep, the original picks some twice, and the extra row then
    lacks others; here picks are distinct. With many outliers its step becomes 0, an error; here it is at least 1.
    Without outliers it divides by 0; here the first token is the even sample. Code: 42Shawn/LLaVA-PruMerge.
    """

    name = "prumerge_plus"
    version = 1
    fidelity = "adapted: merges at the LLM's entry, in the image's order, and K distinct tokens"
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"share"})

    share: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("share", 0 <= self.share <= 1, "in [0, 1]")

    def _picks(self, scores: Tensor, k: int) -> Tensor:
        n, every = len(scores), torch.arange(len(scores), device=scores.device)
        if self.fit == "official":
            highest = top(scores, outliers(scores))
            step = max(1, n // len(highest) // 3) if len(highest) else n
            even = every[: n - 1 : step]  # the last token is never one
            return torch.cat([highest, even[~torch.isin(even, highest)]])
        highest, others = top(scores, n).tensor_split([min(k - 1, round(k * self.share))])
        count = k - 1 - len(highest)
        even = torch.arange(count, device=scores.device) * len(others) // max(1, count)
        return torch.cat([highest, others.sort().values[even]])


def outliers(scores: Tensor) -> int:
    """Return how many `scores` [N] lie more than 1.5 interquartile ranges above the third quartile."""
    first, third = torch.quantile(scores, scores.new_tensor([0.25, 0.75]))
    count: int = (scores > third + FENCE * (third - first)).sum().tolist()
    return count
