"""What the templates are given: the runs as tables, plots and provenance, and the gallery."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.core.files import write_atomic
from harness.report import figures, gallery, html
from harness.report.answers import RIGHT
from harness.report.html import plural
from harness.report.provenance import provenance
from harness.results import plots
from harness.results.labels import ordered, short
from harness.results.result import Result
from harness.results.stats import AVERAGE


def of_runs(cfg: DictConfig, results: Sequence[Result], frame: pd.DataFrame, sets: list[figures.Set]) -> dict[str, Any]:
    """What the template needs but for the gallery."""
    whole = frame[frame["benchmark"] == AVERAGE].set_index("hash")
    origin = provenance(results, Path(str(cfg.runs)))
    params = {run["hash"]: run["params"] for run in origin["runs"]}
    origin["runs"] = [run | _who(whole, run["hash"]) for run in origin["runs"]]
    tables = overview(frame, results)
    for table in tables:
        for row in table["rows"]:
            row.update(params=params[row["hash"]], ids=["", *table["benchmarks"]])
    methods = {result.method: "unpruned" if result.is_baseline else result.method for result in results}
    called = {id: name for table in reversed(tables) for id, name in table["benchmarks"].items()}
    asked = max(sum(result.metrics["questions"].values()) for result in results)
    models = list(dict.fromkeys(result.about["config"]["model"]["name"] for result in results))
    lead = (
        f"{plural(len(results), 'run')} of {plural(len(set(methods) - {'baseline'}), 'method')} on "
        f"{plural(len(models), 'model')} and {plural(len(called), 'benchmark')}, up to {asked:,} questions a run."
    )
    return {
        "title": str(cfg.title),
        "lead": lead,
        "groups": [group for group in ordered(list(frame["group"])) if group],
        "models": {name: name for name in models},
        "methods": methods,
        "budgets": {result.budget or "unpruned": result.budget or "all tokens" for result in results},
        "benchmarks": {id: id if list(called.values()).count(name) > 1 else name for id, name in called.items()},
        "tables": tables,
        "plots": [_set(made) for made in sets],
        "provenance": origin,
        "made_with": f"{plural(len(results), 'finished run')} below {cfg.runs}.",
    }


def _who(whole: pd.DataFrame, run: str) -> dict[str, Any]:
    return {key: whole.loc[run, key] for key in ("name", "group", "model", "budget")}


def _set(made: figures.Set) -> dict[str, Any]:
    shown = [
        {
            **{key: it for key, it in vars(plot).items() if key != "figure"},
            "width": round(120 * plot.figure.get_figwidth()),
            "svg": plots.inline(plot.figure, plot.name.replace(".", "-"), f"{plot.title}, {made.label}"),
        }
        for plot in made.plots
    ]
    return {**asdict(figures.Set(made.label, [], made.missing)), "plots": shown}


def of_gallery(
    cfg: DictConfig, frame: pd.DataFrame, sample: gallery.Sample, beside: Path | None, missing: list[str]
) -> dict[str, Any]:
    """The gallery's part of the context; with a folder beside the page, its questions are written there."""
    whole = frame[frame["benchmark"] == AVERAGE].set_index("hash")
    settings = []
    for place, setting in enumerate(sample["settings"]):
        names = short(list(dict.fromkeys(question["task"] for question in setting["questions"])))
        chunks: list[dict[str, Any]] = []
        for task, name in names.items():
            those = [question for question in setting["questions"] if question["task"] == task]
            chunk = {"task": task, "short": name}
            if beside is None:
                chunks.append({**chunk, "questions": those})
                continue
            file = beside / f"{place}-{task}.js"
            beside.mkdir(parents=True, exist_ok=True)
            write_atomic(file, f"galleryChunk({html.script_json(those)});\n")
            chunks.append({**chunk, "src": f"{beside.name}/{file.name}"})
        label = html.called(setting["model"], setting["tasks"])
        settings.append({"label": label, "runs": setting["runs"], "chunks": chunks})
    data = {"right": RIGHT, "runs": {run: _who(whole, run) for run in whole.index}, "settings": settings}
    return {
        "data": html.script_json(data),
        "settings": settings,
        "beside": " 'self' file:" if beside else "",
        "overlaps": [_overlap(table, whole) for table in sample["overlaps"]],
        "gallery_rule": _rule(cfg, sample),
        "gallery_missing": _missing(cfg, sample, missing),
    }


def _overlap(table: dict[str, Any], whole: pd.DataFrame) -> dict[str, Any]:
    first, *_ = names = [_who(whole, run) for run in table["runs"]]
    return {**table, "label": f"{first['model']}, {first['budget']}", "names": names}


def _rule(cfg: DictConfig, sample: gallery.Sample) -> str:
    shown = sum(len(setting["questions"]) for setting in sample["settings"])
    there = sum(setting["answered"] for setting in sample["settings"])
    counts = f"One counts as answered from a score of {RIGHT:g} on."
    if shown == there:
        return f"All {plural(there, 'question')} that were asked. {counts}"
    candidates = sum(setting.get("candidates", setting["answered"]) for setting in sample["settings"])
    if candidates < there:
        counts = f"They come from the {candidates:,} whose picking order or importance was recorded. {counts}"
    return (
        f"{shown:,} of {there:,} questions: of each benchmark those that tell the runs apart best, one after the other "
        "the question with the most pairs of runs, one right and one wrong, that no question before it showed. "
        f"{counts} They were picked for their differences: only the tables above say how often a method is right."
    )


def _missing(cfg: DictConfig, sample: gallery.Sample, missing: list[str]) -> list[str]:
    if cfg.gallery == "none":
        return ["gallery=none was given."]
    if not sample["settings"]:
        return [
            "No pruned run here holds its answers and kept tokens (responses.jsonl, kept.jsonl): committed results are "
            "kept without them. Run python -m harness again, or pass the sample= that was made from whole runs."
        ]
    return [f"Shown without pictures: {text}" for text in missing]


def overview(frame: pd.DataFrame, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Tables as {"benchmarks": {id: short name}, "rows": [...]}, that with the most runs first."""
    tables: list[tuple[set[str], list[Result]]] = []
    for result in results:
        tasks, members = set(result.metrics["primary"]), [result]
        for other in [table for table in tables if table[0] & tasks]:
            tables.remove(other)
            tasks, members = tasks | other[0], other[1] + members
        tables.append((tasks, members))
    return [_table(frame, members) for _, members in sorted(tables, key=lambda table: -len(table[1]))]


def _table(frame: pd.DataFrame, members: Sequence[Result]) -> dict[str, Any]:
    benchmarks = list(dict.fromkeys(task for result in members for task in result.metrics["primary"]))
    cells = {(row["hash"], row["benchmark"]): row for row in frame.to_dict("records")}
    rows = [_row(result, [AVERAGE, *benchmarks], cells) for result in members]
    return {"benchmarks": short(benchmarks), "rows": rows, "settings": len({r.setting for r in members})}


def _row(result: Result, benchmarks: Sequence[str], cells: dict[tuple[str, str], Any]) -> dict[str, Any]:
    about = cells[result.hash, AVERAGE]
    return {
        **{key: about[key] for key in ("name", "group", "model", "tasks", "per_layer")},
        **{"hash": result.hash, "method": result.method, "budget": result.budget, "kept": result.tokens("kept")},
        "cells": [_cell(cells.get((result.hash, benchmark))) for benchmark in benchmarks],
    }


def _cell(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What one cell shows; None where the run has no such benchmark. NaN becomes None."""
    if found is None:
        return None
    numbers = ("score", "relative", "low", "high", "se", "lost", "gained", "agreement", "p_best")
    known = {name: None if pd.isna(found[name]) else float(found[name]) for name in numbers}
    return {**known, "best": found["best"] is True or bool(found["best"] == 1), "as_best": bool(found["as_best"] == 1)}
