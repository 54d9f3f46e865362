"""CDPruner against the formulas of its paper and code, written plainly."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import is_greedy_map, sample

from methods.base import Tokens
from methods.budget import largest_remainder
from methods.cdpruner import CDPruner
from methods.dpp import DPP

GRIDS = [[(1, 6, 6)], [(1, 3, 4), (1, 4, 6)], [(4, 3, 3)], [(2, 2, 4), (1, 5, 4)]]


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def relevance(tokens, sign, pool):
    x, text = tokens.features.double().numpy(), tokens.text.double().numpy()
    if pool == "mean_embedding":
        return sign * unit(x) @ unit(text.mean(0))
    return sign * (unit(x) @ unit(text).T).mean(1)


def scaled(c):
    return (c - c.min() + 1e-6) / (c.max() - c.min())


@randomized(
    50,
    grids=GRIDS,
    d=range(2, 49),
    share=SHARE,
    seed=SEEDS,
    sign=["auto", "positive", "negative"],
    pool=["mean_embedding", "mean_cosine"],
    theta=[None, 0.3, 0.5, 0.9],
)
def test_same_order_as_the_formulas(grids, d, share, seed, sign, pool, theta):
    tokens, k = sample(36, d, seed, grids=grids), max(1, int(share * 36))
    r = scaled(relevance(tokens, -1 if sign == "negative" else 1, pool))
    if theta is not None:
        r = np.exp(r * theta / (2 * (1 - theta)))
    method = CDPruner(relevance_sign=sign, text_pool=pool, theta=theta)
    assert is_greedy_map(method.select(tokens, k).order.tolist(), tokens.features, r)


def test_same_order_at_the_size_of_an_image():
    tokens = sample(256, 128, 3)
    order = CDPruner().select(tokens, 64).order.tolist()
    assert is_greedy_map(order, tokens.features, scaled(relevance(tokens, 1, "mean_embedding")))


@pytest.mark.parametrize("grids", GRIDS)
@pytest.mark.parametrize("k", [2, 9, 17, 35])
@pytest.mark.parametrize("norm", ["all_tiles", "per_tile"])
def test_per_image_is_every_tile_on_its_own(grids, k, norm):
    tokens, start, made = sample(36, 40, k, grids=grids), 0, 0
    order = CDPruner(scope="per_image", norm_scope=norm).select(tokens, k).order.tolist()
    sizes = [h * w for t, h, w in grids for _ in range(t)]
    c = relevance(tokens, 1, "mean_embedding")
    for size, quota in zip(sizes, largest_remainder(k, sizes), strict=True):
        part = slice(start, start + size)
        r = scaled(c)[part] if norm == "all_tiles" else scaled(c[part])
        assert is_greedy_map([i - start for i in order[made : made + quota]], tokens.features[part], r)
        start, made = start + size, made + quota
    assert (start, made) == (36, len(order))


def test_the_first_pick_is_the_most_relevant_and_the_sign_turns_it_round():
    tokens = sample(40, 16, 2)
    c = relevance(tokens, 1, "mean_embedding")
    assert CDPruner().select(tokens, 1).kept.item() == c.argmax()
    assert CDPruner(relevance_sign="negative").select(tokens, 1).kept.item() == c.argmin()


def test_an_empty_question_is_the_plain_dpp(caplog):
    tokens = dataclasses.replace(sample(40, 64, 2), text=torch.empty(0, 64))
    with caplog.at_level(logging.WARNING):
        order = CDPruner().select(tokens, 20).order
    assert "question is empty" in caplog.text
    assert torch.equal(order, DPP(quality="uniform").select(tokens, 20).order)


@pytest.mark.parametrize("options", [{}, {"theta": 0.5}, {"norm_scope": "per_tile"}, {"scope": "per_image"}])
def test_constant_relevance_is_one_for_all(options):
    zero = dataclasses.replace(sample(36, 64, 2, grids=[(1, 6, 6)]), text=torch.zeros(3, 64))
    assert torch.equal(CDPruner(**options).select(zero, 20).order, DPP(quality="uniform").select(zero, 20).order)
    equal = dataclasses.replace(zero, features=torch.randn(33).repeat(36, 1), text=torch.randn(3, 33))
    assert CDPruner(**options).select(equal, 9).order.tolist() == list(range(9))


def test_nearly_constant_relevance_stays_finite():
    rows = torch.ones(30, 8)
    rows[:, 0] += torch.linspace(0, 1e-6, 30)
    tokens = Tokens(rows, [(1, 5, 6)], text=torch.randn(2, 8, generator=torch.Generator().manual_seed(0)))
    for theta in (None, 0.5, 0.999):
        assert len(CDPruner(theta=theta).select(tokens, 15).kept) == 15


def test_a_question_of_another_width_is_refused():
    tokens = dataclasses.replace(sample(9, 4, 0), text=torch.randn(3, 5))
    with pytest.raises(ValueError, match=r"cdpruner: text must be \[T, 4\] like the features, not \[3, 5\]"):
        CDPruner().select(tokens, 3)
