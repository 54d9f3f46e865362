"""SparseVLM: words that look at the picture rate its tokens at three depths, and part of what goes is merged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor

from methods.base import Cut, HiddenState, LayerState, Method, Mix, Selection, Signal, Tokens
from methods.kernels.attention import TILE, attention_rows
from methods.kernels.cosine import first_equal
from methods.kernels.density_peaks import density_peaks
from methods.schedules import BudgetAt, solved
from methods.scores import top
from methods.selecting import error

LAYERS = (2, 6, 15)  # of 32, counted from 0, behind which tokens are cut
RANK_LAYERS = (*LAYERS, 19)
# The authors' counts at each cut, of 576 tokens, by the number of tokens a layer that they stand for.
TABLES: Mapping[str, Mapping[int, tuple[int, int, int]]] = {
    "v1.5": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
FULL = 576
HEADS = Fraction(14, 32)  # of the heads rate in "plus"
FLOOR = 0.01  # least correction of "plus", as a share of that at distance 0


@dataclass(kw_only=True)
class SparseVLM(Method):
    """Cut behind layers 2, 6, 15 of 32 by the attention of text tokens that resemble the picture. arXiv 2410.04417.

        raters  = text tokens j behind the picture with R_j > mean(R),   R = mean over i of softmax_j(v_i . q_j)
        score_i = mean over raters and heads of the attention of the cut layer to token i

    v and q are embeddings before layer 0. At each cut, the best dropped tokens, int(0.3 d) + 1 of d, are clustered
    around c = int(of these / 10) + 1 density peaks; the mean of each cluster stays in the place of its centre.

    Args:
        variant: "v1.5" (default), or "plus", the later SparseVLM+: nothing is merged, attention is divided by what
            vectors of ones would give (rotary positions alone), and the 14/32 of the heads with the largest sum rate.
        budget_at: what K counts. "mean" (default), tokens a layer, averaged over all layers; "end" or "entry", what the
            last or the first cut leaves. The authors' counts are scaled, merged tokens included; where less than a
            quarter of them would be left, all cuts come earlier by the same factor. "official": the authors' counts
            for K = 192, 128, 96 and 64 of 576, at other N in proportion. These take the cut layers as if already
            pruned, so that layers see 8 to 28 % more; for other K the counts are solved in that way.
        count: "table" (default); "rank", the rule of v1.0: a cut keeps int(scale rank + bias) tokens, rank of the
            matrix of raters' attention; one more cut is behind layer 19. K then only says whether anything is cut.
        scale: of the rank; the releases have 13.5 (MME), 9 (POPE) and 0.8 (TextVQA); default 13.5.
        bias: added to it; the releases have 0, 6 and 0; default 0.

    Deviation: merged tokens stand at their centre's place with its position, and positions are kept; the authors put
    merged tokens behind the kept ones and, but for "plus", number all again. No noise decides between equal densities.
    With no rater (one text token) the last row rates. Corrections of "plus" below 1/100 of that at distance 0 count as
    that. Other depths have cuts at the same shares. Images of a prompt compete; the authors' code takes one. Where K
    leaves no room for a kept token and all clusters, there are fewer clusters. In float64, ties to the lowest index.
    Code: Gumpest/SparseVLMs (v1.5: branch v1.5; "plus": USE_VERSION=2_0; v1.0: first release).
    """

    name = "sparsevlm"
    version = 1
    fidelity = "adapted: kept tokens keep their positions, merged ones stand where their cluster is"
    needs = frozenset({Signal.LLM, Signal.TEXT_AFTER})

    variant: Literal["v1.5", "plus"] = "v1.5"
    budget_at: BudgetAt = "mean"
    count: Literal["table", "rank"] = "table"
    scale: float = 13.5
    bias: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("scale", self.scale > 0, "above 0")

    @property
    def hidden_state(self) -> HiddenState:
        """What leaves the layer, which is clustered and merged."""
        return "unused" if self.variant == "plus" else "output"

    @property
    def exact_k(self) -> bool:
        """False with the rule of v1.0."""
        return self.count == "table"

    def schedule(self, n: int, k: int, layers: int) -> Sequence[Cut]:
        """Return the cuts; with the rule of v1.0 their counts are not known, and stand for the least."""
        if self.count == "rank":
            places = sorted({min(round(Fraction(layer, 32) * layers), layers - 2) for layer in RANK_LAYERS})
            return [Cut(place, min(n, len(places) - i)) for i, place in enumerate(places)]
        before = [round(Fraction(layer, 32) * layers) + 1 for layer in LAYERS]
        tables = TABLES[self.variant]
        nominal = min(tables, key=lambda budget: (abs(budget - Fraction(k * FULL, n)), budget))
        table = tables[nominal]
        if self.budget_at == "official" and round(Fraction(nominal * n, FULL)) == k:
            left = self._left(n, [round(Fraction(count * n, FULL)) for count in table])
            return [Cut(place - 1, count) for place, count in zip(before, left, strict=True)]
        shape = [Fraction(count, FULL) for count in self._left(FULL, table)]

        def shares(scale: Fraction) -> list[Fraction]:
            return [scale * share for share in shape]

        if self.budget_at == "official":
            return solved(n, k, layers, "mean", before, shares, early=1)
        return solved(n, k, layers, self.budget_at, before, shares)

    def _left(self, n: int, counts: Sequence[int]) -> list[int]:
        """Return what each cut leaves of `n` tokens where it keeps `counts` and adds one for each cluster."""
        left = []
        for count in counts:
            kept = max(1, min(count, n - 1))
            n = kept if self.variant == "plus" else min(n, kept + _clusters(n - kept)[1])
            left.append(n)
        return left

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        state, n = tokens.llm, len(tokens.features)
        assert state is not None
        raters = tokens.memory if isinstance(tokens.memory, Tensor) else _raters(tokens)
        rows = state.q.shape[1] - raters
        kept, clusters = (k, 0) if self.variant == "plus" else _parts(n, k)
        if self.count == "rank":
            rank = _rank(torch.cat([part.mean(dim=0) for part in self._attention(state, rows)]))
            kept = max(1, min(int(rank * self.scale + self.bias), n - 1)) if rank < n else n
            clusters = 0 if self.variant == "plus" or kept == n else _clusters(n - kept)[1]
        order = top(self._scores(state, rows), n)
        if not clusters:
            return Selection(order[:kept].sort().values, memory=raters)
        rest = order[kept : kept + max(_clusters(n - kept)[0], clusters)]
        peaks = density_peaks(state.hidden[state.visual_idx[rest]], clusters, clusters)
        centres = rest[peaks.centres]
        stay = torch.cat([order[:kept], centres]).sort().values
        one = torch.ones_like(rest, dtype=torch.float64)
        members = one.new_zeros(clusters).index_add(0, peaks.cluster, one)
        weight = 1 / (members + 1e-6)[peaks.cluster]
        return Selection(stay, mix=Mix(torch.searchsorted(stay, centres)[peaks.cluster], rest, weight), memory=raters)

    def _scores(self, state: LayerState, raters: Tensor) -> Tensor:
        """Return the attention [N] of the rows `raters` [R] to each visual token, mean over raters and heads."""
        heads = torch.stack([part.sum(dim=1) for part in self._attention(state, raters)]).sum(dim=0)  # [H, N]
        if self.variant == "plus":
            heads = heads[top(heads.sum(dim=1), math.ceil(HEADS * len(heads)))]
            return heads.mean(dim=0) / len(raters)
        # Sums of equal numbers may differ in their last bits, which would decide ties.
        return (heads.mean(dim=0) / len(raters))[first_equal(state.k[:, state.visual_idx].transpose(0, 1).flatten(1))]

    def _attention(self, state: LayerState, raters: Tensor) -> Iterator[Tensor]:
        """Yield the attention [H, r, N] of a few raters at a time to visual tokens, corrected in "plus"."""
        heads, length, width = state.q.shape
        for rows in raters.split(max(1, TILE // (heads * length))):
            attention = attention_rows(state.q[:, rows], state.k, rows)[..., state.visual_idx]
            if self.variant == "plus":
                ones = state.rotated_ones
                if ones is None:
                    raise error("it needs the rotary positions of the layer: make LayerState with rotated_ones")
                expected = ones[rows].double() @ ones[state.visual_idx].double().T / math.sqrt(width)
                attention = attention / expected.clamp_min(FLOOR * math.sqrt(width))
            yield attention


def _raters(tokens: Tokens) -> Tensor:
    """Return how far from the end of the prompt the raters [R] are; the last row is at 1."""
    v, q = tokens.features.double(), tokens.text_after
    assert q is not None
    length = len(q)
    resemblance = (v @ q.double().T).softmax(dim=1).mean(dim=0)
    # Values that are equal but for rounding are no larger than their mean.
    raters = length - (resemblance * length > 1 + 1e-9).nonzero().squeeze(1)
    return raters if len(raters) else raters.new_ones(1)


def _rank(block: Tensor) -> int:
    """Return the rank of a float32 matrix [R, N]: singular values above rounding of the largest."""
    values = torch.linalg.svdvals(block)
    return int((values > max(block.shape) * torch.finfo(torch.float32).eps * values[0]).sum())


def _clusters(dropped: int) -> tuple[int, int]:
    """Return how many of the dropped tokens are merged, and into how many clusters."""
    merged = int(0.3 * dropped) + 1
    return merged, merged // 10 + 1


def _parts(n: int, k: int) -> tuple[int, int]:
    """Return how many of `n` tokens are kept, and how many clusters of the others make them `k`.

    Where two numbers do, it is the larger one. At least one token is kept, and that may leave room for fewer clusters.
    """
    kept = max(1, k - 1)
    while kept > 1 and kept + _clusters(n - kept)[1] > k:
        kept -= 1
    return kept, k - kept
