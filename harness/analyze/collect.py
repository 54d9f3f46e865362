"""The visual tokens of images as they enter the language model, with what methods see beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from tqdm import tqdm

import harness
from harness.analyze.questions import Question, Source
from harness.models.loading import Loaded
from methods.base import Method, Received, Selection, Signal, Tokens


@dataclass(kw_only=True)
class Noted(Method):
    """Note the tokens of each sample, with the signals that are asked for; which tokens stay does not matter.

    Deviation: none. Source: ours.
    """

    wanted: frozenset[Signal] = frozenset()
    reading: Received = field(default_factory=Received)
    seen: list[Tokens] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self)["needs"] = self.wanted

    @property
    def received(self) -> Received:
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
