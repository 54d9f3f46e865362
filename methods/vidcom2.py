"""VidCom2: frames unlike the rest of a video keep more tokens, and every frame keeps its most distinct ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Tokens
from methods.kernels.cosine import directions, snap
from methods.kernels.temporal import best_of_steps, budgets, joined, per_clip
from methods.scores import top

WIDTHS = (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0)  # of the Gaussian kernels, which are added
TEMPERATURE = 0.01
FLOOR = 1e-12  # smallest norm
DIGITS = 9  # behind the point of r_t P: below, a half is one but for rounding errors


@dataclass(kw_only=True)
class VidCom2(Method):
    """Keep what is unlike the mean of the video and of its frame. Paper: arXiv 2505.14454.

        y    = tokens [T, P, D / 2] in the channels of lowest variance, of unit length
        s_v  = G(y, mean of all y),  s_f = G(y, mean of y in the frame),  G(y, c) = sum_a exp(-|y - c|^2 / 2a)
        w    = softmax(-mean of s_v in a frame / 0.01)
        r_t  = min(1, r (1 + w_t - mean w))          share of frame t, where r is that of the video
        keep the r_t P tokens of lowest s_v + s_f in frame t

    A frame is one time step. An image is a video of one frame; each image and video has its share of K.

    Args:
        fit: "k" (default) keeps exactly K: r_t P is rounded by largest remainder, and frames that are kept whole leave
            their surplus to the others. "official" rounds each r_t P by itself, at least to 1, which need not add up to
            K, and leaves images whole, as the authors' code does; halves go to the even number.

    Deviation: several videos are compressed one by one, as in the code for Qwen2.5-VL; r is K / N of the prompt. All is
    float64, where the code has the model's precision; ties go to the lowest index. Newline rows between the tokens of a
    frame stay where they are. Code: xuyang-liu16/VidCom2 @ 944a17d.
    """

    name = "vidcom2"
    version = 1
    fidelity = "exact"
    compares_frames = True

    fit: Literal["k", "official"] = "k"

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        ratio, parts = k / len(tokens.features), []
        for clip, part in per_clip(tokens.grids, k):
            weight, score = uniqueness(clip.of(tokens.features))
            most = [clip.size] * clip.steps
            if self.fit == "k":
                quotas = budgets(part, weight, most)
            elif clip.steps > 1:
                targets = [round(ratio * each * clip.size, DIGITS) for each in weight]
                quotas = [max(1, round(target)) for target in targets]
            else:
                quotas = most
            parts.append((clip, Selection(kept=best_of_steps(score, quotas))))
        return joined(parts)


def uniqueness(x: Tensor) -> tuple[list[float], Tensor]:
    """Return the weight 1 + w_t - mean w of each of T frames, and -(s_v + s_f) [T, P] of tokens `x` [T, P, D]."""
    x = x.double()
    calm = top(-snap(x.var(dim=(0, 1), correction=0)), x.shape[2] // 2)
    y = directions(x[..., calm].flatten(0, 1), floor=FLOOR).view(*x.shape[:2], -1)
    in_video, in_frame = _likeness(y, y.mean(dim=(0, 1))), _likeness(y, y.mean(dim=1, keepdim=True))
    w = (snap(-in_video.mean(dim=1)) / TEMPERATURE).softmax(dim=0)
    return snap(1 + w - w.mean()).tolist(), -snap(in_video + in_frame)


def _likeness(y: Tensor, centre: Tensor) -> Tensor:
    """Return G(y, centre) [T, P]."""
    distance = (y - centre).square().sum(dim=-1, keepdim=True)
    return torch.exp(-distance / (2 * distance.new_tensor(WIDTHS))).sum(dim=-1)
