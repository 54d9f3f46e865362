"""What an analysis leaves: a CSV, a picture and a JSON object, of which the object is also the last line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.core.errors import UserError
from harness.core.files import to_json, write_atomic
from harness.results import plots
from harness.results.stats import Array, interval


def samples(n: int, resamples: int, seed: int) -> Array:
    """Weights [resamples, n] of n images drawn with replacement; they sum to 1."""
    found: Array = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples) / n
    return found


def estimate(values: Array, resamples: int, seed: int) -> dict[str, float]:
    """The mean of values [n] of images, and its 95 % interval when images are drawn anew."""
    low, high = interval(samples(len(values), resamples, seed) @ values)
    return {key: round(it, 6) for key, it in (("mean", float(values.mean())), ("low", low), ("high", high))}


def no_image(cfg: DictConfig) -> UserError:
    """What to say when there was nothing to look at."""
    return UserError(f"tasks={cfg.tasks.name} shows no image of {cfg.min_tokens} tokens or more: lower min_tokens")


def leave(folder: Path, stem: str, frame: pd.DataFrame, figure: Figure, found: dict[str, Any]) -> None:
    """Write `stem`.csv, .png and .json below `folder`, say where, and print the object for programs."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / f"{stem}.csv", frame.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    write_atomic(folder / f"{stem}.json", to_json(found))
    plots.save({stem: figure}, folder, ("png",))
    print(f"wrote {', '.join(str(folder / f'{stem}.{kind}') for kind in ('csv', 'png', 'json'))}")
    print(json.dumps({"out": str(folder / stem), **found}, allow_nan=False), flush=True)
