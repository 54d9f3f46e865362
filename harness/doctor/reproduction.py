"""Compare answers and kept tokens of the embedded models with `harness/pocket/expected.json`.

A sweep answers on the same path: lmms-eval's tasks, `PrunedModel`, batches of unequal lengths, greedy generation, and
vision passes that all settings of a model share.
`python -m harness.doctor.reproduction` writes the file; do so on the locked versions, on a CPU.

Every answer must be equal. Kept tokens may differ where two scores differ only by rounding. Of 9,675 kept tokens, none
differed over thread counts and instruction sets; 8 (0.08 %) did on the lowest versions, 13 (0.13 %) with every product
rounded to TF32, and no answer changed. The tokens of another method differ in 2.8 % or more. docs/pocket.md has the
table and its commands.
"""

import io
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.core import files
from harness.core.config import RunConfig, validate
from harness.core.errors import UserError, as_user_error, one_line
from harness.core.overrides import compose
from harness.doctor import BROKEN, OK, Finding, machine
from harness.pocket import HOME

PART, NAME = "reproduces", "pocket"
EXPECTED = HOME / "expected.json"
REMEDY = "take the committed file, or write it on the locked versions: python -m harness.doctor.reproduction"
QUESTIONS = 3  # of each task
MEMORY = 10**9  # bytes of passes through a vision tower; the rest goes to a temporary file
MAX_KEPT_DIFFERENCE = 0.005  # share of the kept tokens; see above


@dataclass(frozen=True)
class Setting:
    """Model, method and positions of a run."""

    model: str
    method: str
    positions: str = "keep"

    @property
    def label(self) -> str:
        """The name of the setting, such as `pocket_llava idpruner compact`."""
        return " ".join([self.model, self.method, *([self.positions] if self.positions != "keep" else [])])

    def config(self) -> RunConfig:
        """Return the configuration of the run, at a quarter of the visual tokens."""
        chosen = [f"model={self.model}", f"method={self.method}", *SUITES[self.model]]
        budget = [] if self.method == "none" else ["keep=0.25"]
        return validate(compose("config", [*chosen, *budget, f"positions={self.positions}"]))


SUITES = {  # model -> its tasks
    "pocket": ("tasks=pocket",),
    "pocket_llava": ("tasks=pocket_image",),
    "pocket_clip": ("tasks=pocket_clips", "+tasks.metrics.pocket_places='accuracy,none'"),  # of the same folder
}
# Unpruned; cuts in front of the LLM by learned importance, by the question, and by attention of the vision tower with
# merging; cuts inside the LLM by attention and by keys; of videos, by what changes,
# in front of the LLM and inside it. Other methods on videos answer otherwise before transformers 5.3: docs/versions.md.
SETTINGS = (
    Setting("pocket", "none"),
    Setting("pocket", "idpruner"),
    Setting("pocket", "cdpruner"),
    Setting("pocket", "visionzip"),
    Setting("pocket", "fastv"),
    Setting("pocket_llava", "none"),
    Setting("pocket_llava", "idpruner"),
    Setting("pocket_llava", "idpruner", "compact"),
    Setting("pocket_llava", "visionzip", "compact"),
    Setting("pocket_llava", "dart"),
    Setting("pocket_clip", "none"),
    Setting("pocket_clip", "prunevid"),
)


@dataclass(frozen=True)
class Reply:
    """The answer to a question, and the visual tokens that were kept; none are listed if nothing was pruned."""

    task: str
    doc_id: int
    text: str
    kept: tuple[int, ...]

    @property
    def question(self) -> tuple[str, int]:
        """The task and the number of the question."""
        return self.task, self.doc_id


class PocketModel:
    """An embedded model and the first questions of each of its tasks; all settings share the passes of its tower."""

    def __init__(self, name: str) -> None:
        from harness.evaluation.task_suite import TaskSuite
        from harness.models.loading import load
        from harness.models.model_folder import ModelFolder
        from harness.pruning.vision_cache import VisionCache

        config = Setting(name, "none").config()
        self.loaded = load(config.model)
        self.folder = ModelFolder(self.loaded.folder)
        self.vision_cache = VisionCache(self.loaded.model, MEMORY)
        self.suite = TaskSuite(config.tasks, self.folder.adapter.prompts)
        self.tasks = [self.suite.load(task) for task in config.tasks.metrics]

    def answers(self, setting: Setting, count: int | None = None, verify: bool = True) -> list[Reply]:
        """Answer the questions of all tasks together, so that a batch mixes long and short prompts.

        `count` limits the number of questions; they come from as many tasks as possible.
        """
        from harness.evaluation.lmms_model import PrunedModel
        from harness.evaluation.pruner import pruner_of
        from harness.results.response_log import ResponseLog

        pruner = pruner_of(setting.config(), self.folder)
        with tempfile.TemporaryDirectory() as folder:
            log = ResponseLog(Path(folder))
            looked_at, cache = self.suite.looked_at, self.vision_cache
            model = PrunedModel(
                self.loaded, pruner, {}, log, strict=True, looked_at=looked_at, verify=verify, shared=cache
            )
            of_tasks = [self.suite.requests(task, range(QUESTIONS), model) for task in self.tasks]
            if count is not None:
                of_tasks = [[request for turn in zip(*of_tasks, strict=True) for request in turn][:count]]
            model.generate_until([request for requests in of_tasks for request in requests])
        lines = zip(log.responses.values(), log.kept.values(), strict=True)
        return [
            Reply(line["task"], line["doc_id"], line["response"], tuple(kept["kept"]) if kept["k"] < kept["n"] else ())
            for line, kept in lines
        ]


@dataclass(frozen=True)
class Comparison:
    """The differences from the expected answers and kept tokens."""

    answers: int  # expected
    equal: int  # answers as expected
    kept: int  # tokens that are expected to be kept, over all pruned settings
    kept_difference: int  # tokens that were not kept, or that were kept in their place
    wrong: dict[str, int]  # setting -> number of different answers
    first: str  # different answer
    errors: dict[str, str]  # setting -> what stopped it

    @property
    def reproduces(self) -> bool:
        """Every answer is equal, and no more kept tokens differ than rounding explains."""
        return self.equal == self.answers and self.share <= MAX_KEPT_DIFFERENCE

    @property
    def share(self) -> float:
        """Share of the kept tokens that differ."""
        return self.kept_difference / self.kept if self.kept else 0.0

    def __str__(self) -> str:
        text = f"{self.equal:,} of {self.answers:,} answers equal, "
        text += f"{self.kept_difference:,} of {self.kept:,} kept tokens differ"
        if self.share > MAX_KEPT_DIFFERENCE:
            text += f" ({self.share:.2%}, at most {MAX_KEPT_DIFFERENCE:.2%} is rounding)"
        if self.wrong:
            counts = ", ".join(f"{label} ({count})" for label, count in self.wrong.items())
            text += f"; different answers under {counts}; first: {self.first}"
        if self.errors:
            label, error = next(iter(self.errors.items()))
            text += f"; settings that stop: {len(self.errors)}, first {label}: {error}"
        return f"reproduces: {text}" if self.reproduces else f"does not reproduce: {text}"


def reproduces() -> Iterator[Finding]:
    """Check that the embedded models give the expected answers and keep the expected tokens on this machine."""
    try:
        about = files.load(EXPECTED, ("versions", "answers"), REMEDY)
        outside = machine.outside_tested_range(about["versions"])
        comparison = compare(_parsed(about["answers"]), answers())
    except UserError as error:
        yield Finding(PART, NAME, BROKEN, one_line(error))
        return
    text = f"{comparison}; outside the tested range: {', '.join(outside)}" if outside else str(comparison)
    yield Finding(PART, NAME, OK if comparison.reproduces else BROKEN, text)


def answers() -> dict[str, list[Reply] | str]:
    """Return the answers of each setting by its label, or the error that stopped it, in one line."""
    results: dict[str, list[Reply] | str] = {}
    models: dict[str, PocketModel] = {}
    with redirect_stderr(io.StringIO()):  # progress bars of every setting
        for setting in SETTINGS:
            try:
                if setting.model not in models:
                    models[setting.model] = PocketModel(setting.model)
                results[setting.label] = models[setting.model].answers(setting)
            except (Exception, SystemExit) as error:  # whatever a library raises on this machine is the finding
                results[setting.label] = f"{type(error).__name__}: {one_line(error)[:200]}"
    return results


def compare(expected: Mapping[str, Sequence[Reply]], actual: Mapping[str, Sequence[Reply] | str]) -> Comparison:
    """Compare answers setting by setting; UserError if the expected ones are to other settings or questions."""
    if list(expected) != list(actual):
        raise UserError(f"{EXPECTED} holds the settings {', '.join(expected)}, not {', '.join(actual)}: {REMEDY}")
    wrong: dict[str, int] = {}
    errors: dict[str, str] = {}
    first = ""
    equal = kept = kept_difference = 0
    for label, rows in expected.items():
        others = actual[label]
        if isinstance(others, str):
            errors[label] = others
            continue
        if [row.question for row in rows] != [other.question for other in others]:
            raise UserError(f"{EXPECTED} has other questions under {label}: {REMEDY}")
        pairs = list(zip(rows, others, strict=True))
        kept += sum(len(row.kept) for row in rows)
        kept_difference += sum(_difference(row.kept, other.kept) for row, other in pairs)
        different = [(row, other) for row, other in pairs if row.text != other.text]
        equal += len(pairs) - len(different)
        if different:
            wrong[label] = len(different)
            row, other = different[0]
            first = first or f"{label}, {row.task} {row.doc_id}: expected {row.text!r}, got {other.text!r}"
    return Comparison(sum(map(len, expected.values())), equal, kept, kept_difference, wrong, first, errors)


def _difference(expected: Sequence[int], actual: Sequence[int]) -> int:
    a, b = set(expected), set(actual)
    return max(len(a - b), len(b - a))


def _parsed(tree: dict[str, list[dict[str, Any]]]) -> dict[str, list[Reply]]:
    with as_user_error((TypeError, KeyError, AttributeError), f"{EXPECTED} is damaged", REMEDY):
        return {label: [Reply(**{**row, "kept": tuple(row["kept"])}) for row in rows] for label, rows in tree.items()}


def write(file: Path) -> None:
    """Write this machine's answers as the expected ones, one line per question; UserError if a setting stops."""
    results = answers()
    blocks = []
    for label, rows in results.items():
        if isinstance(rows, str):
            raise UserError(f"{label} stops, nothing is written: {rows}")
        lines = ",\n".join(f"   {files.json_line(asdict(row))}" for row in rows)
        blocks.append(f"  {files.json_line(label, ensure_ascii=True)}: [\n{lines}\n  ]")
    versions, settings = files.json_line(machine.installed(), ensure_ascii=True), ",\n".join(blocks)
    files.write_atomic(file, f'{{\n "versions": {versions},\n "answers": {{\n{settings}\n }}\n}}\n')


if __name__ == "__main__":
    write(EXPECTED)
