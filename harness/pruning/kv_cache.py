"""What a key-value cache has to remember once it was filled by a pruned prefill."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.models.layout import cached_length

# On the cache itself, so that a copy of it, or another block, knows what this block knew: a `PrunedCache`, or None
# where nothing was dropped. A cache without the attribute was filled outside every block.
RECORD = "_harness_pruned"


@dataclass(eq=False)
class PrunedCache:
    """A cache whose layers, or those from one on, lack what was dropped."""

    length: int  # L, rows after the prefill in the layers that lack some
    mask: Tensor | None  # [B, L] as in `KeptRows`
    whole: int  # rows after the prefill in layer 0
    whole_mask: Tensor | None  # [B, whole] likewise
    next_position: Tensor  # [B] after the largest of the prompt: from there the model counts on by itself
    last_given: Tensor  # [..., B, 1] position of the last token as it was given: from there generate() counts on

    def mask_up_to(self, total: int) -> Tensor | None:
        """Return the padding mask [B, total] once these layers hold `total` positions."""
        return _prolonged(self.mask, total)

    def first_mask_up_to(self, total: int) -> Tensor | None:
        """Return the padding mask [B, total] once layer 0 holds `total` positions."""
        return _prolonged(self.whole_mask, total)

    def positions(self, past: int, steps: int) -> Tensor:
        """Return the positions [1, B, steps] that the model counts after `past` rows in layer 0."""
        counted = torch.arange(past - self.whole, past - self.whole + steps, device=self.next_position.device)
        return (self.next_position.view(-1, 1) + counted).unsqueeze(0)

    def following(self, past: int, steps: int) -> Tensor:
        """Return the positions [..., B, steps] with which generate() goes on after `past` rows in layer 0."""
        start = past - self.whole + 1
        return self.last_given + torch.arange(start, start + steps, device=self.last_given.device)


@dataclass(eq=False)
class InputCut(PrunedCache):
    """All layers lack what was dropped, so the model would count positions wrongly."""

    shift: Tensor | None = None  # [B, 1] by which a given 1-D position is too large, since the prompt was renumbered


@dataclass(eq=False)
class LayerCut(PrunedCache):
    """Layers before `first` hold everything, so that the model, which asks layer 0, counts right by itself."""

    first: int = 1

    def late(self, cache: Any) -> Any:
        """Return a view of `cache`, between two passes, that begins with layer `first`."""
        view = copy.copy(cache)
        view.layers = cache.layers[self.first :]
        missing, dropped = cached_length(cache) - cached_length(view), self.whole - self.length
        if missing != dropped:
            raise ValueError(
                f"the key-value cache of layer {self.first} lacks {missing} positions, {dropped} were dropped: "
                "it was cropped to a length instead of by a number of tokens"
            )
        return view


def _prolonged(mask: Tensor | None, total: int) -> Tensor | None:
    return None if mask is None else nn.functional.pad(mask, (0, total - mask.shape[1]), value=True).long()
