"""How similar visual tokens are after each decoder layer: python -m harness.analyze redundancy model=pocket.

Tokens that have become similar can be dropped at little loss, which is why some methods cut inside the language model.
Hooks on the decoder layers of the unpruned model read the tokens.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from harness.analyze import settings
from harness.analyze.hopkins import directions
from harness.analyze.output import estimate, leave, no_image
from harness.analyze.questions import Source
from harness.core.console import say
from harness.models import adapter_for
from harness.models.adapter import Adapter
from harness.models.calls import Call
from harness.models.hooks import Handles, submodule
from harness.models.loading import Loaded, load
from harness.results import plots

COLUMNS = {"cosine": "mean of all pairs", "nearest": "mean of nearest neighbours"}
CHECKS = (settings.check, settings.check_methods)


def redundancy(cfg: DictConfig) -> None:
    """Measure the similarity of tokens after every layer and draw it."""
    config = settings.about(cfg)
    loaded = load(config.model)
    measurements = measured(cfg, loaded, Source(config, loaded))
    if measurements.empty:
        raise no_image(cfg)
    rows: list[dict[str, Any]] = []
    for layer, some in measurements.groupby("layer"):
        row: dict[str, Any] = {"layer": layer}
        for column in COLUMNS:
            mean = estimate(some[column].to_numpy(), cfg.resamples, cfg.seed)
            row |= {column: mean["mean"], f"{column}_low": mean["low"], f"{column}_high": mean["high"]}
        rows.append(row)
    frame = pd.DataFrame(rows)
    about = {"analysis": "redundancy", "model": config.model.name, "tasks": list(config.tasks.metrics)}
    summary = {**about, "images": len(measurements) // len(frame), "layers": rows}
    first, last = rows[0]["cosine"], rows[-1]["cosine"]
    say(f"{config.model.name}: mean cosine {first:.3f} at the entry, {last:.3f} after the last layer")
    leave(cfg, config.model.name, frame, picture(frame, summary), summary)


def measured(cfg: DictConfig, loaded: Loaded, source: Source) -> pd.DataFrame:
    """Return a row for each image and layer; layer 0 is the entry of the language model."""
    rows: list[dict[str, Any]] = []
    reader = Reader(adapter_for(loaded.model))
    with tqdm(total=cfg.limit, desc="images") as progress:
        for prompt in source.drawn(cfg.seed):
            if progress.n >= cfg.limit:
                break
            states = reader.read(prompt.inputs(loaded))
            if len(states[0]) < cfg.min_tokens:
                continue
            rows += [
                {"image": progress.n, "layer": layer, **similarity(rows_of_layer)}
                for layer, rows_of_layer in enumerate(states)
            ]
            progress.update()
    return pd.DataFrame(rows)


def similarity(states: Tensor) -> dict[str, float]:
    """Return the mean cosine of all pairs of rows [N, D], and of each row with its nearest neighbour."""
    unit = directions(states)
    cos, n = unit @ unit.T, len(unit)
    pairs = float((cos.sum() - cos.diagonal().sum()) / (n * (n - 1)))
    return {"cosine": pairs, "nearest": float(cos.fill_diagonal_(-torch.inf).amax(1).mean())}


class Reader:
    """The visual rows of one prompt at the entry of the language model and after each decoder layer."""

    def __init__(self, adapter: Adapter) -> None:
        self.adapter = adapter
        self.layers = list(submodule(adapter.model, adapter.decoder.layers).children())

    def read(self, inputs: Any) -> list[Tensor]:
        """Return the states [N, D] at the entry and after every layer; the hooks are removed again."""
        self.visual, self.states = torch.zeros(0), list[Tensor]()
        handles = Handles()
        try:
            handles.before(self.adapter.site("multimodal"), self._find)
            handles.before(self.adapter.site("layer", self.adapter.targets["first_layer"]), self._enter)
            for layer in self.layers:
                handles.on_output(layer, self._leave)
            with torch.inference_mode():
                self.adapter.model(**inputs)
        finally:
            handles.remove()
        return self.states

    def _find(self, call: Call) -> None:
        self.visual = self.adapter.layout(call).visual[0]

    def _enter(self, call: Call) -> None:
        self._note(call.require("states"))

    def _leave(self, output: Any) -> None:
        self._note(output[0] if isinstance(output, tuple) else output)

    def _note(self, states: Tensor) -> None:
        self.states.append(states[0, self.visual.to(states.device)].float())


def picture(frame: pd.DataFrame, summary: dict[str, Any]) -> Figure:
    """Plot both means over the depth."""
    with plots.style():
        figure = Figure(figsize=(6.4, 3.2), layout="constrained")
        axis = figure.subplots()
        for (column, label), color, mark in zip(COLUMNS.items(), plots.SERIES, plots.MARKS, strict=False):
            axis.plot(frame["layer"], frame[column], color=color, marker=mark, ms=4.5, lw=1.5, label=label)
            axis.fill_between(
                frame["layer"], frame[f"{column}_low"], frame[f"{column}_high"], color=color, alpha=0.15, lw=0
            )
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("decoder layers passed (0: entry of the language model)")
        axis.set_ylabel("cosine of visual tokens")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        axis.set_title(f"{summary['model']}, {summary['images']} images")
    return figure
