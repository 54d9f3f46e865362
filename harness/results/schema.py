"""What the files of a run hold, as far as readers rely on it: checked where a run is read.

Keys that every format of `run.json` has are required. A file may have more keys than these. Who reads one that is
missing is told so by `Recorded`.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict  # which pydantic asks for below Python 3.12

from harness.core.errors import UserError
from harness.core.escape import visible

AWAY = "move the run away and start it again"
STRICT = ConfigDict(strict=True, allow_inf_nan=False, extra="ignore")
Score = Annotated[float, Field(ge=-1e12, le=1e12)]  # figures cannot draw larger numbers, and no metric has them
MOST_TOKENS = 2**24  # of a prompt: readers draw a mark for each of them
Count = Annotated[int, Field(ge=0)]
Versions = dict[str, str | None]


@with_config(STRICT)
class Model(TypedDict):
    """The model as `model=` named it; its settings are other keys."""

    name: str


@with_config(STRICT)
class ModelIdentity(TypedDict):
    """How the model was loaded."""

    weights: str
    dtype: str
    packages: NotRequired[Versions]
    device: NotRequired[str | None]
    attn: NotRequired[str | None]
    batch_size: NotRequired[int | None]


@with_config(STRICT)
class TasksIdentity(TypedDict):
    """Which questions were asked."""

    names: list[str]
    limit: int | float | None
    files: str | None
    sample: NotRequired[str]
    sample_seed: NotRequired[int]
    questions: NotRequired[Any]
    data: NotRequired[dict[str, Any]]


@with_config(STRICT)
class Identity(TypedDict):
    """Everything that can change an answer."""

    model: ModelIdentity
    tasks: TasksIdentity
    seed: NotRequired[int]


@with_config(STRICT)
class Method(TypedDict):
    """A method and its parameters, which are other keys."""

    name: str
    lam: NotRequired[float | None]


@with_config(STRICT)
class Tasks(TypedDict):
    """A set of tasks, each with its metric."""

    name: str
    metrics: NotRequired[dict[str, str | None]]
    include: NotRequired[str | None]


@with_config(STRICT)
class Config(TypedDict):
    """The configuration of a run."""

    method: Method
    model: Model
    tasks: Tasks
    keep: float | None
    tokens: int | None
    per_tile: NotRequired[int | None]
    seed: NotRequired[int]
    positions: NotRequired[str]


@with_config(STRICT)
class Decoding(TypedDict):
    """Whether decoding through a cache was compared with prefills."""

    verified: bool
    reason: NotRequired[str | None]


@with_config(STRICT)
class FileDigest(TypedDict):
    """A file of a method."""

    digest: str


@with_config(STRICT)
class About(TypedDict):
    """`run.json`."""

    format: NotRequired[int]
    identity: Identity
    method: str
    model: str
    budget: str
    config: Config
    git: NotRequired[str | None]
    python: NotRequired[str]
    device: NotRequired[str]
    started: NotRequired[str]
    packages: NotRequired[Versions]
    sources: NotRequired[dict[str, Any]]
    resumed: NotRequired[list[dict[str, Any]]]
    decoding: NotRequired[Decoding]
    made_from: NotRequired[dict[str, FileDigest]]
    parameters: NotRequired[dict[str, Any]]


Noise = TypedDict(
    "Noise",
    {
        "from": Literal["questions", "units", "jackknife", None],
        "scale": NotRequired[float],
        "reason": NotRequired[str],
        "clusters": NotRequired[list[str]],
        "influence": NotRequired[list[float]],
    },
)


@with_config(STRICT)
class Metrics(TypedDict):
    """`metrics.json`."""

    scores: dict[str, dict[str, Score | list[Score]]]
    primary: dict[str, str | None]
    questions: dict[str, Count]
    failed: NotRequired[dict[str, Count]]
    unjudged: NotRequired[dict[str, dict[str, str]]]
    visual_tokens: NotRequired[dict[str, dict[str, float]]]
    noise: NotRequired[dict[str, dict[str, Noise]]]


Share = Annotated[float, Field(ge=-1e6, le=1e6)]  # of a picture's width or height; an answer's may lie outside
Box = Annotated[list[Share], Field(min_length=4, max_length=4)]  # left, top, right, bottom


@with_config(STRICT)
class Response(TypedDict):
    """A line of `responses.jsonl`."""

    key: str
    task: str
    doc_id: int
    response: str
    input_tokens: NotRequired[int | None]
    output_tokens: NotRequired[int | None]
    failed: NotRequired[str]
    repeat: NotRequired[int]
    box: NotRequired[Box | None]


@with_config(STRICT)
class Stage(TypedDict):
    """What one cut of several left: `layer` -1 is the input of the language model."""

    layer: Annotated[int, Field(ge=-1)]
    kept: list[Count]


@with_config(STRICT)
class Video(TypedDict):
    """What a question shows of a video: frames read, seconds from one step of its grid to the next, visual tokens."""

    frames: Count
    seconds_per_step: Annotated[float, Field(gt=0)]
    tokens: Count


@with_config(STRICT)
class Kept(TypedDict):
    """A line of `kept.jsonl`."""

    key: str
    task: str
    doc_id: int
    n: Annotated[int, Field(ge=0, le=MOST_TOKENS)]
    k: Count
    grids: list[Annotated[list[Count], Field(min_length=3, max_length=3)]]
    kept: list[Count]
    per_layer: NotRequired[float]
    stages: NotRequired[list[Stage]]
    newlines: NotRequired[Annotated[list[Count], Field(min_length=2, max_length=2)]]
    per_tile: NotRequired[list[Count]]
    budget: NotRequired[Count]
    repeat: NotRequired[int]
    videos: NotRequired[list[Video]]
    order: NotRequired[list[Count]]
    importance: NotRequired[str]
    target: NotRequired[Box]
    view: NotRequired[Box]


Number = Annotated[int, Field(ge=-(2**63), lt=2**63)] | float | bool
Scores = dict[str, dict[str, list[Number | str | list[Any] | dict[str, Any] | None]]]  # `scores.json`


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind, config=None if hasattr(kind, "__pydantic_config__") else STRICT)


def fault(kind: Any, value: Any) -> str | None:
    """Return where a JSON value first differs from a kind of this file, and how; None if it does not."""
    try:
        _adapter(kind).validator.validate_python(value)  # of millions of lines: the adapter's own method costs as much
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return visible(f"{place}: {first['msg']}, got {first['input']!r:.40}".removeprefix(": "))
    contradiction = _CONTRADICTIONS.get(kind)
    return contradiction and contradiction(value)


def _of_metrics(metrics: Mapping[str, Any]) -> str | None:
    """Return how `metrics.json` contradicts itself."""
    for name in ("scores", "primary"):
        if metrics[name].keys() != metrics["questions"].keys():
            return f"{name} has the tasks {', '.join(metrics[name]) or 'none'}, not those of questions"
    for task, count in metrics.get("failed", {}).items():
        if count > (asked := metrics["questions"].get(task, 0)):
            return f"{count} questions of {task} failed, of {asked}"
    return None


def _of_kept(line: Mapping[str, Any]) -> str | None:
    """Return how a line of `kept.jsonl` contradicts itself; of `resize` it names no tokens."""
    n, k, kept = line["n"], line["k"], line["kept"]
    if kept and len(kept) != k:
        return f"k is {k}, but {len(kept)} tokens are kept"
    if max(kept, default=-1) >= n:
        return f"token {max(kept)} of n = {n} is kept"
    if max(order := line.get("order") or [], default=-1) >= n:
        return f"token {max(order)} of n = {n} is picked"
    return None


_CONTRADICTIONS = {Kept: _of_kept, Metrics: _of_metrics}


def check(kind: Any, value: Any, file: Path, remedy: str) -> None:
    """Raise UserError unless the JSON value of a file is of a kind of this file."""
    if (wrong := fault(kind, value)) is not None:
        raise UserError(f"{file} is damaged ({wrong}): {remedy}")


class Recorded(dict[str, Any]):
    """A JSON object that was read from `file`, where its place has the dotted `name`; so are the objects in it.

    Keys that not every reader needs may be missing. Who asks for one gets a UserError that names it.
    """

    def __init__(self, content: Mapping[str, Any], file: Path, name: str = "") -> None:
        self.file, self.name = file, name
        inner = {key: f"{name}.{key}".removeprefix(".") for key in content}
        super().__init__({k: Recorded(v, file, inner[k]) if isinstance(v, dict) else v for k, v in content.items()})

    def __missing__(self, key: str) -> Any:
        name = f"{self.name}.{key}".removeprefix(".")
        raise UserError(f"{self.file} is damaged, it lacks {name}: {AWAY}")

    def __or__(self, other: Mapping[str, Any]) -> "Recorded":  # type: ignore[override]
        return Recorded({**self, **other}, self.file, self.name)


def recorded(kind: Any, content: dict[str, Any], file: Path) -> Recorded:
    """Return the JSON object of a file, which has to be of a kind of this file, or else UserError."""
    check(kind, content, file, AWAY)
    return Recorded(content, file)


def other_questions(scores: Mapping[str, Mapping[str, list[Any]]], counts: Mapping[str, int]) -> str | None:
    """Return how `scores.json` contradicts the number of questions of each task; None if it does not."""
    if scores.keys() != counts.keys():
        return f"it has the tasks {', '.join(scores) or 'none'}, expected {', '.join(counts)}"
    for task, columns in scores.items():
        if "doc_id" not in columns or {*map(len, columns.values())} != {counts[task]}:
            return f"it does not have {counts[task]} questions of {task} in each column"
        if not all(type(doc_id) is int for doc_id in columns["doc_id"]):
            return f"a doc_id of {task} is no whole number"
        if not all(isinstance(picture, str | None) for picture in columns.get("picture", ())):
            return f"a picture of {task} is no digest"
    return None
