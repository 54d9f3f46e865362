"""QMMR against its formulas, written plainly."""

import logging

import numpy as np
import torch
from properties import SEEDS, randomized
from reference_selection import sample

import methods
from methods.base import Tokens
from methods.qmmr import QMMR


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def scaled(c):
    return (c - c.min()) / (c.max() - c.min() + 1e-6)


def relevance(tokens, kind):
    x, text = tokens.features.double().numpy(), tokens.text.double().numpy()
    if kind == "mean":
        return unit(x) @ unit(text.mean(0))
    near = unit(x) @ unit(text).T
    return np.array([max(near[i, j] - near[:, j].mean() for j in range(len(text))) for i in range(len(x))])


def picks(tokens, k, share, lam, kind):
    score = (1 - share) * scaled(tokens.importance.double().numpy()) + share * scaled(relevance(tokens, kind))
    near = unit(tokens.features.double().numpy())
    near = near @ near.T
    order = [int(score.argmax())]
    while len(order) < k:
        total = lam * score - (1 - lam) * near[:, order].max(1)
        total[order] = -np.inf
        order.append(int(total.argmax()))
    return order


@randomized(
    60,
    d=range(2, 49),
    k=range(1, 36),
    seed=SEEDS,
    share=[0.0, 0.3, 0.5, 1.0],
    lam=[0.0, 0.3, 0.5, 0.9, 1.0],
    kind=["words", "mean"],
)
def test_same_order_as_the_formulas(d, k, seed, share, lam, kind):
    tokens = sample(36, d, seed)
    method = QMMR(share=share, lam=lam, relevance=kind)
    assert method.select(tokens, k).order.tolist() == picks(tokens, k, share, lam, kind)


def test_without_relevance_it_is_idpruner():
    tokens = sample(64, 32, 5)
    for lam in (0.2, 0.5, 0.9):
        ours, theirs = methods.load("qmmr", share=0.0, lam=lam), methods.load("idpruner", lam=lam)
        assert ours.select(tokens, 20).order.tolist() == theirs.select(tokens, 20).order.tolist()


def test_a_word_that_all_tokens_are_near_to_says_nothing():
    """The second word is nearer to every token than the first is to its own, yet the first decides."""
    axes = torch.eye(4)
    tokens = Tokens(
        torch.stack([axes[0] + 0.9 * axes[3], axes[1] + axes[3], axes[2] + axes[3]]),
        [(1, 1, 3)],
        importance=torch.zeros(3),
        text=torch.stack([axes[0], axes[3]]),
    )
    assert QMMR(share=1.0).select(tokens, 1).order.tolist() == [0]


def test_an_empty_question_leaves_importance_and_says_so(caplog):
    tokens = sample(36, 16, 2)
    mute = Tokens(tokens.features, tokens.grids, importance=tokens.importance, text=tokens.features[:0])
    with caplog.at_level(logging.WARNING):
        order = QMMR(share=0.5).select(mute, 9).order.tolist()
    assert order == picks(tokens, 9, 0.0, 0.5, "words")
    assert "the question is empty" in caplog.text
