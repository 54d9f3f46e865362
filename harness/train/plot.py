"""The curve of a training as a picture."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from harness.results.plots import MUTED, SERIES, style

PANELS = {
    "cross-entropy per answer token": ("train_answers", "valid_answers", "pruned_answers"),
    "held-out answers that are right": ("valid_accuracy", "pruned_accuracy"),
    "BCE between mask and hard top-k": ("train_mask", "valid_mask"),
}
COLOURS = {"train": MUTED, "valid": SERIES[0], "pruned": SERIES[1]}


def draw(curve: Path, title: str, keep: float) -> Path:
    """Draw `curve`, as `harness.train.loop` writes it, into a PNG beside it."""
    rows = pd.read_csv(curve)
    names = {"train": "learned, soft mask", "valid": "held out, soft mask", "pruned": f"held out, pruned to {keep:g}"}
    with style():
        figure = Figure(figsize=(9, 2.8), layout="constrained", facecolor="white")
        for axes, (label, columns) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
            for column in columns:
                kind = column.partition("_")[0]
                axes.plot(
                    rows["step"], rows[column], color=COLOURS[kind], marker="o", markersize=2.5, label=names[kind]
                )
            axes.set_title(label)
            axes.set_xlabel("step")
            axes.set_ylim(bottom=0)
        figure.suptitle(title, fontsize=9.5)
        figure.axes[0].legend()
        file = curve.with_suffix(".png")
        figure.savefig(file, dpi=110, facecolor="white")
    return file
