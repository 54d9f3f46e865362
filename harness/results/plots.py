"""Figures of a comparison, drawn with matplotlib from the frame of `harness.results.summary`.

Each function takes the rows of one model on one set of tasks and returns a figure, or None if there are too few rows.
A method has one colour and one marker, which `look` gives, in every figure; runs of one method differ in the line's
style. Colours are legible on white and on black, and differ with deuteranopia and protanopia. `inline` lets a page
recolour text and rules by its own theme.
"""

import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import matplotlib as mpl
import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.typing import LineStyleType

from harness.core.escape import visible
from harness.core.files import digest, writing
from harness.results.benchmarks import titles
from harness.results.labels import ordered
from harness.results.method_groups import BASELINE, methods, printed
from harness.results.stats import AVERAGE
from harness.results.table import records
from harness.results.web import StyleSheet

INK, MUTED, RULE = "#20242b", "#6b7480", "#d9dde3"
OTHERS = "#b3bac4"  # runs that are drawn for comparison: lighter than any colour, darker than the grid
# Any two differ by 11 or more in CIEDE2000, for normal vision, deuteranopia and protanopia, and contrast by 3 to 1 or
# more with white and with the page's dark background.
COLOURS = {
    "blue": "#2f5fe0",
    "orange": "#d9700a",
    "green": "#1f8f73",
    "pink": "#f50062",
    "cyan": "#009fc7",
    "brown": "#8a584c",
    "magenta": "#b81297",
    "olive": "#7a6200",
}
MARKERS = {
    **{"circle": "o", "square": "s", "triangle": "^", "diamond": "D", "down": "v"},
    **{"plus": "P", "cross": "X", "star": "*", "left": "<", "right": ">", "pentagon": "p"},
    **{"hexagon": "h", "thin": "d"},
}
SERIES, MARKS = tuple(COLOURS.values()), "".join(MARKERS.values())
LINES: tuple[LineStyleType, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
LINES += ((0, (11, 3)), (0, (6, 2, 1.5, 2, 1.5, 2)))
DASHED = (0, (4, 3))
BEGIN, END = 40, 20  # letters of a long name that are shown; all of it would leave no room for what is drawn
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
    "pdf.fonttype": 42,  # TrueType: publishers refuse Type 3
    "ps.fonttype": 42,
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "harness",
}


@contextmanager
def style() -> Iterator[None]:
    """Apply this module's matplotlib settings within a block."""
    with mpl.rc_context(STYLE):  # type: ignore[arg-type]
        yield


@cache
def look(method: str) -> tuple[str, str]:
    """Return the colour and the marker of a method.

    One that conf/tables/groups.yaml does not list gets them by its name, from those that no listed method has.
    """
    listed = {name: tuple(about["look"].split()) for name, about in methods().items()}
    free = [pair for pair in product(COLOURS, MARKERS) if pair not in listed.values()]
    colour, marker = listed.get(method) or free[crc32(method.encode()) % len(free)]
    return COLOURS[colour], MARKERS[marker]


def _panels(count: int, columns: int, size: tuple[float, float], **more: Any) -> tuple[Figure, list[Axes]]:
    rows = -(-count // columns)
    figure = Figure(figsize=(size[0] * min(columns, count), size[1] * rows), layout="constrained")
    axes = list(figure.subplots(rows, min(columns, count), squeeze=False, **more).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, axes[:count]


def _fitting(text: str) -> str:
    """Return a name as a figure can show it; matplotlib leaves out what begins with "_" from legends."""
    text = visible(text)
    return " " * text.startswith("_") + (text if len(text) <= BEGIN + END else f"{text[:BEGIN]}…{text[-END:]}")


def _shown(name: str) -> str:
    return _fitting(printed(name))


def _pruned(frame: pd.DataFrame, budget: str | None = None) -> pd.DataFrame:
    rows = frame[frame["budget"] != ""]
    return rows if budget is None else rows[rows["budget"] == budget]


def _by_group(rows: pd.DataFrame) -> list[str]:
    """Return the hashes of runs by group, then from the best average to the worst."""
    averages = rows[rows["benchmark"] == AVERAGE].sort_values("relative", ascending=False, kind="stable")
    groups = ordered(list(rows["group"]))
    return list(averages.sort_values("group", key=lambda names: names.map(groups.index), kind="stable")["hash"])


def series(rows: pd.DataFrame, frame: pd.DataFrame, by: str = "name") -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each value of column `by` in `rows` with the style of its line.

    `frame` has the rows of all panels, so that a run has the same style in each of them.
    """
    for value, method in sorted(set(zip(rows[by], rows["method"], strict=True))):
        runs = sorted(set(frame.loc[frame["method"] == method, by]))
        colour, marker = look(method)
        size = 6.5 if marker == "*" else 4.5
        yield value, {"color": colour, "marker": marker, "ms": size, "ls": LINES[runs.index(value) % len(LINES)]}


def _shifts(count: int, step: float) -> list[float]:
    """Return shifts that are centred at 0, so that lines of equal values lie next to each other."""
    return [step * (place - (count - 1) / 2) for place in range(count)]


def _whiskers(axis: Axes, x: Any, runs: pd.DataFrame, color: str) -> None:
    """Draw the 95 % intervals of `runs` at `x`, where they are known."""
    axis.vlines(x, runs["low"], runs["high"], color=color, lw=0.9)


def radar(frame: pd.DataFrame, budget: str) -> Figure | None:
    """Draw the percentages of the unpruned score per benchmark at one budget, a panel for each run.

    Bands are 95 % intervals; thin lines are the other runs of the group.
    """
    rows = _pruned(frame, budget)
    rows = rows[rows["benchmark"] != AVERAGE].dropna(subset="relative")
    benchmarks = list(dict.fromkeys(rows["benchmark"]))
    if len(benchmarks) < 3:
        return None
    runs = [run for run in _by_group(_pruned(frame, budget)) if run in set(rows["hash"])]
    angles = np.linspace(0, 2 * np.pi, len(benchmarks), endpoint=False)

    def closed(run: str, column: str) -> Any:
        values = rows[rows["hash"] == run].set_index("benchmark")[column].reindex(benchmarks).to_numpy(dtype=float)
        return np.append(values, values[0])

    with style():
        figure, axes = _panels(len(runs), 5, (2.3, 2.1), subplot_kw={"projection": "polar"})
        top = max(105.0, float(rows["relative"].max()))
        around = np.append(angles, 2 * np.pi)
        for axis, run in zip(axes, runs, strict=True):
            axis.set_theta_offset(np.pi / 2)  # type: ignore[attr-defined]
            axis.set_theta_direction(-1)  # type: ignore[attr-defined]
            own = rows[rows["hash"] == run]
            for other in dict.fromkeys(rows.loc[rows["group"] == own["group"].iloc[0], "hash"]):
                axis.plot(around, closed(other, "relative"), color=OTHERS, lw=0.6)
            axis.plot(np.linspace(0, 2 * np.pi, 49), np.full(49, 100.0), color=MUTED, lw=0.8, ls=DASHED)
            ((name, line),) = series(own, rows)
            axis.fill_between(around, closed(run, "low"), closed(run, "high"), color=line["color"], alpha=0.25, lw=0)
            axis.plot(around, closed(run, "relative"), **{**line, "ms": 0.6 * line["ms"]}, lw=1.2, label=_shown(name))
            names = [_fitting(text).strip().replace(" ", "\n") for text in titles(benchmarks).values()]
            axis.set_xticks(angles, names, fontsize=6)
            for label, angle in zip(axis.get_xticklabels(), angles, strict=True):
                side = round(float(np.sin(angle)), 6)
                label.set_horizontalalignment("center" if side == 0 else "left" if side > 0 else "right")
            axis.tick_params(axis="x", pad=-4)
            axis.set_yticks([50, 100], ["50 %", ""], fontsize=5.5, color=MUTED)
            axis.set_rlabel_position(180 / len(benchmarks))  # type: ignore[attr-defined]
            axis.set_ylim(0, top)
            axis.spines["polar"].set_visible(False)
            axis.patch.set_visible(False)
            axis.set_title(_shown(name), fontweight="bold", loc="center", pad=10)
    return figure


def budgets(frame: pd.DataFrame) -> Figure | None:
    """Draw the average against the number of kept tokens with 95 % intervals, a panel for each group.

    A hollow marker means that early layers see all tokens. Lines of a panel are shifted sideways against each other.
    """
    rows = _pruned(frame)
    rows = rows[rows["benchmark"] == AVERAGE].dropna(subset=["relative", "K"]).sort_values("K")
    if rows["budget"].nunique() < 2:
        return None
    groups = ordered(list(rows["group"]))
    with style():
        figure, axes = _panels(len(groups), 4, (2.9, 4.0), sharex=True, sharey=True)
        for axis, group in zip(axes, groups, strict=True):
            for _, other in rows[rows["group"] != group].groupby("name"):
                axis.plot(other["K"], other["relative"], color=OTHERS, lw=0.9)
            own = rows[rows["group"] == group]
            shown = list(series(own, rows))
            for (name, line), shift in zip(shown, _shifts(len(shown), 0.03), strict=True):
                runs = own[own["name"] == name]
                x = runs["K"] * 2**shift
                fill = "none" if (runs["per_layer"] > runs["K"]).any() else line["color"]
                axis.plot(x, runs["relative"], **line, mfc=fill, lw=1.2, label=_shown(name))
                _whiskers(axis, x, runs, line["color"])
            axis.set_xscale("log", base=2)
            ticks = _spread(sorted(set(rows["K"])))
            axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
            axis.minorticks_off()
            axis.set_title(group, fontweight="bold")
            axis.set_xlabel("visual tokens kept (mean)")
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handlelength=2.6, columnspacing=1)
        axes[0].set_ylabel("average, % of unpruned")
    return figure


def _spread(ticks: Sequence[float], ratio: float = 1.25) -> list[float]:
    """Return the ticks that do not overlap on a logarithmic axis."""
    kept: list[float] = []
    for tick in sorted(ticks, reverse=True):
        if not kept or ratio * tick <= kept[-1]:
            kept.append(tick)
    return kept


def points(frame: pd.DataFrame, times: pd.DataFrame) -> pd.DataFrame:
    """Return the averages of the runs that have a time, with the quartiles of the time as `fast` and `slow`.

    `times` has the columns hash, prefill_ms and prefill_iqr_ms, whose half lies on each side of the median.
    """
    rows = frame[frame["benchmark"] == AVERAGE].dropna(subset="relative")
    rows = rows.merge(times.dropna(subset="prefill_ms"), on="hash").sort_values(["prefill_ms", "relative"])
    half = rows["prefill_iqr_ms"].astype(float) / 2
    return rows.assign(fast=rows["prefill_ms"] - half, slow=rows["prefill_ms"] + half)


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the Pareto front of `points`, from fast to slow, as far as it is wider than the noise.

    Runs whose quartiles overlap with those of the fastest count as equally fast: the best of them is on the front, at
    the time of the fastest. The next is sought among runs that are slower beyond the quartiles and better beyond the
    95 % intervals. A run whose time or score has no known noise is on no front; fewer than two runs are none.
    """
    rest = rows.dropna(subset=["fast", "slow", "low", "high"])
    chosen: dict[Any, float] = {}
    while len(rest):
        fastest = rest.iloc[0]  # `points` are sorted by time
        place = rest.loc[rest["fast"] <= fastest["slow"], "relative"].idxmax()
        chosen[place] = fastest["prefill_ms"]
        rest = rest[(rest["fast"] > rest.loc[place, "slow"]) & (rest["low"] > rest.loc[place, "high"])]
    best = rows.loc[list(chosen) if len(chosen) > 1 else []]
    return best.assign(prefill_ms=best.index.map(chosen))


def pareto(frame: pd.DataFrame, times: pd.DataFrame) -> Figure | None:
    """Draw the average against the measured prefill time, a panel for each budget, with the `front` of all budgets.

    Lines are 95 % intervals of the score and quartiles of the time; see `points` for `times`.
    """
    rows = points(frame, times)
    if len(rows) < 2:
        return None
    limits = [budget for budget in dict.fromkeys(frame["budget"]) if budget in set(rows["budget"])]
    shown = [budget for budget in limits if budget] or limits
    best, in_order = front(rows), rows.set_index("hash").loc[_by_group(rows)]
    with style():
        figure, axes = _panels(len(shown), 3, (3.7, 4.3), sharex=True, sharey=True)
        for axis, budget in zip(axes, shown, strict=True):
            axis.plot(rows["prefill_ms"], rows["relative"], "o", color=OTHERS, ms=2.5)
            if len(best):
                axis.step(best["prefill_ms"], best["relative"], where="post", color=MUTED, lw=1, ls=DASHED)
            for run in records(in_order[in_order["budget"].isin({budget, ""})]):
                unpruned = run["method"] == BASELINE
                color, marker = (INK, "o") if unpruned else look(run["method"])
                axis.hlines(run["relative"], run["fast"], run["slow"], color=color, lw=0.7, alpha=0.5)
                axis.vlines(run["prefill_ms"], run["low"], run["high"], color=color, lw=0.9)
                face = "none" if unpruned else color
                size = 7.0 if marker == "*" else 5.0
                (point,) = axis.plot(run["prefill_ms"], run["relative"], marker, color=color, ms=size, mfc=face)
                point.set_label(_shown(run["name"]))
            axis.set_title(_fitting(budget) or "unpruned", fontweight="bold")
            axis.set_xlabel("measured prefill time, ms")
        for axis in axes[::3]:
            axis.set_ylabel("average, % of unpruned")
        _legend(figure, axes)
    return figure


def _legend(figure: Figure, axes: Sequence[Axes]) -> None:
    """Draw one legend below all panels, each name once."""
    handles = {label: item for axis in axes for item, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    columns = max(1, round(figure.get_figwidth() / 1.5))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=2.6)


def ablation(frame: pd.DataFrame) -> Figure | None:
    """Draw the average over lambda with 95 % intervals, a panel for each budget and a line for each set of parameters.

    Lines are shifted sideways against each other.
    """
    rows = _pruned(frame)
    rows = rows[rows["benchmark"] == AVERAGE].dropna(subset=["relative", "lambda"]).sort_values("lambda")
    swept = rows.groupby(["method", "budget", "params"])["lambda"].transform("nunique") > 1
    several = rows.groupby("method")["params"].transform("nunique") > 1
    rows = rows.assign(line=rows["method"] + (" (" + rows["params"] + ")").where(several, ""))[swept]
    if rows.empty:
        return None
    limits = list(dict.fromkeys(rows["budget"]))
    with style():
        figure, axes = _panels(len(limits), 3, (3.7, 3.4), sharex=True, sharey=True)
        for axis, budget in zip(axes, limits, strict=True):
            own = rows[rows["budget"] == budget]
            shown = list(series(own, rows, by="line"))
            for (name, line), shift in zip(shown, _shifts(len(shown), 0.008), strict=True):
                runs = own[own["line"] == name]
                axis.plot(runs["lambda"] + shift, runs["relative"], **line, lw=1.3, label=_shown(name))
                _whiskers(axis, runs["lambda"] + shift, runs, line["color"])
            axis.set_title(_fitting(budget), fontweight="bold")
            axis.set_xlabel("lambda (1: importance, 0: diversity)")
        for axis in axes[::3]:
            axis.set_ylabel("average, % of unpruned")
        _legend(figure, axes)
    return figure


def bars(frame: pd.DataFrame, budget: str) -> Figure | None:
    """Draw the percentages of the unpruned score with 95 % intervals, a panel for each benchmark.

    Methods are ordered by group, then by average.
    """
    rows = _pruned(frame, budget)
    benchmarks = list(dict.fromkeys(rows["benchmark"]))
    if rows["relative"].notna().sum() == 0:
        return None
    order = _by_group(rows)
    about = rows.drop_duplicates("hash").set_index("hash").loc[order]
    looks = [look(method) for method in about["method"]]
    gaps = about["group"].map(ordered(list(rows["group"])).index)
    places = np.arange(len(order)) + 0.6 * gaps.to_numpy()
    heads = {**titles([name for name in benchmarks if name != AVERAGE]), AVERAGE: "average"}
    panels = [AVERAGE, *(name for name in benchmarks if name != AVERAGE)]
    with style():
        columns = min(5, len(panels))
        figure, axes = _panels(len(panels), columns, (2.25, 0.17 * (places[-1] + 1) + 0.7), sharex=True, sharey=True)
        for axis, benchmark in zip(axes, panels, strict=True):
            runs = rows[rows["benchmark"] == benchmark].set_index("hash").reindex(order)
            values = runs["relative"].to_numpy(dtype=float)
            axis.barh(places, np.nan_to_num(values), color=[color for color, _ in looks], height=0.5, alpha=0.3, lw=0)
            for value, place, (color, marker) in zip(values, places, looks, strict=True):
                axis.plot(value, place, marker, color=color, ms=5.5 if marker == "*" else 4, zorder=4)
            low, high = runs["low"].to_numpy(dtype=float), runs["high"].to_numpy(dtype=float)
            finite = np.isfinite(low)
            axis.hlines(places[finite], low[finite], high[finite], color=INK, lw=0.9, zorder=3)
            axis.axvline(100, color=MUTED, lw=0.8, ls=DASHED)
            axis.set_title(_fitting(heads[benchmark]), fontweight="bold" if benchmark == AVERAGE else "normal")
            axis.set_yticks(places, [_shown(name) for name in about["name"]], fontsize=7.5)
            axis.set_ylim(places[-1] + 0.6, -0.6)
            axis.grid(False, axis="y")
            axis.tick_params(axis="y", length=0)
            axis.set_xlim(0, max(110.0, float(np.nanmax(rows["relative"])) + 5))
            axis.set_xticks([0, 50, 100])
        figure.supxlabel("% of the unpruned model's score", fontsize=8.5, color=MUTED)
    return figure


def save(figures: dict[str, Figure], folder: Path, formats: Sequence[str] = ("svg", "pdf", "png")) -> list[Path]:
    """Write each figure in each format on a white background and return the files."""
    files = []
    with style(), writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, figure in figures.items():
            for kind in formats:
                file = folder / f"{name}.{kind}"
                figure.savefig(file, dpi=200, facecolor="white", metadata=_undated(kind))
                files.append(file)
    return files


def _undated(kind: str) -> dict[str, Any]:
    """Return metadata without a date, so that the same runs give the same files."""
    return {"svg": {"Date": None}, "pdf": {"CreationDate": None}}.get(kind, {})


def inline(figure: Figure, name: str, title: str, styles: StyleSheet) -> Markup:
    """Return a figure as SVG for a page: it scales, has a label, and takes the colours of the page's theme.

    The styles of its elements become classes of the page's style sheet.
    """
    stream = io.StringIO()
    with style():
        figure.savefig(stream, format="svg", metadata=_undated("svg"))
    root = ET.fromstring(stream.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.rpartition("}")[2] in ("metadata", "style"):  # the style is in the page's own sheet
                parent.remove(child)
    for element in root.iter():
        _adopt(element, styles)
    used = dict.fromkeys(re.findall(r"#([^)\"]+)", ET.tostring(root, encoding="unicode")))
    prefix = digest(name)[:6]
    _slim(root, {old: f"{prefix}-{place}" for place, old in enumerate(used)})
    root.attrib = {"viewBox": root.attrib["viewBox"], "role": "img", "aria-label": visible(title)}
    return Markup(ET.tostring(root, encoding="unicode"))


def _slim(parent: ET.Element, ids: dict[str, str]) -> None:
    """Give new names to `ids`, drop others, and groups that then have no attributes: half of matplotlib's SVG."""
    children: list[ET.Element] = []
    for child in parent:
        _slim(child, ids)
        if (own := child.attrib.pop("id", None)) in ids:
            child.set("id", ids[own])
        for key in child.attrib.keys() & {"href", "clip-path"}:
            child.set(key, re.sub(r"#([^)]+)", lambda found: f"#{ids[found[1]]}", child.attrib[key]))
        children += list(child) if child.tag == "g" and not child.attrib else [child]
    parent[:] = children


def _adopt(element: ET.Element, styles: StyleSheet) -> None:
    """Make an element of a figure one of a page: without namespaces, with the page's colours and style sheet."""
    element.tag = element.tag.rpartition("}")[2]
    element.text, element.tail = (text if text and text.strip() else None for text in (element.text, element.tail))
    short = {  # a tenth of a pixel is enough, but not for a scale
        key: re.sub(r"(\.\d\d)\d+" if key == "transform" else r"(\.\d)\d+", r"\1", " ".join(value.split()))
        for key, value in element.attrib.items()
    }
    attributes = {key.rpartition("}")[2]: value for key, value in short.items()}
    declarations = attributes.pop("style", "").replace("'DejaVu Sans', ", "")
    for color, variable in {INK: "ink", MUTED: "muted", RULE: "rule", OTHERS: "others"}.items():
        declarations = declarations.replace(color, f"var(--{variable})")
    if attributes.get("transform", "").startswith("rotate(-0 "):
        del attributes["transform"]
    if "d" in attributes:
        attributes["d"] = re.sub(r" ?([A-Za-z]) ?", r"\1", attributes["d"])
    element.attrib = attributes | ({"class": styles.name(declarations)} if declarations else {})
