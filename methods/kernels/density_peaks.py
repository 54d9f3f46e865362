"""Density-peak clustering: centres are dense points that are far from any denser one."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from methods.kernels.cosine import snap
from methods.scores import top

TILE = 256  # rows that are compared with as many others at once


class Clusters(NamedTuple):
    """Clusters of n points around c of them."""

    centres: Tensor  # [c] indices of points, by falling density times distance
    cluster: Tensor  # [n] row of `centres`: the nearest one, the first of equally near ones
    distance: Tensor  # [n, n] Euclidean distances over the root of the width


def density_peaks(x: Tensor, c: int, k: int) -> Clusters:
    """Cluster `x` [n, d] around `c` <= n of its rows, in float64.

        rho_i   = exp(-mean of the k smallest squared distances of i, its own 0 among them)
        delta_i = distance to the nearest point that is denser; for the densest, the largest distance of all
        centres = the c points of largest rho delta

    Of points with equal rho the one of lower index counts as denser, and ties in rho delta go to the lower index. Ties
    are the rule for a `k` of 1, where every rho is 1, and of 2, where two points that are each other's nearest have the
    same. Published code draws noise there. Both are rounded to 40 bits. A centre is in its own cluster.
    """
    n = len(x)
    distance = _distances(x.double()) / math.sqrt(x.shape[1])
    near = distance.topk(min(k, n), dim=1, largest=False).values.square()
    sparsity = snap(near.mean(dim=1))
    index = torch.arange(n, device=x.device)
    denser = sparsity[None, :] < sparsity[:, None]
    denser |= (sparsity[None, :] == sparsity[:, None]) & (index[None, :] < index[:, None])
    delta = torch.where(denser, distance, distance.max()).amin(dim=1)
    centres = top(snap((-sparsity).exp() * delta), c)
    cluster = distance[:, centres].argmin(dim=1)
    cluster = cluster.index_copy(0, centres, torch.arange(c, device=x.device))
    return Clusters(centres, cluster, distance)


def _distances(x: Tensor) -> Tensor:
    """Return the Euclidean distances [n, n] of rows [n, d], each pair computed once.

    By differences: products would make d(i, j) and d(j, i) differ in their last bits, which decide ties.
    """
    distance = x.new_empty(len(x), len(x))
    for i, rows in enumerate(tiles := x.split(TILE)):
        for j, others in enumerate(tiles[i:], i):
            of_tile = torch.cdist(rows, others, compute_mode="donot_use_mm_for_euclid_dist")
            here, there = (slice(place * TILE, (place + 1) * TILE) for place in (i, j))
            distance[here, there] = of_tile
            distance[there, here] = of_tile.T
    return distance
