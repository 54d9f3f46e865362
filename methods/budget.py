"""Turn a share or a number of visual tokens into K, and divide K among images."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from numbers import Integral, Real
from typing import Any


@dataclass(frozen=True)
class Budget:
    """How many visual tokens of a sample are kept: a share, or a number of the sample or of each of its crops.

    Args:
        keep: share to keep, in (0, 1]; K = N * keep, halves to the even number, at least 1.
        tokens: number to keep, at least 1; K = min(N, tokens).
        per_tile: number to keep of each crop, at least 1; K = min(N, per_tile * crops), chosen in each crop by itself.
    """

    keep: float | None = None
    tokens: int | None = None
    per_tile: int | None = None

    def __post_init__(self) -> None:
        """Check the values, and convert numbers of other types, such as NumPy's: equal budgets compare equal."""
        if len(self.setting) != 1:
            got = " and ".join(f"{name}={value!r}" for name, value in self.setting.items()) or "neither"
            raise ValueError(f"a budget is either keep=<share>, tokens=<number> or per_tile=<number>, got {got}")
        if self.keep is not None and not (_is_number(self.keep, Real) and 0 < self.keep <= 1):
            raise ValueError(f"keep must be a number in (0, 1], not {self.keep!r}")
        for name in ("tokens", "per_tile"):
            value = getattr(self, name)
            if value is not None and not (_is_number(value, Integral) and value >= 1):
                raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
            object.__setattr__(self, name, value if value is None else int(value))
        if self.keep is not None:
            # Through the shortest decimal of its own type: float(np.float32(0.1)) would be 0.10000000149011612.
            object.__setattr__(self, "keep", float(Fraction(str(self.keep))))

    def count(self, n: int, crops: int | None = None) -> int:
        """Return K for a sample of `n` visual tokens from so many `crops`; 0 only if there are none."""
        if not _is_number(n, Integral) or n < 0:
            raise ValueError(f"the number of visual tokens must be an integer of at least 0, not {n!r}")
        if self.tokens is not None:
            return min(int(n), self.tokens)
        if self.per_tile is not None:
            if crops is None:
                raise ValueError(f"{self.label} gives a number of tokens only where the number of crops is known")
            return min(int(n), self.per_tile * crops)
        return min(int(n), max(1, round(self.ratio(n) * int(n))))

    def ratio(self, n: int) -> Fraction:
        """Return the share of `n` > 0 visual tokens that is kept, before rounding; not of a budget per tile."""
        if self.keep is None:
            return min(Fraction(self.count(n), int(n)), Fraction(1))
        # The decimal as written, not its binary neighbour: 0.15 * 10 is 1.5 here, and rounds to 2.
        return Fraction(str(self.keep))

    @property
    def setting(self) -> dict[str, Any]:
        """The one setting that is given, by name."""
        return {name: value for name, value in vars(self).items() if value is not None}

    @property
    def label(self) -> str:
        """Short name for tables and folders, such as "0.25", "64tok" or "32per_tile"."""
        if self.keep is not None:
            return str(self.keep)
        return f"{self.per_tile}per_tile" if self.tokens is None else f"{self.tokens}tok"


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def rounded(k: int, sizes: Sequence[int], equal: bool = False) -> list[int]:
    """Divide `k` among parts in proportion to their positive `sizes` or, if `equal`, evenly; `k` <= sum of `sizes`.

    Each exact share is rounded, halves to the even number, as in code that gives every image the same ratio. A share is
    at most the size of its part and, where `k` allows, at least 1. Where the sum is not `k`, the parts that rounding
    changed most get one more (the first of equals) or one less (the last of equals).
    """
    exact = [Fraction(k, len(sizes)) if equal else Fraction(k * size, sum(sizes)) for size in sizes]
    least = 1 if k >= len(sizes) else 0
    shares = [min(max(round(share), least), size) for share, size in zip(exact, sizes, strict=True)]
    missing = k - sum(shares)
    step = 1 if missing > 0 else -1
    for _ in range(abs(missing)):
        free = [i for i, size in enumerate(sizes) if (shares[i] < size if missing > 0 else shares[i] > least)]
        shares[max(free, key=lambda i: (step * (exact[i] - shares[i]), -step * i))] += step
    return shares


def largest_remainder(k: int, sizes: Sequence[int | Fraction]) -> list[int]:
    """Divide `k` <= sum of `sizes` in proportion to `sizes`, at least one each where `k` allows; ties to the first."""
    total = sum(sizes)
    quotas = [k * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (-(k * sizes[i] % total), i))
    for i in by_remainder[: k - sum(quotas)]:
        quotas[i] += 1
    empty = [i for i, size in enumerate(sizes) if size and not quotas[i]]
    for i in empty if k >= sum(size > 0 for size in sizes) else []:
        quotas[quotas.index(max(quotas))] -= 1
        quotas[i] += 1
    return quotas


def of_ratio(ratio: Fraction, sizes: Sequence[int]) -> list[int]:
    """Return the share of each part if all get the same `ratio`: rounded, halves to the even number, at least 1."""
    return [max(1, round(ratio * size)) for size in sizes]


def by_ratio(k: int, sizes: Sequence[int]) -> list[int]:
    """Divide `k` into the shares of a ratio (`of_ratio`) whose sum it is; as `rounded` does if there is no such ratio.

    Shares never fall as the ratio rises, so that ratios with the same sum have the same shares.
    """
    n, parts = sum(sizes), len(sizes)
    low, high = Fraction(k - parts, n), min(Fraction(2 * k + parts, 2 * n), Fraction(1))  # by what rounding may change
    steps = {
        Fraction(2 * share + 1, 2 * size)  # where a share becomes the next one
        for size in sizes
        for share in range(max(0, int(low * size) - 1), int(high * size) + 1)
    }
    edges = sorted({low, high, *(step for step in steps if low < step < high)})
    ratios = sorted({*edges, *((a + b) / 2 for a, b in pairwise(edges))})
    first = bisect_left(ratios, k, key=lambda ratio: sum(of_ratio(ratio, sizes)))
    shares = of_ratio(ratios[min(first, len(ratios) - 1)], sizes)
    return shares if sum(shares) == k else rounded(k, sizes)
