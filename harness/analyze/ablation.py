"""Score over lambda, from the runs of a sweep: python -m harness.analyze ablation runs=results/analysis/runs.

Table 7 of arXiv 2602.13315: maximal marginal relevance against the naive hybrid over lambda, and against the DPP, which
has no parameter. All methods answer the same questions, so differences are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.analyze.output import leave
from harness.core.console import say
from harness.core.errors import UserError
from harness.core.escape import visible
from harness.core.files import check_place
from harness.results import plots
from harness.results.method_groups import title_of
from harness.results.result import Result, average, load_results, relative
from harness.results.stats import AVERAGE, noise
from harness.results.summary import full_summary
from harness.results.table import records

SWEEP = "start them with python -m harness -m experiment=ablation"
OURS = "idpruner"


def check(cfg: DictConfig) -> None:
    """Raise UserError for settings of this analysis that are wrong."""
    check_place(cfg.out, "out")


CHECKS = (check,)


def ablation(cfg: DictConfig) -> None:
    """Compare the runs of a sweep over lambda and draw the result."""
    results = swept(cfg)
    frame, notes = full_summary(results)
    differences = compared(results)
    model, tasks = frame["model"].iloc[0], frame["tasks"].iloc[0]
    for note in notes:
        say(f"note: {note}")
    print(visible(differences.to_string(index=False, float_format="{:.2f}".format), keep="\n"))
    questions = int(frame["questions"].iloc[0])
    summary = {"analysis": "ablation", "model": model, "tasks": tasks, "questions": questions}
    summary |= {"differences": differences.to_dict("records")}
    figure = picture(frame, f"{model} on {tasks}, {questions} questions")
    leave(cfg, model, table(frame), figure, summary)


def swept(cfg: DictConfig) -> list[Result]:
    """Load the runs of the compared methods and of the unpruned model; UserError if they are no ablation."""
    try:
        results = load_results(cfg.runs)
    except UserError as error:
        raise UserError(f"{error}; {SWEEP}".replace(": start with python -m harness;", ";")) from error
    results = [result for result in results if result.is_baseline or result.method in cfg.methods]
    models = sorted({str(result.folder.parent) for result in results})
    if len({result.setting for result in results}) > 1:
        raise UserError(f"the runs are of several settings: pass one of {', '.join(models)}, or runs of one version")
    if sum(result.method == OURS for result in results) < 2 or not any(result.is_baseline for result in results):
        raise UserError(f"runs={cfg.runs} holds no sweep of {OURS} with its unpruned model: {SWEEP}")
    return results


def lam_of(result: Result) -> float | None:
    """Return the run's lambda; None for a method without one."""
    lam = result.about["config"]["method"].get("lam")
    return None if lam is None else float(lam)


def compared(results: Sequence[Result]) -> pd.DataFrame:
    """Compare ours with each other run of its budget at the same lambda, in points of the average.

    A run without lambda is compared at each of ours. The row with lambda "best" compares the best run of both. The same
    questions choose and judge it, which favours the method with more values to choose from. Intervals: 95 %.
    """
    baseline = next(result for result in results if result.is_baseline)
    errors = noise(results, baseline)
    if AVERAGE not in errors.shares:
        task, reason = next(iter(errors.untested.items()))
        raise UserError(f"the average has no interval: {task} is untested, since {reason}")
    means = {result.hash: _average(result, baseline) for result in results}
    rows = []

    def row(ours: Result, theirs: Result, lam: Any) -> dict[str, Any]:
        low, high, _ = errors.shares[AVERAGE].difference(errors.place(ours.hash), errors.place(theirs.hash))
        numbers = {"difference": means[ours.hash] - means[theirs.hash], "low": low, "high": high}
        run = {"budget": ours.budget, "lambda": lam, "against": theirs.method}
        return {**run, **{key: round(value, 3) for key, value in numbers.items()}}

    for budget in dict.fromkeys(result.budget for result in results if not result.is_baseline):
        here = [result for result in results if result.budget == budget]
        ours = sorted((result for result in here if result.method == OURS), key=lambda result: lam_of(result) or 0.0)
        for method in dict.fromkeys(result.method for result in here if result.method != OURS):
            theirs = [result for result in here if result.method == method]
            for mine in ours:
                rows += [row(mine, other, lam_of(mine)) for other in theirs if lam_of(other) in (None, lam_of(mine))]
            if ours:
                best, their_best = (max(runs, key=lambda result: means[result.hash]) for runs in (ours, theirs))
                rows.append(row(best, their_best, "best"))
    return pd.DataFrame(rows)


def _average(result: Result, baseline: Result) -> float:
    percent = average(relative(result, baseline))
    if percent is None:
        raise UserError(f"{baseline.folder} scored nothing on one of its tasks, there are no percentages of that")
    return percent


def table(frame: pd.DataFrame) -> pd.DataFrame:
    """Tabulate each run: percent of the unpruned score in every benchmark, and the average with its interval."""
    rows = frame[frame["budget"] != ""].sort_values(["budget", "method", "lambda"], ascending=[False, True, True])
    keys = ["budget", "method", "lambda"]
    wide = rows.pivot_table(index="hash", columns="benchmark", values="relative", sort=False).round(2)
    whole = rows[rows["benchmark"] == AVERAGE].set_index("hash")
    benchmarks = [name for name in dict.fromkeys(rows["benchmark"]) if name != AVERAGE]
    return whole[keys].join(wide[[*benchmarks, AVERAGE]]).join(whole[["low", "high"]].round(2)).reset_index(drop=True)


def picture(frame: pd.DataFrame, title: str) -> Figure:
    """Plot the average over lambda, one panel a budget; dashed lines: methods without lambda."""
    rows = frame[(frame["benchmark"] == AVERAGE) & (frame["budget"] != "")]
    budgets = list(dict.fromkeys(rows["budget"]))
    looks = {method: plots.look(method) for method in dict.fromkeys(rows["method"])}
    with plots.style():
        figure = Figure(figsize=(3.9 * len(budgets) + 1.3, 3.5), layout="constrained")
        for axis, budget in zip(figure.subplots(1, len(budgets), squeeze=False)[0], budgets, strict=True):
            for method, (color, mark) in looks.items():
                each = rows[(rows["budget"] == budget) & (rows["method"] == method)].sort_values("lambda")
                line = each.dropna(subset="lambda")
                axis.plot(line["lambda"], line["relative"], color=color, marker=mark, ms=4.5, lw=1.5)
                axis.fill_between(line["lambda"], line["low"], line["high"], color=color, alpha=0.14, lw=0)
                for run in records(each[each["lambda"].isna()]):
                    axis.axhline(run["relative"], color=color, lw=1.3, ls=plots.DASHED)
                    axis.axhspan(run["low"], run["high"], color=color, alpha=0.14, lw=0)
            axis.set_title(budget)
            axis.set_xlabel("lambda (1: importance, 0: diversity)")
        for method, (color, mark) in looks.items():
            curve = rows.loc[rows["method"] == method, "lambda"].notna().any()
            look = {"marker": mark, "ms": 4.5} if curve else {"ls": plots.DASHED}
            figure.axes[-1].plot([], [], color=color, lw=1.4, label=title_of(method), **look)
        figure.axes[0].set_ylabel("average, % of unpruned")
        figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
