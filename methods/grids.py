"""Geometry of visual tokens on their grids: images and time steps, distances, cells."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor

from methods.budget import Budget, of_ratio, rounded
from methods.tokens import Grid, Selection

Grids = Sequence[Grid]


def images(grids: Grids) -> list[tuple[int, int]]:
    """Return (first token, number of tokens) of each image or whole video that has any."""
    return _spans([t * h * w for t, h, w in grids])


def frames(grids: Grids) -> list[tuple[int, int]]:
    """Return (first token, number of tokens) of each image or time step of a video that has any."""
    return _spans([h * w for t, h, w in grids for _ in range(t)])


def per_image(
    spans: Sequence[tuple[int, int]], k: int, share: Callable[[int, Sequence[int]], list[int]] = rounded
) -> list[tuple[slice, int]]:
    """Return (slice of its tokens, its part of `k`) for each of `spans`; the rule `share` divides `k`."""
    quotas = share(k, [size for _, size in spans])
    return [(slice(start, start + size), quota) for (start, size), quota in zip(spans, quotas, strict=True)]


def merged_per_image(
    spans: Sequence[tuple[int, int]],
    k: int,
    merge: Callable[[slice, int], tuple[Tensor, Tensor]],
    share: Callable[[int, Sequence[int]], list[int]] = rounded,
) -> Selection:
    """Merge the tokens of each of `spans` by itself; with `k` below their number all are one.

    `merge` takes the slice of n tokens and its part of `k`, and returns the kept ones [part], ascending and counted
    from the start of the slice, and which of these each of the tokens [n] joins.
    """
    kept, owner, offset = [], [], 0
    for unit, part in per_image(spans if k >= len(spans) else [(0, sum(spans[-1]))], k, share):
        rows, joins = merge(unit, part)
        kept.append(unit.start + rows)
        owner.append(offset + joins)
        offset += part
    return Selection(kept=torch.cat(kept), owner=torch.cat(owner))


def count_per_image(spans: Sequence[tuple[int, int]], budget: Budget) -> int:
    """Return how many tokens stay if the ratio of `budget` is rounded for each of `spans` alone."""
    sizes = [size for _, size in spans]
    return sum(of_ratio(budget.ratio(sum(sizes)), sizes)) if sizes else 0


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    starts = accumulate(sizes, initial=0)
    return [(start, size) for start, size in zip(starts, sizes, strict=False) if size]


def nearness(grids: Grids, kernel: str, device: torch.device | None = None) -> Callable[[Tensor], Tensor]:
    """Return a function from tokens [P] to their nearness [P, N] to all, in [0, 1].

    Between tokens of one image, or of one step of a video, it falls with their distance in cells: 1 - distance /
    diagonal for "linear", 1 / (1 + distance) for "inverse". Between all others it is 0.
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


def cells(grids: Grids, k: int, device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Divide all tokens into exactly `k` connected cells of nearly equal size.

    The budget is divided among images and time steps. A step of h x w tokens and share s has round(sqrt(s h / w)) bands
    of rows, and each band has its even share of the s cells, side by side. Where s = h' w', this is a lattice of
    h' x w'. With fewer cells than images and time steps, a cell is a run of whole images or steps.

    Returns:
        The cell [N] of each token, and the token [k] in the middle of each cell, ascending.
    """
    spans = frames(grids)
    if k < len(spans):
        starts = [spans[i * len(spans) // k][0] for i in range(k)]
        edges = torch.tensor([*starts, sum(spans[-1])], device=device)
        return torch.repeat_interleave(edges.diff(), output_size=sum(spans[-1])), (edges[:-1] + edges[1:]) // 2
    sides = [(h, w) for t, h, w in grids for _ in range(t) if h * w]
    quotas = rounded(k, [size for _, size in spans])
    parts = [_lattice(h, w, quota, device) for (h, w), quota in zip(sides, quotas, strict=True)]
    cell = [first + part[0] for first, part in zip(accumulate(quotas, initial=0), parts, strict=False)]
    middle = [start + part[1] for (start, _), part in zip(spans, parts, strict=True)]
    return torch.cat(cell), torch.cat(middle)


def _lattice(h: int, w: int, k: int, device: torch.device | None) -> tuple[Tensor, Tensor]:
    """Return the cell [h * w] of each token of one image, and the middle token [k] of each cell.

    Where m pieces divide 0..n-1 at floor(i n / m), position x falls into piece ((x + 1) m - 1) // n.
    """
    bands = max(min(max(round(math.sqrt(k * h / w)), 1), h, k), math.ceil(k / w))  # no band has more than w cells
    y, x = torch.arange(h, device=device)[:, None], torch.arange(w, device=device)
    band = ((y + 1) * bands - 1) // h
    first, after = band * k // bands, (band + 1) * k // bands
    cell = first + ((x + 1) * (after - first) - 1) // w

    number = torch.arange(k, device=device)
    band = ((number + 1) * bands - 1) // k
    first, after = band * k // bands, (band + 1) * k // bands
    piece, pieces = number - first, after - first
    row = (band * h // bands + (band + 1) * h // bands) // 2
    column = (piece * w // pieces + (piece + 1) * w // pieces) // 2
    return cell.flatten(), row * w + column
