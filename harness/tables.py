"""Scores relative to the unpruned model, from run folders: python -m harness.tables runs=results/runs csv=table.csv."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.cli import command
from harness.errors import UserError, one_line
from harness.scores import Result, average, collect, relative


def frame(results: Sequence[Result]) -> pd.DataFrame:
    """One row per run: its scores, and `avg`, the mean percentage of its baseline's."""
    baselines = {result.setting: result for result in results if result.is_baseline}
    rows = []
    for result in results:
        config = result.about["config"]
        baseline = baselines.get(result.setting)
        rows.append(
            {
                "model": config["model"]["name"],
                "tasks": config["tasks"]["name"],
                "budget": result.about["budget"],
                "method": "baseline" if result.is_baseline else result.about["method"],
                "lambda": config["method"].get("lam"),
                "questions": sum(result.metrics["questions"].values()),
                "hash": result.hash,
                "K": result.tokens("budget"),
                "kept": result.tokens("kept"),
                "per_layer": result.tokens("per_layer"),
                **{task: round(result.score(task), 4) for task in result.metrics["scores"]},
                "avg": average(relative(result, baseline)) if baseline else None,
            }
        )
    table = pd.DataFrame(rows)
    return table[[column for column in table if column != "avg"] + ["avg"]].round({"avg": 2})


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table; empty cells for what was not run."""
    lines = [[str(column) for column in table], ["---"] * len(table.columns)]
    lines += [[_cell(str(key), row[key]) for key in row] for row in table.to_dict("records")]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(column: str, item: Any) -> str:
    if pd.isna(item):
        return ""
    if isinstance(item, float):
        return f"{item:.2f}" if column == "avg" else f"{item:g}"
    return str(item)


def main(cfg: DictConfig) -> None:
    """Print the table, write it if asked, and end with one JSON line."""
    if cfg.runs is None:
        raise UserError("runs is null: pass the folder of the runs, as in runs=results/runs")
    results = collect(Path(str(cfg.runs)))
    if not results:
        raise UserError(f"no finished run below runs={cfg.runs}: start with python -m harness")
    table = frame(results)
    print(markdown(table))
    if cfg.csv is not None:
        try:
            table.to_csv(cfg.csv, index=False)
        except OSError as error:
            raise UserError(f"cannot write csv={cfg.csv}: {one_line(error)}") from error
    print(json.dumps({"runs": len(table), "csv": cfg.csv}))


if __name__ == "__main__":
    command("tables", main)
