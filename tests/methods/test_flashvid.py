"""FlashVID against a plain program of its specification, token by token; the budget of its frames; the cut inside."""

import math

import numpy as np
import pytest
import torch
from layer_samples import attention_of, best, layer_tokens
from properties import SEEDS, SHARE, randomized
from video_references import (
    KINDS,
    VIDEOS,
    assert_same_rows,
    clips_of,
    clusters,
    cosine,
    exact,
    merged_rows,
    shared,
    video,
)

from methods.base import Cut, Signal
from methods.flashvid import FlashVID
from methods.kernels.maxmin import weighted_maxmin
from methods.testing import CHECKS, exactly_k_of_any_finite_input


def segments(g, least):
    """Return the segments (first, last) of frames with the mean tokens `g` [T, D]."""
    similar = [cosine(g[i], g[i + 1]) for i in range(len(g) - 1)]
    ends = {i for i, value in enumerate(similar) if value < 0.9}
    for i in sorted(range(len(similar)), key=lambda i: (similar[i], i)):
        if len(ends) + 1 < least:
            ends.add(i)
    starts = [0, *(i + 1 for i in sorted(ends))]
    return list(zip(starts, [*(start - 1 for start in starts[1:]), len(g) - 1], strict=True))


def farthest(x, weight, count):
    """Return `count` tokens of a frame `x` [P, D] in the order picked."""
    n, picks = len(x), []
    d = [[(1 - cosine(x[i], x[j])) * weight[j] for j in range(n)] for i in range(n)]
    while len(picks) < count:
        if picks:
            nearest = {j: min(d[i][j] for i in picks) for j in range(n) if j not in picks}
        else:
            nearest = {j: sorted(d[i][j] for i in range(n))[1] if n > 1 else 0.0 for j in range(n)}
        picks.append(max(nearest, key=lambda j: (nearest[j], -j)))
    return picks


def segment(x, free, budget, rest, method):
    """Return {(frame, place): row} of a segment `x` [L, P, D] where `free` tokens may merge into `rest` of `budget`."""
    t, p, _ = x.shape
    match = {}
    for i in range(1, t):
        for j in free[i]:
            if free[i - 1]:
                near = max(free[i - 1], key=lambda m: (cosine(x[i, j], x[i - 1, m]), -m))
                match[i, j] = cosine(x[i, j], x[i - 1, near]), (i - 1, near)
    joins, most = [token for token in match if match[token][0] > method.tau], t * p - budget
    if len(joins) > most:
        limit = sorted((value for value, _ in match.values()), reverse=True)[most - 1] if most else math.inf
        joins = [token for token in match if match[token][0] > limit]
    trees = {(i, j): [x[i, j]] for i in range(t) for j in free[i]}
    for token in sorted(joins, reverse=True):  # the last frame first
        trees[match[token][1]] += trees.pop(token)
    means = {token: np.mean(members, axis=0) for token, members in trees.items()}
    left = [[token for token in sorted(means) if token[0] == i] for i in range(t)]
    sizes = [len(tokens) for tokens in left]
    if rest >= sum(sizes):
        counts = sizes
    elif method.fit == "k":
        counts = shared(rest, sizes)
    else:
        counts = [math.ceil(round(n * rest / sum(sizes), 9)) for n in sizes]
    rows = {}
    for tokens, count in zip(left, counts, strict=True):
        if count:
            made = np.array([means[token] for token in tokens])
            for centre, others in clusters(made, count, min(7, count)).items():
                rows[tokens[centre]] = made[[centre, *others]].mean(axis=0)
    return rows


def compressed(x, a, budgets, method):
    """Return {token: row} of one video `x` [T, P, D] with attention `a` [T, P]."""
    p, g, rows = x.shape[1], x.mean(axis=1), {}
    for first, last in segments(g, {"v1": 4, "v2": 8}[method.variant]):
        free, picked, frames = [], 0, range(first, last + 1)
        for i in frames:
            weight = a[i]
            if method.variant == "v2":
                events = [np.mean([(x[i, j] * g[m]).sum() for m in frames]) for j in range(p)]
                weight = [value * exact(event) for value, event in zip(a[i], events, strict=True)]
            picks = farthest(x[i], weight, math.ceil(round(0.7 * budgets[i], 9)))
            rows |= {i * p + j: x[i, j] for j in picks}
            free.append([j for j in range(p) if j not in picks])
            picked += len(picks)
        budget = sum(budgets[i] for i in frames)
        found = segment(x[first : last + 1], free, budget, budget - picked, method)
        rows |= {(first + i) * p + j: row for (i, j), row in found.items()}
    return rows


def reference(tokens, k, method):
    clips, n, rows = list(clips_of(tokens.grids)), len(tokens.features), {}
    for (start, t, p), share in zip(clips, shared(k, [t * p for _, t, p in clips]), strict=True):
        budgets = shared(share, [p] * t) if method.fit == "k" else [math.ceil(round(p * k / n, 9))] * t
        x = tokens.features[start : start + t * p].double().numpy().reshape(t, p, -1)
        a = tokens.vit_attention["last"][start : start + t * p].double().view(t, p).tolist()
        rows |= {start + token: row for token, row in compressed(x, a, budgets, method).items()}
    return rows


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(25, grids=VIDEOS, kind=KINDS, share=SHARE, seed=SEEDS, tau=[0.8, 0.5, 0.95])
def test_picks_trees_and_clusters(variant, fit, grids, kind, share, seed, tau):
    tokens, method = video(grids, seed, kind), FlashVID(variant=variant, fit=fit, tau=tau)
    k = max(1, int(share * len(tokens.features)))
    selection = method.select(tokens, k)
    assert len(selection.kept) == k if fit == "k" else len(selection.kept) >= k
    if k < len(tokens.features):
        assert_same_rows(merged_rows(tokens, selection), reference(tokens, k, method))


@randomized(30, frames=[1, 3], n=range(1, 12), share=SHARE, seed=SEEDS, signed=[True, False], kind=["normal", "few"])
def test_weighted_maxmin(frames, n, share, seed, signed, kind):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(frames, n, 4, generator=g).double(), torch.rand(frames, n, generator=g).double()
    weight = weight - 0.5 * signed
    if kind == "few":  # copies, and rows of zeros
        x, weight = (x / 2).round(), (weight * 3).round()
    k = int(share * (n + 1))
    unit = torch.nn.functional.normalize(x, dim=2)
    picks = weighted_maxmin(unit, weight, k).tolist()
    assert picks == [farthest(part.numpy(), own, k) for part, own in zip(x, weight.tolist(), strict=True)]


def test_a_chain_of_still_tokens_is_one_tree_rooted_in_its_first_frame():
    x = torch.randn(4, 3, 6, generator=torch.Generator().manual_seed(0)).double()
    x[:, 0] = torch.tensor([9.0, 0, 0, 0, 0, 0])
    unit, free = torch.nn.functional.normalize(x, dim=2), torch.ones(4, 3, dtype=torch.bool)
    assert FlashVID()._trees(unit, free, 1)[:, 0].tolist() == [0, 0, 0, 0]
    free[2, 0] = False  # picked: the chain ends before it, and begins again behind it
    assert FlashVID()._trees(unit, free, 1)[:, 0].tolist() == [0, 0, 6, 9]


def test_what_a_segment_must_keep_raises_the_threshold():
    """All tokens are copies, similarity 1: nothing lies strictly above the limit."""
    unit, free = torch.zeros(3, 4, 2, dtype=torch.float64), torch.ones(3, 4, dtype=torch.bool)
    unit[..., 0] = 1
    assert FlashVID()._trees(unit, free, 4).unique().tolist() == [0, 1, 2, 3]  # 8 may go, and 8 do
    assert len(FlashVID()._trees(unit, free, 5).unique()) == 12  # 7 may go


def test_an_image_is_a_frame():
    tokens = video([(1, 4, 5)], 0)
    assert len(FlashVID().select(tokens, 7).kept) == 7


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(30, n=range(2, 25), share=SHARE, keep=[0.3, 0.1], seed=SEEDS)
def test_inside_the_most_attended_tokens_stay(fit, n, share, keep, seed):
    tokens, k = layer_tokens([(1, 1, n)], seed), max(1, int(share * n))
    attention = attention_of(tokens.llm.q[:, -1], tokens.llm.k)
    count = k if fit == "k" else math.ceil(round(n * keep, 9))
    kept = FlashVID(fit=fit, inner_keep=keep).select(tokens, k).order.tolist()
    assert kept == best([attention[i] for i in tokens.llm.visual_idx.tolist()], count)


@pytest.mark.parametrize(
    ("params", "n", "k", "layers", "cuts"),
    [
        ({}, 6400, 640, 28, (Cut(-1, 800), Cut(19, 240))),  # the authors' 1.25 K
        ({"inner_layer": 27, "inner_keep": 0.1}, 6400, 640, 36, (Cut(-1, 800), Cut(27, 80))),  # for Qwen3-VL
        ({"budget_at": "entry"}, 6400, 640, 28, (Cut(-1, 640), Cut(19, 192))),
        ({"stages": "input"}, 6400, 640, 28, (Cut(-1, 640),)),
        ({}, 100, 95, 28, (Cut(19, 82),)),  # 5 in 28 layers: those in front of the cut see all
    ],
)
def test_schedule(params, n, k, layers, cuts):
    assert FlashVID(**params).cuts(n, k, layers) == cuts


def test_the_authors_budget_of_a_frame():
    """Of 8 frames of 196 tokens and K = 196, each frame has 24.5 tokens: 25, of which 17.5 are picked: 18."""
    tokens = video([(8, 14, 14)], 0, "moving", d=8)
    selection = FlashVID(fit="official").select(tokens, 196)
    assert len(selection.kept) >= 8 * 25
    assert len(selection.kept) - len(selection.mix.row.unique()) == 8 * 18


def test_signals():
    assert FlashVID().needs == {Signal.VIT_ATTENTION, Signal.LLM}
    assert FlashVID(stages="input").needs == {Signal.VIT_ATTENTION}


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not exactly_k_of_any_finite_input], ids=lambda check: check.__name__
)
@pytest.mark.parametrize("variant", ["v1", "v2"])
def test_the_contract_holds_at_the_input(check, variant):
    check(FlashVID(stages="input", variant=variant))
