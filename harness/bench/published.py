"""Public implementations of selection, written again in torch with the same operations, to time the kernels against.

`angelslim_*` follow Tencent/AngelSlim at commit 17d3d92, angelslim/compressor/token_compressor/algorithm/: the port in
which all three methods are used. The others follow the code of the authors. All form the similarities of all pairs.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def cosines(x: Tensor) -> Tensor:
    """Return the similarities [N, N] of rows x [N, D]."""
    x = x / (torch.linalg.vector_norm(x, dim=1, keepdim=True) + 1e-8)
    return x @ x.T


def angelslim_mmr(x: Tensor, importance: Tensor, k: int, lam: float) -> list[int]:
    """IDPruner, arXiv 2602.13315, as in idpruner.py with parallel_k=1."""
    similar = cosines(x)
    nearest = similar.new_full((len(x),), -2.0)
    open_ = torch.ones_like(nearest, dtype=torch.bool)
    picked: list[int] = []
    while len(picked) < k:
        score = lam * importance - (1 - lam) * nearest if picked else importance.clone()
        score[~open_] = -torch.inf
        best = score.topk(1).indices
        picked += best.tolist()
        open_[best] = False
        nearest = torch.maximum(nearest, similar[:, best].max(dim=1).values)
    return picked


def angelslim_divprune(x: Tensor, k: int) -> Tensor:
    """DivPrune, arXiv 2503.02175, as in divprune.py: the distance to the nearest pick is kept up to date."""
    unit = torch.nn.functional.normalize(x, dim=1)
    distance = 1 - unit @ unit.T
    distance.fill_diagonal_(torch.inf)
    picked = torch.empty(k, dtype=torch.int64, device=x.device)
    picked[0] = distance.min(dim=1).values.argmax()
    nearest = distance[:, picked[0]].clone()
    for made in range(1, k):
        score = nearest.clone()
        score[picked[:made]] = -1.0
        pick = score.argmax()
        picked[made] = pick
        nearest = torch.minimum(nearest, distance[:, pick])
    return picked


def divprune(x: Tensor, k: int) -> list[int]:
    """DivPrune as its authors have it: every pick goes over the rows of all picks before."""
    distance = 1 - cosines(x)
    picked = distance.topk(2, dim=0, largest=False).values[1].argmax().repeat(k)
    for made in range(1, k):
        nearest = distance.index_select(0, picked[:made]).amin(dim=0)
        nearest[picked[:made]] = -1  # which the original leaves out: it may pick a token twice
        picked[made] = int(nearest.argmax())
    return [int(pick) for pick in picked.tolist()]


def angelslim_scope(x: Tensor, saliency: Tensor, k: int) -> Tensor:
    """SCOPE, arXiv 2510.24214, as in scope.py: the gains of all tokens from all pairs for every pick."""
    unit = x / x.norm(dim=-1, keepdim=True)
    similar = unit @ unit.T
    picked = torch.empty(k, dtype=torch.int64, device=x.device)
    covered, taken = similar.new_zeros(len(x)), torch.zeros(len(x), dtype=torch.bool, device=x.device)
    for made in range(k):
        open_pairs = similar.masked_fill(taken[None, :], 0) - covered[:, None]
        gain = torch.maximum(similar.new_zeros(1), open_pairs).sum(dim=0) * saliency
        pick = gain.masked_fill(taken, -torch.inf).argmax()
        taken[pick] = True
        picked[made] = pick
        covered = torch.maximum(covered, similar[pick])
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
