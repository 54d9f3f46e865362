"""Selection as published codes do it, written anew in torch: what the kernels are compared with.

All of them form the similarities of all pairs, make one Python iteration a pick, and read each pick back to the host.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def cosines(x: Tensor) -> Tensor:
    """Return the similarities [N, N] of rows x [N, D]."""
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-8)
    return x @ x.T


def mmr(x: Tensor, importance: Tensor, k: int, lam: float) -> list[int]:
    """IDPruner, arXiv 2602.13315: importance against the similarity to the nearest pick."""
    similar = cosines(x)
    nearest = similar.new_full((len(x),), -2.0)
    taken = torch.zeros_like(nearest, dtype=torch.bool)
    picked = [int(importance.argmax())]
    while True:
        nearest = torch.maximum(nearest, similar[:, picked[-1]])
        if len(picked) == k:
            return picked
        taken[picked[-1]] = True
        score = (lam * importance - (1 - lam) * nearest).masked_fill(taken, -torch.inf)
        picked += score.topk(1).indices.tolist()


def maxmin(x: Tensor, k: int) -> list[int]:
    """Farthest-point sampling from the token whose nearest neighbour is farthest; the nearest pick is kept track of."""
    distance = 1 - cosines(x)
    distance.fill_diagonal_(torch.inf)
    picked = [int(distance.amin(dim=1).argmax())]
    nearest = distance.new_full((len(x),), torch.inf)
    while len(picked) < k:
        nearest = torch.minimum(nearest, distance[picked[-1]])
        nearest[picked[-1]] = -1  # and so it stays
        picked.append(int(nearest.argmax()))
    return picked


def divprune(x: Tensor, k: int) -> list[int]:
    """DivPrune, arXiv 2503.02175: the same, but every pick goes over the rows of all picks before."""
    distance = 1 - cosines(x)
    picked = distance.topk(2, dim=0, largest=False).values[1].argmax().repeat(k)
    for made in range(1, k):
        nearest = distance.index_select(0, picked[:made]).amin(dim=0)
        nearest[picked[:made]] = -1  # which the original leaves out: it may pick a token twice
        picked[made] = int(nearest.argmax())
    return [int(pick) for pick in picked.tolist()]


def coverage(x: Tensor, saliency: Tensor, k: int) -> list[int]:
    """SCOPE, arXiv 2510.24214: the gains of all tokens from all pairs at every pick."""
    similar = cosines(x)
    covered = similar.new_zeros(len(x))
    taken = torch.zeros_like(covered, dtype=torch.bool)
    picked: list[int] = []
    while len(picked) < k:
        gain = (similar - covered[:, None]).clamp(min=0).sum(dim=0)
        score = (gain * saliency).masked_fill(taken, -torch.inf)
        picked.append(int(score.argmax()))
        taken[picked[-1]] = True
        covered = torch.maximum(covered, similar[picked[-1]])
    return picked


def dpp(x: Tensor, quality: Tensor, k: int) -> list[int]:
    """Greedy MAP by incremental Cholesky (Chen et al., NeurIPS 2018), as in CDPruner, arXiv 2506.10967."""
    kernel = quality[:, None] * cosines(x) * quality
    gain = kernel.diagonal().clone()
    factor = kernel.new_zeros(k, len(x))
    picked: list[int] = []
    while True:
        picked.append(int(gain.argmax()))
        if len(picked) == k:
            return picked
        done, last = len(picked) - 1, picked[-1]
        part = (kernel[last] - factor[:done, last] @ factor[:done]) / gain[last].sqrt()
        factor[done] = part
        gain = gain - part.square()
        gain[last] = -torch.inf


def scorer(x: Tensor, weights: Mapping[str, Tensor]) -> Tensor:
    """VisionSelector, arXiv 2510.16598: queries and keys of all tokens, and the mean of all their products."""
    query = x @ weights["q_proj.weight"].T + weights["q_proj.bias"]
    key = x @ weights["k_proj.weight"].T + weights["k_proj.bias"]
    return (query @ key.T / query.shape[1] ** 0.5).mean(dim=1)


def received(q: Tensor, k: Tensor) -> Tensor:
    """The attention [N] that keys [H, N, d] receive, from the maps of all heads."""
    return (q @ k.mT / q.shape[-1] ** 0.5).softmax(dim=-1).mean(dim=0).sum(dim=0)
