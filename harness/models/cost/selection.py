"""FLOPs of the selection, by the definition of each method: products of features, each similarity once.

A kernel may need more if it computes a similarity again instead of storing it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from methods import vlmpruner
from methods.base import Method, Signal


@dataclass(frozen=True)
class Case:
    """One selection: `n` visual tokens of width `width`, of which `k` are kept, in a prompt of `length` tokens."""

    method: Any
    n: int
    k: int
    width: int
    length: int
    heads_width: int  # width of a query over all heads of a decoder layer
    kv_width: int  # width of its key
    keys: int  # width of the keys of the vision tower, averaged over heads
    grids: Sequence[tuple[int, int, int]]
    states: int  # width of the vision tower's states

    @property
    def rows(self) -> int:
        """Operations for the similarities of every pick to all tokens."""
        return 2 * self.k * self.n * self.width

    @property
    def row_of_attention(self) -> int:
        """Operations for the scores of one query against the whole prompt."""
        return 2 * self.length * self.heads_width

    @property
    def projections(self) -> int:
        """Operations for q and k of the whole prompt in a layer that does not run on these rows itself."""
        return 2 * self.length * self.width * (self.heads_width + self.kv_width)

    def pairs(self, n: int) -> int:
        """Count the similarities of all pairs of `n` tokens."""
        return 2 * n * n * self.width


def _fps(case: Case) -> int:
    return case.pairs(case.n) if getattr(case.method, "start", "maximin") == "maximin" else case.rows


def _hybrid(case: Case) -> int:
    method = case.method
    return case.rows if method.mapping == "quota" else case.pairs(method.pool_size(case.n, case.k))


def _determinant(case: Case) -> int:
    return case.rows + case.k**2 * case.n  # rows of a Cholesky factor, which grow by one with every pick


def _visionzip(case: Case) -> int:
    return 2 * case.n * max(1, round(case.k * case.method.contextual)) * case.keys


def _vispruner(case: Case) -> int:
    return case.pairs(case.n - int(case.k * case.method.ratio))


def _dart(case: Case) -> int:
    return 2 * (case.method.image_pivots + case.method.text_pivots) * case.n * case.width


def _prumerge(case: Case) -> int:
    added = (case.k - 1) * min(case.method.neighbours, case.n - 1) + case.n
    return 2 * case.k * case.n * case.states + 2 * added * case.width


def _vlmpruner(case: Case) -> int:
    return 2 * case.k * case.n * min(vlmpruner.CHANNELS, case.width)  # distances to the pivots are no products


def _sparsevlm(case: Case) -> int:
    """Count what all text tokens as raters would need."""
    text, merges = case.length - case.n, case.method.variant != "plus"
    first = case.n == sum(t * h * w for t, h, w in case.grids)
    resemblance = 2 * case.n * text * case.width if first else 0
    return resemblance + text * case.row_of_attention + (case.pairs(3 * (case.n - case.k) // 10) if merges else 0)


def _holov(case: Case) -> int:
    if case.method.variant == "official":
        return 0
    crops = case.method.crops or max(1, int((1024 / 576) * case.n / case.k))
    return sum(t * crops * case.pairs(-(-h * w // crops)) for t, h, w in case.grids)


def _d2pruner(case: Case) -> int:
    compared = case.k - int(case.method.pivot_ratio * case.k)
    return case.row_of_attention + 2 * compared * case.n * case.width


def _id_selection(case: Case) -> int:
    return case.rows + (case.row_of_attention if Signal.LLM in case.method.needs else 0)


def _tome(case: Case) -> int:
    total, n = 0, case.n
    while n > case.k:
        total, n = total + 2 * (n // 2) * (n - n // 2) * case.keys, max(case.k, n - n // 2)
    return total


def _mmtok(case: Case) -> int:
    return 2 * (case.length - case.n) * case.n * case.width + 2 * case.n**2 * case.states  # words are all text


def _prunesid(case: Case) -> int:
    width = case.width if case.method.program == "qwen" else case.states
    return 4 * case.n**2 * width + 9 * min(case.n, width) ** 3  # products, cosines, eigenvectors of a symmetric matrix


def _fastvid(case: Case) -> int:
    """Count segments of equal length; distances for densities are no products."""
    segments = min(case.method.segments, sum(t for t, _, _ in case.grids))
    return 2 * int(case.k * case.method.context) * case.n // segments * case.width


def _inside(case: Case) -> bool:
    """Tell whether a selection of a `TwoCuts` method is the one after a decoder layer."""
    return case.method.stages == "both" and case.n < sum(t * h * w for t, h, w in case.grids)


def _holitom(case: Case) -> int:
    """Count all places as static: the density peaks of their rows, which are differences of pairs."""
    if _inside(case):
        return case.row_of_attention + 2 * (case.n - case.k) * case.k * case.width
    return 2 * case.n * case.width + sum(case.pairs(h * w) for _, h, w in case.grids)


def _flashvid(case: Case) -> int:
    """Count the distances within each frame, and the similarities of each frame to the one before."""
    if _inside(case):
        return case.row_of_attention
    return sum((2 * t - 1) * case.pairs(h * w) for t, h, w in case.grids)


def _prunevid(case: Case) -> int:
    """Count no place as static: the distances within each frame. Inside, all text tokens ask."""
    if _inside(case):
        return (case.length - case.n) * case.row_of_attention
    return sum(t * case.pairs(h * w) for t, h, w in case.grids)


NO_PRODUCTS = ["none", "random", "uniform", "avg_pool", "resize", "greedy", "visionselector", "fastervlm", "hiprune"]
NO_PRODUCTS += ["vidcom2"]  # distances to means are none
FORMULAS: Mapping[str, Callable[[Case], int]] = {
    **dict.fromkeys(NO_PRODUCTS, lambda case: 0),
    "idpruner": lambda case: case.rows,
    "qmmr": lambda case: case.rows + 2 * (case.length - case.n) * case.n * case.width,  # similarities to all text
    "fps": _fps,
    "divprune": _fps,
    "hybrid": _hybrid,
    "dpp": _determinant,
    "cdpruner": lambda case: _determinant(case) + 2 * case.n * case.width,
    "visionzip": _visionzip,
    "vispruner": _vispruner,
    "scope": lambda case: case.pairs(case.n),
    "fastv": lambda case: case.row_of_attention,
    "pyramiddrop": lambda case: case.row_of_attention + case.projections,
    "sparsevlm": _sparsevlm,
    "dart": _dart,
    "prumerge": _prumerge,
    "prumerge_plus": _prumerge,
    "vlmpruner": _vlmpruner,
    "tome": _tome,
    "mmtok": _mmtok,
    "prunesid": _prunesid,
    "holitom": _holitom,
    "flashvid": _flashvid,
    "prunevid": _prunevid,
    "holov": _holov,
    "d2pruner": _d2pruner,
    "evs": lambda case: 2 * case.n * case.width,  # each token to the one before it
    "dycoke": lambda case: 2 * case.n * case.width,
    "fastvid": _fastvid,
    "id_selection": _id_selection,
}


def selection_flops(case: Case) -> int | None:
    """Count a selection; return None if there is no formula for the method."""
    formula = FORMULAS.get(case.method.name)
    return None if formula is None or case.k >= case.n else formula(case)


def scorer_flops(method: Method, n: int, width: int, hidden: int) -> int:
    """Count the learned scorer of `hidden` units if the method needs it: one product with [N, D] and two small ones."""
    return 2 * n * width + 4 * width * hidden if Signal.IMPORTANCE in method.needs else 0
