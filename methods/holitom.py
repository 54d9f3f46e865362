"""HoliTom: merge what stays still within windows of a video, then keep half of the rest inside the LLM."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import AttentionSpec, HiddenState, Mix, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.kernels.attention import attention_row
from methods.kernels.cosine import Cosine, directions
from methods.kernels.static_places import NEIGHBOURS, Block, blocks, clustered, merged, spared, weights
from methods.kernels.temporal import joined, per_clip, same_place, static_windows
from methods.scores import top
from methods.two_cuts import TwoCuts


@dataclass(kw_only=True)
class HoliTom(TwoCuts):
    """Partition a video into windows, merge what is static in each, keep what else is attended to. arXiv 2505.21334.

        still   = place p of frames t and t+1 has a cosine above tau; a window saves (frames - 1) * (places still in it)
        windows = the partition of the frames that saves most
        static  = one row for each still place of a window, the mean of its frames; density peaks cluster these rows:
                  row = beta * centre + (1 - beta) * mean of the other rows in its cluster
        other places of a frame: those of highest attention, from all patches in the vision tower's last layer
        inside  = after layer 17 of 28, keep half by the attention of the prompt's last token; each other token, in
                  order, joins the kept one of highest cosine:  h <- (h + h_joined) / 2

    K is shared among videos, and in each among the static rows of each window and the other places of each frame, in
    proportion to their number. An image is a video of one frame, of which the tokens of highest attention stay.

    Args:
        stages: "both" (default), or "input" without the cut inside, which the authors call outer-LLM compression.
        tau: default 0.8; the authors' scripts have 0.65 for a tenth of the tokens.
        beta: weight of a centre; default 0.6.
        fit: "k" (default) keeps exactly K. "official" rounds each part as the authors' code does: up for attended
            tokens, to the nearest number for static rows.
        budget_at: what K counts with both cuts: "mean" (default), the tokens that a decoder layer sees on average;
            "entry", as the authors do, what the first cut leaves; "end", what the second one leaves.
        inner_layer: 0-based decoder layer after which the second cut is; default none: 17 of 28, or the same share.
        inner_keep: share of the tokens that the second cut keeps; default 0.5.

    Deviation: a static row stands at its centre's place in the first frame of the window and keeps its position, where
    the authors number all rows again. Newline rows take no part in the second cut. Where K exceeds the number of rows,
    the merged tokens of highest attention stay as they are. Each video of a prompt has the same share; in the original
    the second one's is multiplied by the first one's. With fit="official" a video keeps at least one token. No noise
    decides between equal densities. Float64, cosines to 12 decimals, ties to the lowest index. Code: cokeshao/HoliTom.
    """

    name = "holitom"
    version = 1
    fidelity = "adapted: exactly K tokens, which keep their positions"
    compares_frames = True
    needs = frozenset({Signal.VIT_ATTENTION, Signal.LLM})
    depth: ClassVar[Fraction] = Fraction(18, 28)

    tau: float = 0.8
    beta: float = 0.6
    fit: Literal["k", "official"] = "k"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("beta", 0 <= self.beta <= 1, "in [0, 1]")

    @property
    def attention_spec(self) -> AttentionSpec:
        """Attention of all patches."""
        return AttentionSpec(queries="all")

    @property
    def hidden_state(self) -> HiddenState:
        """What leaves the layer in front of the second cut, which is compared and merged."""
        return "output"

    def _before(self, tokens: Tokens, k: int) -> Selection:
        assert tokens.vit_attention is not None
        attention, ratio = tokens.vit_attention["last"], Fraction(k, len(tokens.features))
        parts = []
        for clip, share in per_clip(tokens.grids, k):
            budget = share if self.fit == "k" else ratio * clip.steps * clip.size
            if budget:
                x, scores = clip.of(tokens.features), attention[clip.tokens]
                parts.append((clip, self._compressed(x, scores, budget)))
        return joined(parts)

    def _compressed(self, x: Tensor, attention: Tensor, k: int | Fraction) -> Selection:
        """Return the selection of one video `x` [T, P, D] with `attention` [T * P]."""
        still = same_place(x[1:], x[:-1]) > self.tau
        windows = static_windows(still)
        static = torch.stack([still[s:e].all(dim=0) & (e > s) for s, e in windows])
        found, x = blocks(windows, static, x.shape[1]), x.flatten(0, 1)
        sizes = [block.source.shape[1] for block in found]
        free = spared(found, max(0, math.ceil(k) - sum(sizes)) if self.fit == "k" else 0, attention)
        kept, entries = [free.nonzero().squeeze(1)], []
        for block, count in zip(found, self._quotas(found, sizes, k), strict=True):
            first = block.source[0]
            if not block.static:
                kept.append(first[top(attention[first], count)])
            elif count:
                weight = weights(block, free)
                centres, cluster = clustered(x, weight, block, count, min(NEIGHBOURS, count))
                kept.append(first[centres])
                into = first[centres[cluster]].expand_as(weight)
                entries.append((into, block.source, weight * self._weight(centres, cluster)))
        return merged(kept, entries)

    def _quotas(self, found: list[Block], sizes: list[int], k: int | Fraction) -> list[int]:
        """Return how many rows of each block stay."""
        if self.fit == "k":
            return largest_remainder(min(int(k), sum(sizes)), sizes)
        ratio = min(Fraction(1), Fraction(k, sum(sizes)))
        counts = [round(n * ratio) if b.static else math.ceil(n * ratio) for b, n in zip(found, sizes, strict=True)]
        return counts if any(counts) else [1, *counts[1:]]

    def _weight(self, centres: Tensor, cluster: Tensor) -> Tensor:
        """Return the weight [n] of each row in the row of its cluster."""
        others = cluster.bincount(minlength=len(centres)).double() - 1
        own = torch.full_like(others, self.beta).masked_fill(others == 0, 1.0)
        return ((1 - self.beta) / others.clamp(min=1))[cluster].index_copy(0, centres, own)

    def _inside(self, tokens: Tokens, k: int) -> Selection:
        state, n = tokens.llm, len(tokens.features)
        assert state is not None
        if self.fit == "official":
            k = max(1, round(n * self.inner_share))
        selection = Selection.of(top(attention_row(state.q[:, -1], state.k)[state.visual_idx], k))
        gone = top(torch.ones(n, device=selection.kept.device).index_fill(0, selection.kept, 0), n - k)
        hidden = directions(state.hidden[state.visual_idx])
        return replace(selection, mix=halved(selection.kept, gone, Cosine(hidden).nearest(gone, selection.kept)[1]))


def halved(kept: Tensor, gone: Tensor, row: Tensor) -> Mix:
    """Merge each of `gone` [G], in order, into its row [G] of `kept` [K]: the row becomes its mean with the token."""
    joins = torch.zeros_like(kept).index_add(0, row, torch.ones_like(row))
    order = row.argsort(stable=True)
    place = torch.arange(len(row), device=row.device) - (joins.cumsum(0) - joins)[row[order]]
    later = (joins[row[order]] - place).double()  # halvings from this one on
    rows = torch.arange(len(kept), device=kept.device)
    weight = torch.cat([-joins.double(), -later]).exp2()
    return Mix(torch.cat([rows, row[order]]), torch.cat([kept, gone[order]]), weight)
