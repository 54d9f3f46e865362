"""Curves in the plane of clustering (Hopkins) and retained importance, compared at equal clustering."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.analyze.output import samples
from harness.stats import Array, interval

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
        h, i = self.hopkins.mean(0), self.retention.mean(0)
        no_worse = (h[:, None] <= h) & (i[:, None] >= i)
        better = (h[:, None] < h) | (i[:, None] > i)
        return [label for label, beaten in zip(self.labels, (no_worse & better).any(0), strict=True) if not beaten]


def at(line: Line, where: Array) -> Array:
    """Retention at Hopkins statistics [Q], linear between a curve's points; NaN outside of them."""
    h, i = line
    order = np.argsort(h, kind="stable")
    found: Array = np.interp(where, h[order], i[order])
    found[(where < h.min() - ROUNDING) | (where > h.max() + ROUNDING)] = np.nan
    return found


def excess(ours: Line, theirs: Line) -> float:
    """Mean of what `ours` retains above `theirs` over the Hopkins statistics that both reach; NaN without any.

    The difference is piecewise linear, so the trapezoids between all their points are exact.
    """
    low, high = max(ours[0].min(), theirs[0].min()), min(ours[0].max(), theirs[0].max())
    if low > high + ROUNDING:
        return float("nan")
    if low >= high:
        return float(at(ours, np.array([low]))[0] - at(theirs, np.array([low]))[0])
    knots = np.unique(np.concatenate([ours[0], theirs[0], [low, high]]))
    knots = knots[(knots >= low) & (knots <= high)]
    difference = at(ours, knots) - at(theirs, knots)
    return float(np.trapezoid(difference, knots) / (high - low))


def compared(plane: Plane, ours: str, theirs: str, resamples: int, seed: int) -> dict[str, Any]:
    """At equal Hopkins statistic, what `ours` retains above `theirs`: over the common range, and at each point.

    Intervals are of 95 %, from images drawn anew for both curves at once; an image comes with all its draws of
    importance. Null where one of the samples leaves nothing to compare.
    """
    n = len(plane.hopkins)
    drawn = [np.full(n, 1 / n), *samples(n, resamples, seed)]
    pairs = [(plane.line(ours, weights), plane.line(theirs, weights)) for weights in drawn]
    gains = np.array([excess(*pair) for pair in pairs])
    differences = np.array([at(mine, their[0]) - their[1] for mine, their in pairs])
    labels = [label for label, curve in zip(plane.labels, plane.curves, strict=True) if curve == theirs]
    points = {label: _estimate(column) for label, column in zip(labels, differences.T, strict=True)}
    found = _estimate(gains)
    return {
        "ours": ours,
        "theirs": theirs,
        **found,
        "holds": found["low"] is not None and found["low"] > 0,
        "range": [_plain(max(line[0].min() for line in pairs[0])), _plain(min(line[0].max() for line in pairs[0]))],
        "points": points,
        "violated_at": [label for label, it in points.items() if it["high"] is not None and it["high"] < 0],
    }


def _estimate(values: Array) -> dict[str, float | None]:
    """The first of `values`, and the interval of the others."""
    low, high = interval(values[1:])
    return {"difference": _plain(values[0]), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
