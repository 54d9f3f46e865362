"""Importance retained against clustering of what is kept: python -m harness.analyze pareto model=pocket.

Section 3 and figure 3 of arXiv 2602.13315: visual tokens of real images, importance drawn uniformly at random and so
independent of them, or that of the model's scorer. Whether maximal marginal relevance retains more than the others at
equal clustering is computed, with an interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray
from omegaconf import DictConfig

import methods
from harness.analyze import settings
from harness.analyze.hopkins import REFERENCES
from harness.analyze.output import estimate, interval, leave, no_image, samples
from harness.analyze.questions import Source
from harness.analyze.tradeoff import SCORER, UNIFORM, rows
from harness.core.console import say
from harness.core.errors import UserError
from harness.core.rules import one_of, require
from harness.models.loading import load
from harness.results import plots
from harness.results.method_groups import printed
from harness.results.stats import Array

POINT = ["curve", "parameter", "value", "label"]


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings of this analysis that are wrong."""
    settings.check(cfg)
    require(cfg, {"importance": one_of((UNIFORM, SCORER))})
    if not cfg.references or set(cfg.references) - set(REFERENCES):
        raise UserError(f"references must be some of {', '.join(REFERENCES)}, got {list(cfg.references)}")
    curves = {point.curve for point in settings.method_points(cfg)}
    if cfg.ours not in curves:
        raise UserError(f"ours={cfg.ours} is none of the methods: {', '.join(sorted(curves))}")
    if whole := [keep for keep in settings.keeps(cfg) if keep >= 1]:
        raise UserError(f"keep={whole[0]} keeps everything: pass shares below 1")


def check_stage(cfg: DictConfig) -> None:
    """Raise UserError for methods that do not choose among the tokens that enter the language model."""
    for point in settings.method_points(cfg):
        stage = methods.load(point.name, **point.params).stage
        if stage != "input":
            raise UserError(f"{point.name} acts at {stage}, not on what enters the language model: leave it out")


CHECKS = (check, settings.check_methods, check_stage)


def pareto(cfg: DictConfig) -> None:
    """Measure retention and clustering of every method, compare the curves, and draw them."""
    config = settings.about(cfg)
    loaded = load(config.model)
    measurements = pd.DataFrame(rows(cfg, loaded, Source(config, loaded)))
    if measurements.empty:
        raise no_image(cfg)
    frame, verdicts = judged(cfg, measurements)
    for verdict in verdicts:
        say(sentence(verdict))
    summary = {
        **{"analysis": "pareto", "model": config.model.name, "tasks": list(config.tasks.metrics)},
        **{"importance": cfg.importance, "reference": cfg.references[0]},
        **{"images": int(measurements["image"].nunique()), "draws_of_importance": int(measurements["seed"].nunique())},
        "verdicts": verdicts,
    }
    title = f"{config.model.name}, {summary['images']} images, importance: {cfg.importance}"
    figure = picture(frame, cfg.references[0], title)
    leave(cfg, f"{config.model.name}-{cfg.importance}", frame, figure, summary)


def judged(cfg: DictConfig, measurements: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return every point's means with 95 % bootstrap intervals, and `ours` against each other curve or point."""
    columns = ["retention", *cfg.references]
    points, verdicts = [], []
    for keep, some in measurements.groupby("keep", sort=False):
        about = some.drop_duplicates("label").set_index("label")
        table = some.groupby(["image", "label"])[columns].mean().unstack("label")
        values = {column: table[column][about.index].to_numpy() for column in columns}
        plane = Plane(list(about.index), list(about["curve"]), values[cfg.references[0]], values["retention"])
        best = plane.undominated()
        for place, (label, row) in enumerate(about.iterrows()):
            point: dict[str, Any] = {"keep": keep, "images": len(table), "label": label, **row[POINT[:3]]}
            for column in columns:
                mean = estimate(values[column][:, place], cfg.resamples, cfg.seed)
                point |= {column: mean["mean"], f"{column}_low": mean["low"], f"{column}_high": mean["high"]}
            points.append(point | {"undominated": label in best})
        for curve in dict.fromkeys(plane.curves):
            if curve != cfg.ours:
                verdicts.append({"keep": keep, **compared(plane, cfg.ours, curve, cfg.resamples, cfg.seed)})
    return pd.DataFrame(points), verdicts


def sentence(verdict: dict[str, Any]) -> str:
    """Return a verdict as a sentence."""
    ours, theirs, keep = verdict["ours"], verdict["theirs"], verdict["keep"]
    gain, low, high = (100 * verdict[key] for key in ("difference", "low", "high"))
    relation = "more than" if low > 0 else "less than" if high < 0 else "no clearly different share than"
    numbers = f"{gain:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"
    but = f"; but less at {', '.join(verdict['violated_at'])}" if verdict["violated_at"] and low > 0 else ""
    return f"keep {keep:g}: at equal clustering {ours} retains {relation} {theirs}, {numbers} of importance{but}"


def picture(frame: pd.DataFrame, reference: str, title: str) -> Figure:
    """Plot retention over the Hopkins statistic, one panel a budget; the ideal is top left."""
    keeps = list(dict.fromkeys(frame["keep"]))
    frame = frame.assign(method=frame["curve"].str.partition(" ")[0])  # a curve is a method, with fixed parameters
    with plots.style():
        figure = Figure(figsize=(4.4 * len(keeps) + 1.4, 3.9), layout="constrained")
        for axis, keep in zip(figure.subplots(1, len(keeps), squeeze=False)[0], keeps, strict=True):
            here = frame[frame["keep"] == keep]
            for curve, look in plots.series(frame, frame, by="curve"):
                line = here[here["curve"] == curve]
                single = len(line) == 1
                style = {**look, "ms": 7 if single else 3.6, "lw": 1.3, "zorder": 3 if single else 2}
                axis.plot(line[reference], line["retention"], label=printed(curve), **style)
                color = look["color"]
                error = {"color": color, "lw": 0.7, "alpha": 0.25}  # of means; differences of methods are paired
                axis.vlines(line[reference], line["retention_low"], line["retention_high"], **error)
                axis.hlines(line["retention"], line[f"{reference}_low"], line[f"{reference}_high"], **error)
                for place in sorted({len(line) // 4, len(line) // 2}) if not single else ():
                    x, y, value = (line[key].iloc[place] for key in (reference, "retention", "value"))
                    near = {"textcoords": "offset points", "fontsize": 6.5, "color": color}
                    axis.annotate(f"{value:g}" if isinstance(value, float) else str(value), (x, y), (4, -9), **near)
            axis.set_title(f"keep {keep:g}")
            axis.set_xlabel(f"Hopkins statistic, reference: {reference}\n(larger: more clustered)")
        figure.axes[0].set_ylabel("share of importance retained\n(numbers: value of the parameter)")
        figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure


ROUNDING = 1e-9  # by which means of the same tokens may differ
Line = tuple[Array, Array]  # hopkins [P], retention [P] of the points of one curve


@dataclass(frozen=True)
class Plane:
    """The points of all methods at one budget, image by image."""

    labels: Sequence[str]  # of P points
    curves: Sequence[str]  # to which each belongs
    hopkins: Array  # [n, P]
    retention: Array  # [n, P]

    def line(self, curve: str, weights: Array) -> Line:
        """Return a curve as means over images with weights [n] that sum to 1."""
        where = [place for place, name in enumerate(self.curves) if name == curve]
        return weights @ self.hopkins[:, where], weights @ self.retention[:, where]

    def undominated(self) -> list[str]:
        """List the points that no other point dominates in the means over images."""
        beaten = dominated((self.hopkins.mean(0), self.retention.mean(0)))
        return [label for label, worse in zip(self.labels, beaten, strict=True) if not worse]


def dominated(points: Line) -> NDArray[np.bool_]:
    """Return for each point [P] whether another is at least as good in both measures, and better in one."""
    h, i = points
    no_worse = (h[:, None] <= h) & (i[:, None] >= i)
    better = (h[:, None] < h) | (i[:, None] > i)
    return np.asarray((no_worse & better).any(0))


def front(points: Line) -> Line:
    """Return the undominated points of a curve from the least clustered on: retention rises along it."""
    h, i = (values[~dominated(points)] for values in points)
    order = np.lexsort((i, h))
    return h[order], i[order]


def at(line: Line, where: Array) -> Array:
    """Return what a front retains at Hopkins statistics [Q]: its maximum beyond its end, NaN before it begins."""
    h, i = line
    retained: Array = np.interp(where, h, i)
    retained[where < h[0] - ROUNDING] = np.nan
    return retained


def excess(ours: Line, theirs: Line) -> float:
    """Return the mean retention of front `ours` above `theirs`, over the range of Hopkins statistics that both cover.

    Without such a range, it is the difference where the second front begins. Fronts are piecewise linear, so the
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
    """Compare what `ours` retains at equal Hopkins statistic with the front of `theirs` and with each point of it.

    Intervals are of 95 %, by bootstrap over images, the same for both curves; an image comes with all its draws of
    importance. A point that is less clustered than all of `ours`, also in a single resample, gets null.
    """
    n = len(plane.hopkins)
    drawn = [np.full(n, 1 / n), *samples(n, resamples, seed)]
    pairs = [(plane.line(ours, weights), plane.line(theirs, weights)) for weights in drawn]
    gains = np.array([excess(front(mine), front(their)) for mine, their in pairs])
    differences = np.array([at(front(mine), their[0]) - their[1] for mine, their in pairs])
    labels = [label for label, curve in zip(plane.labels, plane.curves, strict=True) if curve == theirs]
    points = {label: _estimate(column) for label, column in zip(labels, differences.T, strict=True)}
    overall = _estimate(gains)
    return {
        "ours": ours,
        "theirs": theirs,
        **overall,
        "holds": (overall["low"] or 0) > 0,
        "points": points,
        "violated_at": [label for label, point in points.items() if point["high"] is not None and point["high"] < 0],
    }


def _estimate(values: Array) -> dict[str, float | None]:
    """Return the first of `values` with the interval of the others."""
    low, high = interval(values[1:])
    return {"difference": _plain(values[0]), "low": _plain(low), "high": _plain(high)}


def _plain(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None
