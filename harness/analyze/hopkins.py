"""The measures of arXiv 2602.13315, section 3, in float64: importance retention, Hopkins statistic, angles."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

AMBIENT = ("bbox", "gauss", "sphere")  # points of the feature space
SAMPLED = ("complement", "token")  # tokens of the image
REFERENCES = AMBIENT + SAMPLED


def retention(importance: Tensor, kept: Tensor) -> float:
    """Return the share of the non-negative importance [N] that lies on the kept tokens."""
    total = float(importance.double().sum())
    return float(importance[kept].double().sum()) / total if total else len(kept) / len(importance)


def directions(features: Tensor) -> Tensor:
    """Scale rows [N, D] to length 1 in float64; rows of zeros stay zero."""
    return torch.nn.functional.normalize(features.double(), dim=1, eps=1e-300)


def between(a: Tensor, b: Tensor) -> Tensor:
    """Return the cosine distances [A, B] of unit rows."""
    return (1 - a @ b.T).clamp(0, 2)


def hopkins(from_reference: Tensor, among: Tensor) -> float:
    """Return the Hopkins statistic of a subset T: how much closer its members are to each other than to R.

        H = mean_R d(r, T) / (mean_R d(r, T) + mean_T d(v, T without v)),  d the cosine distance to the nearest

    With as many points in R as in T the means are the paper's sums. 1/2 where all distances are 0.

    Args:
        from_reference: [R, M] distances of reference points to the members of T.
        among: [M, M] distances among the members, M >= 2.
    """
    outer = float(from_reference.amin(1).mean())
    inner = float(among.clone().fill_diagonal_(torch.inf).amin(1).mean())
    return outer / (outer + inner) if outer + inner else 0.5


class Cloud:
    """The tokens of one image, and the Hopkins statistic of its subsets against the same reference points.

    Which points the paper draws is not public; its H near 1 for random subsets is possible only with points of the
    feature space. "bbox" has coordinates uniform between their least and largest value over all tokens, "gauss" is
    normal with each coordinate's mean and deviation, "sphere" has uniform directions. "complement" and "token" draw
    tokens that were dropped, or any. Rows of zeros are left out of subsets and references.

    Args:
        features: [N, D], not normed.
        seed: of the reference points; all subsets of one size share them, but for "complement".
        draws: the statistic is the mean over that many draws.
    """

    def __init__(self, features: Tensor, seed: list[int], draws: int = 5) -> None:
        self.features = features.double()
        self.seed, self.draws = seed, draws
        self.unit = directions(self.features)
        self.distances = between(self.unit, self.unit).fill_diagonal_(0)
        self.nonzero = self.features.norm(dim=1) > 0
        self._ambient: dict[tuple[str, int], list[Tensor]] = {}

    def hopkins(self, kept: Tensor, reference: str) -> float:
        """Return the statistic of the tokens `kept` [M]; NaN for fewer than two, or without a token to draw."""
        kept = kept[self.nonzero[kept]]
        if len(kept) < 2:
            return float("nan")
        among = self.distances[kept][:, kept]
        draws = [hopkins(rows[:, kept], among) for rows in self._references(kept, reference) if len(rows)]
        return float(np.mean(draws)) if draws else float("nan")

    def _references(self, kept: Tensor, kind: str) -> list[Tensor]:
        """Return the distances [R, N] of reference points to all tokens, for each draw."""
        m = len(kept)
        if kind in AMBIENT:
            if (kind, m) not in self._ambient:
                x, device = self.features.cpu().numpy(), self.features.device
                points = [torch.from_numpy(POINTS[kind](self._rng(draw, m), x, m)) for draw in range(self.draws)]
                self._ambient[kind, m] = [between(directions(drawn.to(device)), self.unit) for drawn in points]
            return self._ambient[kind, m]
        pool = self.nonzero.clone()
        if kind == "complement":
            pool[kept] = False
        where = pool.nonzero().squeeze(1)
        drawn = [self._rng(draw, m).permutation(len(where))[:m] for draw in range(self.draws)]
        return [self.distances[where[torch.from_numpy(idx).to(where.device)]] for idx in drawn]

    def _rng(self, draw: int, m: int) -> np.random.Generator:
        return np.random.default_rng([*self.seed, m, draw])


POINTS: dict[str, Callable[[np.random.Generator, np.ndarray, int], np.ndarray]] = {
    "bbox": lambda rng, x, m: rng.uniform(x.min(0), x.max(0), (m, x.shape[1])),
    "gauss": lambda rng, x, m: rng.normal(x.mean(0), x.std(0), (m, x.shape[1])),
    "sphere": lambda rng, x, m: rng.normal(size=(m, x.shape[1])),
}


def cosines(features: Tensor) -> Tensor:
    """Return the cosines [N (N - 1) / 2] of all pairs of non-zero rows."""
    unit = directions(features[features.double().norm(dim=1) > 0])
    rows, columns = torch.triu_indices(len(unit), len(unit), 1, device=unit.device)
    return (unit @ unit.T).clamp(-1, 1)[rows, columns]
