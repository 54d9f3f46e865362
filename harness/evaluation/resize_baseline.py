"""The control `resize` in a run: images and frames are made smaller, and the model is left unchanged."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from torch import Tensor, nn

from harness.models.limits import Limits
from harness.models.preprocessing import Message, ShownVideo, media_of, to_inputs
from harness.prune import prune
from harness.pruning.handle import Kept, Pruning
from harness.pruning.vision_cache import VisionCache
from methods.base import Selection
from methods.budget import Budget
from methods.resize import smaller
from methods.tokens import Grid, num_crops, num_tokens


@dataclass(frozen=True)
class ResizeRecord(Kept):
    """The record of one sample: `n` and `grids` describe its original images, `k` the smaller ones."""

    shown: list[Grid] = field(default_factory=list)  # (t, h, w) in tokens of each smaller image or video


class ResizeHandle:
    """Handle of a running block, like `Pruning` for methods that drop tokens; counts what reaches the model."""

    def __init__(self, pruning: Pruning, budget: Budget) -> None:
        self._pruning = pruning
        self._budget = budget
        self._samples: list[tuple[list[Grid], list[Grid]]] = []  # original grids, and smaller ones

    def seed(self, value: int | Sequence[int]) -> None:
        """Do nothing: no random number is drawn."""

    def settle(self) -> None:
        """Raise the errors that were deferred to spare a GPU a synchronisation."""
        self._pruning.settle()

    def unrecorded(self) -> AbstractContextManager[None]:
        """Record nothing of what the model is shown within the block."""
        return self._pruning.unrecorded()

    def replaying(self) -> AbstractContextManager[None]:
        """Repeat a prefill without recording it; nothing is selected, so it equals the first."""
        return self._pruning.replaying()

    @property
    def latest(self) -> list[tuple[Selection, Tensor | None]]:
        """The selection of each sample of the latest prefill: every token of its smaller images."""
        return self._pruning.latest

    def inputs(
        self,
        processor: Any,
        conversations: Sequence[Sequence[Message]],
        limits: Limits,
        context: int | None = None,
        shown: list[list[ShownVideo]] | None = None,
    ) -> Any:
        """Preprocess the batch with `to_inputs`, with its images small enough for the budget.

        `shown` gets what the original videos show.
        """
        original = to_inputs(processor, conversations, limits, context, shown=shown)  # it alone knows original grids
        full = _grids(original, conversations, processor.image_processor.merge_size)
        small = [smaller(grids, self._budget.count(num_tokens(grids), num_crops(grids))) for grids in full]
        self._samples = list(zip(full, small, strict=True))
        if small == full:
            return original
        pairs = zip(chain.from_iterable(full), chain.from_iterable(small), strict=True)
        grids = [None if old == new else new for old, new in pairs]
        return to_inputs(processor, conversations, limits, context, grids)

    def take(self) -> list[Kept]:
        """Return the record of each sample of the last batch; RuntimeError if the model saw other grids."""
        samples, actual = self._samples, [record.grids for record in self._pruning.take()]
        expected = [small for _, small in samples]
        if actual != expected:
            raise RuntimeError(f"expected images in grids {expected}, the model saw {actual}: nothing can be scored")
        self._samples = []
        return [self._record(full, small) for full, small in samples]

    def _record(self, full: list[Grid], small: list[Grid]) -> ResizeRecord:
        n, k = num_tokens(full), num_tokens(small)
        return ResizeRecord(n, k, [], full, float(k), budget=self._budget.count(n, num_crops(full)), shown=small)


@contextmanager
def resizing(model: nn.Module, budget: Budget, shared: VisionCache | None = None) -> Iterator[ResizeHandle]:
    """Fit the images of every batch to `budget` within the block, and count the tokens that reach `model`."""
    with prune(model, "none", keep=1.0, shared=shared) as pruning:
        yield ResizeHandle(pruning, budget)


def _grids(inputs: Any, conversations: Sequence[Sequence[Message]], merge: int) -> list[list[Grid]]:
    """Return (t, h, w) in tokens of each image and video, in order, for each conversation."""
    grids = {kind: iter(inputs.get(f"{kind}_grid_thw", ())) for kind in ("image", "video")}
    return [
        [(t, h // merge, w // merge) for kind, _ in media_of([messages]) for t, h, w in [next(grids[kind]).tolist()]]
        for messages in conversations
    ]
