"""Record a pruned prefill on its KV cache, and check every later step on that cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.calls import Call, HookError
from harness.models.layout import cached_length
from harness.pruning.gather import KeptRows
from harness.pruning.kv_cache import Group, PrunedCache


class OutOfOrderError(HookError, ValueError):
    """The tokens of a step do not follow those in a pruned cache."""

    def __init__(self) -> None:
        super().__init__(
            "the position of these tokens is not the next one after the pruned cache "
            "(transformers counts by the length of the cache): "
            "pass a further turn as the whole conversation, without its cache"
        )


class DeferredErrors:
    """Errors whose condition is a tensor: raised at once on a CPU, by `settle` on a GPU, to avoid synchronisation."""

    def __init__(self) -> None:
        self._open: dict[str, tuple[Tensor, Exception]] = {}

    def add(self, wrong: Tensor, error: Exception) -> None:
        """Raise `error` now or later if `wrong`, a tensor of one bool, is true."""
        if wrong.device.type == "cpu":
            if bool(wrong):
                raise error
        else:
            earlier, _ = self._open.get(str(error), (wrong, error))
            self._open[str(error)] = wrong | earlier, error

    def settle(self) -> None:
        """Raise the first error whose condition became true since the last call."""
        deferred, self._open = self._open, {}
        for wrong, error in deferred.values():
            if bool(wrong):
                raise error


@dataclass(eq=False)
class PendingCut:
    """A pruned prefill whose KV cache has no record yet."""

    positions: Tensor  # [R, B, S] of all rows
    input_positions: Tensor  # as passed to the model, or as it would count them
    valid: Tensor  # [B, S] False on padding
    rows: KeptRows | None = None  # the kept rows, if there is a cut before layer 0
    compact: bool = False  # True if kept rows were numbered from 0

    @property
    def next_position(self) -> Tensor:
        """Position [B] after the largest of the prompt."""
        return self.positions.amax(0).masked_fill(~self.valid, -1).amax(1) + 1

    @property
    def last_input_position(self) -> Tensor:
        """Position [..., B, 1] of the last token, as passed to the model."""
        batch, length = self.valid.shape
        positions = self.input_positions.expand(*self.input_positions.shape[:-2], batch, length)
        last = (self.valid * torch.arange(length, device=self.valid.device)).argmax(1, keepdim=True)
        return positions.gather(-1, last.expand(*positions.shape[:-1], 1))

    def record(self, cache: Any, later: Sequence[Group]) -> PrunedCache:
        """Return the record of `cache`; `later` are the groups of layers behind cuts inside the language model.

        HookError if a layer holds another number of positions than it must have seen.
        """
        if self.rows is None:
            length, mask = self.valid.shape[1], None if bool(self.valid.all()) else self.valid
        else:
            length, mask = self.rows.index.shape[1], self.rows.mask
        groups = (Group(0, length, mask), *later)
        ends = [group.first for group in groups[1:]] + [len(cache.layers)]
        expected = [group.length for group, end in zip(groups, ends, strict=True) for _ in range(group.first, end)]
        held = [cached_length(cache, layer) for layer in range(len(cache.layers))]
        if held != expected:
            raise HookError(f"the key-value cache holds {held} positions a layer after a pruned prefill of {expected}")
        following, last, shift = self.next_position, self.last_input_position, None
        if self.compact:
            assert self.rows is not None  # only a cut before layer 0 renumbers
            following = self.rows.compact_positions()[0].amax(1).to(following.device) + 1
            shift = last.view(-1, 1) + 1 - following.view(-1, 1)
        return PrunedCache(groups, self.rows is not None, following, last, shift)


@dataclass(frozen=True, eq=False)
class Step:
    """A pass that adds tokens to a pruned cache."""

    record: PrunedCache
    cache: Any
    lengths: list[int]  # rows after the pass in the first layer of each group, and in the last layer

    @classmethod
    def on(cls, record: PrunedCache, cache: Any, steps: int) -> Step:
        """Begin a pass of `steps` tokens."""
        return cls(record, cache, [held + steps for held in _lengths(record, cache)])

    def check_first_layer(self, call: Call, name: str, deferred: DeferredErrors) -> None:
        """Raise HookError unless layer 0 gets this cache, and its mask hides only padding from the last token."""
        layer, cache, mask = f"decoder layer 0 of {name}", call.get("cache"), call.get("mask")
        if cache is not self.cache:
            what = "no key-value cache" if cache is None else "another key-value cache"
            raise HookError(f"{layer} got {what} in a step on a pruned one")
        valid = self.record.groups[0].mask_up_to(self.lengths[0])
        if not isinstance(mask, Tensor):
            if valid is not None:
                raise HookError(f"{layer} got no mask over the padding of a pruned cache")
            return
        visible = mask[:, 0, -1] if mask.ndim == 4 else mask
        if visible.shape[-1] != (end := self.lengths[0]):
            raise HookError(f"{layer} got a mask over {visible.shape[-1]} keys in a step that ends at {end}")
        visible = visible == 0 if visible.is_floating_point() else visible.bool()
        expected = torch.ones_like(visible) if valid is None else valid.to(visible.device).bool()
        wrong = f"{layer} got a mask that hides tokens, or shows padding, of a pruned cache"
        deferred.add((visible != expected).any(), HookError(wrong))

    def check_lengths(self) -> None:
        """Raise HookError unless the cache has grown by the tokens of the pass."""
        if (held := _lengths(self.record, self.cache)) != self.lengths:
            layers = ", ".join(str(group.first) for group in self.record.groups)
            where = f"in layers {layers} and the last after a step"
            raise HookError(f"expected {self.lengths} cached positions {where}, got {held}")


def _lengths(record: PrunedCache, cache: Any) -> list[int]:
    return [cached_length(cache, layer) for layer in (*(group.first for group in record.groups), -1)]


def require_history(call: Call, had_visual_tokens: bool, name: str, deferred: DeferredErrors) -> None:
    """Raise HookError if a cache without a record lacks earlier tokens.

    `had_visual_tokens` is True if the block had any, so that the cache may have lost its record.
    """
    cache, mask, positions = call.get("cache"), call.get("mask"), call.get("positions")
    past, steps = cached_length(cache), call.require("embeddings").shape[1]
    lost = f"what precedes them is lost, so {name} cannot go on"
    if isinstance(mask, Tensor) and mask.ndim == 2:
        if mask.shape[1] != past + steps:
            have = f"{steps} tokens came with a key-value cache of {past} and a mask of {mask.shape[1]}"
            raise HookError(f"{have}: {lost}")
    elif had_visual_tokens and past:
        raise HookError(
            f"the key-value cache of {past} tokens was not filled inside a prune block, so it may lack some: "
            "pass a mask over all of them, or fill it within the block"
        )
    elif had_visual_tokens and positions is not None:
        have = f"{steps} tokens came without a key-value cache, and not at position 0"
        deferred.add((positions[..., :1] > 0).all(), HookError(f"{have}: {lost}"))
    if past and past != cached_length(cache, -1):
        have = f"the first and last layer hold {past} and {cached_length(cache, -1)} tokens"
        raise HookError(f"the key-value cache lost its pruning record ({have}): {lost}")


def positions_differ(actual: Tensor, expected: Tensor) -> Tensor:
    """Return a tensor of one bool: whether two tensors of positions differ.

    A size of 1 is broadcast, so that one row may stand for a batch, and one coordinate for several.
    """
    sizes = zip(actual.shape, expected.shape, strict=False)
    if actual.ndim != expected.ndim or any(a != b and 1 not in (a, b) for a, b in sizes):
        return torch.tensor(True, device=actual.device)
    return (actual != expected.to(actual.device)).any()
