"""The angles between the visual tokens of an image: python -m harness.analyze angles model=pocket.

Figure 5 of arXiv 2602.13315, which finds nothing beyond 90 degrees in Qwen2.5-VL-7B: cosines are not negative
there, and the similarity that maximal marginal relevance subtracts is never a bonus.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig
from torch import Tensor

from harness.analyze import settings
from harness.analyze.collect import Noted, gathered
from harness.analyze.hopkins import cosines
from harness.analyze.output import estimate, leave, no_image
from harness.analyze.questions import Source
from harness.core.command import command
from harness.evaluation.preflight import prepare
from harness.models.loading import load
from harness.results import plots

DEGREES = 180  # bins of one degree
ALIKE = 0.99  # cosine from which on two tokens say the same


def main() -> None:
    """`python -m harness.analyze angles`."""
    command("analyze_angles", angles, (settings.check, settings.check_methods), prepare)


def angles(cfg: DictConfig) -> None:
    """Count the angles of every image, and draw."""
    config = settings.about(cfg)
    loaded = load(config.model)
    images = gathered(loaded, Source(config, loaded), [Noted()], cfg.seed, cfg.limit, cfg.min_tokens)
    counts, facts = counted(tokens.features for _, (tokens,) in images)
    if facts.empty:
        raise no_image(cfg)
    frame, found = summed_up(counts, facts, cfg.resamples, cfg.seed)
    found = {"analysis": "angles", "model": config.model.name, "tasks": list(config.tasks.metrics), **found}
    obtuse = found["beyond_90"]
    span = f"95 % over images: {obtuse['low']:.2%} to {obtuse['high']:.2%}"
    print(f"{config.model.name}: {obtuse['mean']:.2%} of pairs beyond 90 degrees ({span}), most at {found['mode']}")
    leave(Path(str(cfg.out)), config.model.name, frame, picture(frame, found), found)


def counted(images: Iterable[Tensor]) -> tuple[np.ndarray, pd.DataFrame]:
    """Pairs [images, 180] within each image by degree, and a row of facts for each image, from features [N, D]."""
    counts, facts = [], []
    for features in images:
        cos = cosines(features).cpu().numpy()
        degrees = np.degrees(np.arccos(cos))
        counts.append(np.histogram(degrees, bins=DEGREES, range=(0, DEGREES))[0])
        shares = {"beyond_90": (cos < 0).mean(), "alike": (cos > ALIKE).mean()}
        means = {"cosine": cos.mean(), "median": np.median(degrees), "largest": degrees.max()}
        facts.append({"tokens": len(features), "pairs": len(cos), **shares, **means})
    return np.array(counts).reshape(-1, DEGREES), pd.DataFrame(facts)


def summed_up(
    counts: np.ndarray, facts: pd.DataFrame, resamples: int, seed: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """A row for each degree: pairs, their share of all pairs, and the mean share of an image's; and the facts."""
    shares = counts / counts.sum(1, keepdims=True)
    pooled, mean = counts.sum(0), shares.mean(0)
    degrees = np.arange(DEGREES)
    frame = pd.DataFrame({"degrees": degrees, "pairs": pooled, "pooled": pooled / pooled.sum(), "mean_share": mean})
    found: dict[str, Any] = {"images": len(facts), "pairs": int(pooled.sum()), "mode": int(mean.argmax())}
    found["largest"] = round(float(facts["largest"].max()), 3)
    found["beyond_90_pooled"] = round(float((facts["beyond_90"] * facts["pairs"]).sum() / facts["pairs"].sum()), 6)
    for name in ("beyond_90", "alike", "cosine", "median"):
        found[name] = estimate(facts[name].to_numpy(), resamples, seed)
    return frame, found


def picture(frame: pd.DataFrame, found: dict[str, Any]) -> Figure:
    """The distribution, each image weighing the same."""
    with plots.style():
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axis = figure.subplots()
        inside = frame["degrees"] < 90
        colors = np.where(inside, plots.SERIES[0], plots.SERIES[1])
        axis.bar(frame["degrees"] + 0.5, 100 * frame["mean_share"], width=1, color=list(colors), lw=0)
        axis.axvline(90, color=plots.INK, lw=0.9, ls=(0, (4, 3)))
        axis.set_xlim(0, max(100, 5 * np.ceil(found["largest"] / 5) + 5))
        axis.set_xticks(np.arange(0, axis.get_xlim()[1] + 1, 15))
        axis.set_xlabel("angle between two visual tokens of an image, degrees")
        axis.set_ylabel("% of pairs, mean of images")
        facts = f"{found['beyond_90']['mean']:.1%} beyond 90°, {found['alike']['mean']:.1%} with cosine > {ALIKE}"
        axis.set_title(f"{found['model']}, {found['images']} images: {facts}")
    return figure
