"""Schedules that meet a budget: the mean over layers, what the first cut leaves, or what the last one does."""

from fractions import Fraction

import pytest
from hypothesis import strategies as st
from properties import randomized

import methods
from methods.base import Cut
from methods.checks import SelectionError

DEPTHS = range(4, 81)


def tokens_per_layer(n, cuts, layers):
    """Return the mean over all layers, each layer counted by itself; layers up to a cut saw what was there before."""
    seen = [min([cut.k for cut in cuts if cut.layer < layer], default=n) for layer in range(layers)]
    return Fraction(sum(seen), layers)


def reaches(name, n, k, layers):
    """Tell whether the mean can be as small as `k`: layer 0 sees all tokens, and one token is left at once."""
    return name in AT_INPUT or n + layers - 1 <= k * layers


METHODS = ["pyramiddrop", "sparsevlm"]
AT_INPUT = ["holitom", "flashvid", "prunevid"]  # whose first cut is there


@pytest.mark.parametrize("name", METHODS + AT_INPUT)
@randomized(100, n=st.integers(2, 3000), share=st.floats(0, 1), layers=DEPTHS)
def test_the_mean_is_the_budget_wherever_it_can_be(name, n, share, layers):
    k, method = 1 + int(share * (n - 2)), methods.load(name)
    if not reaches(name, n, k, layers):
        with pytest.raises(SelectionError, match=f"raise the budget to {-(-(n + layers - 1) // layers)}, or set"):
            method.cuts(n, k, layers)
        return
    cuts = method.cuts(n, k, layers)  # which checks that they fit n and the layers
    mean = tokens_per_layer(n, cuts, layers)
    assert k - 1 < mean <= k
    assert mean <= tokens_per_layer(n, method.cuts(n, k + 1, layers), layers)


@pytest.mark.parametrize("name", METHODS + AT_INPUT)
@randomized(40, n=st.integers(40, 3000), share=st.floats(0, 1), layers=DEPTHS)
def test_the_first_or_the_last_cut_leaves_the_budget(name, n, share, layers):
    k = 1 + int(share * (n - 2))
    for at, number in (("entry", 0), ("end", -1)):
        method = methods.load(name, budget_at=at)
        cuts = method.cuts(n, k, layers)
        assert cuts[number].k == k
        assert {cut.layer for cut in cuts} <= {cut.layer for cut in methods.load(name).schedule(n, n // 2, layers)}


def test_a_mean_that_layer_0_exceeds_is_refused():
    asked = "a mean of 115 visual tokens a layer, where 1 of 5 layers see all 576: raise the budget to 116, or set"
    with pytest.raises(SelectionError, match=asked):
        methods.load("pyramiddrop").cuts(576, 115, 5)
    assert methods.load("pyramiddrop").cuts(576, 116, 5) == (Cut(0, 1),)
    assert len(methods.load("pyramiddrop").cuts(576, 120, 5)) == 2
