"""What a key-value cache has to remember once it was filled by a pruned prefill."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# On the cache itself, so that a copy of it, or another block, knows what this block knew.
RECORD = "_harness_pruned"


@dataclass(eq=False)
class PrunedCache:
    """A cache whose layers from `first` on lack what was dropped."""

    length: int  # L, positions after the prefill
    mask: Tensor | None  # [B, L] as in `Rows`

    def mask_up_to(self, total: int) -> Tensor | None:
        """Return the padding mask [B, total] once these layers hold `total` positions."""
        if self.mask is None:
            return None
        return nn.functional.pad(self.mask, (0, total - self.length), value=True).long()


@dataclass(eq=False)
class CutBeforeLLM(PrunedCache):
    """All layers lack what was dropped, so the model would count positions wrongly."""

    next_position: Tensor  # [B] behind the largest of the prompt: from there the model counts on by itself
    last_given: Tensor  # [..., B, 1] position of the last token as it was given: from there generate() counts on
    check_positions: bool = False  # not while tokens come one by one: it would make a GPU wait in every step

    def positions(self, past: int, steps: int) -> Tensor:
        """Return the positions [1, B, steps] of text that follows `past` cached ones."""
        counted = torch.arange(past - self.length, past - self.length + steps, device=self.next_position.device)
        return (self.next_position.view(-1, 1) + counted).unsqueeze(0)

    def precedes(self, given: Tensor, past: int) -> bool:
        """Tell whether the positions `given` [..., B, steps] go on from the prompt after `past` cached tokens.

        A new generate() on the cache gives fewer rows, and would count from its length.
        """
        start = past - self.length + 1
        return torch.equal(given, self.last_given + torch.arange(start, start + given.shape[-1], device=given.device))


@dataclass(eq=False)
class CutInsideLLM(PrunedCache):
    """Layers before `first` hold everything, so that the model, which asks layer 0, counts right by itself."""

    first: int
    whole: int  # S, positions after the prefill in the layers before

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


def cached_length(cache: Any, layer: int = 0) -> int:
    """Return the number of positions a key-value cache already holds in a layer."""
    return 0 if cache is None else int(cache.get_seq_length(layer))
