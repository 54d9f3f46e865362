"""The control `resize` in a run: images and frames become smaller on their way to the model, which is left as it is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn

from harness.models.preprocessing import Message, PixelLimits, media_of, to_inputs
from harness.prune import prune
from harness.pruning.handle import Kept, Pruning
from harness.pruning.vision_cache import VisionCache
from methods.base import Selection
from methods.budget import Budget
from methods.resize import smaller
from methods.tokens import Grid, num_tokens


@dataclass(frozen=True)
class Shown(Kept):
    """What was shown of one sample: `n` and `grids` are of its images as they were, `k` of the smaller ones."""

    budget: int = 0  # K, which `k` rarely meets exactly
    shown: list[Grid] = field(default_factory=list)  # (t, h, w) in tokens of each smaller image or video


class Resizing:
    """Handle of a running block, as `Pruning` is of one that drops tokens. What reaches the model is counted."""

    def __init__(self, pruning: Pruning, budget: Budget) -> None:
        self._pruning = pruning
        self._budget = budget
        self._samples: list[tuple[list[Grid], list[Grid]]] = []  # as they were, and as they are shown

    def seed(self, value: int | Sequence[int]) -> None:
        """Nothing is drawn."""

    def unrecorded(self) -> AbstractContextManager[None]:
        """Forget what the model is shown within the block."""
        return self._pruning.unrecorded()

    def replaying(self) -> AbstractContextManager[None]:
        """Nothing is chosen, so a repeated prefill is like the first; it is not recorded."""
        return self._pruning.replaying()

    @property
    def latest(self) -> list[tuple[Selection, Tensor | None]]:
        """The selection of each sample of the latest prefill: every token of its smaller images."""
        return self._pruning.latest

    def inputs(self, processor: Any, conversations: Sequence[Sequence[Message]], limits: PixelLimits | None) -> Any:
        """Return what `to_inputs` makes of the batch with its images small enough for the budget."""
        whole = to_inputs(processor, conversations, limits)  # how many tokens there would be, nothing else knows
        full = _grids(whole, conversations, processor.image_processor.merge_size)
        small = [smaller(grids, self._budget.count(num_tokens(grids))) for grids in full]
        self._samples = list(zip(full, small, strict=True))
        if small == full:
            return whole
        both = zip(chain.from_iterable(full), chain.from_iterable(small), strict=True)
        return to_inputs(processor, conversations, limits, [None if old == new else new for old, new in both])

    def take(self) -> list[Kept]:
        """Return what was shown of each sample of the last batch; RuntimeError if the model saw anything else."""
        samples, seen = self._samples, [record.grids for record in self._pruning.take()]
        asked = [small for _, small in samples]
        if seen != asked:
            raise RuntimeError(f"images were to be shown in grids {asked}, the model saw {seen}: nothing can be scored")
        self._samples = []
        return [self._record(full, small) for full, small in samples]

    def _record(self, full: list[Grid], small: list[Grid]) -> Shown:
        n, k = num_tokens(full), num_tokens(small)
        return Shown(n, k, [], full, float(k), self._budget.count(n), small)


@contextmanager
def resizing(model: nn.Module, budget: Budget, shared: VisionCache | None = None) -> Iterator[Resizing]:
    """Have the images of every batch fit `budget` within the block, and every token of theirs counted in `model`."""
    with prune(model, "none", keep=1.0, shared=shared) as pruning:
        yield Resizing(pruning, budget)


def _grids(inputs: Any, conversations: Sequence[Sequence[Message]], merge: int) -> list[list[Grid]]:
    """Return (t, h, w) in tokens of each image and video, in order, for each conversation."""
    found = {kind: iter(inputs.get(f"{kind}_grid_thw", ())) for kind in ("image", "video")}
    return [
        [(t, h // merge, w // merge) for kind, _ in media_of([messages]) for t, h, w in [next(found[kind]).tolist()]]
        for messages in conversations
    ]
