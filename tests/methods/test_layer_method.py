"""A cut after a decoder layer counts its budget behind the cut, or as a mean over the layers."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from methods.base import Cut
from methods.fastv import FastV


@given(st.integers(2, 4000), st.integers(1, 3999), st.integers(4, 80), st.data())
def test_a_mean_is_met_but_for_rounding(n, k, layers, data):
    layer = data.draw(st.integers(0, layers - 2))
    method = FastV(layer=layer, budget_at="mean")
    assert FastV(layer=layer).cuts(n, k, layers) == ((Cut(layer, k),) if k < n else ())
    least = (layer + 1) * n + (layers - layer - 1)
    if k >= n:
        assert method.cuts(n, k, layers) == ()
    elif k * layers < least:
        with pytest.raises(ValueError, match=f"budget to {-(-least // layers)}, or set method.budget_at=end"):
            method.cuts(n, k, layers)
    else:
        (cut,) = method.cuts(n, k, layers)
        total = (layer + 1) * n + (layers - layer - 1) * cut.k
        assert cut.layer == layer
        assert 2 * abs(total - k * layers) <= layers - layer - 1


def test_the_usual_budgets_of_llava():
    """192 tokens a layer of 32: two layers see all 576, the others 166."""
    assert [FastV(budget_at="mean").cuts(576, k, 32)[0].k for k in (192, 128, 64)] == [166, 98, 30]
    said = "no cut leaves a mean of 32 visual tokens a layer, where 2 of 32 layers see all 576: raise the budget to 37"
    with pytest.raises(ValueError, match=re.escape(said)):
        FastV(budget_at="mean").cuts(576, 32, 32)
