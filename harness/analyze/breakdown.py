"""Scores of the parts of a benchmark: python -m harness.analyze breakdown runs=FOLDER task=videomme by=duration.

lmms-eval's code makes a record of each question, of which Video-MME's has its length and MVBench's its sub-task. Its
total is one number; this gives the share of right answers for each value of one key, with intervals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.analyze.ablation import check
from harness.analyze.localisation import accuracy
from harness.analyze.output import leave
from harness.core.errors import UserError, did_you_mean
from harness.core.escape import visible
from harness.core.rules import at_least, require
from harness.results import plots
from harness.results.influence import number
from harness.results.labels import names
from harness.results.result import Result, load_results


def check_numbers(cfg: DictConfig) -> None:
    """Raise UserError for numbers that are too small."""
    require(cfg, {"resamples": at_least(100)})


CHECKS = (check, check_numbers)


def breakdown(cfg: DictConfig) -> None:
    """Score the parts of a task in every finished run and draw them."""
    task, key = str(cfg.task), str(cfg.by)
    results = [result for result in load_results(cfg.runs) if task in result.metrics["primary"]]
    if not results:
        raise UserError(f"no run below runs={cfg.runs} has task={task}: name one that was run")
    if len(models := list(dict.fromkeys(str(result.about["model"]) for result in results))) > 1:
        raise UserError(f"the runs are of several models ({', '.join(models)}): pass the folder of one")
    called = names(results)
    rows = []
    for result in results:
        run = {"run": f"{called[result.hash]} {result.budget}".strip(), "method": result.method}
        for part, here in parted(result, task, key).groupby("part"):
            rows.append({**run, "part": part, **accuracy(here, int(cfg.resamples), int(cfg.seed))})
    table = pd.DataFrame(rows)
    print(visible(table.to_string(index=False, float_format="{:.3f}".format), keep="\n"))
    summary = {"analysis": "breakdown", "model": models[0], "task": task, "by": key, "parts": table.to_dict("records")}
    leave(cfg, models[0], table, picture(table, f"{models[0]}, {task} by {key}"), summary)


def parted(result: Result, task: str, key: str) -> pd.DataFrame:
    """Return a row for each question of a task: its part, its picture or video, and whether its answer is right."""
    metric, columns = str(result.metrics["primary"][task]), result.per_question[task]
    records: Sequence[Any] = columns.get(metric, [])
    keys = sorted({name for record in records if isinstance(record, dict) for name in record})
    if key not in keys:
        raise UserError(
            f"the records of {task} have no {key}, they have {', '.join(keys) or 'no keys'}: "
            f"{did_you_mean(key, keys) if keys else 'choose another task'}"
        )
    shown = columns.get("picture", [""] * len(records))
    rows = [
        {"part": str(record[key]), "picture": name or str(place), "right": number(record)}
        for place, (record, name) in enumerate(zip(records, shown, strict=True))
        if record is not None
    ]
    if any(row["right"] is None for row in rows):
        raise UserError(f"the records of {task} do not say whether an answer is right: choose another task")
    return pd.DataFrame(rows)


def picture(table: pd.DataFrame, title: str) -> Figure:
    """Plot the share of right answers with its interval, a group for each part and a mark for each run."""
    parts, runs = list(dict.fromkeys(table["part"])), list(dict.fromkeys(table["run"]))
    with plots.style():
        figure = Figure(figsize=(1.2 * len(parts) + 3.0, 3.4), layout="constrained")
        axis = figure.subplots()
        for place, run in enumerate(runs):
            each = table[table["run"] == run]
            x = [parts.index(part) + 0.7 * ((place + 0.5) / len(runs) - 0.5) for part in each["part"]]
            color, marker = plots.look(each["method"].iloc[0])
            axis.plot(x, each["accuracy"], marker, color=color, ms=5, label=run)
            axis.vlines(x, each["low"], each["high"], color=color, lw=0.9)
        axis.set_xticks(
            range(len(parts)), parts, rotation=30 if len(parts) > 4 else 0, ha="right" if len(parts) > 4 else "center"
        )
        axis.set_ylim(-0.03, 1.03)
        axis.set_ylabel("share of right answers")
        axis.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
