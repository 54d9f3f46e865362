"""FastVID: cut a video where frames change, keep salient tokens, and merge the others into density peaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor

from methods.base import AttentionSpec, Method, Mix, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.kernels.cosine import nearest_row
from methods.kernels.density_peaks import density_peaks
from methods.kernels.temporal import best_of_steps, budgets, cuts, joined, per_clip, same_place, step_means
from methods.scores import top

NEIGHBOURS = 4  # that make the density of a token


@dataclass(kw_only=True)
class FastVID(Method):
    """Keep salient tokens and merge the rest by density, in segments of a video. Paper: arXiv 2503.11187.

        cut after frame t where cos(g_t, g_t+1) < 0.84, and where it is lowest, into at least 8 segments; g: mean token
        in a segment, only the last of a run of frames with cos >= 0.95 keeps tokens:
            salient tokens, of highest attention: 60 % of the segment's budget, shared evenly by these frames
            targets, by density peaks of the others: 40 %, shared evenly by every 4th of these frames, the last first
        in each frame with targets, every token of the segment that is neither salient nor one of them joins the most
        similar target:  y = w x + (1 - w) mean of what joins,  w = max(1 / (number that joins + 1), 0.6)

    A frame is one time step. An image is a video of one frame. This is the authors' variant for Qwen2.5-VL, whose
    attention is that of the mean query of a frame to the keys of its tokens in the last layer of the tower.

    Args:
        fit: "k" (default) keeps exactly K: images and videos, segments, and frames share it by largest remainder, and
            what exceeds a frame goes to the others; a segment whose budget exceeds its runs has no runs. "official"
            gives every frame floor(P K / N) and loses what exceeds a frame, as the authors' code does; images stay
            whole.
        segments: fewest segments of a video; default 8.
        tau: similarity of frames below which a segment ends; default 0.84, as the authors have it for Qwen2.5-VL.
        ignore: similarity of frames from which on they are a run; default 0.95.
        context: share of targets; default 0.4.
        stride: each so many runs have targets; default 4.
        beta: least weight of a target in what it becomes; default 0.6.

    Deviation: a video of fewer frames than segments has a segment for each frame, where the code fails; several videos
    are compressed one by one, where it takes one. It draws noise for equal densities; here the lowest index wins, as in
    any tie. Cosines and densities are float64. On towers with CLS, the attention is that of CLS; the authors' variant
    for LLaVA-OneVision reads a pooling head that its checkpoints lack. Positions are kept.
    Code: LunarShen/FastVID @ a40a109.
    """

    name = "fastvid"
    version = 1
    fidelity = "adapted: exactly K tokens, and no noise in densities"
    compares_frames = True
    needs = frozenset({Signal.VIT_ATTENTION})

    fit: Literal["k", "official"] = "k"
    segments: int = 8
    tau: float = 0.84
    ignore: float = 0.95
    context: float = 0.4
    stride: int = 4
    beta: float = 0.6

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("segments", self.segments >= 1, "at least 1")
        self.require("context", 0 <= self.context <= 1, "in [0, 1]")
        self.require("stride", self.stride >= 1, "at least 1")
        self.require("beta", 0 <= self.beta <= 1, "in [0, 1]")

    @property
    def attention_spec(self) -> AttentionSpec:
        """The attention of a frame's mean query to the mean keys of tokens."""
        return AttentionSpec(keys="tokens", mean_query_from=1)

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        assert tokens.vit_attention is not None
        n, parts = len(tokens.features), []
        for clip, share in per_clip(tokens.grids, k):
            if self.fit == "official" and clip.steps == 1:
                parts.append((clip, Selection(torch.arange(clip.size, device=tokens.features.device))))
                continue
            frames = step_means(clip.of(tokens.features))
            similar = same_place(frames[1:], frames[:-1]).tolist()
            segments = clip.cut(cuts(similar, self.tau, self.segments))
            shares = largest_remainder(share, [segment.steps * segment.size for segment in segments])
            if self.fit == "official":
                shares = [segment.steps * max(1, clip.size * k // n) for segment in segments]
            for segment, budget in zip(segments, shares, strict=True):
                first = (segment.start - clip.start) // clip.size
                salient, targets = self._quotas(similar[first : first + segment.steps - 1], clip.size, budget)
                scores = segment.of(tokens.vit_attention["last"])
                parts.append((segment, self._merged(segment.of(tokens.features), scores, salient, targets)))
        return joined(parts)

    def _quotas(self, similar: Sequence[float], p: int, budget: int) -> tuple[list[int], list[int]]:
        """Return how many salient tokens and how many targets each frame of a segment has, of `p` tokens."""
        runs = cuts(similar, self.ignore)
        if self.fit == "k" and budget > len(runs) * p:
            runs = [1] * (len(similar) + 1)
        last = [end - 1 for end in accumulate(runs)]  # frame of each run
        anchors, half = last[:: -self.stride], max(1, p // 2)
        count = max(int(budget * self.context), 1)
        if self.fit == "k":
            count = min(count, budget, len(anchors) * half)
        targets = self._evenly(count, dict.fromkeys(anchors, half))
        salient = self._evenly(budget - count, {frame: p - targets.get(frame, 0) for frame in last})
        frames = range(len(similar) + 1)
        return [salient.get(frame, 0) for frame in frames], [targets.get(frame, 0) for frame in frames]

    def _evenly(self, count: int, most: dict[int, int]) -> dict[int, int]:
        """Share `count` evenly among frames that hold at `most` so many; the first get the remainder."""
        if self.fit == "k":
            parts = budgets(count, [1] * len(most), list(most.values()))
        else:
            parts = list(map(min, largest_remainder(count, [1] * len(most)), most.values()))
        return dict(zip(most, parts, strict=True))

    def _merged(self, x: Tensor, scores: Tensor, salient: Sequence[int], targets: Sequence[int]) -> Selection:
        """Keep so many tokens `x` [T, P, D] of each frame of a segment; `scores` [T, P] is their attention."""
        rows, best = x.flatten(0, 1), best_of_steps(scores, salient)
        free = torch.ones_like(rows[:, 0], dtype=torch.int64).index_fill_(0, best, 0)
        others = top(free, len(rows) - len(best))  # ascending
        kept, mixes = [best], []
        for own, count in zip(others.split([x.shape[1] - part for part in salient]), targets, strict=True):
            if count:
                target = own[density_peaks(rows[own], count, NEIGHBOURS).centres]
                joining = top(free.index_fill(0, target, 0), len(others) - count)
                target_of = nearest_row(rows[joining], rows[target])
                number = torch.bincount(target_of, minlength=count).double()
                weight = (1 / (number + 1)).clamp(min=self.beta)
                kept.append(target)
                mixes.append(Mix(target, target, weight))
                mixes.append(Mix(target[target_of], joining, ((1 - weight) / number)[target_of]))
        stay = torch.cat(kept).sort().values
        if not mixes:
            return Selection(kept=stay)
        mix = Mix(*map(torch.cat, zip(*mixes, strict=True)))
        return Selection(kept=stay, mix=mix._replace(row=torch.searchsorted(stay, mix.row)))
