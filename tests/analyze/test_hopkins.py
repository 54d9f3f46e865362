"""The measures are what their definitions say: against loops in plain Python, and the golden vectors."""

import math
import random

import numpy as np
import pytest
import torch
from reference_selection import WORKED, WORKED_SCORES

from harness.analyze.hopkins import AMBIENT, REFERENCES, Cloud, between, cosines, directions, hopkins, retention

IMPORTANCE = torch.tensor(WORKED_SCORES)
GREEDY, FPS = torch.tensor([0, 1, 3, 6]), torch.tensor([6, 3, 0, 4])


def features(n=30, width=6, seed=0):
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed)) + 1


def distance(a, b):
    """Cosine distance of two lists of numbers."""
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return 1 - dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))


def naive_hopkins(reference, kept):
    """Sums of the distances to the nearest, as the paper writes it; both of one size."""
    outer = sum(min(distance(r, t) for t in kept) for r in reference)
    inner = sum(min(distance(t, u) for j, u in enumerate(kept) if j != i) for i, t in enumerate(kept))
    return outer / (outer + inner)


def test_golden_vectors():
    rows = torch.tensor(WORKED, dtype=torch.float32)
    assert retention(IMPORTANCE, GREEDY) == pytest.approx(0.743590, abs=1e-6)
    assert retention(IMPORTANCE, FPS) == pytest.approx(0.564103, abs=1e-6)
    unit, axes = directions(rows), torch.eye(4, dtype=torch.float64)
    for kept, expected in ((GREEDY, 0.364109), (FPS, 0.046091)):
        members = unit[kept]
        assert hopkins(between(axes, members), between(members, members)) == pytest.approx(expected, abs=1e-6)
    degrees = np.degrees(np.arccos(cosines(rows).numpy()))
    assert len(degrees) == 28
    assert [degrees.min(), degrees.max(), degrees.mean()] == pytest.approx([12.5288, 90.0, 64.8768], abs=1e-4)


@pytest.mark.parametrize("reference", REFERENCES)
def test_the_statistic_of_every_reference_is_the_mean_over_its_draws(reference):
    x, kept = features(), torch.tensor([0, 3, 4, 9, 17, 20, 29])
    cloud = Cloud(x, [1, 2], draws=3)
    expected, rows = [], x.double().numpy()
    for draw in range(3):
        rng = np.random.default_rng([1, 2, len(kept), draw])
        if reference in AMBIENT:
            points = {
                "bbox": lambda rng: rng.uniform(rows.min(0), rows.max(0), (7, 6)),
                "gauss": lambda rng: rng.normal(rows.mean(0), rows.std(0), (7, 6)),
                "sphere": lambda rng: rng.normal(size=(7, 6)),
            }[reference](rng)
        else:
            pool = [i for i in range(30) if reference == "token" or i not in kept.tolist()]
            points = rows[[pool[i] for i in rng.permutation(len(pool))[:7]]]
        expected.append(naive_hopkins(points.tolist(), rows[kept.numpy()].tolist()))
    assert cloud.hopkins(kept, reference) == pytest.approx(sum(expected) / 3, abs=1e-9)


def test_clustered_subsets_score_higher_than_spread_ones():
    centres = features(10, 16, seed=3) * 4
    x = centres.repeat_interleave(8, 0) + 0.2 * features(80, 16, seed=4)
    one_cluster, spread = torch.arange(8), torch.arange(0, 80, 10)
    for reference in REFERENCES:
        cloud = Cloud(x, [0])
        assert cloud.hopkins(one_cluster, reference) > cloud.hopkins(spread, reference) + 0.1


def test_reference_points_are_the_same_for_all_subsets_of_a_size():
    x, a, b = features(), torch.arange(5), torch.arange(5, 10)
    both = Cloud(x, [7])
    assert (both.hopkins(a, "bbox"), both.hopkins(b, "bbox")) == (
        Cloud(x, [7]).hopkins(a, "bbox"),
        Cloud(x, [7]).hopkins(b, "bbox"),
    )
    assert Cloud(x, [8]).hopkins(a, "bbox") != both.hopkins(a, "bbox")


def test_edges():
    x = features()
    cloud = Cloud(x, [0])
    assert math.isnan(cloud.hopkins(torch.tensor([3]), "bbox"))
    assert math.isnan(cloud.hopkins(torch.arange(30), "complement"))
    same = Cloud(torch.ones(6, 3), [0])
    assert same.hopkins(torch.tensor([0, 1]), "complement") == 0.5
    assert retention(torch.zeros(8), GREEDY) == 0.5


def test_rows_of_zeros_have_no_direction_and_are_left_out():
    x = features(12)
    padded = torch.cat([x, torch.zeros(2, 6)])
    kept = torch.tensor([0, 1, 5])
    alone, among = Cloud(padded, [0]).hopkins(kept, "sphere"), Cloud(padded, [0])
    assert among.hopkins(torch.tensor([0, 1, 5, 12, 13]), "sphere") == alone
    torch.testing.assert_close(cosines(padded), cosines(x))


def test_random_subsets_are_half_against_what_they_dropped():
    x, rng = features(200, 8), random.Random(0)
    found = [Cloud(x, [i]).hopkins(torch.tensor(rng.sample(range(200), 50)), "complement") for i in range(40)]
    assert sum(found) / 40 == pytest.approx(0.5, abs=0.01)
