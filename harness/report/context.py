"""The context of the page's templates: tables, plots and provenance of runs, and the gallery."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
from omegaconf import DictConfig

from harness.core.files import make_folder, slug, write_atomic
from harness.report import figures, gallery, html
from harness.report.answers import RIGHT
from harness.report.html import plural
from harness.report.provenance import provenance
from harness.results import plots
from harness.results.benchmarks import percent_scale, titles
from harness.results.labels import ordered, qualified
from harness.results.method_groups import printed, title_of
from harness.results.result import Result
from harness.results.stats import AVERAGE
from harness.results.web import StyleSheet


def of_runs(
    cfg: DictConfig, finished: int, results: Sequence[Result], frame: pd.DataFrame, sets: list[figures.Set]
) -> dict[str, Any]:
    """Return the context of everything but the gallery; `finished` counts the runs, `results` has a row's as one."""
    averages, styles = frame[frame["benchmark"] == AVERAGE].set_index("hash"), html.style_sheet()
    origin = provenance(results, Path(str(cfg.runs)))
    params = {run["hash"]: run["params"] for run in origin["runs"]}
    origin["runs"] = [run | _identify(averages, run["hash"]) for run in origin["runs"]]
    tables = overview(frame, results)
    for table in tables:
        for row in table["rows"]:
            row.update(params=params[row["hash"]], ids=["", *table["benchmarks"]])
    methods = {result.method: title_of(result.method) for result in results}
    names = {id: name for table in reversed(tables) for id, name in table["benchmarks"].items()}
    questions = max(sum(result.metrics["questions"].values()) for result in results)
    models = list(dict.fromkeys(result.about["config"]["model"]["name"] for result in results))
    pooled = f" Runs that differ in their seed alone are one row: {len(results)} rows." * (len(results) < finished)
    lead = (
        f"{plural(finished, 'run')} of {plural(len(set(methods) - {'baseline'}), 'method')} on "
        f"{plural(len(models), 'model')} and {plural(len(names), 'benchmark')}, up to {questions:,} questions per run."
    )
    return {
        "title": str(cfg.title),
        "lead": lead,
        "groups": [group for group in ordered(list(frame["group"])) if group],
        "models": {name: name for name in models},
        "methods": methods,
        "budgets": {result.budget or "unpruned": result.budget or "all tokens" for result in results},
        "benchmarks": {id: id if list(names.values()).count(name) > 1 else name for id, name in names.items()},
        "tables": tables,
        "plots": [_rendered(plot_set, styles) for plot_set in sets],
        "styles": styles,
        "provenance": origin,
        "made_with": f"{plural(finished, 'finished run')} below {cfg.runs}.{pooled}",
    }


def _identify(averages: pd.DataFrame, run: str) -> dict[str, Any]:
    """Return what names a run; settings in which it differs from others of its model and tasks are part of the name."""
    about = averages.loc[run]
    name = qualified(printed(str(about["name"])), str(about["differs"]))
    return {"name": name, **{key: about[key] for key in ("method", "group", "model", "budget")}}


def _rendered(plot_set: figures.Set, styles: StyleSheet) -> dict[str, Any]:
    rendered = [
        {
            **{key: value for key, value in vars(plot).items() if key != "figure"},
            "width": round(120 * plot.figure.get_figwidth()),
            "svg": plots.inline(plot.figure, plot.name.replace(".", "-"), f"{plot.title}, {plot_set.label}", styles),
        }
        for plot in plot_set.plots
    ]
    return {**asdict(figures.Set(plot_set.label, [], plot_set.missing)), "plots": rendered}


def of_gallery(
    cfg: DictConfig, frame: pd.DataFrame, sample: gallery.Sample, folder: Path | None, missing: list[str]
) -> dict[str, Any]:
    """Return the context of the gallery; questions are written to `folder`, or into the page without one."""
    averages = frame[frame["benchmark"] == AVERAGE].set_index("hash")
    settings = []
    for place, setting in enumerate(sample["settings"]):
        names = titles(list(dict.fromkeys(question["task"] for question in setting["questions"])))
        chunks: list[dict[str, Any]] = []
        for task, name in names.items():
            questions = [question for question in setting["questions"] if question["task"] == task]
            chunk = {"task": task, "short": name}
            if folder is None:
                chunks.append({**chunk, "questions": questions})
                continue
            file = folder / f"{place}-{slug(task)}.js"
            make_folder(folder)
            write_atomic(file, f"galleryChunk({html.script_json(questions)});\n")
            chunks.append({**chunk, "src": quote(f"{folder.name}/{file.name}")})
        label = html.called(setting["model"], setting["tasks"])
        settings.append({"label": label, "runs": setting["runs"], "chunks": chunks})
    data = {"right": RIGHT, "runs": {run: _identify(averages, run) for run in averages.index}, "settings": settings}
    return {
        "data": html.script_json(data),
        "settings": settings,
        "in_folder": folder is not None,
        "overlaps": [_overlap(table, averages) for table in sample["overlaps"]],
        "gallery_rule": _rule(sample),
        "gallery_missing": _missing(cfg, sample, missing),
    }


def _overlap(table: dict[str, Any], averages: pd.DataFrame) -> dict[str, Any]:
    first, *_ = names = [_identify(averages, run) for run in table["runs"]]
    return {**table, "label": f"{first['model']}, {first['budget']}", "names": names}


def _rule(sample: gallery.Sample) -> str:
    """Say which questions the gallery shows."""
    shown = sum(len(setting["questions"]) for setting in sample["settings"])
    asked = sum(setting["answered"] for setting in sample["settings"])
    counts = f"An answer with a score of at least {RIGHT:g} counts as right."
    if shown == asked:
        return f"The gallery shows all {plural(asked, 'question')} that were asked. {counts}"
    candidates = sum(setting.get("candidates", setting["answered"]) for setting in sample["settings"])
    if candidates < asked:
        counts = f"They come from the {candidates:,} whose picking order or importance was recorded. {counts}"
    return (
        f"The gallery shows {shown:,} of {asked:,} questions: for each benchmark those that best separate the runs. "
        "Each question adds the most pairs of a right and a wrong run that no earlier question has. "
        f"{counts} The questions were chosen for their differences; the tables above say how often a method is right."
    )


def _missing(cfg: DictConfig, sample: gallery.Sample, missing: list[str]) -> list[str]:
    if cfg.gallery == "none":
        return ["There is no gallery (gallery=none)."]
    if not sample["settings"]:
        return [
            "No pruned run here has its answers and kept tokens (responses.jsonl, kept.jsonl); archives of scores have "
            "neither. Run python -m harness again, or pass the sample= file that was made from complete runs."
        ]
    return [f"Shown without pictures: {text}" for text in missing]


def overview(frame: pd.DataFrame, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Return a table for each model and set of tasks, with the most runs first: averages compare within one alone."""
    tables: dict[str, list[Result]] = {}
    for result in results:
        config = result.about["config"]
        tables.setdefault(html.called(config["model"]["name"], config["tasks"]["name"]), []).append(result)
    in_order = sorted(tables.items(), key=lambda table: -len(table[1]))
    return [{"label": label, **_table(frame, members)} for label, members in in_order]


def _table(frame: pd.DataFrame, members: Sequence[Result]) -> dict[str, Any]:
    benchmarks = list(dict.fromkeys(task for result in members for task in result.metrics["primary"]))
    cells = {(row["hash"], row["benchmark"]): row for row in frame.to_dict("records")}
    scales = {AVERAGE: 1, **{task: _scale(task, members) for task in benchmarks}}
    rows = [_row(result, scales, cells) for result in members]
    return {"benchmarks": titles(benchmarks), "rows": rows}


def _scale(task: str, members: Sequence[Result]) -> int:
    runs = [result for result in members if task in result.metrics["primary"]]
    metrics = " ".join(str(result.metrics["primary"][task]) for result in runs)
    return percent_scale(task, metrics, [result.score(task) for result in runs])


def _row(result: Result, scales: dict[str, int], cells: dict[tuple[str, str], Any]) -> dict[str, Any]:
    about = cells[result.hash, AVERAGE]
    return {
        "name": qualified(printed(str(about["name"])), about["differs"]),
        **{key: about[key] for key in ("group", "model", "tasks", "per_layer")},
        **{"hash": result.hash, "method": result.method, "budget": result.budget, "kept": result.tokens("kept")},
        "cells": [_cell(cells.get((result.hash, benchmark)), scale) for benchmark, scale in scales.items()],
    }


def _cell(row: dict[str, Any] | None, scale: int) -> dict[str, Any] | None:
    """Return the numbers of one cell, NaN as None, scores times `scale`; None if the run has no such benchmark."""
    if row is None:
        return None
    numbers = ("score", "relative", "low", "high", "se", "lost", "gained", "agreement", "p_best")
    cell = {name: None if pd.isna(row[name]) else float(row[name]) for name in numbers}
    cell |= {name: scale * value for name in ("score", "se") if (value := cell[name]) is not None}
    return {**cell, **{name: bool(row[name] == 1) for name in ("best", "as_best", "tested")}}
