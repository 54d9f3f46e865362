"""EVS: keep what changed since the frame before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Tokens
from methods.kernels.temporal import budgets, clips, joined, same_place
from methods.scores import top
from methods.uniform import centres

FIRST = 255.0  # change of a token of frame 0, which has none before it


@dataclass(kw_only=True)
class EVS(Method):
    """Keep frame 0 and the tokens least like the one at the same place a frame earlier. Paper: arXiv 2510.14624.

        e_tp = 1 - cos(x_tp, x_(t-1)p),  e_0p = 255
        keep the K tokens of largest e

    A frame is one time step. K is divided among images and videos by largest remainder, so that every frame 0, and with
    it every image, is whole where K allows. Below the P tokens of frame 0, K tokens spread evenly over it are kept; an
    image, which has one frame, is treated so.

    Args:
        fit: "k" (default) keeps exactly K. "official" keeps at least frame 0 of every video and all of every image.

    Deviation: the number of tokens of a video is floor(n K / N), where the code has int(n (1 - q)) in floating point,
    which loses one at some shares. Cosines are float64, to 12 decimals, where the code has the model's precision, in
    which many tie; ties go to the lowest index. For Qwen3-VL the code also compares the DeepStack features, which are
    not at hand here. Positions are kept, by the model's own rule. Source: the description of `multimodal/evs.py` in
    vLLM, not its text.
    """

    name = "evs"
    version = 1
    fidelity = "adapted: a rule for budgets below one frame, and cosines without DeepStack features"
    compares_frames = True

    fit: Literal["k", "official"] = "k"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        found = clips(tokens.grids)
        sizes, frames = [clip.steps * clip.size for clip in found], [clip.size for clip in found]
        if self.fit == "k":
            shares = budgets(k, sizes, sizes, frames if k >= sum(frames) else None)
        else:
            shares = [max(size * k // sum(sizes), frame) for size, frame in zip(sizes, frames, strict=True)]
        return joined(
            (clip, Selection(kept=changed(clip.of(tokens.features), share)))
            for clip, share in zip(found, shares, strict=True)
        )


def changed(x: Tensor, k: int) -> Tensor:
    """Return the `k` of the tokens `x` [T, P, D] that changed most, ascending; below P, even places of frame 0."""
    if k < x.shape[1]:
        return torch.tensor(centres(x.shape[1], k), dtype=torch.int64, device=x.device)
    change = torch.cat([x.new_full((1, x.shape[1]), FIRST, dtype=torch.float64), 1 - same_place(x[1:], x[:-1])])
    return top(change.flatten(), k).sort().values
