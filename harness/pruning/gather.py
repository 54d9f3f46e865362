"""Take the kept rows out of a padded batch: their order, states, positions and attention mask."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.models.calls import Call, HookError
from methods.tokens import Mix


@dataclass(frozen=True, eq=False)
class KeptRows:
    """The kept rows of a batch [B, S], padded to the longest sample with L rows."""

    index: Tensor  # [B, L] rows of the original batch
    mask: Tensor | None  # [B, L] False on padding; None if there is no padding

    def gather(self, states: Tensor) -> Tensor:
        """Take the rows of `states` [B, S, D]; padding becomes zero."""
        index = self.index.to(states.device)
        taken = states.gather(1, index.unsqueeze(-1).expand(-1, -1, states.shape[-1]))
        return taken if self.mask is None else taken * self.mask.to(taken).unsqueeze(-1)

    def gather_positions(self, positions: Tensor) -> Tensor:
        """Take the rows of `positions` [R, B, S] with R coordinates per token."""
        index = self.index.to(positions.device)
        return positions.gather(2, index.expand(len(positions), -1, -1))

    def gather_rotation(self, angles: Tensor) -> Tensor:
        """Take the rows of cosines or sines [B or 1, S, d], or [R, B, S, d] for positions with R coordinates."""
        if angles.ndim == 4:
            return torch.stack([self.gather_rotation(part) for part in angles])
        return self.gather(angles.expand(len(self.index), -1, -1))

    def compact_positions(self) -> Tensor:
        """Return positions [1, B, L] that number each sample's rows from 0, without its padding."""
        present = torch.ones_like(self.index) if self.mask is None else self.mask.to(self.index)
        return (present.cumsum(1) - 1).clamp(min=0).unsqueeze(0)


def kept_rows(stay: Tensor, valid: Tensor) -> KeptRows:
    """Return the rows `stay` [B, S], aligned on the same side as the batch; `valid` [B, S] is False on padding.

    A batch without padding is aligned on the right, where decoding continues.
    """
    length = int(stay.sum(1).max())
    # A stable sort of booleans moves dropped rows to one end and preserves the order of kept ones.
    if bool(valid[:, -1].all()):
        index = stay.int().argsort(dim=1, stable=True)[:, -length:]
    else:
        index = (~stay).int().argsort(dim=1, stable=True)[:, :length]
    mask = stay.gather(1, index)
    return KeptRows(index=index, mask=None if bool(mask.all()) else mask)


def average_owned(features: Tensor, kept: Tensor, owner: Tensor) -> Tensor:
    """Return the mean [K, D] of the rows of `features` [N, D] that each kept row owns.

    `owner` [N] holds, for each row of `features`, a row of `kept` [K].
    """
    sums = torch.zeros(len(kept), features.shape[1], dtype=torch.float32, device=features.device)
    sums = sums.index_add(0, owner, features.float())
    counts = torch.bincount(owner, minlength=len(kept)).unsqueeze(1)
    if bool((counts == 0).any()):
        raise ValueError("the method merges, but a kept token owns no token, not even itself")
    return (sums / counts).to(features.dtype)


def mixed(features: Tensor, kept: Tensor, mix: Mix) -> Tensor:
    """Return the kept rows [K, D] of `features` [N, D], those that `mix` names as weighted sums."""
    parts = features[mix.source].float() * mix.weight.to(features.device, torch.float32).unsqueeze(1)
    sums = torch.zeros(len(kept), features.shape[1], dtype=torch.float32, device=features.device)
    sums = sums.index_add(0, mix.row, parts).to(features.dtype)
    changed = torch.zeros(len(kept), dtype=torch.bool, device=features.device).index_fill(0, mix.row, True)
    return torch.where(changed.unsqueeze(1), sums, features[kept])


def count_rows(states: Tensor, mask: object) -> list[int]:
    """Count the rows without padding of each sample that a decoder layer receives.

    Args:
        states: input of the layer [B, L, D].
        mask: its attention mask: None, [B, L] (flash attention), or [B, 1, L, L], boolean or additive (sdpa, eager).
    """
    batch, length = states.shape[:2]
    if not isinstance(mask, Tensor):
        return [length] * batch
    if mask.ndim == 4:
        # A row attends to itself if, and only if, it is no padding.
        mask = mask[:, 0].diagonal(dim1=-2, dim2=-1)
        mask = mask if mask.dtype == torch.bool else mask == 0
    counts = mask.bool().sum(-1).tolist()
    return counts * batch if len(counts) == 1 else counts


def require_rows(expected: list[int], call: Call, layer: str, budget: str) -> None:
    """Raise HookError unless the decoder layer called with `call` receives `expected` rows of each sample."""
    received = count_rows(call.require("states"), call.get("mask"))
    if received != expected:
        raise HookError(f"{layer} received {received} rows per sample, the budget of {budget} asks for {expected}")
