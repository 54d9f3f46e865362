"""Samples of different sizes side by side on a GPU: the cosines of all their tokens to their picks in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from methods.kernels.dispatch import UnfitError
from methods.kernels.rows import Rows
from methods.kernels.seen import UNSEEN

SHAPE = {"PICKS": 64, "TOKENS": 64, "WIDTH": 64}
COMPARING: dict[str, Any] = {"enable_fp_fusion": True}


class Batch:
    """B samples as one: their tokens behind each other, and float32 cosines `nearest` [B, N] to picks, N the largest.

    Raises UnfitError for a row that float32 cannot hold.
    """

    def __init__(self, samples: Sequence[Rows]) -> None:
        self.rows = Rows(torch.cat([rows.features for rows in samples]), samples[0].floor, samples[0].plus)
        self.factor = self.rows.factor
        if not bool(self.factor.isfinite().all()):
            raise UnfitError("a row is too short or too long for float32")
        features = self.rows.features
        self.features = features.float() if features.dtype == torch.float64 else features
        sizes = [len(rows) for rows in samples]
        self.sizes = self.numbers(sizes, torch.int64)
        self.starts = self.sizes.cumsum(dim=0) - self.sizes
        self.everyone = torch.arange(len(sizes), device=features.device)[:, None]
        self.nearest = torch.full((len(sizes), max(sizes)), UNSEEN, device=features.device)

    def numbers(self, values: Sequence[float], dtype: torch.dtype = torch.float64) -> Tensor:
        """Return one value a sample [B, 1]."""
        return torch.tensor(values, dtype=dtype, device=self.features.device)[:, None]

    def padded(self, parts: Sequence[Tensor], value: float) -> Tensor:
        """Return one row a sample [B, L], with `value` behind those that are short."""
        return torch.nn.utils.rnn.pad_sequence(list(parts), batch_first=True, padding_value=value)

    def unit(self, sample: Tensor, tokens: Tensor) -> Tensor:
        """Return the directions [..., D] of tokens [...] of samples [...] in float64; of what is none, those of any."""
        where = (self.starts[sample, 0] + tokens).clamp_max(len(self.rows) - 1)
        return self.rows.unit(where.flatten()).view(*where.shape, -1)

    def compare(self, picks: Tensor, before: Tensor, made: Tensor, selves: bool = True) -> None:
        """Raise `nearest` to the cosines of picks [B, K] from `before` to `made` [B, 1].

        A pick is near to itself if `selves`.
        """
        samples, n = self.nearest.shape
        grid = (triton.cdiv(n, SHAPE["TOKENS"]), samples)
        given = (self.features, self.factor, self.starts, self.sizes, picks, before, made, self.nearest)
        sizes = (n, self.features.shape[1], picks.shape[1])
        _compare[grid](*given, *sizes, SELVES=selves, **SHAPE, **COMPARING)


def error(rows: Rows) -> float:
    """How far a cosine may be off: tensor cores cut off where others round, up to two units after every 16 products."""
    return rows.error + rows.features.shape[1] / 8 * 2.0**-24


@triton.jit
def _compare(
    features, factor, starts, sizes, picks, before, made, nearest, n, d, most,
    SELVES: tl.constexpr, PICKS: tl.constexpr, TOKENS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    sample = tl.program_id(1)
    tokens = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    begin, here = tl.load(starts + sample), tokens < tl.load(sizes + sample)
    own = nearest + sample * n + tokens
    best = tl.load(own, mask=here, other=0.0)
    scale = tl.load(factor + begin + tokens, mask=here, other=0.0)
    count = tl.load(made + sample)
    for start in range(tl.load(before + sample), count, PICKS):
        line = start + tl.arange(0, PICKS)
        there = line < count
        pick = tl.load(picks + sample * most + line, mask=there, other=0)
        total = tl.zeros([PICKS, TOKENS], tl.float32)
        for at in range(0, d, WIDTH):
            width = at + tl.arange(0, WIDTH)
            inside = width < d
            a = tl.load(features + (begin + pick[:, None]) * d + width, mask=there[:, None] & inside, other=0.0)
            where = (begin + tokens[None, :]) * d + width[:, None]
            b = tl.load(features + where, mask=here & inside[:, None], other=0.0)
            total = tl.dot(a, b, total, input_precision="ieee")
        similar = total * tl.load(factor + begin + pick, mask=there, other=0.0)[:, None] * scale
        counts = there[:, None]
        if not SELVES:
            counts = counts & (pick[:, None] != tokens)
        best = tl.maximum(best, tl.max(tl.where(counts, similar, -1.5), axis=0))
    tl.store(own, best, mask=here)
