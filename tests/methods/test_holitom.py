"""HoliTom against a plain program of its specification, token by token; what K adds to it; and the cut inside."""

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
import torch
from layer_samples import attention_of, best, cosine_of, layer_tokens
from properties import SEEDS, SHARE, randomized
from video_references import KINDS, VIDEOS, assert_same_rows, clips_of, clusters, cosine, merged_rows, shared, video

from methods.base import Cut, Signal, Tokens
from methods.holitom import HoliTom
from methods.testing import CHECKS, exactly_k_of_any_finite_input


def windows_of(still):
    """Return the best partition of the frames; a longer last window only if it saves more."""
    best_of, t = {0: (0, [])}, len(still) + 1
    for end in range(1, t + 1):
        for start in range(end - 1, -1, -1):
            fixed = sum(all(still[i][p] for i in range(start, end - 1)) for p in range(len(still[0]) if still else 0))
            saves = best_of[start][0] + (end - 1 - start) * fixed
            if end not in best_of or saves > best_of[end][0]:
                best_of[end] = saves, [*best_of[start][1], (start, end - 1)]
    return best_of[t]


def outer(x, a, k, method):
    """Return {token: row} of one video `x` [T, P, D] with attention `a` [T * P]."""
    t, p, _ = x.shape
    still = [[cosine(x[i, j], x[i + 1, j]) > method.tau for j in range(p)] for i in range(t - 1)]
    saves, windows = windows_of(still)
    parts = []  # (frames, places, static)
    for first, last in windows:
        fixed = [j for j in range(p) if last > first and all(still[i][j] for i in range(first, last))]
        parts.append((range(first, last + 1), fixed, True))
        parts += [([i], [j for j in range(p) if j not in fixed], False) for i in range(first, last + 1)]
    parts = [part for part in parts if part[1]]
    sizes, free = [len(places) for _, places, _ in parts], set()
    assert sum(sizes) == t * p - saves
    if method.fit == "k":
        counts = shared(min(k, sum(sizes)), sizes)
        later = [i * p + j for frames, places, _ in parts for i in list(frames)[1:] for j in places]
        free = set(sorted(later, key=lambda token: (-a[token], token))[: max(0, k - sum(sizes))])
    else:
        ratio = min(Fraction(1), k / Fraction(sum(sizes)))
        counts = [round(n * ratio) if part[2] else math.ceil(n * ratio) for n, part in zip(sizes, parts, strict=True)]
        counts = counts if any(counts) else [1, *counts[1:]]
    rows = {token: x[token // p, token % p] for token in free}
    for (frames, places, static), count in zip(parts, counts, strict=True):
        here = [frames[0] * p + j for j in places]
        if not static:
            rows |= {here[j]: x[frames[0], places[j]] for j in best([a[token] for token in here], count)}
        elif count:
            mean = np.array([np.mean([x[i, j] for i in frames if i * p + j not in free], axis=0) for j in places])
            for centre, others in clusters(mean, count, min(7, count)).items():
                rows[here[centre]] = mean[centre]
                if others:
                    rows[here[centre]] = method.beta * mean[centre] + (1 - method.beta) * mean[others].mean(axis=0)
    return rows


def reference(tokens, k, method):
    clips, n, rows = list(clips_of(tokens.grids)), len(tokens.features), {}
    for (start, t, p), part in zip(clips, shared(k, [t * p for _, t, p in clips]), strict=True):
        share = part if method.fit == "k" else Fraction(k * t * p, n)
        if share:
            here = slice(start, start + t * p)
            x = tokens.features[here].double().numpy().reshape(t, p, -1)
            found = outer(x, tokens.vit_attention["last"][here].tolist(), share, method)
            rows |= {start + token: row for token, row in found.items()}
    return rows


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(60, grids=VIDEOS, kind=KINDS, share=SHARE, seed=SEEDS, tau=[0.8, 0.5, 0.95], beta=[0.6, 1.0])
def test_windows_static_rows_and_attended_tokens(fit, grids, kind, share, seed, tau, beta):
    tokens, method = video(grids, seed, kind), HoliTom(fit=fit, tau=tau, beta=beta)
    k = max(1, int(share * len(tokens.features)))
    selection = method.select(tokens, k)
    assert fit == "official" or len(selection.kept) == k
    if k < len(tokens.features):
        assert_same_rows(merged_rows(tokens, selection), reference(tokens, k, method))


def example():
    """Five frames of two places, which repeat as in (1 1) (1 0) (1 1) (0 1)."""
    a, b = torch.eye(2)
    first = torch.stack([a, a, a, a, b])
    second = torch.stack([a, a, b, b, b])
    return Tokens(
        torch.stack([first, second], dim=1).flatten(0, 1) * torch.arange(1, 11)[:, None],
        [(5, 1, 2)],
        vit_attention={"last": torch.tensor([0, 1, 2, 3, 4, 5, 6, 7, 9, 8.0])},
        at_input=True,
    )


def test_worked_example():
    """Windows (0, 1), (2, 3) and (4) save 2 + 2: six rows, of which four are means of two."""
    selection = HoliTom().select(example(), 6)
    assert selection.kept.tolist() == [0, 1, 4, 5, 8, 9]
    rows = merged_rows(example(), selection)
    assert [rows[i].max() for i in (0, 1, 4, 5, 8, 9)] == [2, 3, 6, 7, 9, 10]


def test_above_the_number_of_rows_the_most_attended_merged_tokens_stay_as_they_are():
    rows = merged_rows(example(), HoliTom().select(example(), 8))
    assert {token: row.max() for token, row in rows.items()} == {0: 2, 1: 3, 4: 5, 5: 6, 6: 7, 7: 8, 8: 9, 9: 10}


@pytest.mark.parametrize(("k", "count"), [(39, 40), (78, 80), (300, 300)])
def test_the_authors_round_up_in_each_frame(k, count):
    tokens = video([(10, 3, 13)], 0, "random", d=60)  # nothing is still
    assert len(HoliTom(fit="official").select(tokens, k).kept) == count
    assert len(HoliTom().select(tokens, k).kept) == k


def test_each_video_has_the_same_share():
    """In the authors' code the second video's is multiplied by the first one's."""
    tokens = video([(4, 2, 5), (4, 2, 5)], 3, "random")
    kept = HoliTom().select(tokens, 20).kept
    assert [int((kept < 40).sum()), int((kept >= 40).sum())] == [10, 10]


def test_an_image_keeps_what_is_attended_to():
    tokens = video([(1, 4, 5)], 0)
    selection = HoliTom(stages="input").select(tokens, 7)
    assert selection.mix is None
    assert sorted(selection.kept.tolist()) == sorted(best(tokens.vit_attention["last"].tolist(), 7))


def test_fewer_tokens_than_videos():
    tokens = video([(2, 1, 2), (1, 1, 3), (3, 1, 2)], 1)
    assert len(HoliTom().select(tokens, 2).kept) == 2


@pytest.mark.parametrize("fit", ["k", "official"])
@randomized(40, n=range(2, 25), share=SHARE, kind=["normal", "duplicates", "zero"], keep=[0.5, 0.25], seed=SEEDS)
def test_inside_each_other_token_joins_the_most_similar_kept_one_in_order(fit, n, share, kind, keep, seed):
    tokens, k = layer_tokens([(1, 1, n)], seed, kind=kind), max(1, int(share * n))
    selection = HoliTom(fit=fit, inner_keep=keep).select(tokens, k)
    state = tokens.llm
    attention = attention_of(state.q[:, -1], state.k)
    kept = best([attention[i] for i in state.visual_idx.tolist()], k if fit == "k" else max(1, round(n * keep)))
    assert selection.order.tolist() == kept
    hidden = state.hidden[state.visual_idx].double().numpy()
    rows = {i: hidden[i].copy() for i in sorted(kept)}
    for i in range(n):
        if i not in rows:
            near = max(rows, key=lambda j: (round(cosine_of(hidden[i], hidden[j]), 12), -j))
            rows[near] = (rows[near] + hidden[i]) / 2
    inside = replace(tokens, features=state.hidden[state.visual_idx])
    assert_same_rows(merged_rows(inside, selection), rows)


@pytest.mark.parametrize(
    ("params", "cuts"),
    [
        ({}, (Cut(-1, 121), Cut(17, 62))),  # (121 * 18 + 62 * 10) / 28 = 99.93
        ({"budget_at": "entry"}, (Cut(-1, 100), Cut(17, 50))),
        ({"budget_at": "end"}, (Cut(-1, 201), Cut(17, 100))),
        ({"stages": "input"}, (Cut(-1, 100),)),
        ({"inner_layer": 3, "inner_keep": 0.25, "budget_at": "entry"}, (Cut(-1, 100), Cut(3, 25))),
    ],
)
def test_schedule(params, cuts):
    method = HoliTom(**params)
    assert method.cuts(1000, 100, 28) == cuts
    assert method.stage == ("input" if method.stages == "input" else "layers")


def test_signals_of_the_cut_inside_are_read_only_where_there_is_one():
    assert HoliTom().needs == {Signal.VIT_ATTENTION, Signal.LLM}
    assert HoliTom(stages="input").needs == {Signal.VIT_ATTENTION}


@pytest.mark.parametrize(
    "check", [check for check in CHECKS if check is not exactly_k_of_any_finite_input], ids=lambda check: check.__name__
)
def test_the_contract_holds_at_the_input(check):
    check(HoliTom(stages="input"))


def test_a_layer_that_the_model_lacks():
    with pytest.raises(ValueError, match="inner_layer must be at most 26 in a decoder of 28 layers, not 27"):
        HoliTom(inner_layer=27).cuts(100, 10, 28)
