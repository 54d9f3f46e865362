"""The record that a pruned prefill leaves on its KV cache, from which decoding steps get masks and positions."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from harness.models.layout import cached_length

# Attribute of the cache, so that copies of it and other blocks have the record: a `PrunedCache`, or None if nothing was
# dropped. A cache without the attribute was filled outside every block.
RECORD = "_harness_pruned"


@dataclass(frozen=True, eq=False)
class Group:
    """Decoder layers from `first` up to the next group, which saw the same rows in the prefill."""

    first: int
    length: int  # rows after the prefill
    mask: Tensor | None  # [B, length] as in `KeptRows`

    def mask_up_to(self, total: int) -> Tensor | None:
        """Return the padding mask [B, total] once these layers hold `total` positions."""
        return _extended(self.mask, total)


@dataclass(eq=False)
class PrunedCache:
    """Record of a cache in which some layers lack dropped tokens."""

    groups: tuple[Group, ...]  # from layer 0 on, ever shorter
    at_input: bool  # True if layer 0 lacks tokens, too: the model would count positions wrongly
    next_position: Tensor  # [B] one more than the largest of the prompt, from which the model continues by itself
    last_input_position: Tensor  # [..., B, 1] of the last token, as passed to the model; generate() continues from it
    shift: Tensor | None = None  # [B, 1] to subtract from 1-D positions of generate(), if the prompt was renumbered
    in_step: bool = field(default=False, init=False)  # True during a pass of a prune block, which corrects positions

    def positions(self, past: int, steps: int) -> Tensor:
        """Return the positions [1, B, steps] that the model would count after `past` rows in layer 0."""
        start = past - self.groups[0].length
        counted = torch.arange(start, start + steps, device=self.next_position.device)
        return (self.next_position.view(-1, 1) + counted).unsqueeze(0)

    def next_input_positions(self, past: int, steps: int) -> Tensor:
        """Return the positions [..., B, steps] that generate() passes after `past` rows in layer 0."""
        start = past - self.groups[0].length + 1
        return self.last_input_position + torch.arange(start, start + steps, device=self.last_input_position.device)

    def view_from(self, group: Group, cache: Any) -> Any:
        """Return a view of `cache` that begins with the layers of `group`; to be called between two passes."""
        view = copy.copy(cache)
        view.layers = cache.layers[group.first :]
        missing, dropped = cached_length(cache) - cached_length(view), self.groups[0].length - group.length
        if missing != dropped:
            raise ValueError(
                f"the key-value cache of layer {group.first} lacks {missing} positions, {dropped} were dropped: "
                "it was cropped to a length instead of by a number of tokens"
            )
        return view


def _extended(mask: Tensor | None, total: int) -> Tensor | None:
    return None if mask is None else nn.functional.pad(mask, (0, total - mask.shape[1]), value=True).long()


def mark(cache: Any, record: PrunedCache) -> None:
    """Set the record on a cache, which then refuses new tokens outside prune blocks."""
    setattr(cache, RECORD, record)
    if not issubclass(type(cache), _Guarded):
        plain: Any = type(cache)
        cache.__class__ = _guarded(plain)


class _Guarded:
    """Mixin of pruned caches; the class of the object changes, because a wrapped method would be a reference cycle."""

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Add tokens within a prune block; ValueError outside, where the model would miscount positions."""
        record = getattr(self, RECORD, None)
        if record is not None and not cached_length(self):
            delattr(self, RECORD)  # the cache was emptied since
        elif record is not None and not record.in_step:
            raise ValueError(
                "this key-value cache was filled within a prune block and lacks visual tokens: go on within a block "
                "of the same method, or pass the whole conversation without the cache"
            )
        return super().update(*args, **kwargs)  # type: ignore[misc]

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        return _restored, (type(self).__mro__[2], vars(self))


@lru_cache
def _guarded(plain: type) -> type:
    """Return the guarded subclass of a class of caches, under its name."""
    return type(plain.__name__, (_Guarded, plain), {"__module__": plain.__module__, "__doc__": plain.__doc__})


def _restored(plain: type, state: dict[str, Any]) -> Any:
    """Return a copy of a guarded cache of the class `plain`."""
    restored: Any = object.__new__(_guarded(plain))
    vars(restored).update(state)
    return restored
