"""Plain transcriptions that the diversity methods are compared with, and samples with ties of every kind."""

from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import torch

from methods.base import Tokens

WORKED = [
    [4, 1, 0, 0],
    [4, 2, 0, 0],
    [1, 4, 0, 0],
    [0, 3, 1, 0],
    [0, 0, 4, 1],
    [0, 0, 3, 3],
    [1, 0, 0, 4],
    [1, 1, 1, 1],
]
WORKED_SCORES = [0.9, 0.8, 0.2, 0.7, 0.1, 0.3, 0.5, 0.4]
KINDS = ("normal", "duplicates", "zero_rows", "opposite", "integers", "parallel")


def worked_example():
    return Tokens(torch.tensor(WORKED).float(), [(1, 2, 4)], importance=torch.tensor(WORKED_SCORES))


def sample(n, d, seed, kind="normal", grids=None):
    """Tokens whose rows tie in the way `kind` says; "integers" and "parallel" tie only in exact arithmetic."""
    g = torch.Generator().manual_seed(seed)
    x, w = torch.randn(n, d, generator=g), torch.randn(n, generator=g)
    if kind == "duplicates":
        x = x[torch.randint(0, max(n // 3, 1), (n,), generator=g)]
        w = w.round()
    elif kind == "zero_rows":
        x[::3] = 0
    elif kind == "opposite":
        x[1::2] = -x[: n // 2 * 2 : 2]
    elif kind == "integers":
        x, w = torch.randint(-2, 3, (n, d), generator=g).float(), w.round()
    elif kind == "parallel":
        x = torch.randint(-1, 2, (n, d), generator=g) * torch.tensor([0.25, 1.0, 3.0, 7.0])[torch.arange(n) % 4, None]
    return Tokens(x, grids or [(1, 1, n)], importance=w, text=torch.randn(3, d, generator=g))


def attended(grids, d, seed, kind="normal"):
    """Tokens with attention instead of importance; "huge", "tiny" and "parallel" rows have a direction all the same."""
    g = torch.Generator().manual_seed(seed)
    n = sum(t * h * w for t, h, w in grids)
    x, scores = torch.randn(n, d, generator=g), torch.rand(n, generator=g)
    rows = torch.randint(0, max(n // 3, 1), (n,), generator=g)  # where several are alike
    if kind == "positive":
        x = x.abs()
    elif kind == "duplicates":
        x, scores = x[rows], scores[rows]
    elif kind == "parallel":
        x = (x * 4).round()[rows] * torch.randint(1, 6, (n, 1), generator=g)
    elif kind == "equal":
        x = x[:1].repeat(n, 1)
    elif kind == "zero_rows":
        x[::3] = 0
    elif kind == "opposite":
        x[1::2] = -x[: n // 2 * 2 : 2]
    elif kind == "huge":
        x = x / x.abs().max() * 3e38
    elif kind == "tiny":
        x = x * 1e-30
    elif kind == "levels":
        scores = (scores * 4).round()
    return Tokens(x, grids, vit_attention={"last": scores})


def shuffled(tokens):
    """The tokens of one image in another order, and which of them [N] each was."""
    origin = torch.randperm(len(tokens.features), generator=torch.Generator().manual_seed(1))
    attention = {role: scores[origin] for role, scores in (tokens.vit_attention or {}).items()}
    importance = None if tokens.importance is None else tokens.importance[origin]
    features = tokens.features[origin]
    return replace(tokens, features=features, importance=importance, vit_attention=attention or None), origin


def signed_squares(rows):
    """Return the function (i, j) -> cos |cos| of two rows as a rational number, which orders pairs as the cosine does.

    It is 0 where a row is zero.
    """
    rows = [[Fraction(float(v)) for v in row] for row in rows]
    norms = [sum(v * v for v in row) for row in rows]

    @cache
    def ordered(i, j):
        dot, length = sum(a * b for a, b in zip(rows[i], rows[j], strict=True)), norms[i] * norms[j]
        return dot * abs(dot) / length if length else Fraction(0)

    return lambda i, j: ordered(min(i, j), max(i, j))


def farthest(rows, k, first=None):
    """Max-min distance in exact arithmetic: the nearest pick of the next is farther than that of any other."""
    n, square = len(rows), signed_squares(rows)
    if first is None:
        first = [min(range(n), key=lambda i: (max((square(i, j) for j in range(n) if j != i), default=-2), i))]
    picked = list(first)
    while len(picked) < k:
        rest = [i for i in range(n) if i not in picked]
        picked.append(min(rest, key=lambda i: (max(square(i, p) for p in picked), i)))
    return picked


def greedy_map(rows, quality, k, tolerance=1e-6):
    """Greedy MAP by incremental Cholesky over the whole kernel, with the fill that follows when no gain is left."""
    x, q = np.asarray(rows, dtype=np.float64), np.asarray(quality, dtype=np.float64)
    norm = np.sqrt((x**2).sum(1))
    x = x / np.maximum(norm, 1e-8)[:, None]
    s = np.array([[(a * b).sum() for b in x] for a in x])
    np.fill_diagonal(s, 1.0)
    kernel = q[:, None] * s * q[None, :]
    gain, factor, picked = np.diag(kernel).copy(), [], []
    limit = tolerance * gain.max()
    while len(picked) < k:
        open_gain = [-1.0 if i in picked else gain[i] for i in range(len(q))]
        j = int(np.argmax(open_gain))
        if open_gain[j] <= limit:
            return picked + sorted(set(range(len(q))) - set(picked), key=lambda i: (-q[i], i))[: k - len(picked)]
        e = (kernel[j] - sum((c[j] * c for c in factor), np.zeros(len(q)))) / np.sqrt(gain[j])
        factor.append(e)
        gain = gain - e**2
        picked.append(j)
    return picked


def greedy_volume(rows, k):
    """Greedy MAP with quality 1 in exact arithmetic: what the picked directions leave of a row's squared length."""
    rows = [[Fraction(float(v)) for v in row] for row in rows]
    lengths = [sum(v * v for v in row) for row in rows]
    left, picked = [list(row) for row in rows], []  # Gram-Schmidt residuals
    while len(picked) < k:
        gain = [sum(v * v for v in r) / n if n else Fraction(1) for r, n in zip(left, lengths, strict=True)]
        rest = [i for i in range(len(rows)) if i not in picked]
        j = min(rest, key=lambda i: (-gain[i], i))
        if gain[j] == 0:
            return picked + rest[: k - len(picked)]
        base, size = list(left[j]), sum(v * v for v in left[j])
        if size:
            for r in left:
                share = sum(a * b for a, b in zip(r, base, strict=True)) / size
                r[:] = [a - share * b for a, b in zip(r, base, strict=True)]
        picked.append(j)
    return picked
