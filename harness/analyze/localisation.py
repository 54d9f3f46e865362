"""Accuracy against how much of the target was kept: python -m harness.analyze localisation runs=results/runs.

For questions that ask where something is, of which runs record the target's box. A pruner may fail because it drops the
target, or although it keeps it, as when positions are renumbered: the first shows as accuracy that rises with the share
of the target, the second as a gap to the unpruned model where all of the target is kept. MODEL-questions.parquet has
a row for each question.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from omegaconf import DictConfig

from harness.analyze.ablation import check
from harness.analyze.output import interval, leave, samples
from harness.core.errors import UserError
from harness.core.escape import visible
from harness.core.files import make_folder, slug, write_atomic
from harness.core.rules import at_least, require
from harness.models.coordinates import WHOLE, inward, overlap
from harness.results import plots
from harness.results.labels import names
from harness.results.response_log import read_kept
from harness.results.result import Result, load_results
from harness.results.run_folder import AGAIN
from harness.results.stats import Array

DIGEST = re.compile(r"\b([0-9a-f]{8})[0-9a-f]{56}\b")  # of a companion file: its first digits tell runs apart
HIT = 0.5  # intersection over union from which a box counts as right
IOU = "refcoco_ACC@0.5,none"  # lmms-eval's metric of it, which every REC task has


def check_numbers(cfg: DictConfig) -> None:
    """Raise UserError for numbers that are too small."""
    require(cfg, {"bands": at_least(2), "resamples": at_least(100)})


CHECKS = (check, check_numbers)


def localisation(cfg: DictConfig) -> None:
    """Read the targets of finished runs and draw accuracy over the share of them that was kept."""
    results = load_results(cfg.runs)
    titles = titles_of(results)
    frames = [questions.assign(run=titles[result.hash]) for result in results for questions in asked(result)]
    if not frames:
        start = "start with python -m harness tasks=grounding, or tasks=pocket_places"
        raise UserError(
            f"no run below runs={cfg.runs} has the target of a question and the tokens that it kept: {start}"
        )
    rows = pd.concat(frames, ignore_index=True)
    models = list(dict.fromkeys(rows["model"]))
    if len(models) > 1:
        raise UserError(f"the runs are of several models ({', '.join(models)}): pass the folder of one")
    table = banded(rows, int(cfg.bands), int(cfg.resamples), int(cfg.seed))
    print(visible(table.to_string(index=False, float_format="{:.3f}".format), keep="\n"))
    tasks = list(dict.fromkeys(rows["task"]))
    whole = table[table["band"] == "all"].drop(columns="band").to_dict("records")
    file = Path(str(cfg.out)) / f"{slug(models[0])}-questions.parquet"
    make_folder(file.parent)
    write_atomic(file, rows.to_parquet(None, index=False, compression="zstd"))
    summary = {"analysis": "localisation", "model": models[0], "tasks": tasks, "iou": HIT, "runs": whole}
    leave(cfg, models[0], table, picture(table, f"{models[0]}, {', '.join(tasks)}"), summary)


def titles_of(results: Sequence[Result]) -> dict[str, str]:
    """Return `Result.hash` -> the method and its budget, as tables call them."""
    called = names(results)
    return {result.hash: DIGEST.sub(r"\1", f"{called[result.hash]} {result.budget}".strip()) for result in results}


def asked(result: Result) -> Iterator[pd.DataFrame]:
    """Yield, for each task with targets, a row a question: which share of its target was kept, and whether it is right.

    A question that failed shows nothing, and `resize` drops no tokens: both have no share.
    """
    lines: dict[str, dict[int, Mapping[str, Any]]] = {}
    for line in read_kept(result.folder, AGAIN):
        if "target" in line and line["n"] and line["kept"]:
            lines.setdefault(line["task"], {})[line["doc_id"]] = line
    for task, of_task in lines.items():
        if result.about["identity"]["model"].get("versions", {}).get("family") == "internvl":
            _refuse_tiles(task, of_task)
        columns = result.per_question[task]
        right = hits(result, task)
        shown = columns.get("picture", [""] * len(right))
        rows = [
            {"doc_id": doc, "picture": name or f"{task}/{doc}", "share": share(of_task[doc]), "right": hit}
            for doc, hit, name in zip(columns["doc_id"], right, shown, strict=True)
            if doc in of_task
        ]
        about = {"model": result.about["model"], "method": result.method, "budget": result.budget, "task": task}
        yield pd.DataFrame(rows).assign(**about)


def _refuse_tiles(task: str, lines: Mapping[int, Mapping[str, Any]]) -> None:
    doc = next((doc for doc, line in lines.items() if len(line["grids"]) > 1), None)
    if doc is not None:
        unknown = "InternVL's runs do not record where the tiles of a picture lie"
        raise UserError(f"task {task}, question {doc}: {unknown}: leave them out")


def hits(result: Result, task: str) -> list[float]:
    """Return for each question whether its answer is right; of a box, by its overlap with the target."""
    columns = result.per_question[task]
    metric = IOU if IOU in columns else str(result.metrics["primary"][task])
    values = columns.get(metric, [])
    if metric == IOU:
        values = [float(overlap(value["bbox"], value["pred"]) >= HIT) for value in values]
    if not values or not all(value in (0, 1) for value in values):
        raise UserError(f"{result.folder}: {metric} of {task} does not say of each question whether it is right")
    if not np.isclose(np.mean(values), score := result.score(task, metric), atol=1e-6):
        differs = f"the answers of {task} give {np.mean(values):g}, its score is {score:g}"
        raise UserError(f"{result.folder}: {differs}: {AGAIN}")
    return [float(value) for value in values]


def share(line: Mapping[str, Any]) -> float:
    """Return which share of the target the kept tokens cover, each token by the part of the target in its cell.

    Every grid shows the same picture or frame, or the part of it in `view`.
    """
    target = inward(tuple(line["target"]), tuple(line.get("view", WHOLE)))
    weights = np.concatenate([_covered(target, *grid) for grid in line["grids"]])
    total = float(weights.sum())
    return float(weights[line["kept"]].sum()) / total if total else 0.0


def _covered(target: Sequence[float], steps: int, rows: int, columns: int) -> Array:
    """Return the area of the target in each cell [steps * rows * columns] of a grid."""
    parts = []
    for low, high, count in ((target[1], target[3], rows), (target[0], target[2], columns)):
        edges = np.linspace(0, 1, count + 1)
        parts.append((np.minimum(high, edges[1:]) - np.maximum(low, edges[:-1])).clip(min=0))
    area: Array = np.tile(np.outer(*parts).ravel(), steps)
    return area


def banded(rows: pd.DataFrame, bands: int, resamples: int, seed: int) -> pd.DataFrame:
    """Return the accuracy of each run in bands of equal width of the share, and in "all" of them.

    Intervals are of 95 %, by bootstrap over pictures. The last band has its upper end, too.
    """
    edges = [f"{place / bands:.2g} to {(place + 1) / bands:.2g}" for place in range(bands)]
    place = np.minimum((rows["share"] * bands + 1e-9).astype(int), bands - 1)
    found = []
    for (run, task), each in rows.groupby(["run", "task"], sort=False):
        for band in [*range(bands), None]:
            here = each if band is None else each[place[each.index] == band]
            if not len(here):
                continue
            row = {"run": run, "method": each["method"].iloc[0], "budget": each["budget"].iloc[0], "task": task}
            row |= {"band": "all" if band is None else edges[band], "share": round(float(here["share"].mean()), 5)}
            found.append(row | accuracy(here, resamples, seed))
    return pd.DataFrame(found)


def accuracy(rows: pd.DataFrame, resamples: int, seed: int) -> dict[str, float]:
    """Return the share of right answers of questions, with its 95 % interval by bootstrap over pictures or videos."""
    pictures = rows.groupby("picture", sort=False)["right"].agg(["sum", "count"]).to_numpy(float)
    drawn = samples(len(pictures), resamples, seed) @ pictures
    low, high = interval(drawn[:, 0] / drawn[:, 1])
    numbers = {"accuracy": float(rows["right"].mean()), "low": low, "high": high}
    return {"questions": len(rows), **{name: round(number, 5) for name, number in numbers.items()}}


def picture(table: pd.DataFrame, title: str) -> Figure:
    """Plot accuracy over the mean share of each band, a panel for each task and a line for each run."""
    tasks = list(dict.fromkeys(table["task"]))
    with plots.style():
        height = max(3.6, 0.17 * table["run"].nunique() + 0.6)  # of the legend
        figure = Figure(figsize=(3.6 * len(tasks) + 1.8, height), layout="constrained")
        axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
        for axis, task in zip(axes, tasks, strict=True):
            for run, each in table[(table["task"] == task) & (table["band"] != "all")].groupby("run", sort=False):
                color, marker = plots.look(each["method"].iloc[0])
                axis.plot(each["share"], each["accuracy"], color=color, marker=marker, ms=4.5, lw=1.2, label=run)
                axis.vlines(each["share"], each["low"], each["high"], color=color, lw=0.9, alpha=0.6)
            axis.set_xlim(-0.03, 1.03)
            axis.set_ylim(-0.03, 1.03)
            axis.set_xlabel("share of the target that was kept")
            axis.set_title(task)
        axes[0].set_ylabel(f"accuracy at IoU {HIT:g}")
        axes[-1].legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    return figure
