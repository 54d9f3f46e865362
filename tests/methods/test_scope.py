"""SCOPE against gains that are summed again for each pick, and by its properties."""

import dataclasses

import numpy as np
import pytest
import torch
from probes import Largest
from properties import SEEDS, SHARE, VARIANTS, randomized
from reference_selection import attended, directions, is_greedy

from methods.base import Tokens
from methods.kernels import cosine
from methods.observe import Operations
from methods.scope import SCOPE

KINDS = ("normal", "positive", "duplicates", "parallel", "equal", "zero_rows", "opposite", "huge", "tiny")


def is_scope(order, features, saliency, alpha=1.0, combined="multi"):
    """Whether `order` is that of gains which are summed again for each pick, in float64."""
    x = np.asarray(features, dtype=np.float64)
    norm = np.sqrt((x**2).sum(1))
    x = x / np.where(norm > 0, norm, 1)[:, None]
    c = np.array([[(a * b).sum() for b in x] for a in x])
    weight = np.asarray(saliency, dtype=np.float64) ** alpha

    def scores(picked):
        covered = c[picked].max(0, initial=0)
        gain = np.maximum(0, c - covered[:, None]).sum(0)
        return gain * weight if combined == "multi" else gain + weight

    return is_greedy(order, directions(features), scores, tolerance=1e-6 * len(x) * max(1, weight.max()))


def image(n, d, seed, kind="normal"):
    return attended([(1, 1, n)], d, seed, kind)


def order(tokens, k, **params):
    return SCOPE(**params).select(tokens, k).order.tolist()


@randomized(
    80,
    n=range(2, 37),
    d=range(1, 17),
    share=SHARE,
    alpha=[0.0, 0.5, 1.0, 2.0],
    combined=["multi", "add"],
    variant=VARIANTS,
    seed=SEEDS,
    kind=KINDS,
)
def test_same_order_as_the_authors_algorithm(n, d, share, alpha, combined, variant, seed, kind):
    tokens, k = image(n, d, seed, kind), max(1, int(share * n))
    got = order(tokens, k, alpha=alpha, combined=combined, variant=variant)
    assert len(got) == k
    assert is_scope(got, tokens.features, scores_of(tokens), alpha, combined)


@pytest.mark.parametrize("combined", ["multi", "add"])
@pytest.mark.parametrize(("n", "k", "table"), [(300, 90, 8192), (300, 90, 0), (200, 199, 0)])
def test_same_order_where_updates_take_several_rounds(combined, n, k, table, monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", table)
    tokens = image(n, 24, n + k, "positive")
    assert is_scope(order(tokens, k, combined=combined), tokens.features, scores_of(tokens), combined=combined)


@pytest.mark.parametrize("kind", ["normal", "zero_rows", "tiny"])
def test_images_share_the_budget_evenly_or_are_one_pool(kind):
    tokens = attended([(1, 3, 4), (2, 2, 3), (1, 5, 4)], 8, 3, kind)
    x, scores = tokens.features, tokens.vit_attention["last"]
    parts = [slice(0, 12), slice(12, 24), slice(24, 44)]
    for k, shares in [(15, (5, 5, 5)), (17, (6, 6, 5)), (2, (1, 1, 0)), (40, (12, 12, 16))]:
        picks = iter(order(tokens, k))
        for part, share in zip(parts, shares, strict=True):
            assert is_scope([next(picks) - part.start for _ in range(share)], x[part], scores[part])
        assert is_scope(order(tokens, k, variant="paper"), x, scores)


def test_worked_example():
    """Gains at first 1.8, 2.4, 1.6, 1; after token 0: -, 0.8, 1, 1; after token 1: 0.2, -, 0.4, 1."""
    x = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0, 1.0, 0], [0, 0, 1.0]])
    tokens = Tokens(x, [(1, 2, 2)], vit_attention={"last": torch.tensor([1.0, 0.5, 0.5, 0.3])})
    assert order(tokens, 3) == [0, 2, 3]
    assert order(tokens, 3, alpha=0.0) == [1, 3, 2]
    assert order(tokens, 2, combined="add") == [1, 3]


def scores_of(tokens):
    return tokens.vit_attention["last"]


def test_copies_of_a_pick_add_nothing_and_ties_go_to_the_lowest_index():
    tokens = image(12, 16, 3, "positive")
    doubled = Tokens(tokens.features.repeat(2, 1), [(2, 1, 12)], vit_attention={"last": scores_of(tokens).repeat(2)})
    assert order(doubled, 12) == order(dataclasses.replace(doubled, grids=[(1, 4, 6)]), 12)
    assert sorted(order(doubled, 12)) == list(range(12))
    equal = image(30, 4, 0, "equal")
    first = scores_of(equal).argmax().item()
    assert order(equal, 4) == [first, *[i for i in range(30) if i != first][:3]]


@pytest.mark.parametrize("rows", [1, 7, 400])
def test_gains_are_exact_whatever_the_order_of_updates(rows, monkeypatch):
    tokens = image(400, 10, 2, "positive")
    expected = order(tokens, 120)
    monkeypatch.setattr("methods.kernels.coverage.LEAST", rows)
    monkeypatch.setattr("methods.kernels.coverage.SMALL", 400 * rows)
    assert order(tokens, 120) == expected


def test_neither_memory_for_all_pairs_nor_a_wait_for_each_pick(monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", 399)
    monkeypatch.setattr(cosine, "TILE_32", 64 * 400)
    monkeypatch.setattr("methods.kernels.coverage.TILE_32", 64 * 400)
    tokens = image(400, 8, 0, "positive")
    for k in (20, 100):
        with Largest() as seen, Operations(SCOPE()) as operations:
            SCOPE()._select(tokens, k, torch.Generator())
        assert seen.numel <= 64 * 400
        assert operations.total("read") + operations.total("sized") <= 8
