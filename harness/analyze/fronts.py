"""Curves in the plane of clustering (Hopkins) and retained importance, compared at equal clustering.

A curve need not be a function of clustering: where a parameter gives more of it and retains less, no one would choose
that value. So what counts is a curve's front: the most that it retains without being more clustered, linear in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.analyze.output import samples
from harness.results.stats import Array, interval

ROUNDING = 1e-9  # of means, by which the same tokens may come out apart
Line = tuple[Array, Array]  # hopkins [P], retention [P] of the points of one curve


@dataclass(frozen=True)
class Plane:
    """The points of all methods at one budget, image by image."""

    labels: Sequence[str]  # of P points
    curves: Sequence[str]  # to which each belongs
    hopkins: Array  # [n, P]
    retention: Array  # [n, P]

    def line(self, curve: str, weights: Array) -> Line:
        """A curve in the means over images of these weights [n], which sum to 1."""
        where = [place for place, name in enumerate(self.curves) if name == curve]
        return weights @ self.hopkins[:, where], weights @ self.retention[:, where]

    def undominated(self) -> list[str]:
        """The points to which no other is at least as good in both means, and better in one."""
        beaten = dominated((self.hopkins.mean(0), self.retention.mean(0)))
        return [label for label, worse in zip(self.labels, beaten, strict=True) if not worse]


def dominated(points: Line) -> NDArray[np.bool_]:
    """Whether another point [P] is at least as good in both, and better in one."""
    h, i = points
    no_worse = (h[:, None] <= h) & (i[:, None] >= i)
    better = (h[:, None] < h) | (i[:, None] > i)
    return np.asarray((no_worse & better).any(0))


def front(points: Line) -> Line:
    """The points of a curve that no other of it dominates, from the least clustered on: retention rises with it."""
    h, i = (values[~dominated(points)] for values in points)
    order = np.lexsort((i, h))
    return h[order], i[order]


def at(line: Line, where: Array) -> Array:
    """What a front retains at Hopkins statistics [Q]; its most beyond its end, NaN before it begins."""
    h, i = line
    found: Array = np.interp(where, h, i)
    found[where < h[0] - ROUNDING] = np.nan
    return found


def excess(ours: Line, theirs: Line) -> float:
    """Mean of what front `ours` retains above `theirs`, between where both have begun and where the first ends.

    Where one ends before the other begins, the difference where that begins. Fronts are piecewise linear, so that the
    trapezoids between all their points are exact.
    """
    low, high = max(ours[0][0], theirs[0][0]), min(ours[0][-1], theirs[0][-1])
    if high <= low:
        return float(at(ours, np.array([low]))[0] - at(theirs, np.array([low]))[0])
    knots = np.unique(np.concatenate([ours[0], theirs[0]]))
    knots = knots[(knots >= low) & (knots <= high)]
    difference = at(ours, knots) - at(theirs, knots)
    return float(np.trapezoid(difference, knots) / (high - low))


def compared(plane: Plane, ours: str, theirs: str, resamples: int, seed: int) -> dict[str, Any]:
    """At equal Hopkins statistic, what the front of `ours` retains above that of `theirs`, and above each point of it.

    Intervals are of 95 %, from images drawn anew for both curves at once; an image comes with all its draws of
    importance. Null for a point that is less clustered than all of `ours`, be it in one of the samples.
    """
    n = len(plane.hopkins)
    drawn = [np.full(n, 1 / n), *samples(n, resamples, seed)]
    pairs = [(plane.line(ours, weights), plane.line(theirs, weights)) for weights in drawn]
    gains = np.array([excess(front(mine), front(their)) for mine, their in pairs])
    differences = np.array([at(front(mine), their[0]) - their[1] for mine, their in pairs])
    labels = [label for label, curve in zip(plane.labels, plane.curves, strict=True) if curve == theirs]
    points = {label: _estimate(column) for label, column in zip(labels, differences.T, strict=True)}
    found = _estimate(gains)
    return {
        "ours": ours,
        "theirs": theirs,
        **found,
        "holds": (found["low"] or 0) > 0,
        "points": points,
        "violated_at": [label for label, it in points.items() if it["high"] is not None and it["high"] < 0],
    }


def _estimate(values: Array) -> dict[str, float | None]:
    """The first of `values`, and the interval of the others."""
    low, high = interval(values[1:])
    return {"difference": _plain(values[0]), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
