"""Make tables relative to the unpruned model: python -m harness.tables runs=results/runs csv=table.csv tex=table.tex.

Scores come from run folders (`runs=`), from a CSV (`scores=`), from the paper (`source=paper`), or from the paper and
our runs (`source=paper+runs`). The tables are printed as Markdown and written as CSV, LaTeX, Markdown and HTML.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
from omegaconf import DictConfig

from harness.core.command import command
from harness.core.config import shipped
from harness.core.console import print_json
from harness.core.errors import UserError
from harness.core.escape import csv
from harness.core.files import check_apart, check_file, check_place, make_folder, slug, write_atomic
from harness.core.rules import flag, one_of, require
from harness.results import formats, paper
from harness.results.formats import sheet
from harness.results.frames import read_scores, score_rows
from harness.results.labels import setting_notes, settings, versions
from harness.results.latex import latex
from harness.results.result import Result, failures, load_results, merge_task_runs, pool_seeds, unproven
from harness.results.summary import summary
from harness.results.table import AVERAGE, Table, tables_of

SOURCES = ("runs", "scores", "paper", "paper+runs")
OF_DIFFERENCE = ("low", "high", "lost", "gained", "agreement")  # relative to the unpruned model, over all questions
CELLS = ("score", "relative")
TOKENS = {"K": "budget", "kept": "kept", "per_layer": "per_layer"}  # column -> what `Result.tokens` calls it
FORMATS = ("csv", "tex", "md", "html")


def of_runs(results: Sequence[Result], errors_of: str | None = None) -> tuple[list[Table], pd.DataFrame]:
    """Build the tables of runs, and the frame of `harness.results.summary` with every run and benchmark.

    Runs that differ in their seed alone are one row.

    If `errors_of` is "score" or "relative", the tables have the standard errors of scores or relative scores.
    """
    results = pool_seeds(results)
    by_hash = {result.hash: result for result in results}
    tables, summaries = [], []
    for table in tables_of(score_rows(results)):
        runs = [by_hash[name] for name in table.frame["hash"]]
        statistics, notes = summary(runs)
        averages = statistics[statistics["benchmark"] == AVERAGE].set_index("hash").reindex(table.frame["hash"])
        as_best = statistics[statistics["as_best"]]
        frame = table.frame.assign(
            questions=[sum(run.metrics["questions"].values()) for run in runs],
            **{name: _floats(run.tokens(which) for run in runs) for name, which in TOKENS.items()},
            **{name: averages[name].to_numpy() for name in OF_DIFFERENCE},
            seeds=averages["seeds"].where(averages["seeds"] > 1).to_numpy(),
            seed_sd=averages["seed_sd"].to_numpy(),
            as_best=[" ".join(as_best.loc[as_best["hash"] == run.hash, "benchmark"]) for run in runs],
        )
        if any(run.failed for run in runs):
            frame["failed"] = [sum(run.failed.values()) for run in runs]
        model, tasks = frame["model"].iloc[0], frame["tasks"].iloc[0]
        caption = f"{model} on {tasks}, {_range(frame['questions'])} questions, {versions(runs)}"
        errors = _errors(statistics, frame, table.benchmarks, errors_of) if errors_of else None
        notes = [*table.notes, *setting_notes(runs), *failures(runs), *unproven(runs), *notes]
        untested = frozenset(statistics.loc[(statistics["budget"] != "") & ~statistics["tested"], "benchmark"])
        frame["untested"] = " ".join(sorted(untested))
        differences = {setting[:8]: text for setting, text in settings(runs).items()}
        table = replace(table, frame=frame, caption=caption, notes=notes)
        tables.append(replace(table, errors=errors, untested=untested, settings=differences))
        summaries.append(statistics)
    return tables, pd.concat(summaries, ignore_index=True)


def _floats(values: Iterable[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _range(counts: pd.Series) -> str:
    return " to ".join(f"{count:,}" for count in sorted({counts.min(), counts.max()}))


def _errors(statistics: pd.DataFrame, frame: pd.DataFrame, benchmarks: list[str], cells: str) -> pd.DataFrame:
    """Return the standard errors of the scores that the cells show, with the rows of `frame`."""
    score, share = (statistics.pivot(index="hash", columns="benchmark", values=name) for name in ("se", "relative_se"))
    errors = share if cells == "relative" else score.assign(**{AVERAGE: share[AVERAGE]})
    return errors.reindex(index=frame["hash"], columns=[*benchmarks, AVERAGE]).set_axis(frame.index, axis=0)


def shown_relative(table: Table) -> Table:
    """Return the table with percentages of the unpruned model's scores in its cells."""
    frame = table.frame.copy()
    for benchmark in table.benchmarks:
        base = frame["setting"].map(frame[frame["method"] == "baseline"].set_index("setting")[benchmark])
        base = base.astype(float).mask(lambda scores: scores == 0)
        frame[benchmark] = 100 * frame[benchmark].astype(float) / base
    titles = {benchmark: (name, "%") for benchmark, (name, _) in table.titles.items()}
    return replace(table, frame=frame, titles=titles, digits=dict.fromkeys(table.columns, 2))


def main(cfg: DictConfig) -> None:
    """Print the tables, write the files, and end with one JSON line."""
    source = check(cfg)
    if source == "scores":
        tables = tables_of(read_scores(Path(str(cfg.scores))))
    elif source == "paper":
        tables = paper.published(shipped(str(cfg.paper)))
    elif source == "paper+runs":
        tables = paper.published_and_ours(shipped(str(cfg.paper)), load_results(cfg.runs))
    else:
        results = load_results(cfg.runs)
        runs = merge_task_runs(results) if cfg.join else results
        tables, statistics = of_runs(runs, str(cfg.cells) if cfg.errors else None)
        if cfg.stats is not None:
            write_atomic(Path(str(cfg.stats)), csv(statistics))
    if cfg.cells == "relative":
        tables = [shown_relative(table) for table in tables]
    files = _files(cfg, tables, source)
    for file, text in files.items():  # before the table is printed: who reads one need not look for an error
        write_atomic(file, text)
    print("\n".join(formats.markdown(table) for table in tables))
    rows = {"runs" if source == "runs" else "rows": sum(len(table.frame) for table in tables)}
    report = {**rows, "tables": [table.name for table in tables], "csv": cfg.csv}
    print_json(report | {"files": [str(file) for file in files]})


def check(cfg: DictConfig) -> str:
    """Raise UserError unless the options fit together, and return the source."""
    source = cfg.source or ("runs" if cfg.scores is None else "scores")
    rules = {"source": one_of(SOURCES), "cells": one_of(CELLS), **dict.fromkeys(("join", "errors", "float"), flag())}
    require({**cfg, "source": source}, rules)
    if source == "scores" and cfg.scores is None:
        raise UserError("scores is null: pass a CSV of raw scores, as in scores=results/paper/published_scores.csv")
    if cfg.scores is not None and source != "scores":
        raise UserError(f"scores={cfg.scores} and source={source} exclude each other: leave one of them out")
    if source != "runs" and (cfg.stats is not None or cfg.join or cfg.errors):
        raise UserError(f"stats=, join= and errors= are of runs, not of source={source}")
    files = {key: cfg[key] for key in (*FORMATS, "stats")}
    for key, file in files.items():
        check_file(file, key)
    check_apart(files)
    if cfg.out is not None:
        check_place(cfg.out, "out")
    return str(source)


def _files(cfg: DictConfig, tables: Sequence[Table], source: str) -> dict[Path, str]:
    """Return the files to write with their text; make the folder `out`, if it is set."""
    files = {Path(str(cfg[key])): text_of(key, tables, is_float=cfg.float) for key in FORMATS if cfg[key] is not None}
    if cfg.out is not None:
        make_folder(Path(str(cfg.out)))
        for table in tables:
            for key in FORMATS:
                text = text_of(key, [table], source.startswith("paper"), cfg.float)
                files[Path(str(cfg.out)) / f"{slug(table.name)}.{key}"] = text
    return files


def text_of(kind: str, tables: Sequence[Table], published: bool = False, is_float: bool = False) -> str:
    """Format tables as a file; for published tables, the CSV has no columns model and tasks.

    With `is_float`, LaTeX has a whole `table` with caption and label instead of a `tabular`.
    """
    if kind == "csv":
        return csv(sheet(tables).drop(columns=["model", "tasks"] if published else []))
    if kind == "html":
        return formats.page(map(formats.html, tables), tables[0].caption if len(tables) == 1 else "Tables")
    write = partial(latex, is_float=is_float) if kind == "tex" else formats.markdown
    return "\n".join(write(table) for table in tables)


if __name__ == "__main__":
    command("tables", main, (check,))
