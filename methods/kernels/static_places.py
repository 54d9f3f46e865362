"""Tokens of a video that repeat at their place within a window of frames, as rows that stand for all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from methods.kernels.density_peaks import density_peaks
from methods.scores import top
from methods.tokens import Mix, Selection

NEIGHBOURS = 7  # in densities


class Block(NamedTuple):
    """Rows that share a part of the budget: the static places of a window, or the other tokens of one of its frames."""

    source: Tensor  # [W, n] tokens of which each row is the mean; it stands at the first
    static: bool


def blocks(windows: Iterable[tuple[int, int]], static: Tensor, size: int) -> list[Block]:
    """Return the blocks that have rows of `windows` (first, last), each with its `static` [windows, P] places."""
    place, found = torch.arange(size, device=static.device), []
    order = static.int().argsort(dim=1, descending=True, stable=True)
    for (first, last), row, count in zip(windows, order, static.sum(dim=1).tolist(), strict=True):
        still, moving = place[row[:count]], place[row[count:]]
        frames = torch.arange(first, last + 1, device=static.device)[:, None] * size
        found.append(Block(frames + still, True))
        found += [Block(frame + moving[None], False) for frame in frames]
    return [block for block in found if block.source.numel()]


def spared(found: Iterable[Block], extra: int, scores: Tensor) -> Tensor:
    """Return a mask [N] of the `extra` tokens of highest `scores` [N] that leave their rows and stay as they are.

    The first token of a row is never among them. This is what is left for a budget above the number of rows.
    """
    free = torch.zeros_like(scores, dtype=torch.bool)
    if extra:
        later = torch.cat([block.source[1:].flatten() for block in found])
        free[later[top(scores[later], extra)]] = True
    return free


def weights(block: Block, free: Tensor) -> Tensor:
    """Return the weights [W, n] with which a row is the mean of its tokens, those that are `free` [N] left out."""
    share = (~free[block.source]).double()
    return share / share.sum(dim=0)


def clustered(x: Tensor, weight: Tensor, block: Block, count: int, neighbours: int) -> tuple[Tensor, Tensor]:
    """Cluster the rows of a block, with `weight` [W, n], of `x` [N, D] around `count` density peaks.

    Returns:
        The rows [count] that are centres, and the cluster [n] of each row.
    """
    rows = torch.arange(block.source.shape[1], device=x.device)
    if count == len(rows):
        return rows, rows
    means = (x[block.source].double() * weight[..., None]).sum(dim=0)
    peaks = density_peaks(means, count, neighbours)
    return peaks.centres, peaks.cluster


def merged(kept: list[Tensor], entries: list[tuple[Tensor, Tensor, Tensor]]) -> Selection:
    """Return the selection of the tokens `kept`, merged by `entries`: (token it goes into, token, weight), each [E]."""
    rows = torch.cat(kept).sort().values
    if not sum(source.numel() for _, source, _ in entries):
        return Selection(rows)
    into, source, weight = (torch.cat([part.flatten() for part in parts]) for parts in zip(*entries, strict=True))
    return Selection(rows, mix=Mix(torch.searchsorted(rows, into), source, weight))
