"""FlashVID: keep what is attended to and diverse in each frame, and merge the rest in trees over time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import AttentionSpec, HiddenState, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.kernels.attention import attention_row
from methods.kernels.cosine import DECIMALS, directions, snap
from methods.kernels.density_peaks import density_peaks
from methods.kernels.maxmin import weighted_maxmin
from methods.kernels.static_places import NEIGHBOURS, merged
from methods.kernels.temporal import cuts, joined, per_clip, same_place, step_means
from methods.scores import top
from methods.two_cuts import TwoCuts

SCENE = 0.9  # similarity of neighbouring frames below which a segment ends
LEAST = {"v1": 4, "v2": 8}  # segments
PICKED = Fraction(7, 10)  # of the budget of a frame


@dataclass(kw_only=True)
class FlashVID(TwoCuts):
    """Pick diverse attended tokens of each frame, merge the others along time and in the frame. arXiv 2602.08024.

        segments: frames whose mean tokens have a cosine of 0.9 or more to the next one; at least 4 (v1) or 8 (v2)
        picks: 7/10 of a frame's budget, by d_ij = (1 - cos(x_i, x_j)) a_j, in v2 also times e_j;  the first has the
            largest distance from its nearest token, each next one the largest from the nearest pick
        trees: each token that is not picked joins the most similar one of the frame before, if their cosine is above
            0.8, or above what leaves the segment its budget; a tree becomes its mean, in its first frame
        clusters: density peaks of what is left in each frame, as many as the budget allows; each becomes its mean
        inside: after layer 19 of 28, keep 0.3 by the attention of the prompt's last token

    a is the attention received from all patches in the vision tower's last layer, and e_j the product of x_j and the
    mean token of the segment. K is shared among videos and frames. An image is a video of one frame.

    Args:
        variant: "v1" (default), the authors' choice for Qwen2.5-VL and Qwen3-VL; "v2" for LLaVA-OneVision and -Video.
        stages: "both" (default), or "input" without the cut inside.
        tau: cosine above which tokens of neighbouring frames join; default 0.8.
        fit: "k" (default) keeps exactly K. "official" rounds up the budget of each frame and of each of its parts, as
            the authors' code does.
        budget_at: what K counts with both cuts: "mean" (default), as the authors do, the tokens that a decoder layer
            sees on average: their 1.25 K at the input is what 28 layers allow; "entry" or "end", what the first or the
            second cut leaves.
        inner_layer: 0-based decoder layer after which the second cut is; default none: 19 of 28, or the same share. The
            authors have 27 for the 36 layers of Qwen3-VL, with inner_keep=0.1.
        inner_keep: share of the tokens that the second cut keeps; default 0.3.

    Deviation: in the original, v2 may pick a token twice, and a segment of one frame merges picked tokens again; here
    picks are distinct, and merged tokens are others. No noise decides between equal densities. Float64, cosines to 12
    decimals, ties to the lowest index. Code: Fanziyang-v/FlashVID.
    """

    name = "flashvid"
    version = 1
    fidelity = "adapted: exactly K distinct tokens"
    compares_frames = True
    needs = frozenset({Signal.VIT_ATTENTION, Signal.LLM})
    depth: ClassVar[Fraction] = Fraction(20, 28)

    variant: Literal["v1", "v2"] = "v1"
    tau: float = 0.8
    fit: Literal["k", "official"] = "k"
    inner_keep: float = 0.3

    @property
    def attention_spec(self) -> AttentionSpec:
        """Attention of all patches."""
        return AttentionSpec(queries="all")

    @property
    def hidden_state(self) -> HiddenState:
        """Hidden states are not read, only q and k."""
        return "unused"

    def _before(self, tokens: Tokens, k: int) -> Selection:
        assert tokens.vit_attention is not None
        attention, n = tokens.vit_attention["last"].double(), len(tokens.features)
        parts = []
        for clip, share in per_clip(tokens.grids, k):
            budgets = largest_remainder(share, [clip.size] * clip.steps)
            if self.fit == "official":
                budgets = [math.ceil(Fraction(clip.size * k, n))] * clip.steps
            if any(budgets):
                x, scores = clip.of(tokens.features).double(), clip.of(attention)
                parts.append((clip, self._compressed(x, scores, budgets)))
        return joined(parts)

    def _compressed(self, x: Tensor, attention: Tensor, budgets: Sequence[int]) -> Selection:
        """Return the selection of one video `x` [T, P, D] with the `budgets` [T] of its frames."""
        t, size, _ = x.shape
        means, unit, token = step_means(x), directions(x.flatten(0, 1)).view(x.shape), _numbered(x)
        lengths = cuts(same_place(means[1:], means[:-1]).tolist(), SCENE, min(LEAST[self.variant], t))
        spans = [slice(*span) for span in pairwise(accumulate(lengths, initial=0))]
        if self.variant == "v2":
            attention = attention * snap(torch.cat([x[span] @ means[span].mean(dim=0) for span in spans]))
        counts = [math.ceil(PICKED * budget) for budget in budgets]
        order = weighted_maxmin(unit, attention, max(counts))
        picks = [token[i, row[:count]] for i, (row, count) in enumerate(zip(order, counts, strict=True))]
        free = torch.ones_like(token).flatten().index_fill(0, torch.cat(picks), 0).view(t, size).bool()
        trees = [self._trees(unit[span], free[span], sum(budgets[span])) + token[span.start, 0] for span in spans]
        root = torch.cat(trees)
        alive = free & (root == token)
        left, quotas = alive.sum(dim=1).tolist(), []
        for span in spans:
            quotas += self._quotas(left[span], sum(budgets[span]) - sum(counts[span]))
        into, weight = _clustered(x, free, root, alive, list(zip(left, quotas, strict=True)))
        source = (free & (into >= 0)).flatten().nonzero().squeeze(1)
        into, weight = into.flatten()[source], weight.flatten()[source]
        return merged([*picks, into.unique()], [(into, source, weight)])

    def _trees(self, unit: Tensor, free: Tensor, budget: int) -> Tensor:
        """Return the root [L, P] of each token of a segment `unit` [L, P, D] of which `budget` stay, picks included.

        Only `free` [L, P] tokens join others, and are joined.
        """
        frames, size = free.shape
        best, parent = [unit.new_empty(0, size)], []
        for now, before in zip(range(1, frames), range(frames), strict=False):
            cosine = (unit[now] @ unit[before].T).round(decimals=DECIMALS).masked_fill(~free[before], -torch.inf)
            value, index = cosine.max(dim=1)  # the first of equal maxima
            best.append(value.masked_fill(~free[now], -torch.inf)[None])
            parent.append(index)
        similarity, most = torch.cat(best), frames * size - budget
        falling = similarity.flatten().sort(descending=True).values
        limit = falling.new_tensor([torch.inf if not most else self.tau])
        if 0 < most < len(falling):  # else all that are similar enough may join
            limit = torch.where(falling[most] > self.tau, falling[most - 1], limit)
        root = [torch.arange(size, device=unit.device)]
        for i, (joins, index) in enumerate(zip(similarity > limit, parent, strict=True)):
            root.append(torch.where(joins, root[i][index], root[0] + (i + 1) * size))
        return torch.stack(root)

    def _quotas(self, left: Sequence[int], k: int) -> list[int]:
        """Divide `k` clusters among the frames of a segment, in proportion to the tokens `left` in them."""
        if k >= sum(left):
            return list(left)
        if self.fit == "k":
            return largest_remainder(k, left)
        return [math.ceil(Fraction(n * k, sum(left))) for n in left]

    def _inside(self, tokens: Tokens, k: int) -> Selection:
        state = tokens.llm
        assert state is not None
        if self.fit == "official":
            k = math.ceil(len(tokens.features) * self.inner_share)
        return Selection.of(top(attention_row(state.q[:, -1], state.k)[state.visual_idx], k))


def _numbered(x: Tensor) -> Tensor:
    """Return the number [T, P] of each token of `x` [T, P, D]."""
    return torch.arange(x.shape[0] * x.shape[1], device=x.device).view(x.shape[:2])


def _clustered(
    x: Tensor, free: Tensor, root: Tensor, alive: Tensor, frames: Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """Cluster the trees of one video `x` [T, P, D] that are rooted in each frame.

    Returns:
        The token [T, P] into whose place each one is merged, -1 if it is lost, and its weight [T, P] there.

    Args:
        x: [T, P, D].
        free: [T, P] tokens that are in a tree.
        root: [T, P] of their trees.
        alive: [T, P] tokens that are roots.
        frames: how many roots there are in each frame, and how many clusters.
    """
    token, rows = _numbered(x), x.flatten(0, 1)
    members = rows.new_zeros(len(rows)).index_add(0, root.flatten(), free.flatten().to(rows))
    sums = torch.zeros_like(rows).index_add(0, root.flatten(), rows * free.flatten()[:, None])
    means = sums / members.clamp(min=1)[:, None]
    into, weight = torch.full_like(token.flatten(), -1), torch.zeros_like(members)
    for own, roots, (number, count) in zip(token, alive, frames, strict=True):
        index = own[top(roots.int(), number)]
        if count == number:
            into, weight = into.index_copy(0, index, index), weight.index_fill(0, index, 1.0)
        elif count:
            peaks = density_peaks(means[index], count, min(NEIGHBOURS, count))
            into = into.index_copy(0, index, index[peaks.centres][peaks.cluster])
            share = 1 / peaks.cluster.bincount(minlength=count).to(rows)
            weight = weight.index_copy(0, index, share[peaks.cluster])
    return into[root], (weight / members.clamp(min=1))[root]
