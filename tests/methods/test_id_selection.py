"""ID-Selection against a plain float64 loop, on every source of importance."""

import dataclasses
import math

import pytest
import torch
from layer_samples import attention_of, cosine_of, layer_tokens
from properties import SEEDS, SHARE, randomized
from reference_selection import sample, worked_example

from methods.base import Signal, Tokens
from methods.id_selection import IDSelection

UPDATES = ("subtract_guarded", "subtract", "subtract_clamp0", "multiply")


def scaled(importance):
    low, high = min(importance), max(importance)
    return [(w - low) / (high - low + 1e-6) for w in importance]


def definition(features, importance, k, gamma=20.0, update="subtract_guarded"):
    n, s, order = len(importance), scaled([float(w) for w in importance]), []
    for _ in range(k):
        pick = min((i for i in range(n) if i not in order), key=lambda i: (-s[i], i))
        order.append(pick)
        winner = s[pick]
        for j in range(n):
            weight = math.exp(-gamma * (1 - cosine_of(features[j], features[pick])) ** 2)
            if update == "multiply":
                s[j] *= 1 - weight
            elif update == "subtract_guarded":
                s[j] -= weight * max(winner, 0)
            else:
                s[j] -= weight * winner
                s[j] = max(s[j], 0) if update == "subtract_clamp0" else s[j]
    return order


@randomized(
    60,
    n=range(2, 31),
    d=range(2, 13),
    share=SHARE,
    gamma=[1.0, 20.0],
    update=UPDATES,
    kind=["normal", "clustered", "duplicates", "zero_rows", "constant", "outlier"],
    seed=SEEDS,
)
def test_same_order_as_the_definition(n, d, share, gamma, update, kind, seed):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    got = IDSelection(gamma=gamma, update=update).select(tokens, k).order.tolist()
    assert got == definition(tokens.features, tokens.vit_attention["last"], k, gamma, update)


def test_same_order_at_the_size_of_an_image():
    tokens = sample(144, 32, 7, "clustered")
    got = IDSelection().select(tokens, 36).order.tolist()
    assert got == definition(tokens.features.numpy(), tokens.vit_attention["last"].tolist(), 36)


@pytest.mark.parametrize(
    ("update", "order"),
    [
        ("subtract_guarded", [0, 3, 6, 7, 5, 4]),
        ("subtract_clamp0", [0, 3, 6, 7, 5, 1]),
        ("multiply", [0, 3, 6, 7, 5, 2]),
    ],
)
def test_worked_example(update, order):
    learned = worked_example()
    tokens = dataclasses.replace(learned, vit_attention={"last": learned.importance})
    assert IDSelection(update=update).select(tokens, 6).order.tolist() == order
    assert IDSelection(update=update, importance="visionselector").select(learned, 6).order.tolist() == order


@pytest.mark.parametrize(
    ("importance", "needs", "stage"),
    [
        ("vit_attention", {Signal.VIT_ATTENTION}, "input"),
        ("visionselector", {Signal.IMPORTANCE}, "input"),
        ("llm_last_token", {Signal.LLM}, "layer:1"),
        ("unified", {Signal.VIT_ATTENTION, Signal.LLM}, "layer:1"),
    ],
)
def test_needs_and_stage_follow_the_importance(importance, needs, stage):
    method = IDSelection(importance=importance)
    assert method.needs == needs
    assert method.stage == stage
    assert IDSelection.needs == {Signal.VIT_ATTENTION}
    assert IDSelection().needs == {Signal.VIT_ATTENTION}


def test_attention_of_the_llm_and_both():
    tokens = layer_tokens([(2, 3, 3), (1, 2, 4)], seed=2)
    attention = [attention_of(tokens.llm.q[:, -1], tokens.llm.k)[i] for i in tokens.llm.visual_idx.tolist()]
    got = IDSelection(importance="llm_last_token").select(tokens, 10).order.tolist()
    assert got == definition(tokens.features, attention, 10)
    both = zip(scaled(attention), scaled(tokens.vit_attention["last"].tolist()), strict=True)
    unified = IDSelection(importance="unified").select(tokens, 10).order.tolist()
    assert unified == definition(tokens.features, [(a + b) / 2 for a, b in both], 10)


def test_signals_that_are_there_but_not_asked_for_do_not_count():
    tokens = dataclasses.replace(layer_tokens([(1, 4, 4)]), importance=torch.arange(16.0))
    alone = dataclasses.replace(tokens, llm=None, importance=None)
    assert torch.equal(IDSelection().select(tokens, 5).order, IDSelection().select(alone, 5).order)


@pytest.mark.parametrize("update", UPDATES)
def test_constant_importance_and_equal_rows_go_in_order(update):
    constant = sample(150, 33, 0, "constant")
    assert IDSelection(update=update).select(constant, 40).order.tolist() == list(range(40))
    equal = dataclasses.replace(sample(150, 33, 0), features=torch.randn(1, 33).expand(150, -1).clone())
    equal.vit_attention["last"].fill_(0.2)[0] = 0.9
    assert IDSelection(update=update).select(equal, 40).order.tolist() == list(range(40))


def test_scale_of_rows_and_order_of_tokens_do_not_matter():
    tokens, shuffle = sample(60, 12, 5, "clustered"), torch.randperm(60, generator=torch.Generator().manual_seed(1))
    factors = 2.0 ** torch.randint(-8, 9, (60, 1), generator=torch.Generator().manual_seed(2))
    order = IDSelection().select(tokens, 20).order
    scaled_rows = dataclasses.replace(tokens, features=tokens.features * factors)
    assert torch.equal(IDSelection().select(scaled_rows, 20).order, order)
    attention = tokens.vit_attention["last"][shuffle]
    shuffled = Tokens(tokens.features[shuffle], [(1, 1, 60)], vit_attention={"last": attention})
    assert torch.equal(shuffle[IDSelection().select(shuffled, 20).order], order)


def test_a_likeness_is_suppressed_by_all_picks_together():
    x = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, -0.6], [0.0, 1.0]])
    tokens = Tokens(
        torch.cat([x, torch.zeros(4, 1)], 1), [(1, 1, 4)], vit_attention={"last": torch.tensor([1, 2, 2, 0.5])}
    )
    assert IDSelection(gamma=4.0).select(tokens, 3).order.tolist() == definition(x, [1, 2, 2, 0.5], 3, 4.0)


def test_parameters():
    assert IDSelection.unpublished_params == {"update", "importance", "layer"}
    assert "not public" in IDSelection.__doc__
