"""D2Pruner: rank tokens by debiased attention, then keep those unlike the tokens already kept."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Literal

import torch
from torch import Tensor

from methods import d2pruner_prior
from methods.base import HiddenState, Selection, Tokens
from methods.grids import nearness
from methods.kernels.attention import attention_row
from methods.kernels.cosine import DECIMALS, Cosine, directions
from methods.layer_method import LayerMethod
from methods.scores import top

TILE = 2**22  # similarities held at once
PIVOTS = 256  # pivots compared with all tokens at once
REMEDY = (
    "make one with python -m harness.d2prior model=<model> and pass method.prior=<file>, "
    "or say method.prior=none for plain attention, which is not the paper's method"
)


@dataclass(kw_only=True)
class D2Pruner(LayerMethod):
    """Keep the best by debiased attention, then an independent set of the rest. Paper: arXiv 2512.19443, AAAI-26.

        r      = a / (b + eps),   a the attention of the prompt's last token, b the prior, each of sum 1 on every image
        pivots = the pivot_ratio K tokens of highest r
        then, by falling r: keep i unless alpha cos(h_i, h_j) + (1 - alpha) near_ij > theta for a j kept thus; until K

    Args:
        prior: file of `d2pruner_prior`, made with the model it is used on; or "none", which ranks by plain attention,
            is not the paper's method. Default: commands take d2prior.safetensors next to the weights or refuse to
            start, `select` warns and ranks by plain attention. The authors' (1000 COCO images) is not public.
        pivot_ratio: share of K that r alone decides, rounded down, at least one token; default 0.7.
        theta: similarity above which two tokens count as the same; default 0.8.
        alpha: weight of meaning against place; default 1 (understanding), the paper has 0.5 for localization.
        eps: added to the prior; default 1e-7.
        sem_norm: scale of the cosine: "cosine" (default) as it is, "affine" (1 + cos) / 2, "minmax" over the sample's
            pairs. Which is the authors' is not public; with the wrong one nearly none or nearly all tokens conflict.
        spat_kernel: nearness on the grid, 0 between images and between steps of a video: "linear" (default)
            1 - distance / diagonal, "inverse" 1 / (1 + distance). Not public; it matters below alpha=1 only.
        pivot_suppress: True lets pivots rule out similar tokens, too; default False. Not public.
        layer: 0-based decoder layer j whose q and k give a; layers 0..j see all tokens, later ones the kept. `hidden`
            is what leaves layer j, before any norm. Default none: 1, the paper's K=2 (H entering the third layer).

    Deviation: the authors' code is not available; written from second-hand accounts, a re-implementation. Where fewer
    than K tokens are independent, those of highest r fill up (not public). Float64; the prior to 40 bits, cosines to 12
    decimals, ties to the lowest index. Announced code: EvelynZhang-epiclab/D2Pruner.
    """

    name = "d2pruner"
    version = 1
    fidelity = "adapted: re-implemented from second-hand accounts, no public code"
    layers: ClassVar[Mapping[str, int]] = {"official": 1}
    hidden: ClassVar[Mapping[str, HiddenState]] = {"official": "output"}
    companion_files: ClassVar[Mapping[str, str]] = {"prior": "d2prior.safetensors"}
    unpublished_params: ClassVar[frozenset[str]] = frozenset({"prior", "sem_norm", "spat_kernel", "pivot_suppress"})

    prior: str | None = None
    pivot_ratio: float = 0.7
    theta: float = 0.8
    alpha: float = 1.0
    eps: float = 1e-7
    sem_norm: Literal["cosine", "affine", "minmax"] = "cosine"
    spat_kernel: Literal["linear", "inverse"] = "linear"
    pivot_suppress: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("pivot_ratio", 0 <= self.pivot_ratio <= 1, "in [0, 1]")
        self.require("alpha", 0 <= self.alpha <= 1, "in [0, 1]")
        self.require("eps", self.eps > 0, "above 0")
        self.require("prior", self.prior is None or isinstance(self.prior, str), "the name of a file, or none")
        self._prior: Tensor | None = None
        self.prior_metadata: dict[str, str] = {}
        if self.prior not in (None, "none"):
            self._prior, self.prior_metadata = d2pruner_prior.load(self.prior, self.stage)

    @property
    def file_metadata(self) -> Mapping[str, Mapping[str, str]]:
        """Metadata of the prior."""
        return {"prior": self.prior_metadata or {"digest": "none"}}

    def check(self) -> None:
        """Raise ValueError without a prior, unless the user chose prior=none."""
        if self.prior is None:
            raise ValueError(f"d2pruner has no debiasing prior: {REMEDY}")

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state = tokens.llm
        assert state is not None
        if self.prior is None:
            warnings.warn(f"d2pruner ranks by plain attention: {REMEDY}", stacklevel=2)
        attention = attention_row(state.q[:, -1], state.k)[state.visual_idx]
        order = top(d2pruner_prior.debiased(attention, self._prior, tokens.grids, self.eps), len(attention))
        pivots = max(1, int(Fraction(str(self.pivot_ratio)) * k))
        conflicts = self._conflicts(state.hidden[state.visual_idx], tokens.grids)
        return Selection.of(independent(order, pivots, k, conflicts, self.pivot_suppress))

    def _conflicts(self, features: Tensor, grids: Sequence[tuple[int, int, int]]) -> Callable[[Tensor], Tensor]:
        """Return a function from tokens [P] to whether each of all tokens is too similar to them [P, N]."""
        cosine, near = Cosine(directions(features)), nearness(grids, self.spat_kernel, features.device)
        low: Tensor | float = -1.0 if self.sem_norm == "affine" else 0.0
        span: Tensor | float = 2.0 if self.sem_norm == "affine" else 1.0
        if self.sem_norm == "minmax":
            parts = torch.arange(len(features), device=features.device).split(TILE // len(features) + 1)
            ends = torch.stack([torch.stack(cosine(part).aminmax()) for part in parts])
            low, span = ends[:, 0].min(), (ends[:, 1].max() - ends[:, 0].min()).clamp_min(1e-8)

        def conflicts(picks: Tensor) -> Tensor:
            fused = self.alpha * (cosine(picks) - low) / span + (1 - self.alpha) * near(picks)
            return fused.round(decimals=DECIMALS) > self.theta

        return conflicts


def independent(
    order: Tensor, free: int, k: int, conflicts: Callable[[Tensor], Tensor], free_suppress: bool = False
) -> Tensor:
    """Return `k` of N tokens [k]: the first `free` of `order` [N], then by `order` those that no earlier one rules out.

    Where these run out, tokens that were ruled out fill up, by `order`. No pick waits for the device.

    Args:
        order: all N tokens, best first.
        free: number of tokens taken without comparison, at most `k`.
        k: number of tokens taken, at most N.
        conflicts: maps tokens [P] to whether they rule out each of all tokens [P, N].
        free_suppress: whether the first `free` rule out others, too.
    """
    n = len(order)
    # The token with the lowest key is next. A key is the place in `order`, n more once ruled out, 3 n once taken.
    key = torch.empty_like(order)
    key[order] = torch.arange(n, device=order.device)
    taken = order[:k].clone()
    if free_suppress:
        for part in taken[:free].split(PIVOTS):
            key = torch.where(conflicts(part).any(dim=0) & (key < n), key + n, key)
    key.index_fill_(0, taken[:free], 3 * n)
    for i in range(free, k):
        pick = taken[i : i + 1]
        pick.copy_(key.argmin())
        key = torch.where(conflicts(pick)[0] & (key < n), key + n, key)
        key.index_fill_(0, pick, 3 * n)
    return taken
