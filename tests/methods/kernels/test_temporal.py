"""What temporal methods share, against plain loops that follow the specification."""

from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import assume
from hypothesis import strategies as st
from properties import SEEDS, randomized

from methods.base import Mix, Selection
from methods.budget import largest_remainder
from methods.kernels.temporal import (
    Clip,
    budgets,
    clips,
    cuts,
    joined,
    per_clip,
    same_place,
    static_windows,
    step_means,
)

# cosines of few levels, so that ties are common
SIMILARITIES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), max_size=9)


def test_videos_and_images_are_clips_of_equal_steps():
    grids = [(1, 2, 3), (3, 1, 2), (0, 4, 4), (2, 2, 2)]
    assert clips(grids) == [Clip(0, 1, 6), Clip(6, 3, 2), Clip(12, 2, 4)]
    rows = torch.arange(20)[:, None]
    assert [clip.of(rows)[..., 0].tolist() for clip in clips(grids)[1:]] == [
        [[6, 7], [8, 9], [10, 11]],
        [[12, 13, 14, 15], [16, 17, 18, 19]],
    ]
    assert [part for _, part in per_clip(grids, 10)] == [3, 3, 4]
    assert [part for _, part in per_clip(grids, 2)] == [1, 0, 1]


def test_selections_of_clips_join_to_one_of_the_sample():
    first, second = clips([(2, 1, 3), (1, 1, 4)])
    parts = [
        (first, Selection(torch.tensor([1, 4]), mix=Mix(*map(torch.tensor, ([1, 1], [2, 4], [0.5, 0.25]))))),
        (second, Selection(torch.tensor([0, 3]), mix=Mix(*map(torch.tensor, ([0], [1], [1.0]))))),
    ]
    whole = joined(parts)
    assert whole.kept.tolist() == [1, 4, 6, 9]
    assert [column.tolist() for column in whole.mix] == [[1, 1, 2], [2, 4, 7], [0.5, 0.25, 1.0]]
    assert joined([(second, Selection(torch.tensor([2])))]).mix is None


@randomized(40, t=range(2, 6), p=range(1, 5), d=range(1, 6), seed=SEEDS, zero=[False, True], scale=[1.0, 1e30, 1e-30])
def test_cosine_at_the_same_place_one_pair_at_a_time(t, p, d, seed, zero, scale):
    x = torch.randn(t, p, d, generator=torch.Generator().manual_seed(seed)) * scale
    x[0] *= not zero
    got = same_place(x[1:], x[:-1])
    for step in range(t - 1):
        for place in range(p):
            a, b = x[step + 1, place].double(), x[step, place].double()
            lengths = (a @ a).sqrt() * (b @ b).sqrt()
            assert got[step, place].item() == pytest.approx(float(a @ b / lengths) if lengths else 0.0, abs=1e-11)
    assert same_place(x[1:], x[1:]).tolist() == [[1.0] * p] * (t - 1)
    assert torch.allclose(step_means(x)[1], sum(x[1, place].double() for place in range(p)) / p)


@randomized(200, similarity=SIMILARITIES, tau=[0.0, 0.3, 0.75, 2.0], at_least=range(1, 12))
def test_segments_are_cut_below_tau_and_where_frames_differ_most(similarity, tau, at_least):
    """FastVID cuts at the c - 1 least similar places and at all below tau; FlashVID adds cuts only if there are few."""
    lowest = set(sorted(range(len(similarity)), key=lambda i: (similarity[i], i))[: at_least - 1])
    below = {i for i, value in enumerate(similarity) if value < tau}
    lengths, length = [], 1
    for i in range(len(similarity)):
        if i in lowest | below:
            lengths.append(length)
            length = 0
        length += 1
    assert cuts(similarity, tau, at_least) == [*lengths, length]


def test_one_step_is_one_segment():
    assert cuts([], 0.9, 8) == [1]


def by_all_partitions(still, longest):
    """Try every partition; of equal ones take the shortest last window, then the shortest one before it."""
    t, p = len(still) + 1, still.shape[1]

    def gain(s, e):
        return (e - s) * sum(all(still[i, place] for i in range(s, e)) for place in range(p))

    found = []
    for count in range(t):
        for inner in combinations(range(1, t), count):
            starts = [0, *inner]
            windows = list(zip(starts, [start - 1 for start in starts[1:]] + [t - 1], strict=True))
            if all(e - s < longest for s, e in windows):
                lengths = tuple(s - e for s, e in reversed(windows))
                found.append((sum(gain(s, e) for s, e in windows), lengths, windows))
    return max(found)[2]


@randomized(80, t=range(1, 9), p=range(1, 5), seed=SEEDS, share=[0.3, 0.7, 0.9], longest=[1, 2, 3, 1024])
def test_static_windows_are_the_best_partition(t, p, seed, share, longest):
    still = torch.rand(t - 1, p, generator=torch.Generator().manual_seed(seed)) < share
    assert static_windows(still, longest) == by_all_partitions(still, longest)


def test_static_windows_of_the_specification():
    still = torch.tensor([[1, 1], [1, 0], [1, 1], [0, 1]]).bool()
    assert static_windows(still) == [(0, 1), (2, 3), (4, 4)]
    assert static_windows(torch.ones(4, 3).bool()) == [(0, 4)]
    assert static_windows(torch.zeros(2, 3).bool()) == [(0, 0), (1, 1), (2, 2)]
    assert static_windows(torch.zeros(0, 3).bool()) == [(0, 0)]


@st.composite
def parts_of(draw):
    size = draw(st.integers(1, 7))
    most = draw(st.lists(st.integers(0, 9), min_size=size, max_size=size))
    assume(sum(most))
    least = [draw(st.integers(0, high)) for high in most] if draw(st.booleans()) else [0] * size
    weights = draw(st.lists(st.sampled_from([0.0, 0.1, 0.25, 1.0, 3.0]), min_size=size, max_size=size))
    return draw(st.integers(sum(least), sum(most))), weights, most, least


@randomized(400, drawn=parts_of())
def test_budgets_meet_k_within_limits(drawn):
    k, weights, most, least = drawn
    got = budgets(k, weights, most, least)
    assert sum(got) == k
    assert all(low <= part <= high for low, part, high in zip(least, got, most, strict=True))
    # Where a part is not at its limit, one of more weight has no less, up to the rounding of one token.
    for i in range(len(got)):
        for j in range(len(got)):
            if weights[i] > weights[j] > 0 and got[i] < most[i] and got[j] > least[j]:
                assert got[i] + 1 >= got[j]


@randomized(200, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=6), share=st.floats(0, 1))
def test_budgets_without_limits_are_largest_remainders(sizes, share):
    k = round(share * sum(sizes))
    assert budgets(k, sizes, sizes) == largest_remainder(k, sizes)
    exact = [Fraction(k * size, sum(sizes)) for size in sizes]
    if min(exact) >= 1:
        assert all(abs(part - want) < 1 for part, want in zip(budgets(k, sizes, sizes), exact, strict=True))


@pytest.mark.parametrize(
    ("k", "weights", "most", "least", "expected"),
    [
        (10, [3.0, 1.0, 1.0], [4, 9, 9], None, [4, 3, 3]),  # what the first cannot take
        (10, [8.0, 1.0, 1.0], [9, 9, 9], [0, 3, 0], [6, 3, 1]),  # what the second must have
        (5, [1.0, 0.0, 0.0], [2, 1, 5], None, [2, 1, 2]),  # the others weigh nothing: by their size
        (2, [1.0, 1.0, 1.0], [5, 5, 5], None, [1, 1, 0]),
        (0, [1.0], [0], None, [0]),
    ],
)
def test_worked_budgets(k, weights, most, least, expected):
    assert budgets(k, weights, most, least) == expected
