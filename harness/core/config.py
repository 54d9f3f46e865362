"""The typed configuration of a run, and the checks of it that need no torch."""

import importlib.util
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.errors import UserError, as_user_error
from harness.core.files import expanded
from harness.core.question_sample import ORDERS, QuestionSample, by_task
from harness.core.rules import Rule, at_least, count_or_share, folder_name, one_of, optional, require
from harness.core.values import in_words
from methods.budget import Budget

DTYPES = ("float32", "bfloat16", "float16")
UNPACK = ("released", "fixed")
ATTENTION_KERNELS = ("sdpa", "eager", "flash_attention_2")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
VISUAL_TOKEN = 28 * 28  # pixels: patches of 14, merged 2 x 2
MIN_FRAMES = 4  # least frames of a video at a rate, where none is set; as in qwen_vl_utils
SHIPPED = "harness://"  # a path inside the installed package
POSITIONS = ("keep", "compact")  # of kept tokens: see `harness.prune`
NEWLINES = ("drop", "keep", "follow")  # rows that close lines of patches: see `harness.prune`
PACKAGE = Path(__file__).parents[1]
TOP = {"conf": "conf", "published": "results/paper"}  # folder inside the installed package -> in the repository


@dataclass
class ModelConfig:
    """A checkpoint and how to load it; the comments of conf/model/pocket.yaml explain the settings."""

    name: str = MISSING
    pretrained: str = MISSING
    revision: str | None = None
    scorer: str | None = None
    dtype: str = "bfloat16"
    attn: str = "sdpa"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_frames: int | None = None
    fps: float | None = None
    min_frames: int | None = None
    batch_size: int = 1
    device: str = "auto"
    device_map: str | None = None
    unpack: str | None = None
    newlines: str | None = None

    @property
    def frame_rate(self) -> dict[str, Any]:
        """Settings of a rate of frames, without those that are null: so identities from before there were any hold."""
        rate = {"fps": self.fps, "min_frames": self.min_frames}
        return {key: value for key, value in rate.items() if value is not None}


@dataclass
class TasksConfig:
    """lmms-eval tasks, each with the metric shown in tables; the comments of conf/tasks/pocket.yaml explain them."""

    name: str = MISSING
    include: str | None = None
    metrics: dict[str, str | None] = field(default_factory=dict)


@dataclass
class RunConfig:
    """One method at one budget on one model and a set of tasks; the comments of conf/config.yaml explain it."""

    method: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    keep: float | None = None
    tokens: int | None = None
    per_tile: int | None = None
    seed: int = 0
    positions: str = "keep"
    data_root: Any = None
    limit: int | float | None = None
    sample: str = "first"
    questions: Any = None
    strict: bool = False
    verify: bool = True
    force: bool = False
    dry_run: bool = False
    verbose: bool = False
    share_gb: float = 2.0
    runs: str = "results/runs"

    @property
    def pruned(self) -> bool:
        """Whether tokens are removed; False for the unpruned model."""
        return bool(self.method["name"] != "none")

    @property
    def params(self) -> dict[str, Any]:
        """The parameters of the method, without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}

    @property
    def question_sample(self) -> QuestionSample:
        """Which questions of each task are asked."""
        return QuestionSample(self.limit, self.sample, self.seed, by_task(self.questions or ()))

    @property
    def budget(self) -> Budget:
        """How many visual tokens are kept; all of them for the unpruned model."""
        return Budget(self.keep, self.tokens, self.per_tile) if self.pruned else Budget(keep=1.0)


def validate(cfg: DictConfig) -> RunConfig:
    """Return a composed configuration as a `RunConfig`; UserError if a value is invalid."""
    try:
        run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), cfg))
    except OmegaConfBaseException as error:
        raise UserError(in_words(error)) from error
    assert isinstance(run, RunConfig)
    run.tasks.metrics = {name: metric or _default_metrics().get(name) for name, metric in run.tasks.metrics.items()}
    if not isinstance(run.method.get("name"), str):
        raise UserError("method.name is missing: the configuration of a method needs its name")
    _check_budget(run)
    _check_model(run.model)
    if not run.tasks.metrics:
        raise UserError("no task: name at least one, as in tasks=pocket_existence")
    require(run, RULES)
    _check_questions(run)
    return run


def shipped(path: str) -> Path:
    """Resolve a path; `harness://x` lies inside the installed package.

    In a checkout, the folders of `TOP` lie at the root of the repository. The package takes precedence, because a
    folder `conf` next to an installed package belongs to another project.
    """
    if not path.startswith(SHIPPED):
        return expanded(path)
    name, *parts = path.removeprefix(SHIPPED).split("/")
    inside = PACKAGE / name
    return (inside if name not in TOP or inside.is_dir() else PACKAGE.parent / TOP[name]).joinpath(*parts)


def as_list(value: Any) -> list[Any]:
    """Return a setting that may be null, one value or several as a list."""
    value = plain(value)
    return [] if value is None else value if isinstance(value, list) else [value]


def plain(value: Any) -> Any:
    """Return a setting as Python's own lists and dictionaries."""
    return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value


def conf(*parts: str) -> Path:
    """Return the path of a file or folder in conf/."""
    return shipped("/".join([f"{SHIPPED}conf", *parts]))


EMBEDDED_SUITES = ("pocket", "pocket_clips", "pocket_places", "photo", "photo_unseen")


@cache
def _default_metrics() -> dict[str, str]:
    """Map tasks of lmms-eval and of the embedded suites to the metrics that tables show."""
    published = yaml.safe_load(conf("tables", "metrics.yaml").read_text(encoding="utf-8"))
    suites = [conf("tasks", f"{name}.yaml") for name in EMBEDDED_SUITES]
    pocket = [yaml.safe_load(suite.read_text(encoding="utf-8"))["metrics"] for suite in suites]
    return {name: metric for metrics in (published, *pocket) for name, metric in metrics.items()}


def is_data_root(value: Any) -> bool:
    """Tell whether a value is a folder, a mapping from tasks to folders, or None."""
    if isinstance(value, dict):
        return all(isinstance(item, str) for pair in value.items() for item in pair)
    return value is None or isinstance(value, str)


RULES: dict[str, Rule] = {
    "positions": one_of(POSITIONS),
    "runs": ("name a folder, as results/runs", lambda runs: runs.strip()),
    "model.name": folder_name(),
    "tasks.name": folder_name(),
    "data_root": ("be a folder or {task: folder, ...}", is_data_root),
    "seed": ("lie between 0 and 2^63 - 1", lambda seed: 0 <= seed < 2**63),
    "share_gb": ("be at least 0, which shares no vision pass", lambda size: size >= 0),
    "limit": optional(count_or_share()),
    "sample": one_of(ORDERS),
    "questions": optional(("be a list of TASK/NUMBER, as in [pocket_text/7]", lambda q: q and isinstance(q, list))),
}
MODEL_RULES: dict[str, Rule] = {
    "model.dtype": one_of(DTYPES),
    "model.attn": one_of(ATTENTION_KERNELS),
    "model.unpack": optional(one_of(UNPACK)),
    "model.newlines": optional(one_of(NEWLINES)),
    "model.batch_size": at_least(1),
    "model.max_frames": optional(at_least(2)),
    "model.fps": optional(("be a number of frames per second above 0", lambda fps: fps > 0)),
    "model.min_frames": optional(("be an even number of at least 2", lambda n: n >= 2 and n % 2 == 0)),
    "model.max_pixels": optional((f"be at least {VISUAL_TOKEN}, one visual token", lambda n: n >= VISUAL_TOKEN)),
    "model.device": ("be auto, cpu, cuda or cuda:N", re.compile(r"auto|cpu|cuda(:\d+)?").fullmatch),
    "model.device_map": optional(one_of(DEVICE_MAPS)),
}


def _check_budget(run: RunConfig) -> None:
    budgets = {name: getattr(run, name) for name in ("keep", "tokens", "per_tile")}
    given = [f"{name}={value}" for name, value in budgets.items() if value is not None]
    if not run.pruned:
        if given not in ([], ["keep=1.0"]):
            budget = " ".join(text for text in given if text != "keep=1.0")
            raise UserError(f"method=none keeps every visual token: leave {budget} out, or choose a method that prunes")
        return
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other: pass one of them")
    if not given:
        raise UserError("no budget: pass keep=0.25 (a share), tokens=64 (a count) or per_tile=32 (of each tile)")
    with as_user_error(ValueError):
        Budget(**budgets)


def _check_questions(run: RunConfig) -> None:
    """Refuse contradicting choices of questions, and leave out tasks without a question in `questions`."""
    if run.sample != "first" and run.limit is None:
        raise UserError(f"sample={run.sample} chooses which questions a limit leaves: pass limit= too, or leave it out")
    if run.questions is None:
        return
    if run.limit is not None:
        raise UserError(f"questions= and limit={run.limit} exclude each other: pass one of them")
    numbers = by_task(run.questions)
    if other := sorted(set(numbers) - set(run.tasks.metrics)):
        tasks = ", ".join(run.tasks.metrics)
        raise UserError(f"questions names {', '.join(other)}, but the tasks are {tasks}: name the same in tasks=")
    run.tasks.metrics = {name: metric for name, metric in run.tasks.metrics.items() if name in numbers}
    run.questions = [f"{name}/{number}" for name in run.tasks.metrics for number in numbers[name]]


def _check_model(model: ModelConfig) -> None:
    require({"model": model}, MODEL_RULES)
    if model.attn == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("model.attn=flash_attention_2 needs a package: pip install flash-attn, or take model.attn=sdpa")
    low, high = model.min_pixels, model.max_pixels
    if low is not None and not 1 <= low <= (low if high is None else high):
        raise UserError(f"model.min_pixels={low} must lie between 1 and model.max_pixels={high}")
    _check_frames(model)
    if model.device_map is not None and model.device != "auto":
        raise UserError(f"model.device_map={model.device_map} chooses devices: leave model.device={model.device} out")
    if model.scorer is not None and not shipped(model.scorer).exists():
        raise UserError(f"no scorer at model.scorer={model.scorer}: pass a folder or file that exists")


def _check_frames(model: ModelConfig) -> None:
    """Refuse bounds of a rate without a rate, and a rate without an upper bound."""
    fps, low, high = model.fps, model.min_frames, model.max_frames
    if low is not None and fps is None:
        remedy = "pass model.fps=2, or leave it out"
        raise UserError(f"model.min_frames={low} is the least that model.fps= may read, which is null: {remedy}")
    if fps is not None and high is None:
        raise UserError(f"model.fps={fps:g} needs a limit of frames per video: pass model.max_frames=768")
    if low is not None and high is not None and low > high:
        raise UserError(f"model.min_frames={low} must lie between 2 and model.max_frames={high}")
