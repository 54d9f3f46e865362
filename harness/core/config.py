"""The configuration of a run, typed, and everything that can be found wrong with it before torch is imported."""

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
from methods.budget import Budget

DTYPES = ("float32", "bfloat16", "float16")
UNPACK = (None, "released", "fixed")
ATTENTION_KERNELS = ("sdpa", "eager", "flash_attention_2")
DEVICE_MAPS = (None, "auto", "balanced", "balanced_low_0", "sequential")
VISUAL_TOKEN = 28 * 28  # pixels: patches of 14, merged 2 x 2
SHIPPED = "harness://"  # a path inside the installed package
POSITIONS = ("keep", "compact")  # of kept tokens: see `harness.prune`
PACKAGE = Path(__file__).parents[1]
TOP = {"conf": "conf", "published": "results/paper"}  # folder inside the installed package -> in the repository


@dataclass
class ModelConfig:
    """A checkpoint and how it is loaded.

    Pixel limits are per image or video frame; null for a processor that has a resolution of its own. `unpack` is
    LLaVA-OneVision-1.5's: "released" for what its weights were published with, "fixed" for what was meant. `device_map`
    spreads a model that is larger than one GPU over all of them and, past those, the main memory, as accelerate does.
    """

    name: str = MISSING
    pretrained: str = MISSING
    revision: str | None = None
    scorer: str | None = None
    dtype: str = "bfloat16"
    attn: str = "sdpa"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_frames: int | None = None
    batch_size: int = 1
    device: str = "auto"
    device_map: str | None = None
    unpack: str | None = None


@dataclass
class TasksConfig:
    """lmms-eval tasks, each with the metric that the tables show.

    None stands for the one in conf/metrics.yaml, or, for tasks without one there, the first that lmms-eval reports.
    """

    name: str = MISSING
    include: str | None = None
    metrics: dict[str, str | None] = field(default_factory=dict)


@dataclass
class RunConfig:
    """One method at one budget on one model and a set of tasks."""

    method: dict[str, Any] = field(default_factory=dict)
    model: ModelConfig = field(default_factory=ModelConfig)
    tasks: TasksConfig = field(default_factory=TasksConfig)
    keep: float | None = None
    tokens: int | None = None
    seed: int = 0
    positions: str = "keep"
    data_root: Any = None
    limit: int | None = None
    strict: bool = False
    verify: bool = True
    force: bool = False
    dry_run: bool = False
    share_gb: float = 2.0
    runs: str = "results/runs"

    @property
    def pruned(self) -> bool:
        """False for the unpruned model."""
        return bool(self.method["name"] != "none")

    @property
    def params(self) -> dict[str, Any]:
        """The method's parameters, without its name."""
        return {key: value for key, value in self.method.items() if key != "name"}

    @property
    def budget(self) -> Budget:
        """How many visual tokens stay; all of them for the unpruned model."""
        return Budget(keep=self.keep, tokens=self.tokens) if self.pruned else Budget(keep=1.0)


def validate(cfg: DictConfig) -> RunConfig:
    """Check a composed configuration and return it typed; UserError says in one line what to change."""
    with as_user_error(OmegaConfBaseException):
        run = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RunConfig), cfg))
    assert isinstance(run, RunConfig)
    run.tasks.metrics = {name: metric or _published().get(name) for name, metric in run.tasks.metrics.items()}
    if not isinstance(run.method.get("name"), str):
        raise UserError("method.name is missing: the configuration of a method needs its name")
    _check_budget(run)
    _check_model(run.model)
    if run.positions not in POSITIONS:
        raise UserError(f"positions must be one of {', '.join(POSITIONS)}, got {run.positions}")
    if not run.tasks.metrics:
        raise UserError("no task: name at least one, as in tasks=pocket_existence")
    if not is_data_root(run.data_root):
        raise UserError(f"data_root must be a folder or {{task: folder, ...}}, got {run.data_root}")
    if not 0 <= run.seed < 2**63:
        raise UserError(f"seed must lie between 0 and 2^63 - 1, got {run.seed}")
    if run.share_gb < 0:
        raise UserError(f"share_gb must be at least 0, which shares no vision pass, got {run.share_gb}")
    for key, value in {"limit": run.limit, "model.batch_size": run.model.batch_size}.items():
        if value is not None and value < 1:
            raise UserError(f"{key} must be at least 1, got {value}")
    return run


def shipped(path: str) -> Path:
    """Return a path as a Path; `harness://x` lies inside the installed package.

    A checkout has the folders of `TOP` at its top instead. The package is asked first, because a folder `conf` next to
    an installed package belongs to somebody else.
    """
    if not path.startswith(SHIPPED):
        return Path(path).expanduser()
    name, *parts = path.removeprefix(SHIPPED).split("/")
    inside = PACKAGE / name
    return (inside if name not in TOP or inside.is_dir() else PACKAGE.parent / TOP[name]).joinpath(*parts)


def conf(*parts: str) -> Path:
    """Return a file of the configuration."""
    return shipped("/".join([f"{SHIPPED}conf", *parts]))


@cache
def _published() -> dict[str, str]:
    """Task -> the metric that tables show, of lmms-eval's tasks and of the shipped suite."""
    files = [conf("metrics.yaml"), conf("tasks", "pocket.yaml")]
    published, pocket = (yaml.safe_load(file.read_text(encoding="utf-8")) for file in files)
    return {**published, **pocket["metrics"]}


def is_data_root(value: Any) -> bool:
    """True for a folder, a folder for each task, or nothing."""
    if isinstance(value, dict):
        return all(isinstance(item, str) for pair in value.items() for item in pair)
    return value is None or isinstance(value, str)


def _check_budget(run: RunConfig) -> None:
    if not run.pruned:
        if run.tokens is not None or run.keep not in (None, 1.0):
            given = f"keep={run.keep}" if run.tokens is None else f"tokens={run.tokens}"
            raise UserError(f"method=none keeps every visual token: leave {given} out, or choose a method that prunes")
        return
    if run.keep is not None and run.tokens is not None:
        raise UserError(f"keep={run.keep} and tokens={run.tokens} exclude each other: pass one of them")
    if run.keep is None and run.tokens is None:
        raise UserError("no budget: pass keep=0.25 (a share) or tokens=64 (a count)")
    with as_user_error(ValueError):
        Budget(keep=run.keep, tokens=run.tokens)


def _check_model(model: ModelConfig) -> None:
    for key, value, allowed in (("dtype", model.dtype, DTYPES), ("attn", model.attn, ATTENTION_KERNELS)):
        if value not in allowed:
            raise UserError(f"model.{key} must be one of {', '.join(allowed)}, got {value}")
    if model.unpack not in UNPACK:
        raise UserError(f"model.unpack must be released or fixed, got {model.unpack}")
    if model.attn == "flash_attention_2" and importlib.util.find_spec("flash_attn") is None:
        raise UserError("model.attn=flash_attention_2 needs a package: pip install flash-attn, or take model.attn=sdpa")
    low, high = model.min_pixels, model.max_pixels
    if low is not None and not 1 <= low <= (low if high is None else high):
        raise UserError(f"model.min_pixels={low} must lie between 1 and model.max_pixels={high}")
    if model.max_frames is not None and model.max_frames < 2:
        raise UserError(f"model.max_frames must be at least 2, got {model.max_frames}")
    if high is not None and high < VISUAL_TOKEN:
        raise UserError(f"model.max_pixels must be at least {VISUAL_TOKEN}, one visual token, got {high}")
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", model.device):
        raise UserError(f"model.device must be auto, cpu, cuda or cuda:N, got {model.device}")
    if model.device_map not in DEVICE_MAPS:
        known = ", ".join(filter(None, DEVICE_MAPS))
        raise UserError(f"model.device_map must be null or one of {known}, got {model.device_map}")
    if model.device_map is not None and model.device != "auto":
        raise UserError(f"model.device_map={model.device_map} chooses devices: leave model.device={model.device} out")
    if model.scorer is not None and not shipped(model.scorer).exists():
        raise UserError(f"no scorer at model.scorer={model.scorer}: pass a folder or file that exists")
