"""Finished runs as tables, statistics and reports read them."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.errors import UserError, one_line
from harness.evaluate import value
from harness.groups import group_of, group_rank
from harness.store import SCORES, RunFolder, digest


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
        if not (path / "DONE").is_file():
            raise UserError(f"{path} is no finished run: it has no DONE")
        try:
            about = json.loads((path / "run.json").read_text(encoding="utf-8"))
            return cls(path, about, RunFolder(path, about["identity"]).metrics())
        except (OSError, ValueError, KeyError, UserError) as error:
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

    @property
    def method(self) -> str:
        """The method's name alone; "baseline" for the unpruned model."""
        return "baseline" if self.is_baseline else str(self.about["method"]).partition(" (")[0]

    @property
    def label(self) -> str:
        """The method with the files that its results depend on, as "d2pruner (prior 103a2a3e)"."""
        return "baseline" if self.is_baseline else str(self.about["method"])

    @property
    def budget(self) -> str:
        """As it is typed: "keep=0.25" or "tokens=64"; empty for the unpruned model."""
        config = self.about["config"]
        if self.is_baseline:
            return ""
        return f"keep={config['keep']:g}" if config["keep"] is not None else f"tokens={config['tokens']}"

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

    @cached_property
    def per_question(self) -> dict[str, dict[str, list[Any]]]:
        """Task -> `doc_id` and what lmms-eval aggregates of each metric, question by question."""
        file = self.folder / SCORES
        try:
            found: dict[str, dict[str, list[Any]]] = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            cause = "the run is older than the file with the score of every question: run it again with force=true"
            raise UserError(f"{self.folder} has no {SCORES}: {cause}") from error
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {file}: {one_line(error)}") from error
        return found

    @property
    def has_questions(self) -> bool:
        """False for a run of before the score of every question was kept."""
        return (self.folder / SCORES).is_file()


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


def collect(runs: Path | Iterable[Path]) -> list[Result]:
    """Every finished run below a folder, or several, once: baselines first, then from large budgets to small."""
    folders = [runs] if isinstance(runs, Path) else list(runs)
    found = [Result.of(marker.parent) for folder in folders for marker in sorted(folder.rglob("DONE"))]
    results = {result.hash: result for result in found}.values()

    def order(result: Result) -> tuple[Any, ...]:
        config = result.about["config"]
        keep, tokens = config["keep"] or 0.0, config["tokens"] or 0
        place = (config["model"]["name"], config["tasks"]["name"], not result.is_baseline)
        return (*place, -keep, -tokens, group_rank(group_of(result.method)), result.label, str(result.folder))

    return sorted(results, key=order)
