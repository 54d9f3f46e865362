"""Greedy maximal independent set: the best token that conflicts with none taken before, again and again."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

TILE = 256  # pivots compared with all tokens at once


def independent(
    order: Tensor, free: int, k: int, alike: Callable[[Tensor], Tensor], free_suppress: bool = False
) -> Tensor:
    """Return `k` of N tokens [k]: the first `free` of `order` [N], then by `order` those that no earlier one rules out.

    Where these run out, tokens that were ruled out fill up, by `order`. The device is not waited for.

    Args:
        order: all N tokens, best first.
        free: how many are taken without comparison, at most `k`.
        k: how many are taken, at most N.
        alike: says of tokens [P] which of all they rule out [P, N].
        free_suppress: whether the first `free` rule out others, too.
    """
    n = len(order)
    # The token of lowest key is taken next: its place in `order`, n more once ruled out, 3 n more once taken.
    key = torch.empty_like(order)
    key[order] = torch.arange(n, device=order.device)
    taken = order[:k].clone()
    if free_suppress:
        for part in taken[:free].split(TILE):
            key = torch.where(alike(part).any(dim=0) & (key < n), key + n, key)
    key.index_fill_(0, taken[:free], 3 * n)
    for i in range(free, k):
        pick = taken[i : i + 1]
        pick.copy_(key.argmin())
        key = torch.where(alike(pick)[0] & (key < n), key + n, key)
        key.index_fill_(0, pick, 3 * n)
    return taken
