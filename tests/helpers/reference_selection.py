"""Plain checks of the picks of diversity methods, and samples with ties of every kind."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import cache

import numpy as np
import torch

from methods.base import Tokens
from methods.tokens import num_tokens

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
ROUNDING = 4e-6  # of a difference of two cosines, each rounded to multiples of 2^-20
KINDS = ("normal", "duplicates", "zero_rows", "opposite", "integers", "parallel")


def worked_example():
    return Tokens(torch.tensor(WORKED).float(), [(1, 2, 4)], importance=torch.tensor(WORKED_SCORES))


def sample(n, d, seed, kind="normal", grids=None):
    """Return tokens with all signals of an image, of which rows or scores tie as `kind` says.

    "integers" and "parallel" rows tie only in exact arithmetic; "huge", "tiny" and "parallel" rows are not zero.
    """
    g = torch.Generator().manual_seed(seed)
    x, importance = torch.randn(n, d, generator=g), torch.randn(n, generator=g)
    last, middle = torch.rand(2, n, generator=g)
    copies = torch.randint(0, max(n // 3, 1), (n,), generator=g)
    if kind == "positive":
        x = x.abs()
    elif kind == "duplicates":
        x, importance, last = x[copies], importance[copies], last[copies]
    elif kind == "clustered":
        x = x[copies] + 0.3 * x
    elif kind == "zero_rows":
        x[::3] = 0
    elif kind == "opposite":
        x[1::2] = -x[: n // 2 * 2 : 2]
    elif kind == "integers":
        x, importance = torch.randint(-2, 3, (n, d), generator=g).float(), importance.round()
    elif kind == "parallel":
        x = (x * 4).round()[copies] * torch.tensor([0.25, 1.0, 3.0, 7.0])[torch.arange(n) % 4, None]
    elif kind == "equal":
        x = x[:1].repeat(n, 1)
    elif kind == "huge":
        x = x / x.abs().max() * 3e38
    elif kind == "tiny":
        x = x * 1e-30
    elif kind == "levels":
        importance, last, middle = importance.round(), (last * 4).round(), (middle * 4).round()
    elif kind == "constant":
        importance, last, middle = (torch.full((n,), value) for value in (-2.5, 0.3, 0.3))
    elif kind == "dark":
        last = torch.zeros(n)
    elif kind == "peaked":
        last = last**12
    elif kind == "sums":  # attention as on Qwen2.5-VL, where it averages 1 and may exceed it by far
        last, middle = last.exp() ** 3, middle * 2
    elif kind.startswith("outlier"):
        importance[n // 2] = last[n // 2] = 1e13
        x = x[:1].repeat(n, 1) if kind == "outlier_equal" else x[torch.arange(n) // 2]
    text, attention = torch.randn(3, d, generator=g), {"last": last, "middle": middle}
    signals = {"vit_attention": attention, "vit_keys": x, "vit_features": x, "text": text}
    return Tokens(x, grids or [(1, 1, n)], importance=importance, **signals)


def attended(grids, d, seed, kind="normal"):
    """Return the sample of some images or videos."""
    return sample(num_tokens(grids), d, seed, kind, grids)


def shuffled(tokens):
    """Return the tokens of one image in another order, and the old index [N] of each."""
    origin = torch.randperm(len(tokens.features), generator=torch.Generator().manual_seed(1))
    attention = {role: scores[origin] for role, scores in (tokens.vit_attention or {}).items()}
    importance = None if tokens.importance is None else tokens.importance[origin]
    features = tokens.features[origin]
    return replace(tokens, features=features, importance=importance, vit_attention=attention or None), origin


def signed_squares(rows):
    """Return a function (i, j) -> cos |cos| of two rows as a rational number, which orders pairs like the cosine.

    It is 0 if a row is zero.
    """
    rows = [[Fraction(float(v)) for v in row] for row in rows]
    norms = [sum(v * v for v in row) for row in rows]

    @cache
    def ordered(i, j):
        dot, length = sum(a * b for a, b in zip(rows[i], rows[j], strict=True)), norms[i] * norms[j]
        return dot * abs(dot) / length if length else Fraction(0)

    return lambda i, j: ordered(min(i, j), max(i, j))


def is_greedy(order, same, scores, tolerance=ROUNDING):
    """Tell whether every pick is the best token left, up to rounding, and the first of those with equal keys.

    `same` holds the key of each token; `scores` maps earlier picks to the scores [N] of all tokens.
    """
    for count, pick in enumerate(order):
        now, left = scores(order[:count]), set(range(len(same))) - set(order[:count])
        earlier_copy = any(i < pick and same[i] == same[pick] and now[i] >= now[pick] for i in left)
        if pick not in left or earlier_copy or now[pick] < max(now[i] for i in left) - tolerance:
            return False
    return True


def directions(rows):
    """Return a key per row, equal for rows that are equal after division by their largest absolute value."""
    rows = torch.as_tensor(rows).float()
    return [tuple(row) for row in (rows / rows.abs().amax(1, keepdim=True).clamp_min(1e-45)).tolist()]


def is_farthest(order, rows, first=()):
    """Tell whether `order` begins with `first`, and every next pick is the one farthest from its nearest pick."""
    n = len(rows)
    exact = signed_squares(rows)
    squares = [[float(exact(i, j)) for j in range(n)] for i in range(n)]
    s = [[math.copysign(math.sqrt(abs(square)), square) for square in row] for row in squares]

    def scores(picked):
        if len(picked) < len(first):
            return [float(i == first[len(picked)]) for i in range(n)]
        return [-max((s[i][j] for j in picked or range(n) if j != i), default=-2) for i in range(n)]

    return is_greedy(order, directions(rows), scores)


def is_greedy_map(order, rows, quality, tolerance=1e-5):
    """Tell whether every pick adds most weighted volume, up to rounding; without a gain, the rest are by quality.

    If the best gain is near `tolerance`, both are right, and later picks are not checked.
    """
    x, weight = np.asarray(rows, dtype=np.float64), np.square(np.asarray(quality, dtype=np.float64))
    x = x / np.maximum(np.sqrt((x**2).sum(1)), 1e-8)[:, None]
    left, same, limit = x.copy(), directions(rows), tolerance * weight.max()  # Gram-Schmidt residuals
    zero = ~x.any(1)
    for count, pick in enumerate(order):
        gain = weight * ((left**2).sum(1) + zero)
        gain[order[:count]] = -1
        best = gain.max()
        if best < limit / 4:
            rest = sorted(set(range(len(x))) - set(order[:count]), key=lambda i: (-quality[i], i))
            return order[count:] == rest[: len(order) - count]
        if best < limit * 4:
            return True
        earlier_copy = any(same[i] == same[pick] and gain[i] >= gain[pick] > 0 for i in range(pick))
        if earlier_copy or gain[pick] < best - limit / 2 - best / 100:
            return False
        if not zero[pick]:
            base = left[pick] / np.sqrt((left[pick] ** 2).sum())
            left -= np.outer(left @ base, base)
    return True
