"""Build the model, the prompts and the candidates of a measurement from its settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from harness.bench import workloads
from harness.bench.settings import Settings
from harness.bench.timers import Clock
from harness.bench.workloads import Workload
from harness.core.config import RunConfig
from harness.core.errors import UserError, one_line
from harness.evaluation.pruner import method_without_weights, pruner_of
from harness.models import checkpoint
from harness.models.cost import architectures
from harness.models.limits import limits_of
from harness.models.loading import device_of, load
from harness.models.model_folder import ModelFolder
from harness.models.scorer import load_scorer
from harness.prune import prune
from harness.pruning.handle import Pruning
from methods.base import Method, Signal
from methods.budget import Budget


@dataclass(frozen=True)
class Subject:
    """A loaded model with its prompts and candidates, the unpruned one first."""

    model: nn.Module
    workloads: list[Workload]
    candidates: list[Candidate]


def subject(chosen: Settings, tell: Callable[[str], None]) -> Subject:
    """Build or load the model; `tell` receives a line for each method that is left out."""
    device = device_of(chosen.model)
    if chosen.weights == "real":
        folder = ModelFolder(checkpoint.download(chosen.model))
        config = folder.config
        allowed = allowed_in(chosen, config, folder, tell)
        loaded = load(chosen.model, folder.path)
        model, processor = loaded.model, loaded.processor
        files = {file for _, _, file in allowed if file is not None}
        scorers = {str(file): load_scorer(file, _width(config)).to(device) for file in files}
    else:
        config, processor = architectures.config_of(chosen.model.name, chosen.weights == "tiny"), None
        allowed = allowed_in(chosen, config, None, tell)
        model = architectures.build(chosen.model, chosen.weights == "tiny", device, chosen.seed)
        hidden = architectures.scorer_hidden(chosen.model.name) if chosen.weights == "random" else _width(config) // 2
        scorers = {"None": architectures.random_scorer(_width(config), hidden, device)}
    candidates = [Candidate("none")]
    for run, method, file in allowed:
        scorer = scorers[str(file)] if Signal.IMPORTANCE in method.needs else None
        candidates.append(candidate_of(run, method, scorer))
    return Subject(model, _prompts(chosen, config, processor), candidates)


def candidate_of(run: RunConfig, method: Method, scorer: nn.Module | None = None) -> Candidate:
    """Return a candidate for a method at the budget of `run`."""
    params = " ".join(f"{key}={value}" for key, value in run.params.items())
    settings: dict[str, Any] = {"positions": run.positions, "seed": run.seed, "newlines": run.model.newlines}
    return Candidate(run.method["name"], params, method, run.budget, scorer, **settings)


def _prompts(chosen: Settings, config: Any, processor: Any) -> list[Workload]:
    if chosen.images:
        limits = limits_of(processor, chosen.model)
        return [workloads.of_file(file, chosen.question, processor, limits, config) for file in chosen.images]
    prompts = [workloads.synthetic(config, size, chosen.text_tokens, processor) for size in chosen.sizes]
    return list({workload.name: workload for workload in prompts}.values())  # two sizes may come to the same images


def allowed_in(
    chosen: Settings, config: Any, folder: ModelFolder | None, tell: Callable[[str], None]
) -> list[tuple[RunConfig, Method, Path | None]]:
    """Return the methods that the family can run, each with the file of its scorer; UserError for others.

    Scorers and other files are searched in `folder`; without a folder, methods run without them.
    """
    allowed = []
    for run in chosen.runs:
        try:
            if folder is not None:
                pruner = pruner_of(run, folder)
                method, scorer = pruner.method, pruner.scorer
            else:
                method, scorer = method_without_weights(run, config), None
        except UserError as error:
            if not chosen.all_methods:
                raise
            tell(f"left out: {one_line(error)}")
            continue
        allowed.append((run, method, scorer))
    return allowed


def _width(config: Any) -> int:
    return int(config.get_text_config().hidden_size)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One row of the table; without a method it is the unpruned model."""

    name: str
    params: str = ""
    method: Method | None = None
    budget: Budget = Budget(keep=1.0)  # noqa: RUF009 (frozen)
    scorer: nn.Module | None = None
    positions: str = "keep"
    seed: int = 0
    newlines: str | None = None

    @property
    def label(self) -> str:
        """`idpruner 0.25`, `fastv variant=paper 0.25`, `unpruned`."""
        return " ".join(filter(None, [self.name, self.params, self.budget.label])) if self.method else "unpruned"

    @property
    def resizes(self) -> bool:
        """Whether images are made smaller instead of removing tokens."""
        return self.method is not None and self.method.stage == "pixels"

    @contextmanager
    def pruning(self, model: nn.Module) -> Iterator[Pruning | None]:
        """Prune `model` within the block; yields None for the unpruned model and for smaller images."""
        if self.method is None or self.resizes:
            yield None
            return
        settings: dict[str, Any] = {"scorer": self.scorer, "seed": self.seed, "positions": self.positions}
        settings |= {**self.budget.setting, "newlines": self.newlines}
        with prune(model, self.method, **settings) as pruning:
            yield pruning


@dataclass(frozen=True, eq=False)
class Prepared:
    """The inputs of a candidate."""

    workload: Workload  # with smaller images for a candidate that resizes
    whole: Workload  # with the original images
    tensors: Any
    milliseconds: list[float]  # of preprocessing, for each repetition


def prepared(
    candidate: Candidate, workload: Workload, batch: int, device: torch.device, clock: Clock, repeats: int
) -> Prepared:
    """Preprocess `repeats` times, after one warm-up."""
    shown, milliseconds = workload.shrunk(candidate.budget) if candidate.resizes else workload, []
    for _ in range(1 + repeats):
        clock.wait()
        start = clock.mark()
        inputs = shown.prepare(batch)
        tensors = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()
        }
        clock.wait()
        milliseconds.append(clock.on_host(start, clock.mark()))
    return Prepared(shown, workload, tensors, milliseconds[1:])
