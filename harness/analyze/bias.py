"""Where in an image methods keep tokens: python -m harness.analyze bias model=pocket.

D2Pruner (arXiv 2512.19443) argues that attention inside the language model prefers places, whatever the image shows.
Histograms show the kept tokens over rows and columns, next to those of all tokens. Distance from even is 0 for a
method that keeps the same share everywhere and near 1 for one that keeps a single band; `random` shows how much of it
is chance. What images show is not spread evenly either: compare methods with each other before blaming one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.analyze import settings
from harness.analyze.collect import check_cut, kept
from harness.analyze.output import interval, leave, samples
from harness.analyze.questions import Source
from harness.core.errors import UserError
from harness.models.loading import load
from harness.pruning.handle import Kept
from harness.results import plots
from harness.results.stats import Array

AXES = ("rows", "columns")
CHECKS = (settings.check, settings.check_methods, check_cut)


def bias(cfg: DictConfig) -> None:
    """Ask every method about the same images and draw the histograms."""
    config = settings.about(cfg)
    loaded = load(config.model)
    questions = list(islice(Source(config, loaded).drawn(cfg.seed), cfg.limit))
    rows, facts = [], []
    for label, keep, records in kept(cfg, loaded, questions):
        pruned = [record for record in records if record.k < record.n]
        if not pruned:
            raise UserError(f"keep={keep:g} keeps every token of these images: lower it, or choose larger ones")
        for axis in AXES:
            mine, everyone = histograms(pruned, AXES.index(axis), cfg.bands)
            panel = {"keep": keep, "method": label, "axis": axis}
            rows += [
                {**panel, "band": band, "kept": p, "all": q, "ratio": p / q if q else np.nan}
                for band, (p, q) in enumerate(zip(mine.mean(0), everyone.mean(0), strict=True))
            ]
            facts.append({**panel, "images": len(pruned), **uneven(mine, everyone, cfg.resamples, cfg.seed)})
    about: dict[str, Any] = {"analysis": "bias", "model": config.model.name, "tasks": list(config.tasks.metrics)}
    summary = {**about, "bands": cfg.bands, "distances": facts}
    print(pd.DataFrame(facts).to_string(index=False))
    frame = pd.DataFrame(rows)
    leave(cfg, config.model.name, frame, picture(frame, summary), summary)


def places(grids: Sequence[tuple[int, int, int]]) -> Array:
    """Return row and column [2, N] of every token in its image or frame, from 0 to 1."""
    cells_of_grid = [np.indices(grid).reshape(3, -1)[1:] for grid in grids]
    sizes = [np.array(grid[1:])[:, None] for grid in grids]
    return np.concatenate([(cells + 0.5) / size for cells, size in zip(cells_of_grid, sizes, strict=True)], axis=1)


def histograms(records: Sequence[Kept], axis: int, bands: int) -> tuple[Array, Array]:
    """Return the shares [images, bands] of the kept and of all tokens in bands of equal width from top or left."""
    mine, everyone = [], []
    for record in records:
        band = (places(record.grids)[axis] * bands).astype(int)
        mine.append(np.bincount(band[record.kept], minlength=bands) / record.k)
        everyone.append(np.bincount(band, minlength=bands) / record.n)
    return np.array(mine), np.array(everyone)


def uneven(mine: Array, everyone: Array, resamples: int, seed: int) -> dict[str, float]:
    """Return the total variation distance between the places of kept and of all tokens, with its interval.

    Few images are less even than many, and samples of them less even still: by how much the latter exceed the former,
    the distance is corrected, and its 95 % interval (basic bootstrap over images) reaches below it.
    `shift` says by how much of the image's side the kept tokens lie further down, or to the right.
    """
    middles = (np.arange(mine.shape[1]) + 0.5) / mine.shape[1]
    difference = mine - everyone
    drawn = samples(len(mine), resamples, seed) @ difference
    mean, distances = difference.mean(0), np.abs(drawn).sum(1) / 2
    twice, (low, high), shifts = np.abs(mean).sum(), interval(distances), interval(drawn @ middles)
    numbers = {"distance": twice - distances.mean(), "low": twice - high, "high": twice - low}
    numbers = {key: max(0.0, value) for key, value in numbers.items()} | {"shift": mean @ middles}
    numbers |= {"shift_low": shifts[0], "shift_high": shifts[1]}
    return {key: round(float(value), 5) for key, value in numbers.items()}


def picture(frame: pd.DataFrame, summary: dict[str, Any]) -> Figure:
    """Plot the ratio of kept to all tokens over rows and columns, one panel for each method and budget."""
    labels, keeps = list(dict.fromkeys(frame["method"])), list(dict.fromkeys(frame["keep"]))
    columns = min(5, len(labels))
    distances = {(it["keep"], it["method"], it["axis"]): it["distance"] for it in summary["distances"]}
    with plots.style():
        lines = -(-len(labels) // columns)
        size = (1.5 * columns + 0.6, 1.45 * lines * len(keeps) + 0.4)
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(lines * len(keeps), columns, squeeze=False, sharex=True, sharey=True)
        for axis in axes.flat:
            axis.set_visible(False)
        for place, keep in enumerate(keeps):
            for axis, label in zip(axes[place * lines : (place + 1) * lines].flat, labels, strict=False):
                axis.set_visible(True)
                axis.axhline(1, color=plots.MUTED, lw=0.8, ls=(0, (4, 3)))
                here = frame[(frame["keep"] == keep) & (frame["method"] == label)]
                for name, color in zip(AXES, plots.SERIES, strict=False):
                    line = here[here["axis"] == name]
                    x = (line["band"] + 0.5) / summary["bands"]
                    axis.plot(x, line["ratio"], color=color, lw=1.2, marker="o", ms=1.8, label=name)
                distance = " / ".join(f"{distances[keep, label, name]:.2f}" for name in AXES)
                axis.set_title(f"{label}, {keep:g}\n{distance}", fontsize=7)
                axis.tick_params(axis="y", labelsize=6.5)
                axis.set_xlim(0, 1)
                axis.set_xticks([0, 0.5, 1], ["top,\nleft", "", "bottom,\nright"], fontsize=6)
        figure.supylabel("kept, as a multiple of an even share", fontsize=7.5, color=plots.MUTED)
        handles, names = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper right", ncols=2)
        images = summary["distances"][0]["images"]
        title = f"{summary['model']}, {images} images; below each name: distance from even, rows / columns"
        figure.suptitle(title, x=0.01, ha="left", fontsize=8)
    return figure
