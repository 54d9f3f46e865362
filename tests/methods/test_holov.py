"""HoloV against a plain transcription of its formulas, one image, several, and video."""

import dataclasses
import math

import pytest
import torch
from hypothesis import strategies as st
from layer_samples import ATTENTION, best, cosine_of
from properties import SHARE, randomized
from reference_selection import WORKED, attended

from methods import holov
from methods.base import OFFICIAL, Tokens
from methods.budget import largest_remainder
from methods.holov import HoloV


def by_largest_remainder(k, sizes):
    exact = [k * size / sum(sizes) for size in sizes]
    quotas = [math.floor(x + 1e-9) for x in exact]
    for i in best([round(x - q, 9) for x, q in zip(exact, quotas, strict=True)], k - sum(quotas)):
        quotas[i] += 1
    if k >= len(sizes):
        while 0 in quotas:
            quotas[quotas.index(max(quotas))] -= 1
            quotas[quotas.index(0)] += 1
    return quotas


def spread_of(x):
    m = len(x)
    if m == 1:
        return [0.0]
    g = [[0.0 if i == j else cosine_of(x[i], x[j]) for j in range(m)] for i in range(m)]
    mu = [sum(row) / (m - 1) for row in g]
    return [sum((value - mean) ** 2 for value in row) / (m - 1) for row, mean in zip(g, mu, strict=True)]


def digits(value):
    """Twelve of them: sums of the same numbers in another order tie."""
    return float(f"{value:.11e}")


def one_image(a, x, steps, k, variant, crops=0, beta=0.09, tau=1.0):
    n = len(a)
    step = n // steps
    crops = min(crops or max(1, math.floor((1024 / 576) * n / k)), step)
    sizes = [step // crops + (i < step % crops) for i in range(crops)] * steps
    bands, start = [], 0
    for size in sizes:
        bands.append(list(range(start, start + size)))
        start += size
    scores, ranks = [], []
    for band in bands:
        v = spread_of([x[i] for i in band])
        mean_a, mean_v = sum(a[i] for i in band) / len(band), sum(v) / len(band)
        gamma = mean_a / mean_v if mean_v > 0 else 0.0
        scores.append(sum(a[i] + beta * gamma * value for i, value in zip(band, v, strict=True)) / len(band))
        ranks.append(
            [digits(a[i] + gamma * value) if variant == "paper" else a[i] for i, value in zip(band, v, strict=True)]
        )
    weights = [score**tau for score in scores] if sum(scores) > 0 else sizes
    weights = [digits(weight / sum(weights)) for weight in weights]
    quotas = [math.floor(round(weight * k, 9)) for weight in weights]
    for i in best(weights, k - sum(quotas)):
        quotas[i] += 1
    excess = sum(max(q - size, 0) for q, size in zip(quotas, sizes, strict=True))
    quotas = [min(q, size) for q, size in zip(quotas, sizes, strict=True)]
    for i in best(weights, len(weights)):
        more = min(excess, sizes[i] - quotas[i])
        quotas[i] += more
        excess -= more
    return [band[i] for band, rank, quota in zip(bands, ranks, quotas, strict=True) for i in best(rank, quota)]


def definition(tokens, k, **parameters):
    sizes = [t * h * w for t, h, w in tokens.grids]
    kept, start = [], 0
    for (t, _, _), size, share in zip(tokens.grids, sizes, by_largest_remainder(k, sizes), strict=True):
        a, x = (
            tokens.vit_attention["last"][start : start + size].double().tolist(),
            tokens.features[start : start + size],
        )
        kept += [start + i for i in one_image(a, x, t, share, **parameters)] if share else []
        start += size
    return sorted(kept)


@randomized(
    60,
    grids=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 4), st.integers(1, 5)), min_size=1, max_size=3),
    share=SHARE,
    variant=["official", "paper"],
    crops=[0, 0, 1, 3, 16],
    tau=[1.0, 1.0, 2.0],
    kind=["normal", "duplicates", "peaked", "constant", "dark"],
    seed=range(10_000),
)
def test_same_tokens_as_the_definition(grids, share, variant, crops, tau, kind, seed):
    tokens = attended(grids, 6, seed, kind)
    n = len(tokens.features)
    k = max(1, int(share * n))
    if k < n:
        got = HoloV(variant=variant, crops=crops, tau=tau).select(tokens, k).kept.tolist()
        assert got == definition(tokens, k, variant=variant, crops=crops, tau=tau)


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("k", [64, 100])
def test_same_tokens_at_the_size_of_an_image(variant, k):
    tokens = attended([(1, 24, 24)], 8, 3)
    assert HoloV(variant=variant).select(tokens, k).kept.tolist() == definition(tokens, k, variant=variant)


def worked():
    return Tokens(torch.tensor(WORKED) * 1.0, [(1, 2, 4)], vit_attention={"last": torch.tensor(ATTENTION)})


def test_worked_examples():
    assert HoloV(crops=2).select(worked(), 4).kept.tolist() == [0, 1, 3, 6]
    five = HoloV(crops=4).select(worked(), 5).kept.tolist()  # quotas 3 0 0 2 of bands of two: one goes on
    assert five == [0, 1, 3, 6, 7]


def test_spread_does_not_touch_the_quotas_of_the_released_code():
    tokens = attended([(1, 8, 8)], 6, 1)
    other = dataclasses.replace(tokens, features=attended([(1, 8, 8)], 6, 2).features)
    assert torch.equal(HoloV().select(tokens, 16).kept, HoloV().select(other, 16).kept)
    assert not torch.equal(
        HoloV(variant="paper").select(tokens, 16).kept, HoloV(variant="paper").select(other, 16).kept
    )


def test_spread_in_tiles_is_spread(monkeypatch):
    tokens = attended([(2, 5, 7)], 6, 1)
    whole = [HoloV(variant="paper", crops=c).select(tokens, 20).kept for c in (1, 4, 0)]
    monkeypatch.setattr(holov, "TILE", 30)
    tiled = [HoloV(variant="paper", crops=c).select(tokens, 20).kept for c in (1, 4, 0)]
    assert all(torch.equal(a, b) for a, b in zip(whole, tiled, strict=True))


@pytest.mark.parametrize(("k", "crops"), [(64, 16), (144, 7), (58, 17), (575, 1)])
def test_number_of_bands_is_the_released_rule(k, crops):
    tokens = attended([(1, 24, 24)], 6, 0)
    assert torch.equal(HoloV().select(tokens, k).kept, HoloV(crops=crops).select(tokens, k).kept)


@pytest.mark.parametrize("scale", [2.0**-20, 1000 * 2.0**30])
def test_scale_of_attention_and_of_rows_does_not_matter(scale):
    tokens = attended([(1, 6, 6), (2, 3, 3)], 6, 4)
    attention = {"last": tokens.vit_attention["last"] * scale}
    scaled = dataclasses.replace(tokens, features=tokens.features * 2.0**9, vit_attention=attention)
    for variant in ("official", "paper"):
        assert torch.equal(
            HoloV(variant=variant).select(scaled, 13).kept, HoloV(variant=variant).select(tokens, 13).kept
        )


def test_one_spot_of_attention_fills_its_band_first_and_the_next_heaviest_then():
    tokens = attended([(1, 4, 4)], 6, 0)
    tokens.vit_attention["last"] = torch.tensor([0.0] * 8 + [1000.0, 0, 0, 0, 3, 0, 0, 0])
    assert HoloV(crops=4).select(tokens, 6).kept.tolist() == [8, 9, 10, 11, 12, 13]


@randomized(100, sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6), share=st.floats(0, 1))
def test_largest_remainder(sizes, share):
    n = sum(sizes)
    k = int(share * n)
    if n:
        quotas = largest_remainder(k, sizes)
        assert sum(quotas) == k
        assert all(0 <= quota <= size for quota, size in zip(quotas, sizes, strict=True))
        some = [quota for quota, size in zip(quotas, sizes, strict=True) if size]
        assert k < len(some) or min(some) >= 1
        if all(sizes):
            assert quotas == by_largest_remainder(k, sizes)


def test_both_variants_read_the_authors_attention():
    assert HoloV().attention_spec == HoloV(variant="paper").attention_spec == OFFICIAL
