"""The files of a training; a resumed training ends with the same curve and weights as an uninterrupted one."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure

from harness.core.errors import UserError, one_line
from harness.core.files import write_atomic, writing
from harness.models.scorer import SCORER_FOLDER, VisionSelectorScorer, save_scorer
from harness.results.plots import MUTED, SERIES, style

STATE, CURVE = "state.pt", "curve.csv"


class TrainingFolder:
    """A folder with `scorer/` in the released layout, `curve.csv`, and the checkpoint `state.pt`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def scorer(self) -> Path:
        """The folder to pass as `model.scorer=`."""
        return self.folder / SCORER_FOLDER

    @property
    def curve(self) -> Path:
        """The CSV file with a row for every checkpoint."""
        return self.folder / CURVE

    def create(self, restart: bool) -> None:
        """Create the folder; with `restart`, delete its checkpoint."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if restart:
                (self.folder / STATE).unlink(missing_ok=True)

    def load(self, settings: dict[str, Any]) -> dict[str, Any] | None:
        """Return the last checkpoint or None; UserError if it is damaged or has other settings."""
        file = self.folder / STATE
        if not file.exists():
            return None
        remedy = "choose another out=, or start again with force=true"
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
            saved = state["settings"]
        except (OSError, RuntimeError, EOFError, KeyError, TypeError, pickle.UnpicklingError) as error:
            raise UserError(f"{file} cannot be read ({one_line(error)[:120]}): {remedy}") from error
        for name, value in settings.items():
            if saved.get(name) != value:
                raise UserError(f"{self.folder} holds a training with {name}={saved.get(name)}, not {value}: {remedy}")
        return state

    def save(self, scorer: VisionSelectorScorer, state: dict[str, Any]) -> None:
        """Write scorer, curve and then the state, each atomically."""
        temporary = self.folder / f".{os.getpid()}.tmp"
        with writing(self.folder):
            try:
                save_scorer(scorer, temporary)
                self.scorer.mkdir(exist_ok=True)
                for file in temporary.iterdir():
                    file.replace(self.scorer / file.name)
                write_atomic(self.curve, pd.DataFrame(state["curve"]).to_csv(index=False, float_format="%.6g"))
                torch.save(state, temporary / STATE)
                (temporary / STATE).replace(self.folder / STATE)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)


PANELS = {
    "cross-entropy per answer token": ("train_answers", "valid_answers", "pruned_answers"),
    "held-out answers that are right": ("valid_accuracy", "pruned_accuracy"),
    "BCE between mask and hard top-k": ("train_mask", "valid_mask"),
}
COLOURS = {"train": MUTED, "valid": SERIES[0], "pruned": SERIES[1]}


def plot(curve: Path, title: str, keep: float) -> Path:
    """Plot `curve`, as `harness.train.loop` writes it, to a PNG file next to it."""
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
