"""From configuration to a loaded model and a ready pruner, and the identity under which their answers are stored."""

import inspect
from contextlib import AbstractContextManager
from dataclasses import dataclass, fields
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from omegaconf import OmegaConf

import harness
import methods
from harness import checkpoint
from harness.config import ModelConfig, RunConfig, shipped, validate
from harness.errors import UserError, one_line
from harness.models.scorer import shipped_scorer
from harness.store import digest, slug
from methods.base import Method, Signal
from methods.budget import Budget

PACKAGES = ("torch", "torchvision", "transformers", "lmms-eval", "qwen-vl-utils", "pillow")  # they can change an answer
METHODS = Path(methods.__file__).parent


@dataclass(frozen=True)
class Loaded:
    """A model in memory with its processor."""

    model: Any
    processor: Any
    config: ModelConfig
    folder: Path


@dataclass(frozen=True)
class Pruner:
    """A method with its budget, ready to be put on a model."""

    method: Method
    name: str
    budget: Budget
    scorer: Path | None = None
    seed: int = 0

    @property
    def label(self) -> str:
        """`idpruner-0.25`, for folders and progress bars."""
        return f"{slug(self.name)}-{self.budget.label}"

    def attach(self, model: Any) -> AbstractContextManager[Any]:
        """The pruning context on `model`."""
        keep, tokens = self.budget.keep, self.budget.tokens
        return harness.prune(model, self.method, keep=keep, tokens=tokens, scorer=self.scorer, seed=self.seed)


def pruner_of(run: RunConfig, folder: Path) -> Pruner:
    """The method with its parameters checked, and its scorer found; UserError for what is wrong or missing."""
    try:
        method = methods.load(run.method["name"], **run.params)
        scorer = None
        if Signal.IMPORTANCE in method.needs:
            scorer = shipped(run.model.scorer) if run.model.scorer else shipped_scorer(str(folder))
            if scorer is None:
                raise UserError(f"{method.name} needs a learned scorer, {folder} has none: pass model.scorer=/path")
    except (ValueError, TypeError) as error:
        raise UserError(one_line(error)) from error
    return Pruner(method, run.method["name"], run.budget, scorer, run.seed if run.pruned else 0)


def device_of(model: ModelConfig) -> str:
    """`auto` resolved to what this machine has."""
    if model.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if model.device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"model.device={model.device}, but torch sees no GPU: try model.device=cpu")
    return model.device


def load(config: ModelConfig) -> Loaded:
    """Load a checkpoint for inference; UserError if it lacks a tensor, which transformers would fill with noise."""
    folder = checkpoint.fetch(config)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    from_pretrained: Any = transformers.AutoModelForImageTextToText.from_pretrained
    try:
        model, info = from_pretrained(
            folder,
            dtype=getattr(torch, config.dtype),
            attn_implementation=config.attn,
            output_loading_info=True,
        )
        processor = transformers.AutoProcessor.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise UserError(f"cannot load {folder}: {one_line(error)}") from error
    if info["missing_keys"]:
        missing = sorted(info["missing_keys"])
        raise UserError(f"{folder} lacks {len(missing)} tensors of its architecture, the first is {missing[0]}")
    return Loaded(model.eval().to(device_of(config)), processor, config, folder)


class Identity:
    """Everything that can change an answer, as JSON; equal identities share one run folder."""

    def __init__(self, run: RunConfig, folder: Path):
        self.run = run
        self.folder = folder

    @cached_property
    def model(self) -> dict[str, Any]:
        """Weights by content, and how they are loaded and fed."""
        config = self.run.model
        return {
            "weights": checkpoint.fingerprint(self.folder, skip="scorer"),
            "device": device_of(config).partition(":")[0],
            **{
                key: getattr(config, key)
                for key in ("dtype", "attn", "min_pixels", "max_pixels", "max_frames", "batch_size")
            },
            "code": _code(Path(__file__).parent, "prune.py", "inputs.py", "lmms_model.py", "models/*.py"),
            "packages": {name: version(name) for name in PACKAGES},
        }

    def answers(self, pruner: Pruner) -> dict[str, Any]:
        """What an answer depends on, given the question."""
        method = pruner.method
        source = Path(inspect.getsourcefile(type(method)) or "")
        return {
            "model": self.model,
            "method": {"name": method.name, "code": _code(source.parent, source.name), **_params(method)},
            "kernels": _code(METHODS, "base.py", "budget.py", "numerics.py", "kernels/*.py") if method.needs else None,
            "budget": {"keep": pruner.budget.keep, "tokens": pruner.budget.tokens},
            "scorer": checkpoint.fingerprint(pruner.scorer) if pruner.scorer else None,
            "seed": pruner.seed,
        }


def from_flat(arguments: dict[str, Any]) -> tuple[Loaded, Pruner, dict[str, Any]]:
    """What `PrunedModel` needs from flat `--model_args`, named as in conf/model and in the main command."""
    names = {field.name for field in fields(ModelConfig)} - {"name"}
    params = {key.removeprefix("method_"): value for key, value in arguments.items() if key.startswith("method_")}
    tree: dict[str, Any] = {
        "method": {"name": arguments.pop("method", "none"), **params},
        "model": {"name": "model_args", **{key: value for key, value in arguments.items() if key in names}},
        "tasks": {"name": "lmms_eval", "metrics": {"any": None}},
    }
    rest = {key: value for key, value in arguments.items() if key not in names and not key.startswith("method_")}
    if tree["method"]["name"] == "none" and not {"keep", "tokens"} & rest.keys():
        rest["keep"] = 1.0
    run = validate(OmegaConf.create({**tree, **rest}))
    loaded = load(run.model)
    pruner = pruner_of(run, loaded.folder)
    return loaded, pruner, Identity(run, loaded.folder).answers(pruner)


def _params(method: Method) -> dict[str, Any]:
    return {field.name: getattr(method, field.name) for field in fields(method)}


def _code(folder: Path, *patterns: str) -> str:
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    return digest([path.read_text(encoding="utf-8") for path in files])[:16]
