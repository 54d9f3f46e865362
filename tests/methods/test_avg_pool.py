"""Average pooling to the budget, the cells it shares with stratified random pruning, and how a budget is shared."""

import pytest
import torch
from hypothesis import strategies as st
from properties import SHARE, randomized
from torch.nn.functional import adaptive_avg_pool2d

from methods.avg_pool import AvgPool
from methods.base import Tokens
from methods.budget import largest_remainder, rounded
from methods.grids import cells, frames, images
from methods.random import Random

GRIDS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=3)


def sample(grids, d=3, seed=0):
    n = sum(t * h * w for t, h, w in grids)
    return Tokens(torch.randn(n, d, generator=torch.Generator().manual_seed(seed)), grids)


def pooled(tokens, selection):
    k = len(selection.kept)
    sums = torch.zeros(k, tokens.features.shape[1]).index_add(0, selection.owner, tokens.features)
    return sums / torch.bincount(selection.owner, minlength=k)[:, None]


@pytest.mark.parametrize(("k", "rows", "columns"), [(36, 6, 6), (144, 12, 12), (1, 1, 1), (9, 3, 3), (16, 4, 4)])
def test_equals_adaptive_pooling_where_the_lattice_fits(k, rows, columns):
    tokens = sample([(1, 24, 24)])
    expected = adaptive_avg_pool2d(tokens.features.T.reshape(1, 3, 24, 24), (rows, columns))
    got = pooled(tokens, AvgPool().select(tokens, k))
    assert torch.allclose(got, expected.reshape(3, k).T, atol=1e-6)


def test_worked_example():
    """3 x 4 tokens to 5 cells: two bands of rows, the first of two cells, the second of three."""
    selection = AvgPool().select(sample([(1, 3, 4)]), 5)
    assert selection.owner.view(3, 4).tolist() == [[0, 0, 1, 1], [2, 3, 4, 4], [2, 3, 4, 4]]
    assert selection.kept.tolist() == [1, 3, 8, 9, 11]


@randomized(150, grids=GRIDS, share=SHARE)
def test_k_rectangles_that_share_all_tokens_evenly(grids, share):
    n = sum(t * h * w for t, h, w in grids)
    k = max(1, int(share * n))
    cell, middle = cells(grids, k)
    assert cell.unique().tolist() == list(range(k))
    assert torch.equal(cell[middle], torch.arange(k))
    if k < len(frames(grids)):
        assert (cell.diff() >= 0).all()
        return
    start = 0
    for h, w in [(h, w) for t, h, w in grids for _ in range(t)]:
        part = cell[start : start + h * w].view(h, w)
        for number in part.unique():
            inside = part == number
            assert inside.sum() == inside.any(0).sum() * inside.any(1).sum()
        assert not set(cell[:start].tolist()) & set(part.flatten().tolist())
        start += h * w


def test_cells_are_of_nearly_equal_size():
    for k in range(1, 577):
        size = torch.bincount(cells([(1, 24, 24)], k)[0])
        assert size.min() * 4 >= size.max()


def test_a_video_with_fewer_cells_than_steps_is_averaged_over_time():
    selection = AvgPool().select(sample([(8, 2, 2)]), 4)
    assert selection.owner.tolist() == [i // 8 for i in range(32)]
    assert selection.kept.tolist() == [4, 12, 20, 28]


@randomized(150, sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8), share=st.floats(0, 1), equal=[False, True])
def test_shares_add_up_and_keep_within_limits(sizes, share, equal):
    k = round(share * sum(sizes))
    given_ = rounded(k, sizes, equal)
    assert sum(given_) == k
    assert all(got <= size for got, size in zip(given_, sizes, strict=True))
    if k >= len(sizes):
        assert min(given_) >= 1
        if not equal and k * min(sizes) >= sum(sizes):  # no floor or ceiling in the way
            assert all(abs(got - k * size / sum(sizes)) < 1 for got, size in zip(given_, sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "k", "equal", "expected"),
    [
        ((10, 10), 5, False, [3, 2]),
        ((10, 30), 10, False, [2, 8]),  # 2.5 and 7.5, halves to the even number as in the comparison
        ((10, 10, 10), 8, False, [3, 3, 2]),
        ((100, 1, 1), 10, False, [8, 1, 1]),
        ((100, 1, 1), 2, False, [2, 0, 0]),
        ((10, 10, 40), 16, True, [6, 5, 5]),
        ((2, 10, 40), 16, True, [2, 7, 7]),
    ],
)
def test_shares_by_hand(sizes, k, equal, expected):
    assert rounded(k, sizes, equal) == expected


@randomized(100, sizes=st.lists(st.integers(1, 40), min_size=1, max_size=8), share=st.floats(0, 1))
def test_shares_by_largest_remainder_are_proportional(sizes, share):
    n = sum(sizes)
    k = max(1, round(share * n))
    quotas = largest_remainder(k, sizes)
    assert sum(quotas) == k
    assert all(0 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))
    if k >= len(sizes):
        assert min(quotas) >= 1
    if all(k * size >= n for size in sizes):
        assert all(abs(quota - k * size / n) < 1 for quota, size in zip(quotas, sizes, strict=True))


def test_largest_remainders_by_hand():
    assert largest_remainder(7, [10, 10, 10]) == [3, 2, 2]
    assert largest_remainder(7, [50, 30, 20]) == [4, 2, 1]  # 3.5, 2.1, 1.4
    assert largest_remainder(10, [98, 1, 1]) == [8, 1, 1]
    assert largest_remainder(2, [5, 5, 5]) == [1, 1, 0]


def test_spans_skip_what_is_empty():
    grids = [(1, 2, 3), (0, 4, 4), (2, 1, 4)]
    assert images(grids) == [(0, 6), (6, 8)]
    assert frames(grids) == [(0, 6), (6, 4), (10, 4)]


@randomized(60, grids=GRIDS, share=SHARE, seed=range(100))
def test_stratified_random_takes_one_token_of_each_cell(grids, share, seed):
    tokens = sample(grids)
    k = max(1, int(share * len(tokens.features)))
    kept = Random(layout="stratified").select(tokens, k, torch.Generator().manual_seed(seed)).kept
    assert sorted(cells(grids, k)[0][kept].tolist()) == list(range(k))
    again = Random(layout="stratified").select(tokens, k, torch.Generator().manual_seed(seed)).kept
    assert torch.equal(kept, again)


def test_stratified_random_is_uniform_inside_a_cell():
    tokens, generator = sample([(1, 6, 6)]), torch.Generator().manual_seed(0)
    counts = torch.zeros(36)
    for _ in range(1800):
        counts[Random(layout="stratified").select(tokens, 4, generator).kept] += 1
    assert (counts - 200).abs().max() < 5 * (1800 / 9 * 8 / 9) ** 0.5
