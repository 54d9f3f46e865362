"""Schedules of several cuts that meet a budget as a mean over all layers, at the first cut, or at the last one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Literal

from methods.selecting import SelectionError
from methods.tokens import Cut

# "mean": K tokens a layer, all layers counted, each with the tokens that it saw; "end", "entry": what the last or the
# first cut leaves; "official": the counts in the authors' code.
BudgetAt = Literal["mean", "end", "entry", "official"]
Shares = Callable[[Fraction], Sequence[Fraction]]  # scale -> share of N after each cut; non-increasing, grows with it

UNIT = 2**32  # steps of a scale
LEAST = UNIT // 4  # scales below are used only where cuts as early as possible do not meet the budget otherwise


def mean_too_small(k: int, n: int, layers: int, least: int, whole: int = 1) -> SelectionError:
    """Return the error that no cut has a mean of `k` tokens, since the first `whole` layers see all `n`."""
    asked = f"a mean of {k} visual tokens a layer, where {whole} of {layers} layers see all {n}"
    return SelectionError(f"no cut leaves {asked}: raise the budget to {least}, or set method.budget_at=end")


def solved(
    n: int,
    k: int,
    layers: int,
    at: Literal["mean", "end", "entry"],
    before: Sequence[int],
    shares: Shares,
    early: int = 0,
) -> tuple[Cut, ...]:
    """Return the cuts of `n` tokens whose scale makes them meet `k` in a decoder of so many `layers`.

    "end" and "entry" are met exactly, the mean lies in (k - 1, k]. Where a mean needs a scale below 1/4, all
    cuts move earlier by the same factor, unless the first is at the input. Halves are rounded to even numbers.

    Args:
        n: visual tokens.
        k: the budget, below `n`.
        layers: decoder layers.
        at: what `k` counts.
        before: number of layers in front of each cut, ascending; 0 is the input.
        shares: the shape of the schedule.
        early: layers in front of a cut that count as if they were behind it.

    Raises:
        SelectionError: if the mean is too small even for cuts as early as possible.
    """

    def total(left: Sequence[int], places: Sequence[int]) -> int:
        return seen(n, left, [place - early for place in places], layers)

    def counts(scale: int) -> list[int]:
        return [min(max(round(n * share), 1), n) for share in shares(Fraction(scale, UNIT))]

    if at == "mean":
        few, least = counts(LEAST), 0
        if before[0]:  # else no layer sees all tokens, and any budget can be met
            before, least = _places(before, lambda places: total(few, places) <= k * layers)
        smallest = -(-total(counts(least), before) // layers)
        if k < smallest:
            raise mean_too_small(k, n, layers, smallest)
        left = counts(_largest(least, lambda scale: total(counts(scale), before) <= k * layers))
        left = _raised(n, k * layers - total(left, before), left, [layers - place + early for place in before])
    elif at == "end":
        left = [max(count, k) for count in counts(_largest(0, lambda scale: counts(scale)[-1] <= k))]
        left[-1] = k
    else:
        left = [min(count, k) for count in counts(_largest(0, lambda scale: counts(scale)[0] <= k))]
        left[0] = k
    return tuple(Cut(place - 1, count) for place, count in zip(before, left, strict=True))


def seen(n: int, left: Sequence[int], before: Sequence[int], layers: int) -> int:
    """Return the tokens that all layers see, summed: `n` up to the first cut, then what each of the cuts left."""
    ends = [*before[1:], layers]
    return n * before[0] + sum(count * (end - place) for count, place, end in zip(left, before, ends, strict=True))


def _places(before: Sequence[int], fit: Callable[[Sequence[int]], bool]) -> tuple[Sequence[int], int]:
    """Return the latest places at which the least scale fits, and that scale; the earliest places and 0 if none do."""
    places = before
    for last in range(before[-1], len(before) - 1, -1):
        places = _earlier(before, last)
        if fit(places):
            return places, LEAST
    return places, 0


def _earlier(before: Sequence[int], last: int) -> list[int]:
    """Move all places by the factor that puts the last one after `last` layers; they stay distinct."""
    places = [0]
    for number, place in enumerate(before, 1):
        nearest = round(Fraction(place * last, before[-1]))
        places.append(min(max(nearest, places[-1] + 1), last - len(before) + number))
    return places[1:]


def _largest(low: int, fits: Callable[[int], bool]) -> int:
    """Return the largest scale that fits, by bisection; `low` does."""
    high = UNIT
    while fits(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _raised(n: int, missing: int, left: Sequence[int], behind: Sequence[int]) -> list[int]:
    """Raise the last count, by what `missing` and the one before it allow; if that is the limit, both, and so on.

    `behind` has the number of layers behind each cut.
    """
    left = list(left)
    for i in reversed(range(len(left)) if missing > 0 else ()):
        more = min((left[i - 1] if i else n) - left[i], missing // behind[i])
        left[i:] = [count + more for count in left[i:]]
        missing -= more * behind[i]
    return left
