"""Finished runs as tables, statistics and reports read them."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from harness.core.config import as_list
from harness.core.errors import UserError
from harness.core.files import digest, load, path_of
from harness.results import archive, schema, seal
from harness.results.method_groups import BASELINE, group_of, group_rank
from harness.results.metrics import value
from harness.results.run_folder import AGAIN, DONE, METRICS, SCORES, RunFolder, format_of


@dataclass(frozen=True)
class Result:
    """A finished run: what was run, and what came out."""

    folder: Path
    about: schema.Recorded
    metrics: schema.Recorded
    parts: tuple["Result", ...] = ()  # of a run that `merge_task_runs` made; its folder is that of the first
    seeds: tuple["Result", ...] = ()  # of a run that `pool_seeds` made; everything else is of the first, or their mean
    archived_scores: archive.PerQuestion | None = None  # None: in the run's folder
    archived_finish: dict[str, Any] | None = None  # None: in `DONE`

    @classmethod
    def of(cls, folder: RunFolder | Path) -> "Result":
        """Read a finished run from its folder, or from the archive that its path leads into."""
        path = folder.path if isinstance(folder, RunFolder) else folder
        if not (path / DONE).is_file():
            archived = next((run for place, run in archive.runs_below(path) if place == path), None)
            if archived is None:
                raise UserError(f"{path} is no finished run: it has no {DONE}, and no archive holds it")
            return cls.archived(path, archived)
        return cls._read(path, *RunFolder(path, {}).finished())

    @classmethod
    def archived(cls, path: Path, run: archive.ArchivedRun) -> "Result":
        """Return a run of an archive; `path` is the archive's path and the run's name."""
        format_of(path, run.about)
        scores, finish = run.per_question, run.finished
        return cls._read(path, run.about, run.metrics, archived_scores=scores, archived_finish=finish)

    @classmethod
    def _read(cls, path: Path, about: dict[str, Any], metrics: dict[str, Any], **more: Any) -> Self:
        """Raise UserError unless what was read is of the kind that readers rely on."""
        checked = schema.recorded(schema.About, about, path / "run.json")
        return cls(path, checked, schema.recorded(schema.Metrics, metrics, path / METRICS), **more)

    @property
    def finished(self) -> dict[str, Any]:
        """When the run finished and where its time went; only commands that print it read `DONE`."""
        if self.archived_finish is not None:
            return self.archived_finish
        return seal.read(self.folder)

    @property
    def packages(self) -> dict[str, str | None]:
        """The full versions of the packages that can change an answer."""
        of_identity: dict[str, str | None] = self.about["identity"]["model"].get("packages", {})  # up to format 1
        return self.about.get("packages") or of_identity

    @property
    def is_baseline(self) -> bool:
        """True for the unpruned model."""
        return bool(self.about["method"] == "none")

    @cached_property
    def setting(self) -> str:
        """A digest that a run shares with its baseline: the model as loaded, and the tasks."""
        return digest([self.about["identity"]["model"], self.about["identity"]["tasks"]])

    @cached_property
    def hash(self) -> str:
        """Identifies the run by its parameters, limit, seed and versions; also part of its folder's name."""
        return digest(self.about["identity"])[:8]

    @property
    def cell(self) -> str:
        """A digest that a run shares with its repetition by newer code: the options that are set and the files used."""
        config = self.about["config"]
        options = [{k: v for k, v in config[part].items() if v is not None} for part in ("model", "method")]
        rest = [config.get(key) for key in ("seed", "positions")]
        return digest([options, config["tasks"]["name"], self.label, self.budget, rest, self.sample])

    @property
    def sample(self) -> dict[str, Any]:
        """Which questions of each task were asked: the part of the identity that `QuestionSample` makes."""
        tasks = self.about["identity"]["tasks"]
        return {key: tasks[key] for key in ("limit", "sample", "sample_seed", "questions") if key in tasks}

    @property
    def method(self) -> str:
        """The method's name without files; "baseline" for the unpruned model."""
        return BASELINE if self.is_baseline else str(self.about["method"]).partition(" (")[0]

    @property
    def label(self) -> str:
        """The method with the files that its results depend on, as "d2pruner (prior 103a2a3e)"."""
        return BASELINE if self.is_baseline else str(self.about["method"])

    @property
    def budget(self) -> str:
        """The budget as a command takes it, as "keep=0.25" or "tokens=64"; empty for the unpruned model."""
        config = self.about["config"]
        if self.is_baseline:
            return ""
        if config["keep"] is not None:
            return f"keep={config['keep']:g}"
        return f"tokens={config['tokens']}" if config["tokens"] is not None else f"per_tile={config['per_tile']}"

    @property
    def title(self) -> str:
        """The label and the budget, as "idpruner keep=0.25"."""
        return f"{self.label} {self.budget}".strip()

    def tokens(self, which: str) -> float | None:
        """Return the mean number of visual tokens per question; None if no task has counts.

        `which` is "all", "kept", "budget" (K, which `resize` and methods with `fit=official` do not meet, and which may
        count the tokens of a layer) or "per_layer". The last is what a decoder layer sees on average: more than is kept
        if a cut is inside the language model.
        """
        questions, counts = self.metrics["questions"], self.metrics.get("visual_tokens", {})
        means = {task: count.get(which, count["kept"]) for task, count in counts.items()}
        total = sum(questions[task] for task in means)
        return round(sum(questions[task] * mean for task, mean in means.items()) / total, 1) if total else None

    @property
    def failed(self) -> dict[str, int]:
        """Task -> number of questions that could not be asked and are scored as empty answers; only tasks with any."""
        return {task: count for task, count in self.metrics.get("failed", {}).items() if count}

    @property
    def unverified(self) -> list[str]:
        """The reasons why decoding through the cache was not compared with prefills, one per unverified part."""
        older = {"verified": False, "reason": "the run is older than this check"}
        records = [part.about.get("decoding", older) for part in self.parts or (self,)]
        return [record["reason"] for record in records if not record["verified"]]

    def score(self, task: str, metric: str | None = None) -> float:
        """Return the task's primary metric, or another."""
        return value(self.metrics["scores"][task], metric or self.metrics["primary"][task])

    @cached_property
    def per_question(self) -> archive.PerQuestion:
        """Task -> `doc_id` and, for each metric, the value per question that lmms-eval aggregates."""
        if self.parts:
            return {task: columns for part in self.parts for task, columns in part.per_question.items()}
        if self.seeds:
            return _mean([run.per_question for run in self.seeds])
        if self.archived_scores is not None:
            return self.archived_scores
        if not (self.folder / SCORES).is_file():
            raise UserError(f"{self.folder} has no {SCORES}: it is older than this file, {AGAIN}")
        scores: archive.PerQuestion = load(self.folder / SCORES, (), AGAIN)
        schema.check(schema.Scores, scores, self.folder / SCORES, AGAIN)
        if wrong := schema.other_questions(scores, self.metrics["questions"]):
            raise UserError(f"{self.folder / SCORES} is damaged ({wrong}): {AGAIN}")
        return scores

    @property
    def has_questions(self) -> bool:
        """False for a run that is older than the file with the score of every question."""
        if self.seeds:
            return all(run.has_questions for run in self.seeds)
        parts = self.parts or (self,)
        return all(part.archived_scores is not None or (part.folder / SCORES).is_file() for part in parts)

    @property
    def key_without_tasks(self) -> str:
        """A digest that runs share if they differ only in their tasks."""
        identity = self.about["identity"]
        rest = {key: value for key, value in identity.items() if key != "tasks"}
        return digest([self.about["model"], rest, {**self.sample, "questions": "questions" in self.sample}])


def relative(result: Result, baseline: Result) -> dict[str, float | None]:
    """Return each task's score in percent of the baseline's; None where the baseline scored nothing."""
    return {
        task: 100 * result.score(task) / base if (base := baseline.score(task, metric)) else None
        for task, metric in result.metrics["primary"].items()
    }


def average(relatives: dict[str, float | None]) -> float | None:
    """Return the unweighted mean of the tasks' percentages; None if one of them is undefined."""
    values = list(relatives.values())
    if not values or any(v is None for v in values):
        return None
    return sum(v for v in values if v is not None) / len(values)


def failures(results: Sequence[Result]) -> list[str]:
    """Return one note per task and number of failed questions, with the runs in which they failed."""
    runs_by_note: dict[str, list[str]] = {}
    for result in results:
        for task, count in result.failed.items():
            note = f"{task}: {count} of {result.metrics['questions'][task]} questions failed, scored as empty answers"
            runs_by_note.setdefault(note, []).append(result.title)
    return [
        f"{note}, in {'every run' if len(runs) == len(results) else ', '.join(runs)}"
        for note, runs in runs_by_note.items()
    ]


def unproven(results: Sequence[Result]) -> list[str]:
    """Return one note per reason why decoding through the cache was not compared with prefills, with the runs."""
    runs_by_reason: dict[str, dict[str, None]] = {}
    for result in results:
        for reason in result.unverified:
            runs_by_reason.setdefault(reason, {})[result.title] = None
    return [
        f"decoding was not verified ({reason}) in {'any run' if len(runs) == len(results) else ', '.join(runs)}"
        for reason, runs in runs_by_reason.items()
    ]


def collect(runs: Path | Iterable[Path]) -> list[Result]:
    """Return every finished run below a folder, or several, once: baselines first, then from large budgets to small.

    A run is in its own folder or in an archive; a folder may be a path into an archive.
    """
    folders = [runs] if isinstance(runs, Path) else list(runs)
    in_archives = [Result.archived(path, run) for folder in folders for path, run in archive.runs_below(folder)]
    in_folders = [Result.of(marker.parent) for folder in folders for marker in sorted(folder.rglob(DONE))]
    results = {result.hash: result for result in [*in_archives, *in_folders]}.values()

    def order(result: Result) -> tuple[Any, ...]:
        config = result.about["config"]
        budget = [-(config.get(name) or 0) for name in ("keep", "tokens", "per_tile")]  # older runs lack the last one
        table = (config["model"]["name"], config["tasks"]["name"], not result.is_baseline)
        return (*table, *budget, group_rank(group_of(result.method)), result.label, str(result.folder))

    return sorted(results, key=order)


def folders_of(runs: Any) -> list[Path]:
    """Return what a command got as `runs=`, a folder or a list of folders, as paths."""
    folders = [path_of(folder, "runs") for folder in as_list(runs)]
    if not folders or not all(str(folder).strip() for folder in folders):
        raise UserError(f"runs is {runs or 'null'}: pass the folder of the runs, as in runs=results/runs")
    return folders


def load_results(runs: Any) -> list[Result]:
    """Return every finished run below what a command got as `runs=`; UserError if there is none."""
    folders = folders_of(runs)
    for folder in folders:
        if not folder.is_dir() and archive.enclosing(folder) is None:
            raise UserError(f"no finished run below runs={folder}: there is no such folder")
    if not (results := collect(folders)):
        raise UserError(f"no finished run below runs={','.join(map(str, folders))}: start with python -m harness")
    return results


def merge_task_runs(results: Sequence[Result]) -> list[Result]:
    """Merge runs that differ only in their tasks, so that each task can be run on its own."""
    runs_by_key: dict[str, list[Result]] = {}
    for result in results:
        runs_by_key.setdefault(result.key_without_tasks, []).append(result)
    return [runs[0] if len(runs) == 1 else _join(runs) for runs in runs_by_key.values()]


def pool_seeds(results: Sequence[Result]) -> list[Result]:
    """Replace runs that differ in their seed alone by one, in the place of the first.

    Its scores are their means. If all seeds score every question equally, the method counts as deterministic, and one
    run is kept.
    """
    runs_by_key: dict[str, list[Result]] = {}
    for result in results:
        runs_by_key.setdefault(digest({**result.about["identity"], "seed": None}), []).append(result)
    return [_pooled(runs) for runs in runs_by_key.values()]


def _pooled(runs: Sequence[Result]) -> Result:
    if len(runs) == 1:
        return runs[0]
    runs = sorted(runs, key=lambda run: int(run.about["identity"]["seed"]))
    first = runs[0]
    if all(_equal_scores(first, run) for run in runs[1:]):
        return first
    primaries = [run.metrics["primary"] for run in runs]
    if any(primary != primaries[0] for primary in primaries):
        raise UserError(
            f"the seeds of {first.title} show different metrics: run them again with the same tasks.metrics"
        )
    metrics = first.metrics | {key: _mean([run.metrics[key] for run in runs]) for key in ("scores", "visual_tokens")}
    if "noise" in first.metrics:
        metrics["noise"] = {
            task: {name: _pooled_noise([run.metrics["noise"][task][name] for run in runs]) for name in records}
            for task, records in first.metrics["noise"].items()
        }
    metrics["failed"] = {task: sum(run.failed.get(task, 0) for run in runs) for task in first.metrics["questions"]}
    return replace(first, metrics=metrics, seeds=tuple(runs))


def _pooled_noise(records: Sequence[dict[str, Any]]) -> dict[str, Any]:
    first = records[0]
    if all((record["from"], record.get("clusters")) == (first["from"], first.get("clusters")) for record in records):
        pooled: dict[str, Any] = _mean(records)
        return pooled
    return {"from": None, "reason": "its seeds were scored in different ways"}


def _equal_scores(a: Result, b: Result) -> bool:
    if not (a.has_questions and b.has_questions):
        return a.metrics["scores"] == b.metrics["scores"]
    return a.per_question == b.per_question


def _mean(values: Sequence[Any]) -> Any:
    """Return the mean of numbers, or of those in lists and mappings of one form; None for what differs in form."""
    first = values[0]
    if all(value == first for value in values):
        return first
    if all(isinstance(value, int | float) for value in values):
        return math.fsum(values) / len(values)
    if all(isinstance(value, dict) and value.keys() == first.keys() for value in values):
        return {key: _mean([value[key] for value in values]) for key in first}
    if all(isinstance(value, list) and len(value) == len(first) for value in values):
        return [_mean(column) for column in zip(*values, strict=True)]
    return None


def _join(runs: Sequence[Result]) -> Result:
    first = runs[0]
    tasks = [result.about["identity"]["tasks"] for result in runs]
    names = [name for part in tasks for name in part["names"]]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{first.title} was run more than once on {', '.join(sorted(repeated))}: leave join=true out")
    data = {name: digest for part in tasks for name, digest in part.get("data", {}).items()}
    files = [part["files"] for part in tasks]
    identity = first.about["identity"] | {"tasks": {"names": names, **first.sample, "files": files, "data": data}}
    if "questions" in first.sample:
        identity["tasks"]["questions"] = [question for part in tasks for question in part["questions"]]
    config = first.about["config"]
    config = config | {"tasks": {"name": "+".join(result.about["config"]["tasks"]["name"] for result in runs)}}
    keys = dict.fromkeys(key for run in runs for key in run.metrics)
    metrics = first.metrics | {key: {k: v for run in runs for k, v in run.metrics.get(key, {}).items()} for key in keys}
    about = first.about | {"identity": identity, "config": config}
    return Result(first.folder, about, metrics, tuple(runs), archived_finish=first.archived_finish)
