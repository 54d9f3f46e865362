"""K from a share or a number: exact decimals, halves to even, never zero, never above N."""

import math
from decimal import ROUND_HALF_EVEN, Decimal

import numpy as np
import pytest
from hypothesis import strategies as st
from properties import randomized

from methods.budget import Budget, by_ratio, rounded


@pytest.mark.parametrize(
    ("n", "keep", "k"),
    [
        (25, 0.1, 2),  # 2.5 to even
        (35, 0.1, 4),  # 3.5 to even
        (10, 0.15, 2),  # 1.5; the binary 0.15 lies below
        (50, 0.29, 14),  # 14.5; in binary 14.499999999999998
        (100, 0.145, 14),  # 14.5; in binary 14.499999999999998 or 14.5
        (30, 0.35, 10),  # 10.5
        (5, 0.1, 1),  # 0.5 to even is 0, but something stays
        (1000, 1e-9, 1),
        (1, 0.5, 1),
        (576, 7 / 9, 448),
        (576, 0.25, 144),
        (7, 1.0, 7),
        (7, 1, 7),
        (0, 0.25, 0),
    ],
)
def test_share(n, keep, k):
    assert Budget(keep=keep).count(n) == k


@pytest.mark.parametrize(("n", "tokens", "k"), [(576, 64, 64), (50, 64, 50), (64, 64, 64), (0, 64, 0), (9, 1, 1)])
def test_absolute(n, tokens, k):
    assert Budget(tokens=tokens).count(n) == k


@randomized(200, n=range(1, 100_001), thousandths=range(1, 1001))
def test_share_is_the_decimal_that_was_written(n, thousandths):
    exact = (Decimal(thousandths) * n / 1000).quantize(Decimal(1), ROUND_HALF_EVEN)
    assert Budget(keep=thousandths / 1000).count(n) == max(1, int(exact))


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_share_of_another_type_is_its_shortest_decimal(kind):
    budget = Budget(keep=kind(0.1))
    assert budget == Budget(keep=0.1)
    assert (budget.count(25), budget.label) == (2, "0.1")
    assert type(budget.keep) is float


def test_counts_of_another_type():
    budget = Budget(tokens=np.int64(64))
    assert (budget, budget.label) == (Budget(tokens=64), "64tok")
    assert type(budget.tokens) is type(budget.count(np.int32(9))) is int


@randomized(200, n=range(1, 100_001), keep=st.floats(0, 1, exclude_min=True))
def test_any_share_is_within_bounds_and_half_a_token(n, keep):
    k = Budget(keep=keep).count(n)
    assert isinstance(k, int)
    assert 1 <= k <= n
    assert abs(k - max(1.0, n * keep)) <= 0.5 + 1e-6


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "neither"),
        ({"keep": 0.5, "tokens": 3}, "keep=0.5 and tokens=3"),
        ({"keep": 0.0}, r"\(0, 1\]"),
        ({"keep": -0.1}, r"\(0, 1\]"),
        ({"keep": 1.01}, r"\(0, 1\]"),
        ({"keep": math.nan}, r"\(0, 1\]"),
        ({"keep": "0.5"}, "number"),
        ({"keep": True}, "number"),
        ({"tokens": 0}, "at least 1"),
        ({"tokens": -4}, "at least 1"),
        ({"tokens": 2.5}, "integer"),
        ({"tokens": True}, "integer"),
        ({"tokens": np.float64(3)}, "integer"),
        ({"tokens": "3"}, "integer"),
        ({"keep": np.True_}, "number"),
        ({"keep": 0.5j}, "number"),
        ({"keep": np.float32("nan")}, r"\(0, 1\]"),
    ],
)
def test_refuses_in_one_line(arguments, says):
    with pytest.raises(ValueError, match=says) as caught:
        Budget(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n", [-1, 2.5, None])
def test_refuses_a_strange_population(n):
    with pytest.raises(ValueError, match="visual tokens"):
        Budget(keep=0.5).count(n)


def test_labels_tell_budgets_apart():
    assert Budget(keep=0.25).label == "0.25"
    assert Budget(keep=1).label == "1.0"
    assert Budget(keep=7 / 9).label != Budget(keep=0.7777).label
    assert Budget(tokens=64).label == "64tok"


@randomized(200, sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6), percent=range(1, 101))
def test_shares_of_one_ratio_follow_from_their_sum(sizes, percent):
    shares = [max(1, Budget(keep=percent / 100).count(size)) for size in sizes]
    assert by_ratio(sum(shares), sizes) == shares


@pytest.mark.parametrize(("k", "sizes"), [(3, [50, 50]), (1, [50, 50]), (7, [10, 10, 10])])
def test_a_sum_that_no_ratio_gives_is_divided_all_the_same(k, sizes):
    assert by_ratio(k, sizes) == rounded(k, sizes)
    assert sum(by_ratio(k, sizes)) == k
