"""What is timed against what: a kernel and the public implementations of the same choice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.bench import published, tokens
from harness.models.attention import attention_received
from harness.models.scorer import VisionSelectorScorer
from methods.base import OFFICIAL
from methods.kernels.cosine import CosineRows
from methods.kernels.coverage import coverage
from methods.kernels.dpp import greedy_map
from methods.kernels.maxmin import maxmin
from methods.kernels.mmr import mmr

LAM = 0.5  # IDPruner's default
HEADS, HEAD_SIZE = 16, 80  # of Qwen2.5-VL's vision tower
HIDDEN = 2  # the width of a token is as many times that of VisionSelector's scorer
SHARED = 0.9  # of the picks; rounding may decide one, and all that follow it
CLOSE = 1e-4  # of the largest, for what is no choice but numbers: a sum may cancel to nearly nothing
Result = Tensor | list[int]


@dataclass(frozen=True)
class Loop:
    """One comparison; what all sides return are the indices of picks or, if not `picks`, numbers [N]."""

    kernel: Callable[[], Result]
    published: Mapping[str, Callable[[], Result]]
    picks: bool = True

    def shared(self, ours: Result, theirs: Result) -> float | None:
        """Return which share of its picks the kernel has in common with a public implementation."""
        if not self.picks:
            return None
        a, b = (set(torch.as_tensor(picks).tolist()) for picks in (ours, theirs))
        return len(a & b) / len(a)

    def same(self, ours: Result, theirs: Result) -> bool:
        """Whether two results are the same, but for what rounding decides."""
        if (shared := self.shared(ours, theirs)) is not None:
            return shared >= SHARED
        a, b = torch.as_tensor(ours), torch.as_tensor(theirs)
        return float((a - b).abs().amax()) <= CLOSE * float(b.abs().amax())


@dataclass(frozen=True)
class Sample:
    """Tokens x [N, D], their importance [N], how many are kept, and where chance comes from."""

    x: Tensor
    importance: Tensor
    k: int
    generator: torch.Generator

    @property
    def wide(self) -> Tensor:
        """The tokens in float32, as published loops take them."""
        return self.x.float()


def _mmr(of: Sample) -> Loop:
    def kernel() -> Tensor:
        return mmr([CosineRows(of.x, floor=0.0, plus=1e-8)], [of.importance.double()], [of.k], LAM)[0]

    wide = of.wide
    return Loop(kernel, {"AngelSlim": lambda: published.angelslim_mmr(wide, of.importance, of.k, LAM)})


def _divprune(of: Sample) -> Loop:
    wide = of.wide
    sides: dict[str, Callable[[], Result]] = {
        "AngelSlim": lambda: published.angelslim_divprune(wide, of.k),
        "authors": lambda: published.divprune(wide, of.k),
    }
    return Loop(lambda: maxmin([CosineRows(of.x)], [of.k])[0], sides)


def _coverage(of: Sample) -> Loop:
    saliency, wide = of.importance.exp() / of.importance.exp().sum(), of.wide  # as attention is
    return Loop(
        lambda: coverage([CosineRows(of.x)], [saliency.double()], [of.k])[0],
        {"AngelSlim": lambda: published.angelslim_scope(wide, saliency, of.k)},
    )


def _dpp(of: Sample) -> Loop:
    quality, wide = of.importance + 1e-6, of.wide
    return Loop(
        lambda: greedy_map([CosineRows(of.x)], [quality.double()], [of.k])[0],
        {"authors": lambda: published.dpp(wide, quality, of.k)},
    )


def _attention(of: Sample) -> Loop:
    size = (HEADS, len(of.x), HEAD_SIZE)
    q, key = (torch.randn(size, generator=of.generator).to(of.x) for _ in range(2))
    return Loop(
        lambda: attention_received(q, key, HEAD_SIZE**-0.5, OFFICIAL, has_cls=False),
        {"map of all heads": lambda: published.received(q.float(), key.float())},
        picks=False,
    )


def _scorer(of: Sample) -> Loop:
    width = of.x.shape[1]
    torch.manual_seed(of.generator.initial_seed())
    scorer = VisionSelectorScorer(width, width // HIDDEN, init_scale=width**-0.5).to(of.x.device).requires_grad_(False)
    wide = of.wide
    weights = dict(scorer.named_parameters())
    return Loop(lambda: scorer(of.x), {"authors": lambda: published.scorer(wide, weights)}, picks=False)


LOOPS: dict[str, Callable[[Sample], Loop]] = {
    "mmr": _mmr,
    "divprune": _divprune,
    "coverage": _coverage,
    "dpp": _dpp,
    "attention": _attention,
    "scorer": _scorer,
}


def loop(name: str, kind: str, n: int, width: int, k: int, seed: int, to: tuple[torch.device, torch.dtype]) -> Loop:
    """Return the comparison called `name` on `n` made-up tokens [N, width] of a kind, `k` of which are kept."""
    generator = torch.Generator().manual_seed(seed)
    x = tokens.features(kind, n, width, generator)
    importance = tokens.importance(x, generator).to(to[0])
    return LOOPS[name](Sample(x.to(*to), importance, k, generator))
