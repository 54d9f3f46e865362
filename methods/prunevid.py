"""PruneVid: merge static places of segments and similar tokens, then keep what the question attends to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import accumulate, groupby, pairwise
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods.base import Cut, HiddenState, Selection, Signal, Tokens
from methods.budget import largest_remainder
from methods.kernels.attention import TILE, attention_rows
from methods.kernels.cosine import DECIMALS, directions
from methods.kernels.density_peaks import density_peaks
from methods.kernels.static_places import NEIGHBOURS, Block, blocks, clustered, merged, spared, weights
from methods.kernels.temporal import joined, per_clip, same_place, step_means
from methods.per_tile import crops_of
from methods.scores import top
from methods.two_cuts import TwoCuts

FRAMES = 4  # for each cluster of frames
FEW = 14  # rows of a block up to which the authors cluster none


@dataclass(kw_only=True)
class PruneVid(TwoCuts):
    """Cut a video into scenes, merge static places and similar tokens in each, keep what is asked. arXiv 2412.16117.

        scenes  = runs of equal label: density peaks, one for 4 frames, label the frames' mean tokens; only the longest
                  runs of a label keep it, others take that of the longer kept run next to them
        static  = places of a scene whose mean cosine over pairs of its frames is above tau: one row each, their mean
        blocks  = the static rows of a scene, and the other tokens of each of its frames
        merging = density peaks cluster each block; a row is the mean of its cluster
        inside  = after layer 10 of 32, keep in each block the tokens to which the words behind the video attend most:
                  maximum over heads and words of softmax(q . k / sqrt(d)), without positions and without a causal mask

    K is shared among videos, and in each among blocks in proportion to their rows. An image is a video of one frame.

    Args:
        stages: "both" (default), or "input" without the cut inside.
        tau: default 0.8.
        fit: "k" (default) keeps exactly K. "official" keeps what the authors' code does, whatever K is: of a block of
            more than 14 rows half, rounded down, else all; inside, `inner_keep` of each block, rounded down.
        budget_at: what K counts with both cuts: "mean" (default), the tokens that a decoder layer sees on average;
            "entry" or "end", what the first or the second cut leaves.
        inner_layer: 0-based decoder layer after which the second cut is; default none: 10 of 32, or the same share.
        inner_keep: share of the tokens that the second cut keeps; default 0.4.

    Deviation: written from a specification alone, since the authors' code has no licence. The caches of the layers in
    front of the second cut keep what these saw, where the authors cut them, too. A merged row stands at its centre's
    place, in the first frame of the scene if it is static, and keeps that position; the authors order rows by density
    and number them again. Videos of fewer than 7 frames, an error there, have as many neighbours as frames, and at
    least one scene. Where K exceeds the number of rows, the merged tokens least like their rows stay as they are. With
    fit="official" a sample keeps at least one token. No noise decides between equal densities. Float64, cosines to 12
    decimals, ties to the lowest index. Code: Visual-AI/PruneVid, not read here.
    """

    name = "prunevid"
    version = 1
    fidelity = "adapted: from a specification, exactly K tokens, early layers keep their caches"
    compares_frames = True
    needs = frozenset({Signal.LLM, Signal.TEXT_AFTER})
    depth: ClassVar[Fraction] = Fraction(11, 32)

    tau: float = 0.8
    fit: Literal["k", "official"] = "k"
    inner_keep: float = 0.4

    @property
    def hidden_state(self) -> HiddenState:
        """Hidden states are not read, only q and k."""
        return "unused"

    @property
    def rotated(self) -> bool:
        """False: the words attend without positions."""
        return False

    def schedule(self, n: int, k: int, layers: int) -> Sequence[Cut]:
        """Return the cuts; what stays with fit="official" is not known, and the counts stand for the least."""
        cuts = super().schedule(n, k, layers)
        return cuts if self.exact_k else [Cut(cut.layer, min(n, len(cuts) - i)) for i, cut in enumerate(cuts)]

    def _before(self, tokens: Tokens, k: int) -> Selection:
        parts, block_of, number = [], [], 0
        for clip, share in per_clip(tokens.grids, k):
            if share or self.fit == "official":
                found = scenes_and_blocks(clip.of(tokens.features), self.tau)
                part = self._merged(tokens.features[clip.tokens], found, share)
                own = torch.zeros(clip.steps * clip.size, dtype=torch.int64, device=part.kept.device)
                for i, block in enumerate(found, number):
                    own[block.source] = i
                number += len(found)
                parts.append((clip, part))
                block_of.append(own[part.kept])
        return replace(joined(parts), memory=torch.cat(block_of))

    def _merged(self, x: Tensor, found: Sequence[Block], k: int) -> Selection:
        """Return the selection of one video `x` [T * P, D]: each block is clustered, and each cluster averaged."""
        sizes = [block.source.shape[1] for block in found]
        counts = [n // 2 if n > FEW else n for n in sizes]
        extra = 0
        if self.fit == "k":
            counts, extra = largest_remainder(min(k, sum(sizes)), sizes), max(0, k - sum(sizes))
        free = spared(found, extra, unlike(x, found) if extra else x[:, 0])
        kept, entries = [free.nonzero().squeeze(1)], []
        for block, count in zip(found, counts, strict=True):
            if count:
                weight = weights(block, free)
                centres, cluster = clustered(x, weight, block, count, NEIGHBOURS)
                kept.append(block.source[0, centres])
                members = cluster.bincount(minlength=count)[cluster]
                into = block.source[0, centres[cluster]].expand_as(weight)
                entries.append((into, block.source, weight / members))
        return merged(kept, entries)

    def _inside(self, tokens: Tokens, k: int) -> Selection:
        block = tokens.memory
        if not isinstance(block, Tensor):  # nothing was cut before
            block = crops_of(tokens.grids, None, tokens.features.device)
        scores = asked(tokens)
        sizes = block.bincount().tolist()
        quotas = [int(n * self.inner_share) for n in sizes]
        if self.fit == "k":
            quotas = largest_remainder(k, sizes)
        elif not any(quotas):
            return Selection(top(scores, 1))
        order = top(scores, len(scores))
        order = order[block[order].argsort(stable=True)]  # by block, and in each by score
        kept = [part[:quota] for part, quota in zip(order.split(sizes), quotas, strict=True)]
        return Selection(torch.cat(kept).sort().values)


def scenes_and_blocks(x: Tensor, tau: float) -> list[Block]:
    """Return the blocks of one video `x` [T, P, D]."""
    t, size, _ = x.shape
    labels = density_peaks(step_means(x), max(1, t // FRAMES), NEIGHBOURS).cluster.tolist()
    ends = list(accumulate(len(list(run)) for _, run in groupby(refined(labels))))
    scenes = [(first, end - 1) for first, end in pairwise([0, *ends])]
    unit = directions(x.flatten(0, 1)).view(x.shape)
    static = torch.stack([mean_cosine(unit[first : last + 1]) > tau for first, last in scenes])
    return blocks(scenes, static, size)


def refined(labels: Sequence[int]) -> list[int]:
    """Leave each label its longest runs; other runs take the label of the longer one next to them, left of equals.

    A label without a run of two frames keeps none; if no label does, all frames get label 0.
    """
    runs = [(label, len(list(run))) for label, run in groupby(labels)]
    longest = {label: max(length for other, length in runs if other == label) for label, _ in runs}
    stays = [length > 1 and length == longest[label] for label, length in runs]
    found: list[int] = []
    for i, (_, length) in enumerate(runs):
        left = next((j for j in range(i, -1, -1) if stays[j]), None)
        right = next((j for j in range(i, len(runs)) if stays[j]), None)
        near = [j for j in (left, right) if j is not None]
        label = runs[max(near, key=lambda j: runs[j][1])][0] if near else 0
        found += [label] * length
    return found


def mean_cosine(unit: Tensor) -> Tensor:
    """Return the mean cosine [P] over all pairs of different frames of `unit` [W, P, D]; none of a single frame: -1."""
    frames = len(unit)
    pairs = unit.sum(dim=0).square().sum(dim=-1) - unit.square().sum(dim=(0, 2))
    return (pairs / max(1, frames * (frames - 1))).round(decimals=DECIMALS) - float(frames == 1)


def unlike(x: Tensor, found: Sequence[Block]) -> Tensor:
    """Return how unlike the mean of its row each token of `x` [N, D] is: 1 - cosine, [N]."""
    far = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for block in found:
        rows = x[block.source].double()
        far[block.source] = 1 - same_place(rows, rows.mean(dim=0).expand_as(rows))
    return far


def asked(tokens: Tokens) -> Tensor:
    """Return the highest attention [n] to each token by any head from any row behind the last visual one."""
    state, behind = tokens.llm, tokens.text_after
    assert state is not None
    assert behind is not None
    heads, length, _ = state.q.shape
    rows = torch.arange(length - max(1, len(behind)), length, device=state.q.device)
    highest = [
        attention_rows(state.q[:, part], state.k, torch.full_like(part, length - 1)).amax(dim=(0, 1))
        for part in rows.split(max(1, TILE // (heads * length)))
    ]
    return torch.stack(highest).amax(dim=0)[state.visual_idx]
