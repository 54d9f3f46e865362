"""How long runs that are still to do will take, by the times of runs that have finished."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.config import RunConfig
from harness.core.files import load
from harness.results import seal
from harness.results.run_folder import METRICS

AGAIN = "move the folder away and start again"


@dataclass(frozen=True)
class Measured:
    """A finished run: what it asked of which model, and how long that took on which device."""

    run: str
    model: str
    device: str
    sample: Mapping[str, Any]  # limit and choice of the questions
    questions: Mapping[str, int]  # by task
    seconds: float

    @classmethod
    def of(cls, folder: Path, run: str) -> "Measured | None":
        """Read a finished run; None for one of an early version, which recorded no time."""
        about = load(folder / "run.json", ("config", "identity"), AGAIN)
        questions = load(folder / METRICS, ("questions",), AGAIN)["questions"]
        seconds = seal.read(folder).get("seconds")
        if not seconds or "device" not in about:
            return None
        tasks = about["identity"]["tasks"]
        sample = {key: tasks[key] for key in ("limit", "sample", "sample_seed", "questions") if key in tasks}
        return cls(run, about["config"]["model"]["name"], about["device"], sample, questions, seconds)

    @property
    def each(self) -> float:
        """Seconds per question."""
        return self.seconds / max(sum(self.questions.values()), 1)


@dataclass(frozen=True)
class Estimate:
    """The seconds that all runs to do will take together, at the speed of a run that was measured."""

    seconds: float
    measured: Measured


def estimate(
    to_do: Iterable[tuple[RunConfig, int | None]], measured: Iterable[tuple[Measured, int | None]]
) -> Estimate | None:
    """Estimate the time of runs from their operations per question (None: unknown) and those of measured ones.

    The slowest measured run of the same model counts, the more reliable the nearer it is: one that is part of this
    sweep, whose operations are known, before others. None if no such run is there, or if none tells how many questions
    a task has.
    """
    runs, known = list(to_do), list(measured)
    models = {config.model.name for config, _ in runs}
    usable = [(each, flops) for each, flops in known if {each.model} == models]
    if not runs or not usable:
        return None
    reference, operations = max(usable, key=lambda pair: (pair[1] is not None, pair[0].each))
    seconds = 0.0
    for config, flops in runs:
        counts = [_questions(config, each) for each, _ in usable]
        if not (count := max(filter(None, counts), default=None)):
            return None
        share = flops / operations if flops and operations else 1.0
        seconds += count * reference.each * share
    return Estimate(seconds, reference)


def _questions(config: RunConfig, measured: Measured) -> int | None:
    """Return how many questions a run will ask, if a measured run tells it."""
    sample = config.question_sample
    if sample.single:
        return sum(map(len, sample.single.values()))
    same = measured.sample == sample.identity
    if same and set(config.tasks.metrics) <= set(measured.questions):
        return sum(measured.questions[task] for task in config.tasks.metrics)
    if sample.limit is not None and sample.limit >= 1:
        return int(sample.limit) * len(config.tasks.metrics)  # at most
    return None
