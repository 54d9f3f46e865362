"""Importance retained against clustering of what is kept: python -m harness.analyze pareto model=pocket.

Section 3 and figure 3 of arXiv 2602.13315: visual tokens of real images, importance drawn uniformly at random and so
independent of them, or that of the model's scorer. Whether maximal marginal relevance retains more than the others at
equal clustering is computed, with an interval.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

import methods
from harness.analyze import settings
from harness.analyze.fronts import Plane, compared
from harness.analyze.hopkins import REFERENCES
from harness.analyze.output import estimate, leave, no_image
from harness.analyze.questions import Source
from harness.analyze.tradeoff import SCORER, UNIFORM, rows
from harness.core.command import command
from harness.core.errors import UserError
from harness.evaluation.preflight import prepare
from harness.models.loading import load
from harness.results import plots

POINT = ["curve", "parameter", "value", "label"]


def main() -> None:
    """`python -m harness.analyze pareto`."""
    command("analyze_pareto", pareto, (check, settings.check_methods, check_stage), prepare)


def check(cfg: DictConfig) -> None:
    """Settings of this analysis."""
    settings.check(cfg)
    if cfg.importance not in (UNIFORM, SCORER):
        raise UserError(f"importance must be {UNIFORM} or {SCORER}, got {cfg.importance}")
    if not cfg.references or set(cfg.references) - set(REFERENCES):
        raise UserError(f"references must be some of {', '.join(REFERENCES)}, got {list(cfg.references)}")
    curves = {one.curve for one in settings.contestants(cfg)}
    if cfg.ours not in curves:
        raise UserError(f"ours={cfg.ours} is none of the methods: {', '.join(sorted(curves))}")
    if whole := [keep for keep in settings.keeps(cfg) if keep >= 1]:
        raise UserError(f"keep={whole[0]} keeps everything: pass shares below 1")


def check_stage(cfg: DictConfig) -> None:
    """All methods choose among the same tokens, those that enter the language model."""
    for one in settings.contestants(cfg):
        stage = methods.load(one.name, **one.params).stage
        if stage != "input":
            raise UserError(f"{one.name} acts at {stage}, not on what enters the language model: leave it out")


def pareto(cfg: DictConfig) -> None:
    """Measure, judge, draw."""
    config = settings.about(cfg)
    loaded = load(config.model)
    each = pd.DataFrame(rows(cfg, loaded, Source(config, loaded)))
    if each.empty:
        raise no_image(cfg)
    frame, verdicts = judged(cfg, each)
    for verdict in verdicts:
        print(sentence(verdict))
    found = {
        **{"analysis": "pareto", "model": config.model.name, "tasks": list(config.tasks.metrics)},
        **{"importance": cfg.importance, "reference": cfg.references[0]},
        **{"images": int(each["image"].nunique()), "draws_of_importance": int(each["seed"].nunique())},
        "verdicts": verdicts,
    }
    title = f"{config.model.name}, {found['images']} images, importance: {cfg.importance}"
    figure = picture(frame, cfg.references[0], title)
    leave(Path(str(cfg.out)), f"{config.model.name}-{cfg.importance}", frame, figure, found)


def judged(cfg: DictConfig, each: pd.DataFrame) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Means with 95 % intervals of every point, images drawn anew; and `ours` against every other curve or point."""
    columns = ["retention", *cfg.references]
    points, verdicts = [], []
    for keep, some in each.groupby("keep", sort=False):
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
    """One verdict for people."""
    ours, theirs, keep = verdict["ours"], verdict["theirs"], verdict["keep"]
    gain, low, high = (100 * verdict[key] for key in ("difference", "low", "high"))
    said = "more than" if low > 0 else "less than" if high < 0 else "no clearly different share than"
    numbers = f"{gain:+.2f} points (95 %: {low:+.2f} to {high:+.2f})"
    but = f"; but less at {', '.join(verdict['violated_at'])}" if verdict["violated_at"] and low > 0 else ""
    return f"keep {keep:g}: at equal clustering {ours} retains {said} {theirs}, {numbers} of importance{but}"


def picture(frame: pd.DataFrame, reference: str, title: str) -> Figure:
    """Retention over the Hopkins statistic, a panel for each budget; the ideal is top left."""
    keeps = list(dict.fromkeys(frame["keep"]))
    looks = dict(zip(dict.fromkeys(frame["curve"]), zip(plots.SERIES, cycle(plots.MARKS), strict=False), strict=False))
    with plots.style():
        figure = Figure(figsize=(4.4 * len(keeps) + 1.4, 3.9), layout="constrained")
        for axis, keep in zip(figure.subplots(1, len(keeps), squeeze=False)[0], keeps, strict=True):
            here = frame[frame["keep"] == keep]
            for curve, (color, mark) in looks.items():
                line = here[here["curve"] == curve]
                single = len(line) == 1
                style = {"color": color, "marker": mark, "ms": 7 if single else 3.6, "lw": 1.3}
                axis.plot(line[reference], line["retention"], label=curve, zorder=3 if single else 2, **style)
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
