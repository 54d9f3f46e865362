"""MMTok: pick the tokens that together cover the words of the question and the image itself."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.base import Method, Selection, Signal, Tokens
from methods.kernels.cosine import directions, first_equal
from methods.kernels.coverage import TableRows, coverage

COLDEST = 1e-6  # a lower temperature would only add rounding errors

log = logging.getLogger(__name__)


@dataclass(kw_only=True)
class MMTok(Method):
    """Repeatedly pick the token that adds most coverage of text and image. Paper: arXiv 2508.18264.

        P      = softmax over tokens of cos(word_r, x_j) / tv,    a row for each of m words of the question
        Q      = softmax over tokens of cos(v_r, v_j) / vv,       a row for each of n tokens
        M      = [P / m; alpha Q / n]
        gain_j = sum over rows of max(0, M_rj - covered_r)
        pick   = argmax over unpicked j of gain_j;   covered_r = max(covered_r, M_r,pick), from 0

    x are tokens as they enter the LLM, v the states of the vision tower before the projector. All images and frames of
    a sample are one pool.

    Args:
        alpha: weight of the image's rows, at least 0; default 0.5.
        tv: temperature of the words, at least 1e-6; default none: the authors' 0.02 where the tower has CLS, as in
            LLaVA, and their 0.01 where it has none, as in Qwen2.5-VL.
        vv: temperature of the image, at least 1e-6; default 0.2.

    Deviation: words are all tokens of the question as the prompt has them; the LLaVA code drops 47 stop words and the
    benchmarks' suffixes and tokenises what is left again, the Qwen code prepends "Question: ". The LLaVA code also bars
    patches of padding, which LLaVA's images do not have here, and selects in each tile, as a budget per_tile= does.
    Float64 instead of float32; ties go to the lowest index. Code: Ironieser/MMTok @ d1522cd.
    """

    name = "mmtok"
    version = 1
    fidelity = "adapted: all tokens of the question instead of its words without stop words"
    needs = frozenset({Signal.VIT_FEATURES, Signal.TEXT})

    alpha: float = 0.5
    tv: float | None = None
    vv: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require("alpha", self.alpha >= 0, "at least 0")
        number = isinstance(self.tv, int | float) and not isinstance(self.tv, bool)
        self.require("tv", self.tv is None or (number and self.tv >= COLDEST), f"at least {COLDEST} or null")
        self.require("vv", self.vv >= COLDEST, f"at least {COLDEST}")

    def _select_batch(
        self, samples: Sequence[Tokens], ks: Sequence[int], generators: Sequence[torch.Generator]
    ) -> list[Selection]:
        tables = (TableRows(self._table(tokens)) for tokens in samples)
        weights = (tokens.features.new_ones(len(tokens.features), dtype=torch.float64) for tokens in samples)
        return [Selection.of(order) for order in coverage(tables, weights, ks)]

    def _table(self, tokens: Tokens) -> Tensor:
        """Return M [m + n, n]."""
        text, states = tokens.text, tokens.vit_features
        assert text is not None
        assert states is not None
        if not len(text):
            log.warning("mmtok: the question is empty, so only the image is covered")
        tv = self.tv or (0.02 if tokens.has_cls else 0.01)
        x, v = directions(tokens.features), directions(states)
        p = (directions(text) @ x.T / tv).softmax(dim=1) / max(1, len(text))
        # In place: each of its tables is as large as the square of the tokens.
        q = (v @ v.T).div_(self.vv).softmax(dim=1).div_(len(v)).mul_(self.alpha)
        return torch.cat([p, q])[:, first_equal(torch.cat([tokens.features, states], dim=1))]
