"""The angles between the visual tokens of an image: python -m harness.analyze angles model=pocket.

Figure 5 of arXiv 2602.13315, which finds nothing beyond 90 degrees in Qwen2.5-VL-7B: cosines are not negative
there, and the similarity that maximal marginal relevance subtracts is never a bonus.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from harness.analyze import settings
from harness.analyze.collect import TokenProbe, collect_tokens
from harness.analyze.hopkins import cosines
from harness.analyze.output import estimate, leave, no_image
from harness.analyze.questions import Source
from harness.core.console import say
from harness.models.loading import load
from harness.results import plots

DEGREES = 180  # bins of one degree
SIMILAR = 0.99  # cosine above which two tokens count as redundant
CHECKS = (settings.check, settings.check_methods)


def angles(cfg: DictConfig) -> None:
    """Count the angles within every image and draw their distribution."""
    config = settings.about(cfg)
    loaded = load(config.model)
    images = collect_tokens(cfg, loaded, Source(config, loaded), [TokenProbe()])
    counts, facts = counted(tokens.features for _, (tokens,) in images)
    if facts.empty:
        raise no_image(cfg)
    frame, statistics = summed_up(counts, facts, cfg.resamples, cfg.seed)
    about = {"analysis": "angles", "model": config.model.name, "tasks": list(config.tasks.metrics)}
    summary = {**about, **statistics}
    obtuse = summary["beyond_90"]
    span = f"95 % over images: {obtuse['low']:.2%} to {obtuse['high']:.2%}"
    say(f"{config.model.name}: {obtuse['mean']:.2%} of pairs beyond 90 degrees ({span}), most at {summary['mode']}")
    leave(cfg, config.model.name, frame, picture(frame, summary), summary)


def counted(images: Iterable[Tensor]) -> tuple[np.ndarray, pd.DataFrame]:
    """Count pairs [images, 180] by degree within each image of features [N, D], with a row of facts an image."""
    counts, facts = [], []
    for features in images:
        cos = cosines(features).cpu().numpy()
        degrees = np.degrees(np.arccos(cos))
        counts.append(np.histogram(degrees, bins=DEGREES, range=(0, DEGREES))[0])
        shares = {"beyond_90": (cos < 0).mean(), "alike": (cos > SIMILAR).mean()}
        means = {"cosine": cos.mean(), "median": np.median(degrees), "largest": degrees.max()}
        facts.append({"tokens": len(features), "pairs": len(cos), **shares, **means})
    return np.array(counts).reshape(-1, DEGREES), pd.DataFrame(facts)


def summed_up(
    counts: np.ndarray, facts: pd.DataFrame, resamples: int, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return a row for each degree (pairs, share of all pairs, mean share within an image) and the statistics."""
    shares = counts / counts.sum(1, keepdims=True)
    pooled, mean = counts.sum(0), shares.mean(0)
    degrees = np.arange(DEGREES)
    frame = pd.DataFrame({"degrees": degrees, "pairs": pooled, "pooled": pooled / pooled.sum(), "mean_share": mean})
    statistics: dict[str, Any] = {"images": len(facts), "pairs": int(pooled.sum()), "mode": int(mean.argmax())}
    statistics["largest"] = round(float(facts["largest"].max()), 3)
    statistics["beyond_90_pooled"] = round(float((facts["beyond_90"] * facts["pairs"]).sum() / facts["pairs"].sum()), 6)
    for name in ("beyond_90", "alike", "cosine", "median"):
        statistics[name] = estimate(facts[name].to_numpy(), resamples, seed)
    return frame, statistics


def picture(frame: pd.DataFrame, summary: dict[str, Any]) -> Figure:
    """Plot the distribution, with equal weight for every image."""
    with plots.style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axis = figure.subplots()
        inside = frame["degrees"] < 90
        colors = np.where(inside, plots.SERIES[0], plots.SERIES[1])
        axis.bar(frame["degrees"] + 0.5, 100 * frame["mean_share"], width=1, color=list(colors), lw=0)
        axis.axvline(90, color=plots.INK, lw=0.9, ls=(0, (4, 3)))
        axis.set_xlim(0, max(100, 5 * np.ceil(summary["largest"] / 5) + 5))
        axis.set_xticks(np.arange(0, axis.get_xlim()[1] + 1, 15))
        axis.set_xlabel("angle between two visual tokens of an image, degrees")
        axis.set_ylabel("% of pairs, mean of images")
        facts = f"{summary['beyond_90']['mean']:.1%} beyond 90°, {summary['alike']['mean']:.1%} with cosine > {SIMILAR}"
        axis.set_title(f"{summary['model']}, {summary['images']} images: {facts}")
    return figure
