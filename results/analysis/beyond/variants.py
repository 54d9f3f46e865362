"""What was tried beside `qmmr`: other ways to join, to pick and to compare tokens. Run by scripts/beyond.sh."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from methods.base import Method, Selection, Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.dpp import greedy_map
from methods.kernels.mmr import mmr
from methods.qmmr import QMMR
from methods.scores import min_max


@dataclass(kw_only=True)
class Variant(QMMR):
    """QMMR with one part exchanged.

    Args:
        join: of importance and relevance, the "sum" weighted by share, their "product" or their "max".
        pick: "mmr"; "spread", with lam twice the standard deviation of the score, within [0.1, 0.9]; "dpp", weighted by
            the score; "cover", lam * score + (1 - lam) * what a pick adds to the coverage of all tokens, best pick 1.
        compare: features "plain", "centred" on their mean, or "whitened" over the tokens of the sample.
    """

    name = "variant"

    join: Literal["sum", "product", "max"] = "sum"
    pick: Literal["mmr", "spread", "dpp", "cover"] = "mmr"
    compare: Literal["plain", "centred", "whitened"] = "plain"

    _select_batch = Method._select_batch  # IDPruner's knows one way to pick

    def _select(self, tokens: Tokens, k: int, generator: torch.Generator) -> Selection:
        score, features = self._joined(*self._scores(tokens)), self._features(tokens.features)
        if self.pick == "dpp":
            return Selection.of(greedy_map([CosineRows(features)], [score + self.epsilon], [k])[0])
        if self.pick == "cover":
            return Selection.of(self._cover(features, score, k))
        lam = min(max(2 * float(score.std()), 0.1), 0.9) if self.pick == "spread" else self.lam
        return Selection.of(mmr([CosineRows(features, floor=0.0, plus=1e-8)], [score], [k], lam)[0])

    def _joined(self, importance: Tensor, relevance: Tensor) -> Tensor:
        if self.join == "sum":
            return (1 - self.share) * importance + self.share * relevance
        joined = importance * relevance if self.join == "product" else torch.maximum(importance, relevance)
        return min_max(joined, self.epsilon)

    def _features(self, features: Tensor) -> Tensor:
        if self.compare == "plain":
            return features
        centred = features.double() - features.double().mean(dim=0)
        if self.compare == "whitened":
            left, values, _ = torch.linalg.svd(centred, full_matrices=False)
            power = values.square()
            centred = left * (power / (power + 0.01 * power.mean())).sqrt()
        return centred.float()

    def _cover(self, features: Tensor, score: Tensor, k: int) -> Tensor:
        unit = torch.nn.functional.normalize(features.double(), dim=1)
        near = (unit @ unit.T).clamp_min(0)
        covered, open_ = near.new_zeros(len(near)), torch.ones(len(near), dtype=torch.bool)
        picks = []
        for _ in range(k):
            gain = (near - covered).clamp_min(0).sum(dim=1)
            total = self.lam * score + (1 - self.lam) * gain / gain.max().clamp_min(self.epsilon)
            picks.append(total.masked_fill(~open_, -torch.inf).argmax())
            open_[picks[-1]] = False
            covered = torch.maximum(covered, near[picks[-1]])
        return torch.stack(picks)
