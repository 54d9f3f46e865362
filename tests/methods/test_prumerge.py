"""PruMerge and PruMerge+ against plain transcriptions, for what is kept and for what the kept rows become."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from properties import SEEDS, SHARE, randomized
from reference_selection import attended

from harness.pruning.gather import mixed
from methods.budget import rounded
from methods.prumerge import PruMerge, PruMergePlus, outliers

CLASSES = {"prumerge": PruMerge, "prumerge_plus": PruMergePlus}
EXAMPLE = [0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.30, 0.12, 0.30]
GRIDS = ([(1, 1, 12)], [(1, 6, 7)], [(1, 4, 5), (1, 3, 6)], [(3, 3, 5)], [(2, 3, 4), (1, 1, 1), (1, 4, 5)])


def quantile(values, share):
    values, place = sorted(values), share * (len(values) - 1)
    low = math.floor(place)
    high = min(low + 1, len(values) - 1)
    return values[low] + (values[high] - values[low]) * (place - low)


def stand_out(a):
    first, third = quantile(a, 0.25), quantile(a, 0.75)
    return sum(value > third + 1.5 * (third - first) for value in a)


def picks_of(a, k, plus, fit, share=0.25):
    n = len(a)
    ranking = sorted(range(n), key=lambda i: (-a[i], i))
    if fit == "official":
        count = stand_out(a)
        picks = ranking[:count]
        if plus and count:
            picks += [i for i in range(0, n - 1, max(1, int(int(1 / (count / n)) / 3))) if i not in picks]
        elif plus:
            picks += [0] * (n > 1)
        return picks
    if not plus:
        return ranking[: k - 1]
    picks = ranking[: min(k - 1, round(k * share))]
    others, even = [i for i in range(n) if i not in picks], k - 1 - len(picks)
    return picks + [others[i * len(others) // even] for i in range(even)]


def unit(x, a, keys, k, plus, fit, neighbours=32):
    """Return the kept tokens of one image, ascending, and their rows, in float64."""
    n = len(x)
    if fit == "k" and k == n:
        return list(range(n)), x
    picks = picks_of(a, k, plus, fit)
    lengths = np.sqrt((keys * keys).sum(axis=1))
    rows = {}
    for i in picks:
        alike = ((keys * keys[i]).sum(axis=1) / np.maximum(lengths * lengths[i], 1e-300)).round(10).tolist()
        near = sorted((j for j in range(n) if j != i), key=lambda j: (-alike[j], j))[:neighbours]
        rows[i] = x[i] + sum((a[j] * x[j] for j in near), np.zeros_like(x[i]))
    others = [j for j in range(n) if j not in picks]
    if others:
        rows[max(others, key=lambda j: (a[j], -j))] = sum(a[j] * x[j] for j in others)
    return sorted(rows), np.array([rows[i] for i in sorted(rows)])


def reference(tokens, k, plus, fit, neighbours):
    sizes = [h * w for t, h, w in tokens.grids for _ in range(t)]
    if fit == "k" and k < len(sizes):
        sizes = [sum(sizes)]
    shares = rounded(k, sizes) if fit == "k" else [0] * len(sizes)
    kept, rows, start = [], [], 0
    for size, share in zip(sizes, shares, strict=True):
        part = slice(start, start + size)
        a = tokens.vit_attention["after"][part].double().tolist()
        if not tokens.has_cls:
            a = [value / max(sum(a), 1e-50) for value in a]
        x, keys = (signal[part].double().numpy() for signal in (tokens.features, tokens.vit_keys))
        here, made = unit(x, a, keys, share, plus, fit, neighbours)
        kept += [start + i for i in here]
        rows.append(made)
        start += size
    return kept, np.concatenate(rows)


def sample(grids, d, seed, kind="normal"):
    tokens = attended(grids, d, seed, kind)
    a = tokens.vit_attention["last"].double() ** 6  # a few stand out
    return replace(tokens, vit_attention={"after": (a / a.sum().clamp(min=1e-9) * 0.7).float()})


@pytest.mark.parametrize("name", CLASSES)
@randomized(
    60,
    grids=GRIDS,
    d=range(1, 9),
    share=SHARE,
    seed=SEEDS,
    kind=["normal", "duplicates", "equal", "zero_rows", "opposite", "levels", "dark"],
    fit=["k", "official"],
    neighbours=[0, 3, 32],
    has_cls=[True, True, False],
)
def test_same_tokens_and_rows_as_the_authors_algorithm(name, grids, d, share, seed, kind, fit, neighbours, has_cls):
    tokens = replace(sample(grids, d, seed, kind), has_cls=has_cls)
    k = max(1, int(share * len(tokens.features)))
    selection = CLASSES[name](fit=fit, neighbours=neighbours).select(tokens, k)
    kept, rows = reference(tokens, k, name == "prumerge_plus", fit, neighbours)
    assert selection.kept.tolist() == kept
    assert len(kept) == k or fit == "official"
    np.testing.assert_allclose(mixed(tokens.features, selection.kept, selection.mix).numpy(), rows, atol=1e-4)


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("k", [64, 144, 192])
def test_a_picture_of_llava(name, k):
    tokens = sample([(1, 24, 24)], 4, k)
    selection = CLASSES[name]().select(tokens, k)
    kept, rows = reference(tokens, k, name == "prumerge_plus", "k", 32)
    assert selection.kept.tolist() == kept
    np.testing.assert_allclose(mixed(tokens.features, selection.kept, selection.mix).numpy(), rows, atol=1e-4)


def test_outliers_of_the_worked_example():
    """Q1 is 0.0325 and Q3 0.1075, so that more than 0.22 stands out."""
    assert (quantile(EXAMPLE, 0.25), quantile(EXAMPLE, 0.75)) == (pytest.approx(0.0325), pytest.approx(0.1075))
    assert outliers(torch.tensor(EXAMPLE, dtype=torch.float64)) == 2
    tokens = replace(attended([(1, 2, 5)], 3, 0), vit_attention={"after": torch.tensor(EXAMPLE)})
    plain, plus = (one(fit="official").select(tokens, 5) for one in CLASSES.values())
    assert plain.order.tolist() == [7, 9, 8]  # the last one stands for all others
    assert plus.order.tolist() == [7, 9, 0, 1, 2, 3, 4, 5, 6, 8]  # a step of int(5 / 3)


def test_without_outliers_one_row_is_left_of_all_and_the_even_sample_is_the_first_token():
    tokens = replace(attended([(1, 3, 4)], 3, 0), vit_attention={"after": torch.full((12,), 1 / 13)})
    plain, plus = (one(fit="official").select(tokens, 5) for one in CLASSES.values())
    assert (plain.kept.tolist(), plus.kept.tolist()) == ([0], [0, 1])
    row = mixed(tokens.features, plain.kept, plain.mix)
    torch.testing.assert_close(row[0], tokens.features.sum(dim=0) / 13)


def test_where_many_stand_out_the_step_is_one():
    a = [0.0] * 8 + [1.0, 2.0, 3.0]  # a third and more would raise an error in the original
    tokens = replace(attended([(1, 1, 11)], 3, 0), vit_attention={"after": torch.tensor(a)})
    assert PruMergePlus(fit="official").select(tokens, 5).kept.tolist() == list(range(11))


def test_picks_are_distinct_and_the_even_sample_spans_the_image():
    tokens = sample([(1, 24, 24)], 4, 1)
    order = PruMergePlus().select(tokens, 144).order
    assert len(order.unique()) == 144
    even = order[36:-1].sort().values
    assert even[0] < 6
    assert even[-1] > 560
    assert even.diff().max() <= 8


def test_one_token_is_the_weighted_sum_of_all():
    tokens = sample([(1, 3, 3)], 4, 0)
    for one in CLASSES.values():
        selection = one().select(tokens, 1)
        a = tokens.vit_attention["after"]
        assert selection.kept.tolist() == [int(a.argmax())]
        torch.testing.assert_close(mixed(tokens.features, selection.kept, selection.mix)[0], a @ tokens.features)


def test_an_image_whose_share_is_all_of_its_tokens_stays_as_it_is():
    tokens = sample([(1, 1, 1), (1, 5, 5)], 4, 0)
    for one in CLASSES.values():
        selection = one().select(tokens, 9)
        assert torch.equal(mixed(tokens.features, selection.kept, selection.mix)[0], tokens.features[0])


@pytest.mark.parametrize(("name", "params"), [("prumerge", {"neighbours": -1}), ("prumerge_plus", {"share": 1.5})])
def test_bad_parameters_are_refused(name, params):
    with pytest.raises(ValueError, match=f"{name}: {next(iter(params))} must be"):
        CLASSES[name](**params)
