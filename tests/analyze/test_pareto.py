"""Curves are compared where they are equally clustered, and the verdict is what the numbers say."""

import numpy as np
import pytest

from harness.analyze.pareto import Plane, at, compared, excess, front

H = np.linspace(0.2, 0.8, 7)


def line(gain=0.0, h=H):
    return h, 0.3 + 0.5 * h + gain


def plane(gain, n=60, noise=0.02):
    """Two curves over images that differ in how much can be retained, `ours` being better by `gain` on average."""
    rng = np.random.default_rng(0)
    image, hs = rng.normal(0, 0.1, (n, 1)), [H, H + 0.05, np.array([0.5])]
    hopkins = np.concatenate([np.tile(h, (n, 1)) for h in hs], axis=1)
    retention = 0.3 + 0.5 * hopkins + image + rng.normal(0, noise, hopkins.shape)
    retention[:, :7] += gain
    curves = ["ours"] * 7 + ["theirs"] * 7 + ["point"]
    labels = [f"{curve} {place}" for place, curve in enumerate(curves)]
    return Plane(labels, curves, hopkins, retention)


def test_a_front_is_what_one_would_choose_from_a_curve():
    h, i = np.array([0.5, 0.2, 0.3, 0.4, 0.3]), np.array([0.9, 0.4, 0.3, 0.5, 0.45])  # back and forth
    assert [list(values) for values in front((h, i))] == [[0.2, 0.3, 0.4, 0.5], [0.4, 0.45, 0.5, 0.9]]


def test_retention_is_linear_between_points_unknown_before_and_at_its_best_behind():
    shuffled = tuple(values[[3, 0, 6, 1, 5, 2, 4]] for values in line())
    found = at(front(shuffled), np.array([0.2, 0.25, 0.8, 0.9, 0.1]))
    assert found[:4] == pytest.approx([0.4, 0.425, 0.7, 0.7])
    assert np.isnan(found[4])


def test_excess_is_the_mean_difference_over_the_common_range():
    assert excess(line(0.1), line()) == pytest.approx(0.1)
    assert excess(line(), line(0.1, H + 0.3)) == pytest.approx(-0.1)
    # A triangle of height 1 over the middle half of the range: a quarter, on a front whose knots the other lacks.
    bent = (np.array([0.0, 1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 3.0, 3.0, 4.0]))
    assert excess(bent, (np.array([0.0, 4.0]), np.array([0.0, 4.0]))) == pytest.approx(0.25)
    fine = np.linspace(0.3, 0.7, 100_001)
    a, b = (H, H**2), (np.array([0.3, 0.45, 0.7]), np.array([0.1, 0.5, 0.9]))
    assert excess(a, b) == pytest.approx(float((at(a, fine) - at(b, fine)).mean()), abs=1e-5)


def test_a_point_is_compared_at_its_own_place():
    assert excess(line(), (np.array([0.5]), np.array([0.5]))) == pytest.approx(0.05)
    assert excess(line(), (np.array([0.9]), np.array([0.5]))) == pytest.approx(0.2)
    early = (np.array([0.1]), np.array([0.3]))  # it retains 0.3 wherever more clustering is allowed
    assert excess(line(), early) == pytest.approx(0.1)


def test_a_gain_is_found_with_an_interval_around_it():
    found = compared(plane(0.03), "ours", "theirs", 400, 0)
    assert found["low"] < found["difference"] < found["high"]
    assert found["difference"] == pytest.approx(0.03, abs=0.005)
    assert found["high"] - found["low"] < 0.02  # images differ by 0.1, but for both curves alike
    assert found["holds"] is True
    assert found["violated_at"] == []
    assert {f"theirs {i}" for i in range(7, 13)} <= {place for place, it in found["points"].items() if it["low"] > 0}
    assert compared(plane(0.03), "ours", "point", 400, 0)["holds"] is True


def test_a_loss_and_a_draw_are_no_gain():
    loss = compared(plane(-0.03), "ours", "theirs", 400, 0)
    assert (loss["holds"], loss["high"] < 0) == (False, True)
    assert loss["violated_at"] == [f"theirs {place}" for place in range(7, 14)]
    draw = compared(plane(0.0), "ours", "theirs", 400, 0)
    assert draw["holds"] is False
    assert draw["low"] < 0 < draw["high"]


def test_undominated_points_are_those_that_no_other_beats():
    rng = np.random.default_rng(1)
    h, i = rng.random((5, 40)), rng.random((5, 40))
    labels = [str(place) for place in range(40)]
    means = list(zip(labels, h.mean(0), i.mean(0), strict=True))
    expected = [
        name
        for name, x, y in means
        if not any(a <= x and b >= y and (a < x or b > y) for other, a, b in means if other != name)
    ]
    assert Plane(labels, labels, h, i).undominated() == expected
    assert 1 < len(expected) < 40
