"""From a share or a number of visual tokens to K, without binary-fraction surprises."""

from __future__ import annotations

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
