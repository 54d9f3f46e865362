"""Choose variants by one half of the questions, judge them by the other: python -m harness.analyze heldout.

Whoever tries forty variants on a suite and reports the best reports luck as well. Here every method, ours among them,
chooses its variant by the questions about one half of the pictures; the rest, which nothing was chosen by, decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.analyze.ablation import check
from harness.analyze.output import leave
from harness.core.errors import UserError
from harness.core.escape import visible
from harness.core.files import digest
from harness.results import plots
from harness.results.labels import names
from harness.results.method_groups import title_of
from harness.results.result import Result, load_results
from harness.results.stats import AVERAGE, Noise, noise

CHECKS = (check,)


def heldout(cfg: DictConfig) -> None:
    """Choose a variant of each method, judge it, and draw both halves."""
    results = load_results(cfg.runs)
    if len({result.setting for result in results}) > 1:
        folders = ", ".join(sorted({str(result.folder.parent) for result in results}))
        raise UserError(f"the runs differ in their model, tasks, limit or versions ({folders}): pass runs that do not")
    baseline = next((result for result in results if result.is_baseline), None)
    if baseline is None:
        raise UserError(f"no unpruned run below runs={cfg.runs}: start with python -m harness")
    if cfg.ours not in {result.method for result in results}:
        raise UserError(f"no run of ours={cfg.ours} below runs={cfg.runs}: name one that is there")
    halves = [noise(results, baseline, part) for part in (chooses, lambda picture: not chooses(picture))]
    if untested := {task: reason for half in halves for task, reason in half.untested.items()}:
        task, reason = next(iter(untested.items()))
        raise UserError(f"task {task} cannot be divided, since {reason}: pass runs without it")
    table, verdicts = judged(results, halves[0], halves[1], cfg.ours)
    if not verdicts:
        raise UserError(f"ours={cfg.ours} was run at no budget at which another method was: run one of them there")
    model = str(baseline.about["model"])
    shown = ["budget", "variant", "chosen", "choosing", "judging", "low", "high"]
    print("percent of the unpruned model, on the questions that choose and on those that judge; interval of the latter")
    print(visible(table[shown].to_string(index=False, float_format="{:.2f}".format), keep="\n"))
    print(visible(pd.DataFrame(verdicts).to_string(index=False, float_format="{:.2f}".format), keep="\n"))
    summary = {"analysis": "heldout", "model": model, "ours": cfg.ours, "verdicts": verdicts}
    leave(cfg, model, table, picture(table, str(cfg.ours)), summary)


def chooses(picture: str) -> bool:
    """Return whether the questions about a picture are those that choose; by its name, so that no half shares one."""
    return int(digest(picture), 16) % 2 == 0


def judged(
    results: Sequence[Result], choose: Noise, judge: Noise, ours: str
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Return a row for each run, in percent of the unpruned model, and how far each method is above `ours`.

    Both are compared by the variant that was `chosen`; the first wins a tie. Scores of single tasks and the 95 %
    intervals are those of the judging half.
    """
    called = names(results)
    rows, verdicts = [], []
    for budget in dict.fromkeys(result.budget for result in results if not result.is_baseline):
        here = [result for result in results if result.budget == budget]
        best = {
            method: max((run for run in here if run.method == method), key=lambda run: _average(choose, run))
            for method in dict.fromkeys(run.method for run in here)
        }
        for run in here:
            low, high = judge.shares[AVERAGE].interval(judge.place(run.hash))
            row: dict[str, Any] = {"budget": budget, "method": run.method, "variant": called[run.hash]}
            row |= {"chosen": run is best[run.method], "choosing": _average(choose, run)}
            tasks = {task: float(judge.shares[task].values[judge.place(run.hash)]) for task in judge.tasks}
            rows.append({**row, "judging": _average(judge, run), "low": low, "high": high, **tasks})
        if ours not in best:
            continue
        mine = best[ours]
        for method, run in best.items():
            if method != ours:
                places = judge.place(run.hash), judge.place(mine.hash)
                low, high, _ = judge.shares[AVERAGE].difference(*places)
                gain = _average(judge, run) - _average(judge, mine)
                row = {"budget": budget, "method": called[run.hash], "against": called[mine.hash]}
                verdicts.append(row | {k: round(v, 3) for k, v in (("gain", gain), ("low", low), ("high", high))})
    return pd.DataFrame(rows).round(3), verdicts


def _average(half: Noise, run: Result) -> float:
    return float(half.shares[AVERAGE].values[half.place(run.hash)])


def picture(table: pd.DataFrame, ours: str) -> Figure:
    """Plot the judging half over the choosing half, one panel a budget; filled: chosen.

    Lines are 95 % intervals of the judging half; the dashed line is where both halves agree.
    """
    budgets = list(dict.fromkeys(table["budget"]))
    looks = {method: plots.look(method) for method in dict.fromkeys([ours, *table["method"]])}
    with plots.style():
        figure = Figure(figsize=(3.9 * len(budgets) + 1.5, 3.7), layout="constrained")
        for axis, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
            here = table[table["budget"] == budget]
            for method, (color, marker) in looks.items():
                each = here[here["method"] == method]
                faces = [color if chosen else "none" for chosen in each["chosen"]]
                axis.vlines(each["choosing"], each["low"], each["high"], color=color, lw=0.7, alpha=0.5)
                axis.scatter(each["choosing"], each["judging"], s=26, marker=marker, facecolors=faces, edgecolors=color)
            axis.axline((here["choosing"].max(),) * 2, slope=1, lw=0.8, ls=plots.DASHED, color="0.6")
            axis.set_title(budget)
            axis.set_xlabel("questions that choose, % of unpruned")
        for method, (color, marker) in looks.items():
            figure.axes[-1].scatter([], [], s=26, color=color, marker=marker, label=title_of(method))
        figure.axes[0].set_ylabel("questions that judge, % of unpruned")
        figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
