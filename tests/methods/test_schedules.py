"""Schedules that meet a budget: the mean over layers, what the first cut leaves, or what the last one does."""

import warnings
from fractions import Fraction

import pytest
from hypothesis import strategies as st
from properties import randomized

import methods
from methods.base import Cut

DEPTHS = range(4, 81)


def tokens_per_layer(n, cuts, layers):
    """Return the mean over all layers, each layer counted by itself; layers up to a cut saw what was there before."""
    seen = [min([cut.k for cut in cuts if cut.layer < layer], default=n) for layer in range(layers)]
    return Fraction(sum(seen), layers)


def reaches(n, k, layers):
    """Tell whether the mean can be as small as `k`: layer 0 sees all tokens, and one token is left at once."""
    return n + layers - 1 <= k * layers


@pytest.mark.filterwarnings("ignore:layer 0 alone")
@pytest.mark.parametrize("name", METHODS := ["pyramiddrop", "sparsevlm"])
@randomized(100, n=st.integers(2, 3000), share=st.floats(0, 1), layers=DEPTHS)
def test_the_mean_is_the_budget_wherever_it_can_be(name, n, share, layers):
    k = 1 + int(share * (n - 2))
    cuts = methods.load(name).cuts(n, k, layers)  # which checks that they fit n and the layers
    mean = tokens_per_layer(n, cuts, layers)
    assert k - 1 < mean <= k if reaches(n, k, layers) else mean == tokens_per_layer(n, [Cut(0, 1)], layers)
    assert mean <= tokens_per_layer(n, methods.load(name).cuts(n, k + 1, layers), layers)


@pytest.mark.parametrize("name", METHODS)
@randomized(40, n=st.integers(40, 3000), share=st.floats(0, 1), layers=DEPTHS)
def test_the_first_or_the_last_cut_leaves_the_budget(name, n, share, layers):
    k = 1 + int(share * (n - 2))
    for at, number in (("entry", 0), ("end", -1)):
        method = methods.load(name, budget_at=at)
        cuts = method.cuts(n, k, layers)
        assert cuts[number].k == k
        assert {cut.layer for cut in cuts} <= {cut.layer for cut in methods.load(name).schedule(n, n // 2, layers)}


def test_a_budget_that_layer_0_exceeds_is_met_as_far_as_possible_and_said():
    with pytest.warns(UserWarning, match="layer 0 alone sees more tokens than the budget"):
        assert methods.load("pyramiddrop").cuts(576, 100, 5) == (Cut(0, 1),)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(methods.load("pyramiddrop").cuts(576, 120, 5)) == 2
