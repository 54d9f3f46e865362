"""Density peaks against their definition, point by point."""

import torch
from properties import SEEDS, randomized
from video_references import density_peaks as by_definition

from methods.kernels.density_peaks import density_peaks


@randomized(60, n=range(1, 20), d=range(1, 6), c=range(1, 7), k=range(1, 7), seed=SEEDS, levels=[0, 2, 5])
def test_centres_and_clusters(n, d, c, k, seed, levels):
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    if levels:  # many equal points and distances
        x = (x * levels / 2).round()
    got = density_peaks(x, min(c, n), min(k, n))
    assert (got.centres.tolist(), got.cluster.tolist()) == by_definition(x.numpy(), min(c, n), min(k, n))


def test_ties_of_one_and_two_neighbours_go_to_the_lower_index():
    x = torch.tensor([[0.0], [1.0], [5.0], [6.0]])
    # With one neighbour all densities are 1: the first point is the densest, the third is far from those before it.
    assert density_peaks(x, 2, 1).centres.tolist() == [0, 2]
    # Each pair is mutually nearest, so that all four have the same density.
    assert density_peaks(x, 2, 2).centres.tolist() == [0, 2]
    assert density_peaks(x, 2, 2).cluster.tolist() == [0, 0, 1, 1]


def test_one_cluster_holds_all():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(0))
    assert density_peaks(x, 1, 1).cluster.tolist() == [0] * 9
