"""PruneSID against a plain transcription with a singular value decomposition, and its quotas by hand."""

import dataclasses
from fractions import Fraction

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import attended

from methods.base import Signal
from methods.kernels import suppression
from methods.kernels.cosine import Cosine, directions
from methods.kernels.suppression import survivors
from methods.prunesid import PruneSID, quotas


def loadings(states, count):
    """|V| [N, G]; components without variance are empty, and copies of a token have what the first has."""
    rows = np.asarray(states).tolist()
    x = 1 / (1 + np.exp(-np.clip(np.asarray(states, dtype=np.float64), -700, 700)))
    vectors, values, _ = np.linalg.svd(x - x.mean(1, keepdims=True), full_matrices=False)
    real = values[:count] > 1e-7 * max(values[0], 1e-300)
    return (np.abs(vectors[:, :count]) * real).round(10)[[rows.index(row) for row in rows]]


def cosines(states):
    x = np.asarray(states, dtype=np.float64)
    norm = np.sqrt((x**2).sum(1))
    x = x / np.where(norm > 0, norm, 1)[:, None]
    return [[round(float((a * b).sum()), 12) for b in x] for a in x]


def ranking(group, a, c, tau):
    """The survivors of a group and how many they are, then its other members."""
    members = sorted(group, key=lambda i: (-a[i], i))
    live, chosen = members[:], []
    while live and a[live[0]] > 0:
        best = live[0]
        chosen.append(best)
        live = [i for i in live[1:] if c[best][i] <= tau]
    return chosen + [i for i in members if i not in chosen], len(chosen)


def shares(m, s, k, t):
    """How many each group gives of `k`."""
    cap = 5 * -(-t // 64)
    low, up = [min(1, count) for count in m], [min(cap, *pair) for pair in zip(m, s, strict=True)]
    while sum(up) < t:
        up = [min(u + 1, count) for u, count in zip(up, m, strict=True)]
    rest, bounds = k - sum(low), [0]
    for g in range(len(s)):
        exact = Fraction(rest * sum(s[: g + 1]), sum(s)) if sum(s) else Fraction(0)
        bounds.append(round(exact))
    take = [min(bounds[g + 1] - bounds[g] + low[g], up[g]) for g in range(len(s))]
    for g in sorted(range(len(s)), key=lambda g: (-s[g], g)):
        take[g] += min(up[g] - take[g], k - sum(take))
    return take


def pruned(states, attention, k, nominal=0):
    """The tokens of one image that LLaVA's program keeps, or without attention Qwen2-VL's."""
    n, t, c = len(states), nominal or k, cosines(states)
    qwen = attention is None
    groups = min(max(t // 4, 4) if qwen else max(t // 4, 1), k, *np.shape(states))
    v = loadings(states, groups)
    own = v.argmax(1)
    a = v.max(1) if qwen else np.asarray(attention)
    pairs = sum(c[i][j] for i in range(n) for j in range(i + qwen and i, n) if j > i or qwen)
    tau = max(18 * t / n, 1) * pairs / n**2 if qwen else t / 32 * pairs / (n * (n - 1) / 2)
    ranked = [ranking(np.flatnonzero(own == g).tolist(), a, c, round(tau, 12)) for g in range(groups)]
    take = shares([len(order) for order, _ in ranked], [count for _, count in ranked], k, t)
    return sorted(i for (order, _), count in zip(ranked, take, strict=True) for i in order[:count])


def tokens_of(grids, d, seed, kind="normal", spread=1.0):
    """A sample of states around a common direction, whose cosines are positive as those of a vision tower."""
    tokens = attended(grids, d, seed, kind)
    states = tokens.features * spread + torch.linspace(0.2, 1, d) * (kind == "normal")
    return dataclasses.replace(tokens, vit_features=states)


@randomized(
    120,
    n=range(2, 40),
    d=range(2, 50),
    share=SHARE,
    qwen=[False, True],
    seed=SEEDS,
    kind=["normal", "duplicates", "zero_rows", "equal", "levels", "dark"],
    spread=[0.3, 1.0],
)
def test_same_tokens_as_the_authors_algorithm_with_exact_components(n, d, share, qwen, seed, kind, spread):
    tokens, k = tokens_of([(1, 1, n)], d, seed, kind, spread), max(1, int(share * n))
    program = "qwen" if qwen else "llava"
    expected = pruned(*((tokens.features, None) if qwen else (tokens.vit_features, scores(tokens))), k)
    assert PruneSID(program=program).select(tokens, k).kept.tolist() == expected


def scores(tokens):
    return tokens.vit_attention["last"].tolist()


@pytest.mark.parametrize("nominal", [0, 1, 30])
@pytest.mark.parametrize(("k", "spread"), [(15, 0.3), (31, 0.3), (31, 1.0), (63, 0.3)])
def test_the_codes_t_may_be_larger_than_k(k, nominal, spread):
    tokens = tokens_of([(1, 12, 12)], 64, k, spread=spread)
    t = k + nominal
    kept = PruneSID(nominal=t).select(tokens, k).kept.tolist()
    assert kept == pruned(tokens.vit_features, scores(tokens), k, t)
    assert len(kept) == k
    if nominal:
        assert kept != PruneSID().select(tokens, k).kept.tolist()


def test_quotas_by_hand():
    """T = 16: limits 5 5 2 1 rise to 6 6 3 2; bounds 5.5, 8.9375, 10.3125, 11; of 15 one goes to the second group."""
    assert quotas([40, 30, 20, 10], [8, 5, 2, 1], 15, 16) == [6, 5, 2, 2]
    assert shares([40, 30, 20, 10], [8, 5, 2, 1], 15, 16) == [6, 5, 2, 2]


def test_a_half_goes_to_the_even_number():
    """Of 47 after one for each, half is 23.5: 24 here, where float32 has 23 or 24."""
    assert quotas([60, 60], [10, 10], 49, 49) == [25, 24]
    assert quotas([60, 60], [10, 10], 47, 47) == [23, 24]


@randomized(100, members=[[40, 0, 3, 1], [5, 5, 5], [1] * 9, [100]], share=SHARE, more=range(4), seed=SEEDS)
def test_quotas_sum_up_and_never_exceed_a_group(members, share, more, seed):
    g = np.random.default_rng(seed)
    k = max(len(members), int(share * sum(members)))
    alive = [int(g.integers(0, m + 1)) for m in members]
    quota = quotas(members, alive, k, min(k + more, sum(members)))
    assert sum(quota) == k
    assert all(0 <= q <= m for q, m in zip(quota, members, strict=True))


def test_the_program_follows_the_tower():
    tokens = tokens_of([(1, 8, 8)], 32, 5)
    without = dataclasses.replace(tokens, has_cls=False)
    kept = {name: PruneSID(program=name).select(tokens, 20).kept.tolist() for name in ("llava", "qwen")}
    assert kept["llava"] != kept["qwen"]
    assert PruneSID().select(tokens, 20).kept.tolist() == kept["llava"]
    assert PruneSID().select(without, 20).kept.tolist() == kept["qwen"]
    assert PruneSID().needs == {Signal.VIT_FEATURES, Signal.VIT_ATTENTION}
    assert (PruneSID(program="qwen").needs, PruneSID(program="qwen").servable) == (frozenset(), True)


def test_every_image_has_its_share():
    tokens = tokens_of([(1, 4, 6), (2, 3, 4), (1, 5, 4)], 16, 2)
    expected, start = [], 0
    for size, share in ((24, 11), (24, 11), (20, 9)):
        part = slice(start, start + size)
        expected += [start + i for i in pruned(tokens.vit_features[part], scores(tokens)[part], share)]
        start += size
    assert PruneSID().select(tokens, 31).kept.tolist() == expected
    assert len(PruneSID().select(tokens, 2).kept) == 2  # fewer than images


def test_a_nominal_number_beyond_an_image_is_refused():
    tokens = tokens_of([(1, 4, 6), (1, 2, 2)], 16, 2)
    with pytest.raises(ValueError, match="prunesid: nominal must be at most the 4 tokens of an image, not 9"):
        PruneSID(nominal=9).select(tokens, 8)
    with pytest.raises(ValueError, match="prunesid: nominal must be at least 0"):
        PruneSID(nominal=-1)


@pytest.mark.parametrize("tile", [1, 2**24])
def test_a_chain_of_tokens_in_which_each_suppresses_the_next(tile, monkeypatch):
    """Tokens 30 degrees apart, with a bound between one step and two: every other one stays, as far as the chain is."""
    monkeypatch.setattr(suppression, "TILE", tile)
    angle = torch.arange(9) * np.pi / 6
    rows = torch.eye(20).repeat_interleave(9, dim=0) * 0
    for part in range(10):
        rows[9 * part : 9 * part + 9, 2 * part : 2 * part + 2] = torch.stack([angle.cos(), angle.sin()], dim=1)
    cosine, n = Cosine(directions(rows[:90])), 90
    place = torch.arange(n)
    bound = torch.tensor(0.7, dtype=torch.float64)
    one_group = survivors(cosine, place, place * 0, place >= 0, bound)
    assert one_group.tolist() == [i % 9 % 2 == 0 for i in range(n)]
    assert survivors(cosine, place, place % 2, place >= 0, bound).all()  # neighbours are of different groups
    barred = survivors(cosine, place, place * 0, place % 9 > 0, bound)  # what cannot stay suppresses nobody
    assert barred.tolist() == [i % 9 % 2 == 1 for i in range(n)]
