"""The plots of a page with their captions; for a plot that cannot be drawn, the reason."""

from dataclasses import dataclass, field

import pandas as pd
from matplotlib.figure import Figure

from harness.core.files import slug
from harness.report.html import called, listed
from harness.report.prefill_times import Times, join
from harness.results import plots

FRONT = "Dashed: the Pareto front of all budgets, on which runs whose quartiles overlap count as equally fast."
NO_FRONT = "There is no front: times or scores of the runs do not differ by more than their noise, or it is not known."


@dataclass(frozen=True)
class Plot:
    """A figure with its name in files, its title, and what to know when reading it."""

    name: str
    title: str
    caption: str
    figure: Figure
    open: bool = False


@dataclass
class Set:
    """The plots of one model on one set of tasks."""

    label: str
    plots: list[Plot] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def draw(frame: pd.DataFrame, times: Times | None) -> list[Set]:
    """Draw the plots of every setting with a pruned run; `frame` is that of `full_summary`."""
    sets: list[Set] = []
    for setting in dict.fromkeys(frame["setting"]):
        rows = frame[frame["setting"] == setting]
        if (rows["budget"] != "").any():
            sets.append(_draw(rows, times, len(sets)))
    return sets


def _draw(rows: pd.DataFrame, times: Times | None, place: int) -> Set:
    model, tasks = rows["model"].iloc[0], rows["tasks"].iloc[0]
    differs = rows["differs"].iloc[0] if "differs" in rows else ""
    plot_set = Set(", ".join(filter(None, [called(model, tasks), differs])))
    if rows["relative"].isna().all():
        plot_set.missing.append(
            "No finished run of the unpruned model with these settings, so nothing to compare with."
        )
        return plot_set
    stem = f"{place + 1}-{slug(model)}"
    _add(
        plot_set,
        f"{stem}-budgets",
        "Score against budget",
        "Average over the benchmarks by the number of visual tokens kept, with 95 % intervals; lines are shifted "
        "sideways so that none hides another; grey: the methods of the other panels; hollow: cut inside the language "
        "model, so that its first layers see all tokens.",
        plots.budgets(rows),
        "All runs have one budget, so there is no score against budget: run -m keep=0.5,0.25,0.1.",
    )
    _add_time(plot_set, rows, times, stem)
    for budget in dict.fromkeys(rows.loc[rows["budget"] != "", "budget"]):
        name = f"{stem}-{slug(budget.replace('=', ''))}"
        caption = "Percent of the unpruned model's score (dashed). Bands: 95 % intervals; grey: runs of the same group."
        few = f"Fewer than three benchmarks at {budget}, too few for a radar."
        _add(plot_set, f"{name}-radar", f"Profile over benchmarks at {budget}", caption, plots.radar(rows, budget), few)
        caption = "Methods by group and average; lines are 95 % intervals, where the error is known."
        none = f"No run of the unpruned model to compare with at {budget}."
        _add(plot_set, f"{name}-bars", f"Benchmarks at {budget}", caption, plots.bars(rows, budget), none)
    _add(
        plot_set,
        f"{stem}-lambda",
        "Ablation over lambda",
        "Average over the benchmarks by the weight of importance against diversity, with 95 % intervals; lines are "
        "shifted sideways so that none hides another.",
        plots.ablation(rows),
        "No method was run with two values of lambda, so there is no ablation: run -m method.lam=0,0.25,0.5,0.75,1.",
    )
    return plot_set


def _add_time(plot_set: Set, rows: pd.DataFrame, times: Times | None, stem: str) -> None:
    if times is None:
        plot_set.missing.append(
            "No measured prefill times were given, so there is no score against time: pass prefill=bench.csv of "
            "python -m harness.bench."
        )
        return
    measured, without = join(times, rows)
    gone = f" Not measured, or not told apart in the file: {listed(without)}." if without else ""
    front = plots.front(plots.points(rows, measured))
    caption = "Vertical lines: 95 % intervals; horizontal lines: from the lower to the upper quartile of the times. "
    caption += f"{FRONT if len(front) else NO_FRONT} "
    how = times.measured.get(str(rows["model"].iloc[0]))
    caption += f"Measured by python -m harness.bench: {how}.{gone}" if how else gone.strip()
    none = "The file with prefill times has fewer than two of these runs, so there is no score against time."
    title, name = "Score against measured prefill time", f"{stem}-prefill"
    _add(plot_set, name, title, caption, plots.pareto(rows, measured), none)


def _add(plot_set: Set, name: str, title: str, caption: str, figure: Figure | None, otherwise: str) -> None:
    if figure is None:
        plot_set.missing.append(otherwise)
    else:
        plot_set.plots.append(Plot(name, title, caption, figure, open=len(plot_set.plots) < 2))
