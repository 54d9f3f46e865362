"""MMTok against gains that are summed again for each pick, from a table that is written out entry by entry."""

import dataclasses
import logging
import math

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import is_greedy, sample

from methods.kernels.coverage import TableRows, coverage
from methods.mmtok import MMTok
from methods.observe import Operations

EXAMPLE = [[0.6, 0.3, 0.1], [0.1, 0.2, 0.7], [0.55, 0.45, 0], [0.25, 0.5, 0.25], [0.05, 0.25, 0.7]]
KINDS = ("normal", "positive", "duplicates", "equal", "zero_rows", "opposite", "huge", "tiny")


def tokens_of(n, d, seed, kind="normal", states=None):
    """A sample whose states before the projector are not its features, but repeat with them."""
    tokens = sample(n, d, seed, kind)
    turn = torch.randn(d, d + 1, generator=torch.Generator().manual_seed(seed + 1))
    return dataclasses.replace(tokens, vit_features=(tokens.features.double() @ turn.double() / 40).float())


def unit(row):
    length = max(math.sqrt(sum(float(v) ** 2 for v in row)), 1e-8)
    return [float(v) / length for v in row]


def softmax(row, temperature):
    peak = max(row)
    powers = [math.exp((v - peak) / temperature) for v in row]
    return [power / sum(powers) for power in powers]


def table(tokens, alpha=0.5, tv=0.02, vv=0.2):
    words, x, v = ([unit(row) for row in part] for part in (tokens.text, tokens.features, tokens.vit_features))

    def rows(queries, keys, temperature, weight):
        cosines = [[sum(a * b for a, b in zip(q, key, strict=True)) for key in keys] for q in queries]
        return [[weight / len(queries) * p for p in softmax(row, temperature)] for row in cosines]

    return np.array([*rows(words, x, tv, 1), *rows(v, v, vv, alpha)])


def is_mmtok(order, tokens, entries):
    def scores(picked):
        covered = entries[:, picked].max(1, initial=0)
        return np.maximum(0, entries - covered[:, None]).sum(0)

    same = [(*row, *state) for row, state in zip(tokens.features.tolist(), tokens.vit_features.tolist(), strict=True)]
    return is_greedy(order, same, scores, tolerance=1e-13 * entries.sum())


@randomized(
    60,
    n=range(2, 30),
    d=range(1, 12),
    share=SHARE,
    params=[{}, {"tv": 0.01}, {"alpha": 2.0, "vv": 0.05}, {"alpha": 0.0}],
    seed=SEEDS,
    kind=KINDS,
)
def test_same_order_as_the_authors_algorithm(n, d, share, params, seed, kind):
    tokens, k = tokens_of(n, d, seed, kind), max(1, int(share * n))
    order = MMTok(**params).select(tokens, k).order.tolist()
    assert len(order) == k
    assert is_mmtok(order, tokens, table(tokens, **params))


def test_same_order_where_updates_take_several_rounds():
    tokens = tokens_of(160, 24, 0)
    assert is_mmtok(MMTok().select(tokens, 80).order.tolist(), tokens, table(tokens))


def test_the_table_is_the_authors():
    tokens = tokens_of(20, 8, 3)
    assert np.allclose(MMTok()._table(tokens).numpy(), table(tokens), rtol=1e-12, atol=0)
    assert table(tokens).sum() == pytest.approx(1.5)


def picks(entries, k):
    (order,) = coverage([TableRows(torch.tensor(entries).double())], [torch.ones(len(entries[0])).double()], [k])
    return order.tolist()


def test_worked_example():
    """Sums of columns 1.55, 1.70, 1.75; after 2 the gains of 0 and 1 are 1.05 and 0.90."""
    assert [picks(EXAMPLE, k) for k in (1, 2, 3)] == [[2], [2, 0], [2, 0, 1]]


def test_a_table_of_any_scale_and_of_nothing():
    for scale in (1e-30, 1.0, 1e30):
        assert picks((np.array(EXAMPLE) * scale).tolist(), 2) == [2, 0]
    assert picks([[0.0, 0.0, 0.0]], 2) == [0, 1]


def test_the_temperature_of_words_follows_the_tower():
    tokens = tokens_of(60, 16, 1)
    without = dataclasses.replace(tokens, has_cls=False)
    for given, params in ((tokens, {"tv": 0.02}), (without, {"tv": 0.01})):
        assert torch.equal(MMTok().select(given, 20).order, MMTok(**params).select(tokens, 20).order)
    assert not torch.equal(MMTok().select(tokens, 20).order, MMTok().select(without, 20).order)


def test_an_empty_question_leaves_the_image_and_says_so(caplog):
    tokens = tokens_of(40, 8, 2)
    silent = dataclasses.replace(tokens, text=tokens.text[:0])
    with caplog.at_level(logging.WARNING):
        order = MMTok().select(silent, 12).order.tolist()
    assert "the question is empty" in caplog.text
    assert is_mmtok(order, silent, table(silent))
    assert MMTok(alpha=0.0).select(silent, 3).order.tolist() == [0, 1, 2]  # nothing to cover


def test_a_token_counts_as_equal_only_with_its_states():
    tokens = tokens_of(30, 8, 0, "equal")
    assert MMTok().select(tokens, 4).order.tolist() == [0, 1, 2, 3]
    other = dataclasses.replace(tokens, vit_features=tokens_of(30, 8, 0).vit_features)
    assert MMTok().select(other, 4).order.tolist() != [0, 1, 2, 3]


@pytest.mark.parametrize(("key", "value"), [("alpha", -0.1), ("tv", 0.0), ("tv", True), ("tv", "cold"), ("vv", 1e-9)])
def test_parameters_out_of_range(key, value):
    with pytest.raises(ValueError, match=f"mmtok: {key} must be"):
        MMTok(**{key: value})


def test_the_host_does_not_wait_for_each_pick():
    for k in (20, 100):
        with Operations(MMTok()) as seen:
            MMTok()._select(tokens_of(200, 8, 0), k, torch.Generator())
        assert seen.total("read") + seen.total("sized") <= 8
