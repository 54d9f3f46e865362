"""Collect the visual tokens of images as they enter the language model, with the signals that methods see."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from omegaconf import DictConfig
from torch import nn
from tqdm import tqdm

import harness
import methods
from harness.analyze import settings
from harness.analyze.questions import Prompt, Source
from harness.core.errors import UserError, as_user_error
from harness.evaluation.pruner import Pruner, pruner_of
from harness.models.loading import Loaded
from harness.models.model_folder import ModelFolder
from harness.pruning.handle import Kept
from methods.base import AttentionSpec, Method, Selection, Signal, Tokens


@dataclass(kw_only=True)
class TokenProbe(Method):
    """Record the tokens of each sample with the signals in `wanted`; which tokens it keeps does not matter.

    Deviation: none. Source: ours.
    """

    wanted: frozenset[Signal] = frozenset()
    reading: AttentionSpec = field(default_factory=AttentionSpec)
    seen: list[Tokens] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["needs"] = self.wanted

    @property
    def attention_spec(self) -> AttentionSpec:
        """Which attention of the vision tower is read."""
        return self.reading

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        self.seen.append(tokens)
        return Selection.of(torch.arange(k, device=tokens.features.device))


def read(loaded: Loaded, prompt: Prompt, probe: TokenProbe, scorer: nn.Module | None = None) -> Tokens | None:
    """Read the visual tokens of a question's pictures; None if there are fewer than two."""
    probe.seen.clear()
    with harness.prune(loaded.model, probe, tokens=1, scorer=scorer), torch.inference_mode():
        loaded.model(**prompt.inputs(loaded))
    return probe.seen[0] if probe.seen else None


def collect_tokens(
    cfg: DictConfig, loaded: Loaded, source: Source, probes: Sequence[TokenProbe], scorer: nn.Module | None = None
) -> Iterator[tuple[Prompt, list[Tokens]]]:
    """Yield `limit` random questions on pictures of at least `min_tokens`, with what each probe recorded."""
    with tqdm(total=cfg.limit, desc="images") as progress:
        for prompt in source.drawn(cfg.seed):
            readings = [read(loaded, prompt, probe, scorer) for probe in probes]
            seen = [tokens for tokens in readings if tokens is not None and len(tokens.features) >= cfg.min_tokens]
            if len(seen) < len(probes):
                continue
            yield prompt, seen
            progress.update()
            if progress.n >= cfg.limit:
                return


def check_cut(cfg: DictConfig) -> None:
    """Raise UserError for methods that make images smaller: they drop no token."""
    for point in settings.method_points(cfg):
        if methods.load(point.name, **point.params).stage == "pixels":
            raise UserError(f"{point.name} makes images smaller, of which it keeps every token: leave it out")


def pruners(cfg: DictConfig, loaded: Loaded) -> Iterator[tuple[settings.MethodPoint, float, Pruner]]:
    """Yield every method at every keep ratio; all of them can run before the first does."""
    runs = [(point, keep) for keep in settings.keeps(cfg) for point in settings.method_points(cfg)]
    folder = ModelFolder(loaded.folder)
    made = [pruner_of(settings.run_of(cfg, point, keep), folder) for point, keep in runs]
    for (point, keep), pruner in zip(runs, tqdm(made, desc="methods"), strict=True):
        yield point, keep, pruner


def kept(cfg: DictConfig, loaded: Loaded, prompts: Sequence[Prompt]) -> Iterator[tuple[str, float, Sequence[Kept]]]:
    """Yield method, keep ratio and what was kept of each question, by one forward pass for each of them."""
    for point, keep, pruner in pruners(cfg, loaded):
        with as_user_error(ValueError), pruner.attach(loaded.model) as pruning, torch.inference_mode():
            for prompt in prompts:
                loaded.model(**prompt.inputs(loaded))
        yield point.label, keep, pruning.take()
