"""A method with its budget and scorer, checked, and the context in which it prunes."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
import methods
from harness.core.config import NEWLINES, RunConfig, shipped
from harness.core.errors import UserError, as_user_error
from harness.core.files import slug
from harness.evaluation.resize_baseline import resizing
from harness.models import adapter_class, checkpoint
from harness.models.model_folder import ModelFolder
from harness.models.scorer import load_scorer, shipped_scorer
from harness.pruning.vision_cache import VisionCache
from methods.base import Method, Signal
from methods.budget import Budget
from methods.selecting import SelectionError

NO_FILE = "none"  # value of a parameter that names a companion file, which random weights do not have


@dataclass(frozen=True)
class Pruner:
    """A method with its budget, ready to be put on a model."""

    method: Method
    name: str
    budget: Budget
    scorer: Path | None = None
    seed: int = 0
    positions: str = "keep"
    newlines: str | None = None  # None: nothing is cut, or the family has no newlines

    @property
    def label_suffix(self) -> str:
        """What follows the name in labels of results: the files that parameters name, as "prior 1f0c3a9b"."""
        return ", ".join(f"{name} {about['digest'][:8]}" for name, about in self.method.file_metadata.items())

    @property
    def label(self) -> str:
        """`idpruner-0.25`, for folders and progress bars."""
        unusual = [] if self.positions == "keep" else [self.positions]
        unusual += [] if self.newlines in (None, NEWLINES[0]) else [f"newlines-{self.newlines}"]
        return "-".join([*map(slug, filter(None, [self.name, self.label_suffix])), self.budget.label, *unusual])

    def attach(self, model: Any, shared: VisionCache | None = None) -> AbstractContextManager[Any]:
        """Return the context that prunes `model`; it may share vision passes with earlier and later ones."""
        if self.method.stage == "pixels":
            return resizing(model, self.budget, shared)
        return harness.prune(
            model,
            self.method,
            **self.budget.setting,
            scorer=self.scorer,
            seed=self.seed,
            positions=self.positions,
            newlines=self.newlines,
            shared=shared,
        )


def pruner_of(run: RunConfig, model: ModelFolder) -> Pruner:
    """Load the method of a run and check it and its scorer; UserError for what is wrong or missing."""
    method, scorer = checked_method(run, model), None
    with as_user_error(ValueError):
        _check_made_for(method, model.path)
        if Signal.IMPORTANCE in method.needs:
            scorer = shipped(run.model.scorer) if run.model.scorer else shipped_scorer(str(model.path))
            if scorer is None:
                raise UserError(f"{method.name} needs a learned scorer, {model.path} has none: pass model.scorer=/path")
            check_scorer(scorer, model)
    seed = run.seed if run.pruned else 0
    newlines = model.adapter.check_newlines(run.model.newlines) if run.pruned else None
    return Pruner(method, run.method["name"], run.budget, scorer, seed, _positions(run), newlines)


def checked_method(run: RunConfig, model: ModelFolder) -> Method:
    """Load the method with its parameters; UserError if one is left open or the model cannot run it.

    Of the model only config.json is read, and the files of `missing_companions` where they exist.
    """
    with as_user_error((ValueError, TypeError)):
        paths = {parameter: model.path / file for parameter, file in missing_companions(run).items()}
        companions = {parameter: str(path) for parameter, path in paths.items() if path.is_file()}
        method = methods.load(run.method["name"], **{**run.params, **companions})
        method.check()
        model.adapter.check(method, model.config)
        model.adapter.check_positions(_positions(run), method)
        model.adapter.check_newlines(run.model.newlines)
        _check_share(method, run, model.config)
    return method


def missing_companions(run: RunConfig) -> dict[str, str]:
    """Return the companion files that the run does not name: parameter -> file that may lie next to the weights."""
    companions = methods.get(run.method["name"]).companion_files
    return {parameter: file for parameter, file in companions.items() if run.params.get(parameter) is None}


def _positions(run: RunConfig) -> str:
    return run.positions if run.pruned else "keep"


def _check_made_for(method: Method, folder: Path) -> None:
    """Refuse a file that was made with another model: ValueError."""
    for name, about in method.file_metadata.items():
        if "model" in about and about["model"] != checkpoint.weights_fingerprint(folder):
            other = f"{about.get('name', 'another model')} ({about['model']})"
            raise ValueError(f"method.{name} was made with {other}, not with the model in {folder}: make it again")


def check_scorer(scorer: Path, model: ModelFolder) -> None:
    """Refuse a scorer that is not whole or does not fit the model, of which only config.json is read: ValueError."""
    load_scorer(scorer, model.config.get_text_config().hidden_size)


def method_without_weights(run: RunConfig, config: Any) -> Method:
    """Load the method of a run from a model's configuration alone: UserError if the model cannot run it.

    It has no companion files, which lie next to weights.
    """
    with as_user_error((ValueError, TypeError)):
        method = methods.load(run.method["name"], **{**run.params, **dict.fromkeys(missing_companions(run), NO_FILE)})
        family = adapter_class(config.model_type)
        family.check(method, config)
        family.check_positions(run.positions, method)
        family.check_newlines(run.model.newlines)
        _check_share(method, run, config)
    return method


def _check_share(method: Method, run: RunConfig, config: Any) -> None:
    """Refuse a share of the tokens that the method's cuts cannot leave, whatever the picture: UserError."""
    layers = int(config.get_text_config().num_hidden_layers)

    def refused(keep: float) -> bool:
        return all(_refused(method, n, max(1, round(n * keep)), layers) for n in (100, 10_000))

    if run.keep is not None and refused(run.keep):
        least = next((share / 100 for share in range(1, 100) if share / 100 > run.keep and not refused(share / 100)), 1)
        cause = f"keep={run.keep} is too small, its cuts in {layers} layers cannot leave so few visual tokens"
        raise UserError(f"{method.name}: {cause}: keep={least} or more, or method.budget_at=end")


def _refused(method: Method, n: int, k: int, layers: int) -> bool:
    try:
        method.schedule(n, k, layers)
    except SelectionError:
        return True
    return False
