"""PyramidDrop against its definition in plain float64, and its cuts against the published ones."""

import pytest
from layer_samples import attention_of, best, layer_tokens
from properties import SEEDS, SHARE, randomized

from methods.base import Cut
from methods.pyramiddrop import PyramidDrop
from methods.samples import survivors

GRIDS = ([(1, 4, 5)], [(1, 3, 3), (1, 2, 4)], [(3, 2, 3)])


def kept(state, k):
    attention = attention_of(state.q[:, -1], state.k)
    return best([attention[i] for i in state.visual_idx.tolist()], k)


@randomized(
    40,
    grids=GRIDS,
    share=SHARE,
    heads=[(4, 4), (4, 2), (6, 1)],
    scale=[0.1, 1.0, 30.0],
    kind=["normal", "duplicates", "zero"],
    seed=SEEDS,
)
def test_each_cut_ranks_what_the_one_before_left(grids, share, heads, scale, kind, seed):
    tokens = layer_tokens(grids, seed, heads=heads[0], kv=heads[1], kind=kind, scale=scale)
    method, n = PyramidDrop(budget_at="official"), len(tokens.features)
    left = list(range(n))
    for cut in method.cuts(n, max(1, int(share * n)), 32):
        selection = method.select(tokens, cut.k)
        assert selection.order.tolist() == kept(tokens.llm, cut.k)
        tokens, left = survivors(tokens, selection), [left[i] for i in sorted(selection.order.tolist())]
        assert tokens.origin.tolist() == left
    assert len(left) == n // 8


@pytest.mark.parametrize(("n", "counts"), [(576, (288, 144, 72)), (61, (30, 15, 7))])
@pytest.mark.parametrize("k", [1, 60])
def test_the_published_schedule_does_not_know_the_budget(n, counts, k):
    cuts = PyramidDrop(budget_at="official").cuts(n, k, 32)
    assert cuts == tuple(Cut(layer, count) for layer, count in zip((7, 15, 23), counts, strict=True))


def test_a_few_tokens_leave_one():
    assert PyramidDrop(budget_at="official").cuts(7, 3, 32) == (Cut(7, 3), Cut(15, 1))


def test_the_published_schedule_is_that_of_its_mean():
    assert PyramidDrop().cuts(576, 270, 32) == PyramidDrop(budget_at="official").cuts(576, 270, 32)


@pytest.mark.parametrize(
    ("layers", "places"), [(32, (7, 15, 23)), (28, (6, 13, 20)), (36, (8, 17, 26)), (5, (0, 1, 3)), (4, (0, 1, 2))]
)
def test_cuts_are_at_the_same_shares_of_any_depth(layers, places):
    assert tuple(cut.layer for cut in PyramidDrop().cuts(576, 300, layers)) == places


def test_small_budgets_move_all_cuts_by_one_factor_and_keep_the_ratio_at_a_quarter_or_more():
    assert PyramidDrop().cuts(576, 192, 32) == (Cut(7, 146), Cut(15, 37), Cut(23, 9))
    assert PyramidDrop().cuts(576, 128, 32) == (Cut(4, 147), Cut(10, 37), Cut(15, 9))
    assert PyramidDrop().cuts(576, 64, 32) == (Cut(1, 161), Cut(4, 45), Cut(6, 12))


def test_it_reads_the_layer_behind_the_cut():
    assert (PyramidDrop().reads, PyramidDrop().stage, PyramidDrop().before_mlp) == ("next", "layers", False)
