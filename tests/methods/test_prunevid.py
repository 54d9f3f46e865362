"""PruneVid against a plain program of its specification, token by token; how scenes are found; and the cut inside."""

from dataclasses import replace
from itertools import groupby

import numpy as np
import pytest
import torch
from layer_samples import best, layer_tokens
from properties import SEEDS, SHARE, randomized
from video_references import (
    KINDS,
    VIDEOS,
    assert_same_rows,
    clips_of,
    clusters,
    cosine,
    density_peaks,
    merged_rows,
    shared,
    video,
)

from methods.base import Cut, Signal
from methods.prunevid import PruneVid, refined
from methods.samples import survivors
from methods.testing import CHECKS, exactly_k_of_any_finite_input


def relabelled(labels):
    """Return the labels of frames: each frame that has lost its own looks to both sides."""
    runs = [[label, len(list(run))] for label, run in groupby(labels)]
    best_of = {label: max(n for other, n in runs if other == label) for label, _ in runs}
    frames = [(label, n) if n == best_of[label] and n > 1 else None for label, n in runs for _ in range(n)]
    new = []
    for i, frame in enumerate(frames):
        before = next((other for other in reversed(frames[: i + 1]) if other), None)
        after = next((other for other in frames[i:] if other), None)
        near = frame or max((other for other in (before, after) if other), key=lambda run: run[1], default=(0, 0))
        new.append(near[0])
    return new


@pytest.mark.parametrize(
    ("labels", "new"),
    [
        ([0, 0, 1, 0, 0, 0, 2, 2, 1, 1], [0, 0, 0, 0, 0, 0, 2, 2, 1, 1]),
        ([0, 1, 0, 1, 2, 2, 2, 3], [2] * 8),
        ([0, 1, 2], [0, 0, 0]),
        ([1, 1, 0, 2, 2], [1, 1, 1, 2, 2]),  # equally long: the left one
        ([1, 1, 0, 1, 1], [1] * 5),  # both of the longest runs stay
        ([3], [0]),
    ],
)
def test_frames_of_short_runs_join_the_longer_run_next_to_them(labels, new):
    assert refined(labels) == new == relabelled(labels)


@randomized(100, n=range(1, 15), many=range(1, 5), seed=SEEDS)
def test_scenes_of_any_labels(n, many, seed):
    labels = torch.randint(0, many, (n,), generator=torch.Generator().manual_seed(seed)).tolist()
    assert refined(labels) == relabelled(labels)


def parts_of(x, tau):
    """Return (frames, places, static) of the blocks of one video `x` [T, P, D]."""
    t, p, _ = x.shape
    labels = relabelled(density_peaks(x.mean(axis=1), max(1, int(0.25 * t)), 7)[1])
    parts, first = [], 0
    for _, run in groupby(labels):
        frames = range(first, first + len(list(run)))
        first = frames.stop
        pairs = [(i, m) for i in frames for m in frames if i != m]
        still = [j for j in range(p) if pairs and np.mean([cosine(x[i, j], x[m, j]) for i, m in pairs]) > tau]
        parts.append((frames, still, True))
        parts += [([i], [j for j in range(p) if j not in still], False) for i in frames]
    return [part for part in parts if part[1]]


def merged(x, parts, k, fit):
    """Return {token: row} of one video `x` [T, P, D]."""
    p, sizes, free = x.shape[1], [len(places) for _, places, _ in parts], set()
    counts = [n // 2 if n > 14 else n for n in sizes]
    if fit == "k":
        counts = shared(min(k, sum(sizes)), sizes)
        far = {}
        for frames, places, _ in parts:
            for j in places:
                mean = np.mean([x[i, j] for i in frames], axis=0)
                far |= {i * p + j: 1 - cosine(x[i, j], mean) for i in list(frames)[1:]}
        free = set(sorted(far, key=lambda token: (-far[token], token))[: max(0, k - sum(sizes))])
    rows = {token: x[token // p, token % p] for token in free}
    for (frames, places, _), count in zip(parts, counts, strict=True):
        if count:
            mean = np.array([np.mean([x[i, j] for i in frames if i * p + j not in free], axis=0) for j in places])
            for centre, others in clusters(mean, count, 7).items():
                rows[frames[0] * p + places[centre]] = mean[[centre, *others]].mean(axis=0)
    return rows


def reference(tokens, k, method):
    """Return {token: row}, and the block of each token of a row."""
    clips, rows, block_of = list(clips_of(tokens.grids)), {}, {}
    for (start, t, p), share in zip(clips, shared(k, [t * p for _, t, p in clips]), strict=True):
        if share or method.fit == "official":
            x = tokens.features[start : start + t * p].double().numpy().reshape(t, p, -1)
            parts = parts_of(x, method.tau)
            rows |= {start + token: row for token, row in merged(x, parts, share, method.fit).items()}
            for frames, places, static in parts:
                own = (start, frames[0], static)
                block_of |= {start + i * p + j: own for i in frames for j in places}
    return rows, block_of


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(50, grids=[*VIDEOS, [(4, 4, 5)], [(12, 1, 3)]], kind=KINDS, share=SHARE, seed=SEEDS, tau=[0.8, 0.5, 0.95])
def test_scenes_static_places_and_clusters(fit, grids, kind, share, seed, tau):
    tokens, method = video(grids, seed, kind), PruneVid(fit=fit, tau=tau)
    n = len(tokens.features)
    k = max(1, int(share * n))
    selection = method.select(tokens, k)
    assert fit == "official" or len(selection.kept) == k
    if k < n:
        rows, block_of = reference(tokens, k, method)
        assert_same_rows(merged_rows(tokens, selection), rows)
        blocks = [block_of[token] for token in selection.kept.tolist()]
        names = list(zip(selection.memory.tolist(), blocks, strict=True))
        assert len(set(names)) == len(dict(names)) == len(set(blocks))


def asked_by_definition(tokens):
    """Return the maximum over heads and text rows behind, over all keys, of each visual token."""
    q, k = tokens.llm.q.double().numpy(), tokens.llm.k.double().numpy()
    scores = []
    for head, queries in enumerate(q):
        keys = k[head * len(k) // len(q)]
        for query in queries[-len(tokens.text_after) :]:
            logits = (keys * query).sum(axis=1) / np.sqrt(q.shape[2])
            weights = np.exp(logits - logits.max())
            scores.append(weights / weights.sum())
    return np.max(scores, axis=0)[tokens.llm.visual_idx.numpy()].tolist()


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(40, grids=VIDEOS, first=[0.2, 0.6, 1.0], share=SHARE, keep=[0.4, 0.2], seed=SEEDS)
def test_inside_each_block_keeps_what_the_words_attend_to(fit, grids, first, share, keep, seed):
    method, whole = PruneVid(fit=fit, inner_keep=keep), layer_tokens(grids, seed, width=5)
    whole = replace(whole, features=video(grids, seed).features, text_after=torch.rand(3, 5))
    n = len(whole.features)
    sizes = [h * w for t, h, w in grids for _ in range(t)]
    left, blocks = whole, [i for i, size in enumerate(sizes) for _ in range(size)]
    if (k := max(1, int(first * n))) < n:
        selection = method.select(replace(whole, at_input=True, llm=None), k)
        left, blocks = survivors(whole, selection), selection.memory.tolist()
    n = len(left.features)
    k = max(1, int(share * n))
    if k == n:
        return
    scores, names = asked_by_definition(left), sorted(set(blocks))
    members = [[i for i in range(n) if blocks[i] == name] for name in names]
    quotas = shared(k, [len(own) for own in members])
    if fit == "official":
        quotas = [int(round(len(own) * keep, 9)) for own in members]
    kept = [own[i] for own, quota in zip(members, quotas, strict=True) for i in best([scores[j] for j in own], quota)]
    assert method.select(left, k).kept.tolist() == (sorted(kept) or best(scores, 1))


def test_without_words_behind_the_video_its_last_row_asks():
    tokens = layer_tokens([(1, 2, 3)], 0, text=0)
    alone = PruneVid().select(replace(tokens, text_after=torch.rand(0, 6)), 3)
    assert torch.equal(alone.kept, PruneVid().select(replace(tokens, text_after=torch.rand(1, 6)), 3).kept)


@pytest.mark.parametrize(
    ("params", "layers", "cuts"),
    [
        ({"budget_at": "entry"}, 32, (Cut(-1, 100), Cut(10, 40))),
        ({"budget_at": "entry"}, 28, (Cut(-1, 100), Cut(9, 40))),
        ({}, 32, (Cut(-1, 164), Cut(10, 66))),  # (164 * 11 + 66 * 21) / 32 = 99.69
        ({"stages": "input"}, 32, (Cut(-1, 100),)),
        ({"fit": "official"}, 32, (Cut(-1, 2), Cut(10, 1))),  # whatever stays; these are the least
    ],
)
def test_schedule(params, layers, cuts):
    assert PruneVid(**params).cuts(1000, 100, layers) == cuts


def test_signals_and_the_layer_that_is_read():
    assert PruneVid().needs == {Signal.LLM, Signal.TEXT_AFTER}
    assert PruneVid(stages="input").needs == set()
    assert PruneVid(stages="input").servable
    assert not PruneVid().rotated


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not exactly_k_of_any_finite_input], ids=lambda check: check.__name__
)
def test_the_contract_holds_at_the_input(check):
    check(PruneVid(stages="input"))
