"""Whole-number shares of a budget."""

from __future__ import annotations

from collections.abc import Sequence


def largest_remainder(k: int, sizes: Sequence[int]) -> list[int]:
    """Share `k` <= sum of `sizes` in proportion to `sizes`, at least one each where `k` allows; ties to the first."""
    total = sum(sizes)
    quotas = [k * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    for i in by_remainder[: k - sum(quotas)]:
        quotas[i] += 1
    starving = [i for i, size in enumerate(sizes) if size and not quotas[i]]
    for i in starving if k >= sum(size > 0 for size in sizes) else []:
        quotas[quotas.index(max(quotas))] -= 1
        quotas[i] += 1
    return quotas
