"""What is timed against what: a kernel, the published loop for the same choice, and the plain loop that judges both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.bench import published, tokens
from harness.models.attention import received
from harness.models.scorer import VisionSelectorScorer
from methods.base import OFFICIAL
from methods.kernels.coverage import coverage
from methods.kernels.dispatch import using
from methods.kernels.dpp import greedy_map
from methods.kernels.maxmin import maxmin
from methods.kernels.mmr import mmr
from methods.kernels.rows import Rows

LAM = 0.5  # IDPruner's default
HEADS, HEAD_SIZE = 16, 80  # of Qwen2.5-VL's vision tower
HIDDEN = 2  # the width of a token is as many times that of VisionSelector's scorer
CLOSE = 1e-4  # of the largest, for what is no choice but numbers: a sum may cancel to nearly nothing


@dataclass(frozen=True)
class Loop:
    """One comparison; what both sides return are the indices of picks or, if not `picks`, numbers [N]."""

    kernel: Callable[[], Tensor]
    published: Callable[[], Tensor | list[int]]
    picks: bool = True

    def same(self, given: Tensor) -> bool:
        """Whether this is what the plain loop picks, or close to the numbers of the published one."""
        if self.picks:
            with using("plain"):
                return torch.equal(given, self.kernel())
        published = torch.as_tensor(self.published())
        return float((given - published).abs().amax()) <= CLOSE * float(published.abs().amax())

    def shared(self, given: dict[str, Any]) -> float | None:
        """Return which share of its picks the kernel has in common with the published loop."""
        if not self.picks:
            return None
        ours, theirs = (set(torch.as_tensor(given[side]).tolist()) for side in ("kernel", "published"))
        return len(ours & theirs) / len(ours)


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
    rows, wide = Rows(of.x, floor=0.0, plus=1e-8), of.wide
    return Loop(
        lambda: mmr(rows, of.importance.double(), of.k, LAM), lambda: published.mmr(wide, of.importance, of.k, LAM)
    )


def _maxmin(of: Sample) -> Loop:
    wide = of.wide
    return Loop(lambda: maxmin(Rows(of.x), of.k), lambda: published.maxmin(wide, of.k))


def _divprune(of: Sample) -> Loop:
    wide = of.wide
    return Loop(lambda: maxmin(Rows(of.x), of.k), lambda: published.divprune(wide, of.k))


def _coverage(of: Sample) -> Loop:
    saliency, wide = of.importance.exp() / of.importance.exp().sum(), of.wide  # as attention is
    return Loop(lambda: coverage(Rows(of.x), saliency.double(), of.k), lambda: published.coverage(wide, saliency, of.k))


def _dpp(of: Sample) -> Loop:
    quality, wide = of.importance + 1e-6, of.wide
    return Loop(lambda: greedy_map(Rows(of.x), quality.double(), of.k), lambda: published.dpp(wide, quality, of.k))


def _attention(of: Sample) -> Loop:
    size = (HEADS, len(of.x), HEAD_SIZE)
    q, key = (torch.randn(size, generator=of.generator).to(of.x) for _ in range(2))
    return Loop(
        lambda: received(q, key, HEAD_SIZE**-0.5, OFFICIAL, has_cls=False),
        lambda: published.received(q.float(), key.float()),
        picks=False,
    )


def _scorer(of: Sample) -> Loop:
    width = of.x.shape[1]
    torch.manual_seed(of.generator.initial_seed())
    scorer = VisionSelectorScorer(width, width // HIDDEN, init_scale=width**-0.5).to(of.x.device).requires_grad_(False)
    wide = of.wide
    return Loop(lambda: scorer(of.x), lambda: published.scorer(wide, dict(scorer.named_parameters())), picks=False)


LOOPS: dict[str, Callable[[Sample], Loop]] = {
    "mmr": _mmr,
    "maxmin": _maxmin,
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
