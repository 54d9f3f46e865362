"""Plot a measurement: the stages of an answer, and the time saved by number of visual tokens."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.text import Text

from harness.bench.screen import label
from harness.core.files import make_folder, slug, writing
from harness.results.method_groups import printed
from harness.results.plots import series

Row = dict[str, Any]
# The parts of an answer in order; those of the pruning method have warm colours.
PARTS = {
    "preprocess": "#d9d9d9",
    "vit": "#9ecae1",
    "projector": "#6baed6",
    "signals": "#fdae6b",
    "selection": "#e6550d",
    "cut": "#fdd0a2",
    "llm_prefill": "#3182bd",
    "other": "#bdbdbd",
    "decode": "#c7e9c0",
}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Plot the stages for every size and batch size, and the savings over sizes; return the files."""
    make_folder(folder)
    timed, figures = [row for row in rows if row["e2e_ms"] is not None], {}
    for (model, workload, batch), some in groupby(timed, key=lambda row: (row["model"], row["workload"], row["batch"])):
        figures[folder / f"stages-{slug(model)}-{slug(workload)}-batch{batch}.png"] = _stages(list(some))
    for batch in sorted({row["batch"] for row in timed}):
        selected = [row for row in timed if row["batch"] == batch]
        if len({row["visual_tokens"] for row in selected}) > 1:
            figures[folder / f"savings-{slug(selected[0]['model'])}-batch{batch}.png"] = _savings(selected)
    for file, figure in figures.items():
        for text in figure.findobj(Text):
            text.set_parse_math(False)  # a dollar sign in a name is a dollar sign
        with writing(file):
            figure.savefig(file, dpi=150)
    return list(figures)


def _stages(rows: Sequence[Row]) -> Figure:
    """Plot a bar for each candidate, divided into stages."""
    figure = Figure(figsize=(9, 1.6 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    names, left = [printed(label(row)) for row in rows], [0.0] * len(rows)
    for part, colour in PARTS.items():
        width = [_part(row, part) for row in rows]
        axes.barh(names, width, left=left, color=colour, label=part.replace("_", " "))
        left = [a + b for a, b in zip(left, width, strict=True)]
    first = rows[0]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds, medians of the stages")
    axes.set_title(
        f"{first['model']}, {first['visual_tokens']} visual tokens, batch {first['batch']}, {first['device']}"
    )
    figure.legend(loc="outside right upper", fontsize="small", frameon=False)
    return figure


def _part(row: Row, part: str) -> float:
    if part == "decode":
        return float(row["tpot_ms"] * (row["new_tokens"] - 1))
    return max(0.0, float(row[f"{part}_ms"]))


def _savings(rows: Sequence[Row]) -> Figure:
    """Plot the time saved end to end over visual tokens, with interquartile ranges."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    pruned = pd.DataFrame([{"method": row["method"], "name": label(row)} for row in rows if row["method"] != "none"])
    for name, line in series(pruned, pruned):
        selected = sorted((row for row in rows if label(row) == name), key=lambda row: row["visual_tokens"])
        selected = [row for row in selected if row["e2e_saving_ms"] is not None]
        if selected:
            sizes, saved = ([row[key] for row in selected] for key in ("visual_tokens", "e2e_saving_ms"))
            spread = [row["e2e_saving_iqr_ms"] / 2 for row in selected]
            axes.errorbar(sizes, saved, spread, **line, capsize=2, label=printed(name))
    first = rows[0]
    axes.axhline(0, color="black", linewidth=0.8)
    axes.set_xlabel("visual tokens before pruning")
    axes.set_ylabel("milliseconds saved end to end")
    axes.set_title(f"{first['model']}, batch {first['batch']}, {first['device']}: above the line a method pays")
    figure.legend(loc="outside right upper", fontsize="small", frameon=False, handlelength=3)
    return figure
