"""From a share or a number of visual tokens to K, without binary-fraction surprises."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from numbers import Integral, Real


@dataclass(frozen=True)
class Budget:
    """How many visual tokens of a sample stay: exactly one of a share and an absolute number.

    Args:
        keep: share to keep, in (0, 1]; K = N * keep, halves to the even number, at least 1.
        tokens: number to keep, at least 1; K = min(N, tokens).
    """

    keep: float | None = None
    tokens: int | None = None

    def __post_init__(self) -> None:
        """Check, and turn numbers of other types, as NumPy's, into plain ones: budgets that mean the same are equal."""
        if (self.keep is None) == (self.tokens is None):
            got = "neither" if self.keep is None else f"keep={self.keep!r} and tokens={self.tokens!r}"
            raise ValueError(f"a budget is either keep=<share> or tokens=<number>, got {got}")
        if self.keep is not None and not (_is_number(self.keep, Real) and 0 < self.keep <= 1):
            raise ValueError(f"keep must be a number in (0, 1], not {self.keep!r}")
        if self.tokens is not None and not (_is_number(self.tokens, Integral) and self.tokens >= 1):
            raise ValueError(f"tokens must be an integer of at least 1, not {self.tokens!r}")
        if self.keep is not None:
            # The shortest decimal of its own type: float(np.float32(0.1)) would be 0.10000000149011612.
            object.__setattr__(self, "keep", float(Fraction(str(self.keep))))
        if self.tokens is not None:
            object.__setattr__(self, "tokens", int(self.tokens))

    def count(self, n: int) -> int:
        """Return K for a sample of `n` visual tokens; 0 only if there are none."""
        if not _is_number(n, Integral) or n < 0:
            raise ValueError(f"the number of visual tokens must be an integer of at least 0, not {n!r}")
        if self.tokens is not None:
            return min(int(n), self.tokens)
        # The decimal that was written, not its binary neighbour: 0.15 * 10 is 1.5 here, and rounds to 2.
        return min(int(n), max(1, round(Fraction(str(self.keep)) * int(n))))

    @property
    def label(self) -> str:
        """Short name for tables and folders, such as "0.25" or "64tok"."""
        return f"{self.tokens}tok" if self.keep is None else str(self.keep)


def _is_number(value: object, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


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
