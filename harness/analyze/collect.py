"""The visual tokens of images as they enter the language model, with what methods see beside them."""

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
from harness.analyze.questions import Question, Source
from harness.core.errors import UserError, as_user_error
from harness.evaluation.pruner import pruner_of
from harness.models.loading import Loaded
from harness.pruning.handle import Kept
from methods.base import AttentionSpec, Method, Selection, Signal, Tokens


@dataclass(kw_only=True)
class Noted(Method):
    """Note the tokens of each sample, with the signals that are asked for; which tokens stay does not matter.

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


def read(loaded: Loaded, question: Question, probe: Noted, scorer: nn.Module | None = None) -> Tokens | None:
    """The visual tokens of a question's pictures; None if they are fewer than two."""
    probe.seen.clear()
    with harness.prune(loaded.model, probe, tokens=1, scorer=scorer), torch.inference_mode():
        loaded.model(**question.inputs(loaded))
    return probe.seen[0] if probe.seen else None


def gathered(
    loaded: Loaded,
    source: Source,
    probes: Sequence[Noted],
    seed: int,
    limit: int,
    least: int = 2,
    scorer: nn.Module | None = None,
) -> Iterator[tuple[Question, list[Tokens]]]:
    """`limit` random questions on pictures of at least `least` tokens, each with what every probe saw of it."""
    with tqdm(total=limit, desc="images") as progress:
        for question in source.drawn(seed):
            found = [read(loaded, question, probe, scorer) for probe in probes]
            seen = [tokens for tokens in found if tokens is not None and len(tokens.features) >= least]
            if len(seen) < len(probes):
                continue
            yield question, seen
            progress.update()
            if progress.n >= limit:
                return


def check_cut(cfg: DictConfig) -> None:
    """Methods that make images smaller have no token that they keep."""
    for one in settings.contestants(cfg):
        if methods.load(one.name, **one.params).stage == "pixels":
            raise UserError(f"{one.name} makes images smaller, of which it keeps every token: leave it out")


def kept(cfg: DictConfig, loaded: Loaded, questions: Sequence[Question]) -> Iterator[tuple[str, float, Sequence[Kept]]]:
    """Method, share, and what was kept of each question; a forward pass of the model each."""
    asked = [(one, keep) for keep in settings.keeps(cfg) for one in settings.contestants(cfg)]
    pruners = [pruner_of(settings.run_of(cfg, one, keep), loaded.folder) for one, keep in asked]
    for (one, keep), pruner in zip(asked, tqdm(pruners, desc="methods"), strict=True):
        with as_user_error(ValueError), pruner.attach(loaded.model) as pruning, torch.inference_mode():
            for question in questions:
                loaded.model(**question.inputs(loaded))
        yield one.label, keep, pruning.take()
