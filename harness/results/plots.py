"""Figures of a comparison, drawn with matplotlib from the frame of `harness.results.summary`.

Each function takes the rows of one model on one set of tasks and returns a figure, or None if there are too few rows.
Colours are legible on white and on black. `inline` lets a page recolour text and rules by its own theme.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from harness.results.labels import ordered, short
from harness.results.stats import AVERAGE

INK, MUTED, RULE = "#20242b", "#6b7480", "#d9dde3"
GROUPS = {
    "control": "#7b8591",
    "importance": "#c26a1b",
    "diversity": "#1f8f73",
    "hybrid": "#4667cf",
    "other": "#9350a8",
}
# Colours within a group: distinct hues, with similar contrast to white and to black.
SERIES = ("#4667cf", "#c8602a", "#1f8f73", "#b3479b", "#8a7f1e", "#2b93b8", "#c23b55", "#7a5bd0", "#8d6a4b", "#5f7a3a")
MARKS = "os^DvPX<>h"
STYLE = {
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
}


@contextmanager
def style() -> Iterator[None]:
    """Apply this module's matplotlib settings within a block."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


def _panels(count: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * min(columns, count), size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, min(columns, count), squeeze=False, **more).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _pruned(frame: pd.DataFrame, budget: str | None = None) -> pd.DataFrame:
    rows = frame[frame["budget"] != ""]
    return rows if budget is None else rows[rows["budget"] == budget]


def _by_average(rows: pd.DataFrame) -> list[str]:
    """Return hashes from the best average to the worst, then those of runs without an average."""
    averages = rows[rows["benchmark"] == AVERAGE].sort_values("relative", ascending=False, kind="stable")
    return list(averages["hash"])


def radar(frame: pd.DataFrame, budget: str) -> Figure | None:
    """Draw the percentages of the unpruned score per benchmark at one budget, a panel for each group of methods."""
    rows = _pruned(frame, budget)
    rows = rows[rows["benchmark"] != AVERAGE].dropna(subset="relative")
    benchmarks = list(dict.fromkeys(rows["benchmark"]))
    if len(benchmarks) < 3:
        return None
    groups = ordered(list(rows["group"]))
    angles = np.linspace(0, 2 * np.pi, len(benchmarks), endpoint=False)
    closed = np.append(angles, 0)
    with style():
        figure, axes = _panels(len(groups), 4, (3.3, 3.6), subplot_kw={"projection": "polar"})
        top = max(105.0, float(rows["relative"].max()))
        for axis, group in zip(axes, groups, strict=True):
            axis.set_theta_offset(np.pi / 2)  # type: ignore[attr-defined]
            axis.set_theta_direction(-1)  # type: ignore[attr-defined]
            axis.plot(closed, np.full(len(closed), 100.0), color=MUTED, lw=1, ls=(0, (4, 3)))
            for name, color, mark, run in _series(rows[rows["group"] == group], frame):
                values = run.set_index("benchmark")["relative"].reindex(benchmarks).to_numpy(dtype=float)
                values = np.append(values, values[0])
                axis.plot(closed, values, color=color, lw=1.4, marker=mark, ms=2.6, label=name)
            axis.set_xticks(angles, [name.replace(" ", "\n") for name in short(benchmarks).values()], fontsize=7.5)
            for label, angle in zip(axis.get_xticklabels(), angles, strict=True):
                side = round(float(np.sin(angle)), 6)
                label.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
            axis.tick_params(axis="x", pad=-2)
            axis.set_yticks([25, 50, 75, 100], ["25", "50", "75 %", ""], fontsize=6.5, color=MUTED)
            axis.set_rlabel_position(180 / len(benchmarks))  # type: ignore[attr-defined]
            axis.set_ylim(0, top)
            axis.spines["polar"].set_visible(False)
            axis.set_title(group, color=GROUPS.get(group, INK), fontweight="bold", loc="center", pad=12)
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2, handlelength=1.6, columnspacing=1)
    return figure


def _series(rows: pd.DataFrame, frame: pd.DataFrame) -> Iterator[tuple[str, str, str, pd.DataFrame]]:
    """Yield each name in `rows` with its colour, its marker and its rows.

    Colour and marker are the same in every figure of the setting.
    """
    group = frame[frame["group"].isin(set(rows["group"]))]
    styles = dict(zip(sorted(set(group["name"])), zip(cycle(SERIES), cycle(MARKS), strict=False), strict=False))
    for name in sorted(set(rows["name"])):
        yield name, *styles[name], rows[rows["name"] == name]


def budgets(frame: pd.DataFrame) -> Figure | None:
    """Draw the average against the number of kept tokens, a panel for each group.

    A hollow marker means that early layers see all tokens.
    """
    rows = _pruned(frame)
    rows = rows[rows["benchmark"] == AVERAGE].dropna(subset=["relative", "K"])
    if rows["budget"].nunique() < 2:
        return None
    groups = ordered(list(rows["group"]))
    with style():
        figure, axes = _panels(len(groups), 4, (2.9, 3.7), sharex=True, sharey=True)
        for axis, group in zip(axes, groups, strict=True):
            for _, other in rows[rows["group"] != group].groupby("name"):
                axis.plot(other.sort_values("K")["K"], other.sort_values("K")["relative"], color=RULE, lw=0.9)
            for name, color, mark, series in _series(rows[rows["group"] == group], rows):
                runs = series.sort_values("K")
                fill = "none" if (runs["per_layer"] > runs["K"]).any() else color
                axis.plot(runs["K"], runs["relative"], color=color, marker=mark, ms=4.5, mfc=fill, lw=1.4, label=name)
                if runs["low"].notna().all():
                    axis.vlines(runs["K"], runs["low"], runs["high"], color=color, lw=1)
            axis.set_xscale("log", base=2)
            ticks = sorted(set(rows["K"]))
            axis.set_xticks(_spread(ticks), [f"{tick:g}" for tick in _spread(ticks)])
            axis.minorticks_off()
            axis.set_title(group, color=GROUPS.get(group, INK), fontweight="bold")
            axis.set_xlabel("visual tokens kept (mean)")
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, handlelength=1.6, columnspacing=1)
        axes[0].set_ylabel("average, % of unpruned")
    return figure


def _spread(ticks: Sequence[float], ratio: float = 1.25) -> list[float]:
    """Return the ticks that do not overlap on a logarithmic axis."""
    kept: list[float] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or ratio * tick <= kept[-1]:
            kept.append(tick)
    return kept


def pareto(frame: pd.DataFrame, times: pd.DataFrame) -> Figure | None:
    """Draw the average against the measured prefill time, with the Pareto front.

    `times` has the columns hash and prefill_ms.
    """
    rows = frame[frame["benchmark"] == AVERAGE].dropna(subset="relative")
    rows = rows.merge(times[["hash", "prefill_ms"]].dropna(), on="hash").sort_values(["prefill_ms", "relative"])
    if len(rows) < 2:
        return None
    best = rows["relative"].cummax()
    front = rows[(rows["relative"] == best) & ~best.duplicated()]
    with style():
        figure, (axis,) = _panels(1, 1, (7.4, 4.2))
        axis.step(front["prefill_ms"], front["relative"], where="post", color=MUTED, lw=1, ls=(0, (4, 3)))
        for place, budget in enumerate(dict.fromkeys(frame["budget"])):
            for group, runs in rows[rows["budget"] == budget].groupby("group"):
                color = GROUPS.get(str(group), INK)
                axis.plot(runs["prefill_ms"], runs["relative"], MARKS[place % len(MARKS)], color=color, ms=5.5)
            axis.plot([], [], MARKS[place % len(MARKS)], color=MUTED, label=budget or "unpruned")
        for name, color in GROUPS.items():
            if name in set(rows["group"]):
                axis.plot([], [], "s", color=color, label=name)
        for name, point in _labels(front, np.ptp(rows["prefill_ms"]), np.ptp(rows["relative"])):
            axis.annotate(name, point, (-4, 4), textcoords="offset points", fontsize=7.5, ha="right")
        axis.margins(x=0.16)  # leaves space for the names
        axis.set_xlabel("measured prefill time, ms")
        axis.set_ylabel("average, % of unpruned")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def _labels(front: pd.DataFrame, width: float, height: float) -> list[tuple[str, tuple[float, float]]]:
    """Return names with their positions; points that are close together share a label."""
    labels: list[tuple[str, tuple[float, float]]] = []
    for name, x, y in zip(front["name"], front["prefill_ms"], front["relative"], strict=True):
        if labels and x - labels[-1][1][0] < 0.12 * width and y - labels[-1][1][1] < 0.04 * height:
            labels[-1] = (f"{labels[-1][0]}, {name}", labels[-1][1])
        else:
            labels.append((name, (x, y)))
    return labels


def ablation(frame: pd.DataFrame) -> Figure | None:
    """Draw the average over lambda, a line for each method, budget and set of other parameters; bands are intervals."""
    rows = _pruned(frame)
    rows = rows[rows["benchmark"] == AVERAGE].dropna(subset=["relative", "lambda"])
    lines = [(key, runs) for key, runs in rows.groupby(["method", "budget", "params"]) if runs["lambda"].nunique() > 1]
    if not lines:
        return None
    labels = [f"{method}, {budget}" for (method, budget, _), _ in lines]
    with style():
        figure, (axis,) = _panels(1, 1, (7.4, 3.6))
        styles = zip(lines, labels, cycle(SERIES), cycle(MARKS), strict=False)
        for ((_, _, params), line), label, color, mark in styles:
            runs = line.sort_values("lambda")
            label += f" {params}" * (labels.count(label) > 1)
            axis.plot(runs["lambda"], runs["relative"], color=color, marker=mark, ms=4.5, lw=1.5, label=label)
            axis.fill_between(runs["lambda"], runs["low"], runs["high"], color=color, alpha=0.14, lw=0)
        axis.set_xlabel("lambda (1: importance alone, 0: diversity alone)")
        axis.set_ylabel("average, % of unpruned")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure


def bars(frame: pd.DataFrame, budget: str) -> Figure | None:
    """Draw the percentages of the unpruned score with 95 % intervals, a panel for each benchmark.

    Methods are ordered by group, then by average.
    """
    rows = _pruned(frame, budget)
    benchmarks = list(dict.fromkeys(rows["benchmark"]))
    if rows["relative"].notna().sum() == 0:
        return None
    rank = {name: place for place, name in enumerate(_by_average(rows))}
    groups = ordered(list(rows["group"]))
    order = sorted(rank, key=lambda name: (groups.index(_group(rows, name)), rank[name]))
    names = [rows.loc[rows["hash"] == name, "name"].iloc[0] for name in order]
    places = np.array([place + 0.6 * groups.index(_group(rows, name)) for place, name in enumerate(order)])
    titles = {**short([name for name in benchmarks if name != AVERAGE]), AVERAGE: "average"}
    panels = [AVERAGE, *(name for name in benchmarks if name != AVERAGE)]
    with style():
        columns = min(5, len(panels))
        figure, axes = _panels(len(panels), columns, (2.25, 0.17 * (places[-1] + 1) + 0.7), sharex=True, sharey=True)
        for axis, benchmark in zip(axes, panels, strict=True):
            runs = rows[rows["benchmark"] == benchmark].set_index("hash").reindex(order)
            values = runs["relative"].to_numpy(dtype=float)
            colors = [GROUPS.get(_group(rows, name), INK) for name in order]
            axis.barh(places, np.nan_to_num(values), color=colors, height=0.72, alpha=0.55, lw=0)
            low, high = runs["low"].to_numpy(dtype=float), runs["high"].to_numpy(dtype=float)
            finite = np.isfinite(low)
            axis.hlines(places[finite], low[finite], high[finite], color=INK, lw=0.9)
            axis.axvline(100, color=MUTED, lw=0.8, ls=(0, (4, 3)))
            axis.set_title(titles[benchmark], fontweight="bold" if benchmark == AVERAGE else "normal")
            axis.set_yticks(places, names, fontsize=7.5)
            axis.set_ylim(places[-1] + 0.6, -0.6)
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
            axis.set_xlim(0, max(110.0, float(np.nanmax(rows["relative"])) + 5))
            axis.set_xticks([0, 50, 100])
        figure.supxlabel("% of the unpruned model's score", fontsize=8.5, color=MUTED)
    return figure


def _group(rows: pd.DataFrame, run: str) -> str:
    return str(rows.loc[rows["hash"] == run, "group"].iloc[0])


def save(figures: dict[str, Figure], folder: Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Write each figure in each format on a white background and return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    with style():
        for name, figure in figures.items():
            for kind in formats:
                file = folder / f"{name}.{kind}"
                figure.savefig(file, dpi=200, facecolor="white", metadata=_undated(kind))
                files.append(file)
    return files


def _undated(kind: str) -> dict[str, Any]:
    """Return metadata without a date, so that the same runs give the same files."""
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})


def inline(figure: Figure, name: str, title: str) -> str:
    """Return a figure as SVG for a page: it scales, has a label, and takes the colours of the page's theme."""
    stream = io.StringIO()
    with style():
        figure.savefig(stream, format="svg", metadata=_undated("svg"))
    text = stream.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    box = re.findall(r'viewBox="[^"]+"', text)[0]
    text = f'<svg {box} role="img" aria-label="{title}">' + text[text.index(">") + 1 :]
    text = re.sub(r'(?<=\bid=")|(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    text = text.replace("'DejaVu Sans', ", "").replace("xlink:href", "href")
    for color, variable in {INK: "ink", MUTED: "muted", RULE: "rule"}.items():
        text = text.replace(color, f"var(--{variable})")
    return re.sub(r">\s*\n\s*<", "><", text)
