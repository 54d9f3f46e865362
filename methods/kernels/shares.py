"""Whole-number shares of a budget among images, time steps or bands."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def rounded(k: int, sizes: Sequence[int], equal: bool = False) -> list[int]:
    """Share `k` <= sum of `sizes` in proportion to their positive `sizes` or, if `equal`, evenly.

    Each part's exact share is rounded, halves to the even number, as codes do that give every image the same ratio: to
    at least 1 where `k` allows and at most its size. Where the sum is not `k`, parts that rounding took farthest get
    one more (the first of equals) or less (the last).
    """
    exact = [Fraction(k, len(sizes)) if equal else Fraction(k * size, sum(sizes)) for size in sizes]
    least = 1 if k >= len(sizes) else 0
    given = [min(max(round(share), least), size) for share, size in zip(exact, sizes, strict=True)]
    missing = k - sum(given)
    step = 1 if missing > 0 else -1
    for _ in range(abs(missing)):
        free = [i for i, size in enumerate(sizes) if (given[i] < size if missing > 0 else given[i] > least)]
        given[max(free, key=lambda i: (step * (exact[i] - given[i]), -step * i))] += step
    return given


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
