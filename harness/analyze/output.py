"""Write what an analysis returns: a CSV, a picture and a JSON object, which is also the last line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.core.console import print_json, say
from harness.core.errors import UserError
from harness.core.escape import csv
from harness.core.files import make_folder, nan_as_null, slug, to_json, write_atomic
from harness.results import plots
from harness.results.stats import LEVEL, Array


def samples(n: int, resamples: int, seed: int) -> Array:
    """Draw weights [resamples, n] of n images with replacement; each row sums to 1."""
    weights: Array = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return weights


def interval(drawn: Array) -> tuple[float, float]:
    """Return the percentile interval of bootstrap draws [B]."""
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def estimate(values: Array, resamples: int, seed: int) -> dict[str, float]:
    """Return the mean of values [n] of images, and its 95 % interval by bootstrap over images."""
    low, high = interval(samples(len(values), resamples, seed) @ values)
    return {key: round(value, 6) for key, value in (("mean", float(values.mean())), ("low", low), ("high", high))}


def no_image(cfg: DictConfig) -> UserError:
    """Return the error for tasks without a large enough image."""
    return UserError(f"tasks={cfg.tasks.name} shows no image of {cfg.min_tokens} tokens or more: lower min_tokens")


def leave(cfg: DictConfig, stem: str, frame: pd.DataFrame, figure: Figure, summary: dict[str, Any]) -> None:
    """Write `stem`.csv, .png and .json below `cfg.out`, say where, and print the object for programs.

    The stem is the name of a model, which may be a path, even one that leads out of the folder.
    """
    folder, stem = Path(str(cfg.out)), slug(stem)
    make_folder(folder)
    report = nan_as_null(summary)  # statistics of too few pictures or questions are undefined
    write_atomic(folder / f"{stem}.csv", csv(frame, lineterminator="\n", float_format="%.6g"))
    write_atomic(folder / f"{stem}.json", to_json(report))
    plots.save({stem: figure}, folder, ("png",))
    say(f"wrote {', '.join(str(folder / f'{stem}.{kind}') for kind in ('csv', 'png', 'json'))}")
    print_json({"out": str(folder / stem), **report}, folder / f"{stem}.json")
