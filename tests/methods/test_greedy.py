"""Greedy importance is a sort."""

import dataclasses

import torch
from properties import SHARE, randomized
from reference_selection import sample, worked_example

from methods.greedy import Greedy


@randomized(60, n=range(2, 81), share=SHARE, seed=range(1000), kind=["normal", "integers"])
def test_same_order_as_a_sort(n, share, seed, kind):
    tokens, k = sample(n, 3, seed, kind), max(1, int(share * n))
    expected = sorted(range(n), key=lambda i: (-tokens.importance[i].item(), i))[:k]
    assert Greedy().select(tokens, k).order.tolist() == expected


def test_worked_example():
    assert Greedy().select(worked_example(), 4).order.tolist() == [0, 1, 3, 6]


def test_features_do_not_matter_and_monotone_scores_neither():
    tokens = sample(50, 4, 1)
    other = dataclasses.replace(tokens, features=torch.zeros(50, 4), importance=tokens.importance.exp())
    assert torch.equal(Greedy().select(other, 20).order, Greedy().select(tokens, 20).order)
