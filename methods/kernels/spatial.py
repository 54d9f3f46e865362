"""Nearness of tokens on the grids of their images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def nearness(
    grids: Sequence[tuple[int, int, int]], kernel: str, device: torch.device | None = None
) -> Callable[[Tensor], Tensor]:
    """Return a function from tokens [P] to their nearness [P, N] to all, in [0, 1].

    Between tokens of one image, or of one step of a video, it falls with their distance in cells: 1 - distance /
    diagonal for "linear", 1 / (1 + distance) for "inverse". Between others it is 0.
    """
    parts, step = [], 0
    for t, h, w in grids:
        number, y, x = torch.meshgrid(*(torch.arange(length, device=device) for length in (t, h, w)), indexing="ij")
        diagonal = torch.full_like(y, 1, dtype=torch.float64) * max(math.hypot(h - 1, w - 1), 1.0)  # 1: one cell
        parts.append(torch.stack([number + step, y, x, diagonal]).flatten(1))
        step += t
    step_of, y, x, diagonal = torch.cat(parts, dim=1)

    def near(picks: Tensor) -> Tensor:
        distance = torch.hypot(y[picks, None] - y, x[picks, None] - x)
        value = 1 - distance / diagonal if kernel == "linear" else 1 / (1 + distance)
        return value * (step_of[picks, None] == step_of)

    return near
