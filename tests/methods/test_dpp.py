"""Greedy MAP of a DPP against Gram-Schmidt in float64, and by its properties."""

import math

import pytest
import torch
from probes import Largest
from properties import SEEDS, SHARE, randomized
from reference_selection import is_greedy_map, sample, worked_example

from methods.base import Tokens
from methods.dpp import DPP
from methods.greedy import Greedy
from methods.kernels import cosine
from methods.scores import soft_top_k


def quality_of(scores, kind):
    scores = [float(w) for w in scores]
    low, high = min(scores), max(scores)
    scaled = [(w - low) / (high - low + 1e-6) for w in scores]
    return [{"minmax": s + 1e-6, "exp": math.exp(s / 2), "uniform": 1.0}[kind] for s in scaled]


@randomized(
    60,
    n=range(2, 31),
    d=range(1, 41),
    share=SHARE,
    seed=SEEDS,
    kind=["normal", "normal", "zero_rows", "opposite"],
    quality=["minmax", "exp"],
)
def test_same_order_as_the_textbook(n, d, share, seed, kind, quality):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    order = DPP(quality=quality).select(tokens, k).order.tolist()
    assert is_greedy_map(order, tokens.features, quality_of(tokens.importance, quality))


@randomized(
    60, n=range(2, 17), d=range(1, 6), share=SHARE, seed=SEEDS, kind=["integers", "parallel", "zero_rows", "duplicates"]
)
def test_copies_and_rank_are_those_of_exact_arithmetic(n, d, share, seed, kind):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    tokens = Tokens(tokens.features.round(), tokens.grids, importance=tokens.importance)
    assert is_greedy_map(DPP(quality="uniform").select(tokens, k).order.tolist(), tokens.features, [1.0] * n)


@pytest.mark.parametrize("grids", [[(1, 16, 16)], [(1, 8, 8), (1, 12, 16)], [(4, 8, 8)]])
def test_same_order_at_the_size_of_an_image(grids):
    tokens = sample(256, 128, 7, grids=grids)
    order = DPP().select(tokens, 64).order.tolist()
    assert is_greedy_map(order, tokens.features, quality_of(tokens.importance, "minmax"))


@pytest.mark.parametrize(
    ("quality", "order"), [("minmax", [0, 3, 6, 5]), ("exp", [0, 3, 6, 4]), ("uniform", [0, 4, 6, 3])]
)
def test_worked_example(quality, order):
    assert DPP(quality=quality).select(worked_example(), 4).order.tolist() == order


def test_orthogonal_tokens_are_picked_by_importance():
    importance = torch.randn(32, generator=torch.Generator().manual_seed(0))
    tokens = Tokens(torch.eye(32), [(1, 4, 8)], importance=importance)
    assert torch.equal(DPP().select(tokens, 12).order, Greedy().select(tokens, 12).order)


@pytest.mark.parametrize("copies", [4, 36, 129])
def test_copies_of_a_pick_wait_for_the_fill(copies):
    for seed in range(10):
        one, other, last = torch.randn(3, 33, generator=torch.Generator().manual_seed(seed))
        rows = torch.cat([one[None], other.repeat(copies, 1), last[None]])
        tokens = Tokens(rows, [(1, 1, copies + 2)], importance=torch.zeros(copies + 2))
        order = DPP(quality="uniform").select(tokens, 5).order.tolist()
        assert sorted(order[:3]) == [0, 1, copies + 1]  # one of each, of the copies the first
        assert order[3:] == [2, 3]


def test_the_fill_is_by_importance():
    tokens = sample(40, 3, 5)
    order = DPP(quality="exp").select(tokens, 20).order.tolist()
    rest = sorted(set(range(40)) - set(order[:3]), key=lambda i: -tokens.importance[i])
    assert order[3:] == rest[:17]


def test_soft_topk_weights_change_the_trade_off():
    tokens = sample(50, 64, 9)
    soft = DPP(importance="soft_topk").select(tokens, 25).order.tolist()
    assert soft != DPP().select(tokens, 25).order.tolist()
    assert is_greedy_map(soft, tokens.features, quality_of(soft_top_k(tokens.importance, 10.0), "minmax"))


def test_memory_of_many_tokens_is_k_rows_of_n(monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", 499)
    with Largest() as seen:
        DPP().select(sample(500, 4, 0), 50)
    assert seen.numel <= 500 * 50
