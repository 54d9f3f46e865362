"""Scores relative to the unpruned model, from run folders: python -m harness.tables runs=results/runs csv=table.csv."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig

from harness.cli import command
from harness.errors import UserError, one_line
from harness.evaluate import value
from harness.store import RunFolder, digest


@dataclass(frozen=True)
class Result:
    """A finished run: what was run, and what came out."""

    folder: Path
    about: dict[str, Any]
    metrics: dict[str, Any]

    @classmethod
    def of(cls, folder: RunFolder | Path) -> "Result":
        """Read a finished run folder."""
        path = folder.path if isinstance(folder, RunFolder) else folder
        try:
            about = json.loads((path / "run.json").read_text(encoding="utf-8"))
            return cls(path, about, RunFolder(path, about["identity"]).metrics())
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} holds DONE but is no whole run ({one_line(error)}): move it away") from error

    @property
    def is_baseline(self) -> bool:
        """True for the unpruned model."""
        return bool(self.about["method"] == "none")

    @property
    def setting(self) -> str:
        """What a run shares with its baseline: the model as loaded, and the tasks."""
        return digest([self.about["identity"]["model"], self.about["identity"]["tasks"]])

    @property
    def hash(self) -> str:
        """What tells this run from every other (parameters, limit, seed, versions); also in its folder's name."""
        return digest(self.about["identity"])[:8]

    def tokens(self, which: str) -> float | None:
        """Mean number of visual tokens a question.

        "all", "kept", "budget", which `resize` alone does not meet, or "per_layer": what a decoder layer sees, more
        than is kept if the cut is inside the language model.
        """
        questions, counts = self.metrics["questions"], self.metrics.get("visual_tokens", {})
        means = {task: count.get(which, count["kept"]) for task, count in counts.items()}
        asked = sum(questions[task] for task in means)
        return round(sum(questions[task] * mean for task, mean in means.items()) / asked, 1) if asked else None

    def score(self, task: str, metric: str | None = None) -> float:
        """The task's primary metric, or another."""
        return value(self.metrics["scores"][task], metric or self.metrics["primary"][task])


def relative(result: Result, baseline: Result) -> dict[str, float | None]:
    """Percent of the baseline's score per task; None where the baseline scored nothing."""
    return {
        task: 100 * result.score(task) / base if (base := baseline.score(task, metric)) else None
        for task, metric in result.metrics["primary"].items()
    }


def average(relatives: dict[str, float | None]) -> float | None:
    """Plain mean of the tasks' percentages; None if one of them is undefined."""
    values = list(relatives.values())
    if not values or any(v is None for v in values):
        return None
    return sum(v for v in values if v is not None) / len(values)


def collect(runs: Path) -> list[Result]:
    """Every finished run below a folder once, baselines first, then by budget from large to small, then by method."""
    found = [Result.of(marker.parent) for marker in sorted(runs.rglob("DONE"))]
    results = {result.hash: result for result in found}.values()

    def order(result: Result) -> tuple[Any, ...]:
        config = result.about["config"]
        keep, tokens = config["keep"] or 0.0, config["tokens"] or 0
        place = (config["model"]["name"], config["tasks"]["name"], not result.is_baseline)
        return (*place, -keep, -tokens, result.about["method"], str(result.folder))

    return sorted(results, key=order)


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
