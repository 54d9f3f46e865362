"""Farthest-point sampling against a transcription in exact arithmetic."""

import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import KINDS, is_farthest, sample, worked_example

from methods.base import Signal, Tokens
from methods.divprune import DivPrune
from methods.fps import FPS


@randomized(60, n=range(2, 21), d=range(1, 7), share=SHARE, seed=SEEDS, kind=KINDS, start=["maximin", "max_importance"])
def test_same_order_as_in_exact_arithmetic(n, d, share, seed, kind, start):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    first = [max(range(n), key=lambda i: (tokens.importance[i].item(), -i))] if start == "max_importance" else []
    assert is_farthest(FPS(start=start).select(tokens, k).order.tolist(), tokens.features, first)


def test_worked_example():
    assert FPS().select(worked_example(), 4).order.tolist() == [6, 3, 0, 4]


def test_maximin_start_is_divprune():
    tokens = sample(200, 24, 1, grids=[(2, 5, 10), (1, 10, 10)])
    assert torch.equal(FPS().select(tokens, 50).order, DivPrune().select(tokens, 50).order)


def test_random_start_follows_the_generator():
    tokens = sample(100, 8, 1)
    draws = [FPS(start="random").select(tokens, 9, torch.Generator().manual_seed(s)).order.tolist() for s in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]
    assert is_farthest(draws[2], tokens.features, first=draws[2][:1])


def test_only_the_start_by_importance_needs_a_scorer():
    bare = Tokens(torch.randn(6, 4), [(1, 2, 3)])
    assert len(FPS().select(bare, 3).kept) == 3
    assert FPS.needs == FPS(start="random").needs == frozenset()
    assert FPS(start="max_importance").needs == {Signal.IMPORTANCE}
    with pytest.raises(ValueError, match="fps needs the signal 'importance'"):
        FPS(start="max_importance").select(bare, 3)
