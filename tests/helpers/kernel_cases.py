"""Samples on which picks tie or nearly do, and every selection kernel on them."""

import reference_selection as plain
import torch

from methods.base import Tokens
from methods.kernels.coverage import coverage, coverage_batch
from methods.kernels.dpp import greedy_map, greedy_map_batch
from methods.kernels.maxmin import maxmin, maxmin_batch
from methods.kernels.mmr import mmr, mmr_batch
from methods.kernels.rows import Rows
from methods.scores import min_max

KINDS = (*plain.KINDS, "positive", "equal", "near", "mean", "half")
KERNELS = ("mmr", "maxmin", "coverage", "greedy_map")


def tokens_of(n: int, d: int, seed: int, kind: str) -> Tokens:
    """One sample [n, d]; those of kind "near" differ by less than float32 products can tell."""
    if kind in plain.KINDS:
        return plain.sample(n, d, seed, kind)
    tokens = plain.sample(n, d, seed)
    x = {
        "positive": tokens.features.abs(),
        "equal": tokens.features[:1].repeat(n, 1),
        "near": tokens.features[:1] + 1e-6 * tokens.features,
        "mean": tokens.features + 3,
        "half": tokens.features.bfloat16(),
    }[kind]
    return Tokens(x, tokens.grids, importance=tokens.importance)


LAMS = (0.5, 0.1, 0.0, 1.0, 0.9)


def batches(samples: list[Tokens], ks: list[int], seed: int) -> dict:
    """Every kernel that takes several samples at once, on these."""
    scores = [min_max(tokens.importance.double(), 1e-6) for tokens in samples]
    rows = [Rows(tokens.features, 0.0, 1e-8) for tokens in samples]
    quality = [(score / 2).exp() for score in scores]
    return {
        "mmr": lambda: mmr_batch(rows, scores, ks, LAMS[seed % 5]),
        "maxmin": lambda: maxmin_batch(rows, ks),
        "coverage": lambda: coverage_batch(rows, scores, ks, additive=seed % 3 == 0),
        "greedy_map": lambda: greedy_map_batch([Rows(tokens.features) for tokens in samples], quality, ks),
    }


def cases(tokens: Tokens, k: int, seed: int) -> dict:
    """Every kernel on one sample, by name; `seed` varies parameters and whether scores tie."""
    x, scores = tokens.features, tokens.importance.double()
    if seed % 2:
        scores = scores.round()
    first = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: seed % 4]
    return {
        "mmr": lambda: mmr(Rows(x, 0.0, 1e-8), min_max(scores, 1e-6), k, LAMS[seed % 5]),
        "maxmin": lambda: maxmin(Rows(x), k, first if 0 < len(first) <= k else None),
        "coverage": lambda: coverage(Rows(x), scores.abs(), k, additive=seed % 3 == 0),
        "greedy_map": lambda: greedy_map(Rows(x), (scores / 2).exp(), k),
    }
