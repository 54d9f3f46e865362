"""Similarities and attention rounded to the dtype of the model after each operation, as the comparison computes them.

The comparison is that of arXiv 2602.13315. In bfloat16 most distances tie, so that its picks can only be had with its
operations, in its order. All of them are those of torch, which adds up in float32 within one operation.
"""

from __future__ import annotations

import torch
from torch import Tensor

from methods.kernels import attention, cosine


def is_half(tensor: Tensor) -> bool:
    """Tell whether `tensor` is bfloat16 or float16."""
    return tensor.dtype in (torch.bfloat16, torch.float16)


def unit_rows(features: Tensor, floor: float = 1e-12) -> Tensor:
    """Return `features` [N, D] over max(norm, `floor`); zero rows stay zero."""
    norm = features.norm(dim=1, keepdim=True)
    return features / torch.where(norm > 0, norm.clamp_min(floor), 1.0)


class Distances:
    """Cosine distances between the rows of `features` [N, D], with their sign changed: the nearest is the largest."""

    def __init__(self, features: Tensor) -> None:
        self.unit = unit_rows(features)
        self.device = features.device
        self.table = 1 - self.unit @ self.unit.T if len(features) <= cosine.TABLE else None

    def __len__(self) -> int:
        return len(self.unit)

    def __call__(self, tokens: Tensor) -> Tensor:
        """Return the distances [T, N] of all tokens to `tokens` [T], negative and as float32, as a new tensor."""
        columns = 1 - self.unit @ self.unit[tokens].T if self.table is None else self.table.index_select(1, tokens)
        return columns.T.float().neg_()

    def nearest(self) -> Tensor:
        """Return the distance [N] of each token to the nearest other one, negative and as float32."""
        every = torch.arange(len(self), device=self.device)
        parts = []
        for tile in every.split(max(1, cosine.TILE_32 // len(self))):
            rows = 1 - self.unit[tile] @ self.unit.T if self.table is None else self.table[tile]
            parts.append(rows.scatter(1, tile[:, None], torch.inf).amin(dim=1))
        return torch.cat(parts).float().neg_()


def coverage(features: Tensor, weight: Tensor, k: int, additive: bool) -> Tensor:
    """Return `k` picks [K] as `kernels.coverage.coverage` defines them, every gain summed again for every pick.

    Args:
        features: [N, D].
        weight: [N], at least 0, in the dtype of `features`.
        k: how many to pick, at most N.
        additive: whether weight is added to the gain or multiplies it.
    """
    unit = unit_rows(features, floor=0.0)
    size, table = len(unit), None if len(unit) > cosine.TABLE else unit @ unit.T
    tiles = torch.arange(size, device=unit.device).split(max(1, cosine.TILE_32 // size))
    covered, barred = torch.zeros_like(weight), torch.zeros_like(weight)  # the latter minus infinity once picked
    order = torch.empty(k, dtype=torch.int64, device=unit.device)

    def columns(tokens: Tensor) -> Tensor:
        return unit @ unit[tokens].T if table is None else table if len(tokens) == size else table[:, tokens]

    for made in range(k):
        parts = [(columns(tile) - covered[:, None]).clamp_min_(0).sum(dim=0) for tile in tiles]
        gain = torch.cat(parts)
        score = (gain + weight if additive else gain * weight) + barred
        pick = order[made : made + 1]
        torch.argmax(score, dim=0, keepdim=True, out=pick)  # the first of equal maxima
        barred.index_fill_(0, pick, -torch.inf)
        row = unit[pick] @ unit.T if table is None else table.index_select(0, pick)
        covered = torch.maximum(covered, row[0])
    return order


def received_by_keys(q: Tensor, k: Tensor, scale: float, tile: int = attention.TILE) -> Tensor:
    """Return the attention [M] that keys [H, M, d] receive from queries [H, Q, d], as in `kernels.attention`.

    The mean over heads is rounded before the sum over queries. If the scores of all queries exceed `tile`, some are
    computed at a time, and their sum is rounded once.
    """

    def mean_of_heads(queries: Tensor) -> Tensor:
        return (queries @ k.mT / (1 / scale)).softmax(dim=-1).mean(dim=0)

    rows = max(1, tile // (k.shape[0] * k.shape[1]))
    if rows >= q.shape[1]:
        return mean_of_heads(q).sum(dim=0)
    total = torch.zeros(k.shape[1], dtype=torch.float64, device=k.device)
    for part in q.split(rows, dim=1):
        total += mean_of_heads(part).double().sum(dim=0)
    return total.to(k.dtype)
