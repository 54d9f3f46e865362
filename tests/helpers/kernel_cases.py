"""Samples on which picks tie or nearly do, and every selection kernel on them."""

import reference_selection as plain

from methods.base import Tokens
from methods.kernels.cosine import CosineRows
from methods.kernels.coverage import coverage
from methods.kernels.dpp import greedy_map
from methods.kernels.maxmin import maxmin
from methods.kernels.mmr import mmr
from methods.scores import min_max

KINDS = (*plain.KINDS, "positive", "equal", "near", "mean", "half", "huge")
LAMS = (0.5, 0.1, 0.0, 1.0, 0.9)


def tokens_of(n: int, d: int, seed: int, kind: str) -> Tokens:
    """Return a sample [n, d]; rows of kind "near" differ by less than float32 products resolve."""
    if kind not in ("near", "mean", "half"):
        return plain.sample(n, d, seed, kind)
    tokens = plain.sample(n, d, seed)
    x = {
        "near": tokens.features[:1] + 1e-6 * tokens.features,
        "mean": tokens.features + 3,
        "half": tokens.features.bfloat16(),
    }[kind]
    return Tokens(x, tokens.grids, importance=tokens.importance)


def scores_of(tokens: Tokens, seed: int):
    """Return importance in [0, 1), with ties for odd seeds."""
    scores = tokens.importance.double()
    return min_max(scores.round() if seed % 2 else scores, 1e-6)


def _rows(samples):
    return (CosineRows(tokens.features) for tokens in samples)


# Each takes samples, the K of each, and a seed that varies parameters.
KERNELS = {
    "mmr": lambda samples, ks, seed: mmr(_rows(samples), [scores_of(s, seed) for s in samples], ks, LAMS[seed % 5]),
    "maxmin": lambda samples, ks, seed: maxmin(_rows(samples), ks),
    "coverage": lambda samples, ks, seed: coverage(
        _rows(samples), [scores_of(s, seed) for s in samples], ks, additive=seed % 3 == 0
    ),
    "greedy_map": lambda samples, ks, seed: greedy_map(
        _rows(samples), [(scores_of(s, seed) / 2).exp() for s in samples], ks
    ),
}
