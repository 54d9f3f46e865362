"""Samples of tokens, ordinary and degenerate, on which `methods.testing` checks a method."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from methods.base import LayerState, Selection, Tokens
from methods.checks import LARGEST

FEATURES = ("normal", "duplicates", "equal", "zero", "zero_rows", "opposite", "huge", "tiny")
SCORES = ("normal", "equal", "few_levels", "huge", "outlier")
GRIDS = ([(1, 5, 7)], [(1, 3, 4), (1, 2, 2)], [(3, 2, 5)])  # an image, two of them, a video


def make_tokens(
    n: int,
    d: int = 8,
    seed: int = 0,
    features: str = "normal",
    scores: str = "normal",
    dtype: torch.dtype = torch.float32,
    grids: Sequence[tuple[int, int, int]] = (),
) -> Tokens:
    """Make a sample with every signal; `features` is one of FEATURES and `scores` one of SCORES."""
    generator = torch.Generator().manual_seed(seed)
    sequence = n + 5
    return Tokens(
        features=_features(features, n, d, generator).to(dtype),
        grids=grids or [(1, 1, n)],
        importance=_scores(scores, n, generator),
        vit_attention={role: _scores(scores, n, generator).abs() for role in ("last", "middle")}
        | {"after": _scores(scores, n, torch.Generator().manual_seed(seed + 2)).abs()},
        vit_keys=_features(features, n, d, generator),
        vit_features=_features(features, n, d, torch.Generator().manual_seed(seed + 1)),
        llm=LayerState(
            q=torch.randn(4, sequence, 8, generator=generator),
            k=torch.randn(2, sequence, 8, generator=generator),
            hidden=torch.randn(sequence, d, generator=generator),
            visual_idx=torch.arange(2, 2 + n),
            rotated_ones=_rotated_ones(sequence, 8),
        ),
        text=torch.randn(3, d, generator=generator),
        text_after=torch.randn(3, d, generator=generator),
    )


def survivors(tokens: Tokens, selection: Selection) -> Tokens:
    """Return the sample as the next cut of a schedule sees it, after `selection`; layer states are those of before."""
    kept, llm, origin = selection.kept, tokens.llm, tokens.origin
    if llm is not None:
        stays = torch.ones(llm.q.shape[1], dtype=torch.bool).index_fill(0, llm.visual_idx, False)
        left = stays.index_fill(0, llm.visual_idx[kept], True).nonzero().squeeze(1)
        visual_idx = torch.searchsorted(left, llm.visual_idx[kept])
        ones = None if llm.rotated_ones is None else llm.rotated_ones[left]
        llm = LayerState(llm.q[:, left], llm.k[:, left], llm.hidden[left], visual_idx, ones)
    return dataclasses.replace(
        tokens,
        features=tokens.features[kept],
        importance=None if tokens.importance is None else tokens.importance[kept],
        vit_attention={role: scores[kept] for role, scores in (tokens.vit_attention or {}).items()},
        vit_keys=None if tokens.vit_keys is None else tokens.vit_keys[kept],
        vit_features=None if tokens.vit_features is None else tokens.vit_features[kept],
        llm=llm,
        origin=kept if origin is None else origin[kept],
        cut=tokens.cut + 1,
        memory=selection.memory,
    )


def repeated(tokens: Tokens, source: Tensor) -> Tokens:
    """Return the sample whose visual token i is token source[i] of `tokens`, in every signal."""

    def rows(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[source]

    assert tokens.llm is not None
    order = torch.arange(len(tokens.llm.hidden))
    order[tokens.llm.visual_idx] = tokens.llm.visual_idx[source]
    llm = dataclasses.replace(
        tokens.llm, q=tokens.llm.q[:, order], k=tokens.llm.k[:, order], hidden=tokens.llm.hidden[order]
    )
    return dataclasses.replace(
        tokens,
        features=tokens.features[source],
        importance=rows(tokens.importance),
        vit_attention={role: scores[source] for role, scores in (tokens.vit_attention or {}).items()},
        vit_keys=rows(tokens.vit_keys),
        vit_features=rows(tokens.vit_features),
        llm=llm,
    )


def _rotated_ones(length: int, width: int) -> Tensor:
    """Return rotary positions 0, 1, ... applied to vectors of ones [length, width]."""
    angles = torch.arange(length)[:, None] / 10_000 ** (torch.arange(width // 2) / (width // 2))
    return torch.cat([angles.cos() - angles.sin(), angles.cos() + angles.sin()], dim=1)


def tensors_of(tokens: Tokens) -> list[Tensor]:
    """Return every tensor of a sample."""
    layer = [] if tokens.llm is None else [tensor for tensor in vars(tokens.llm).values() if tensor is not None]
    signals = [tokens.features, tokens.importance, tokens.vit_keys, tokens.vit_features, tokens.text, tokens.text_after]
    signals += layer
    return [tensor for tensor in (*signals, *(tokens.vit_attention or {}).values()) if tensor is not None]


def _features(kind: str, n: int, d: int, generator: torch.Generator) -> Tensor:
    x = torch.randn(n, d, generator=generator)
    if kind == "duplicates":
        x = x[torch.randint(0, max(n // 3, 1), (n,), generator=generator)]
    elif kind == "equal":
        x = x[:1].expand(n, d).clone()
    elif kind == "zero":
        x = torch.zeros(n, d)
    elif kind == "zero_rows":
        x[::2] = 0
    elif kind == "opposite":
        x[1::2] = -x[: n // 2 * 2 : 2]
    elif kind == "huge":
        x = (x * 1e38).clamp(-LARGEST, LARGEST)
    elif kind == "tiny":
        x = x * 1e-38
    return x


def _scores(kind: str, n: int, generator: torch.Generator) -> Tensor:
    w = torch.randn(n, generator=generator)
    if kind == "equal":
        w = torch.full((n,), 0.3)
    elif kind == "few_levels":
        w = w.round()
    elif kind == "huge":
        w = torch.where(w > 0, LARGEST, -LARGEST)
    elif kind == "outlier":
        w[n // 2] = 1e30
    return w
