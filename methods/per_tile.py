"""Selection in each crop of an image by itself, as published codes select that count tokens per tile."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from methods.base import Method
from methods.budget import Budget, largest_remainder
from methods.selecting import SelectionError
from methods.tokens import Grid, Mix, Selection, Tokens, num_crops, num_tokens


def crops_of(grids: Sequence[Grid], tiles: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Return the crop of each token of `grids`: `tiles`, or each image and each time step of a video as one crop."""
    if tiles is not None:
        return tiles
    sizes = torch.tensor([h * w for t, h, w in grids for _ in range(t)], device=device, dtype=torch.int64)
    return torch.arange(len(sizes), device=device).repeat_interleave(sizes)


def shares(k: int, sizes: Sequence[int]) -> list[int]:
    """Divide `k` <= sum of `sizes` among crops evenly, the remainder to the first ones.

    A crop gets at most its size; what it cannot take goes to the others in proportion to what they have left, by
    largest remainder.
    """
    even = [k // len(sizes) + (i < k % len(sizes)) for i in range(len(sizes))]
    quotas = [min(share, size) for share, size in zip(even, sizes, strict=True)]
    free = [size - quota for size, quota in zip(sizes, quotas, strict=True)]
    return [quota + more for quota, more in zip(quotas, largest_remainder(k - sum(quotas), free), strict=True)]


def count(method: Method, budget: Budget, grids: Sequence[Grid], crops: int | None = None) -> int:
    """Return K, the number of tokens that `method` keeps of a sample; without `crops`, the family cuts no tiles."""
    if budget.per_tile is None:
        return method.count_kept(budget, grids)
    return budget.count(num_tokens(grids), num_crops(grids) if crops is None else crops)


def select_batch(
    method: Method, samples: Iterable[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
) -> list[Selection]:
    """Choose `ks[i]` tokens of each sample i, in each of its crops by itself."""
    return [_select(method, *job) for job in zip(samples, ks, generators, strict=True)]


@dataclass(frozen=True, eq=False)
class _Crop:
    """One crop of a sample: which of the tokens that are left are in it, and the sample that a method sees of it."""

    number: int
    index: Tensor  # [n] ascending
    tokens: Tokens


def _select(method: Method, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
    crops = _crops(tokens)
    if k < len(crops):
        what = f"a cut to {k} tokens of {len(crops)} crops keeps none of some crop"
        raise SelectionError(f"{method.name}: {what}: raise per_tile=, or pass tokens=")
    quotas = shares(k, [len(crop.index) for crop in crops])
    parts = method.select_batch([crop.tokens for crop in crops], quotas, [generator] * len(crops))
    memory = dict(tokens.memory or {})  # crop -> number of its cuts, and what the method remembers of the last
    for crop, part, quota in zip(crops, parts, quotas, strict=True):
        if quota < len(crop.index):
            memory[crop.number] = crop.tokens.cut + 1, part.memory
    return replace(_joined(crops, parts, len(tokens.features)), memory=memory)


def _crops(tokens: Tokens) -> list[_Crop]:
    """Return the crops that have tokens left, in order."""
    device = tokens.features.device
    crop = crops_of(tokens.grids, tokens.tiles, device)
    origin = torch.arange(len(crop), device=device) if tokens.origin is None else tokens.origin
    found = []
    for number in crop[origin].unique().tolist():
        index = (crop[origin] == number).nonzero().squeeze(1)
        whole = (crop == number).nonzero().squeeze(1)
        cut, memory = (tokens.memory or {}).get(number, (0, None))
        changes: dict[str, Any] = {name: value[index] for name, value in _rows(tokens).items()}
        if tokens.vit_attention is not None:
            changes["vit_attention"] = {role: scores[index] for role, scores in tokens.vit_attention.items()}
        if tokens.llm is not None:
            changes["llm"] = replace(tokens.llm, visual_idx=tokens.llm.visual_idx[index])
        changes |= {"grids": [_grid(tokens.grids, whole)], "tiles": None, "cut": cut, "memory": memory}
        changes["origin"] = torch.searchsorted(whole, origin[index]) if cut else None
        found.append(_Crop(number, index, replace(tokens, **changes)))
    return found


def _rows(tokens: Tokens) -> dict[str, Tensor]:
    """Return the tensors of a sample with a row for each token that is left."""
    names = ("features", "importance", "vit_keys", "vit_features")
    return {name: value for name in names if (value := getattr(tokens, name)) is not None}


def _grid(grids: Sequence[Grid], whole: Tensor) -> Grid:
    """Return the rectangle (1, h, w) that the tokens `whole` [n] fill in their grid; SelectionError if it is none."""
    first, last = int(whole[0]), int(whole[-1])
    starts = accumulate((t * h * w for t, h, w in grids), initial=0)
    for start, (t, h, w) in zip(starts, grids, strict=False):
        if start <= first and last < start + t * h * w:
            y, x = (whole - start) // w, (whole - start) % w
            sides = int(y.max() - y.min()) + 1, int(x.max() - x.min()) + 1
            if sides[0] * sides[1] == len(whole):
                return 1, *sides
    raise SelectionError(f"the tokens of a crop do not fill a rectangle of one of the grids {list(grids)}")


def _joined(crops: Sequence[_Crop], parts: Sequence[Selection], n: int) -> Selection:
    """Return the selection of a sample of `n` tokens from those of its crops."""
    kept = torch.cat([crop.index[part.kept] for crop, part in zip(crops, parts, strict=True)]).sort().values
    pairs = list(zip(crops, parts, strict=True))

    def row(crop: _Crop, part: Selection, rows: Tensor) -> Tensor:
        """Return the rows of all kept tokens for rows of those of a crop."""
        return torch.searchsorted(kept, crop.index[part.kept[rows]])

    order = owner = None
    if any(part.order is not None for part in parts):
        order = torch.cat([crop.index[part.kept if part.order is None else part.order] for crop, part in pairs])
    if any(part.owner is not None for part in parts):
        owner = torch.zeros(n, dtype=torch.int64, device=kept.device)
        for crop, part in pairs:
            own = torch.arange(len(crop.index), device=kept.device) if part.owner is None else part.owner
            owner[crop.index] = row(crop, part, own)
    mixes = [
        Mix(row(crop, part, part.mix.row), crop.index[part.mix.source], part.mix.weight)
        for crop, part in pairs
        if part.mix is not None
    ]
    mix = Mix(*map(torch.cat, zip(*mixes, strict=True))) if mixes else None
    return Selection(kept, order, owner, mix)
