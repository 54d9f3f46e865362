"""DivPrune against a transcription in exact arithmetic, and by its properties."""

import dataclasses

import pytest
import torch
from probes import Largest
from properties import SEEDS, SHARE, VARIANTS, randomized
from reference_selection import KINDS, is_farthest, sample, worked_example

from methods.base import Tokens
from methods.divprune import DivPrune
from methods.kernels import cosine


@randomized(60, n=range(2, 21), d=range(1, 7), share=SHARE, seed=SEEDS, kind=KINDS, variant=VARIANTS)
def test_same_order_as_the_objective_in_exact_arithmetic(n, d, share, seed, kind, variant):
    tokens, k = sample(n, d, seed, kind), max(1, int(share * n))
    assert is_farthest(DivPrune(variant=variant).select(tokens, k).order.tolist(), tokens.features)


def published(features, k):
    """The released loop in float64, its repeated picks excluded: all chosen rows are reduced anew at every step."""
    x = features.double()
    x = x / x.norm(dim=1, keepdim=True)
    distance = 1 - x @ x.T
    picked = [int(distance.topk(2, dim=0, largest=False).values[1].argmax())]
    while len(picked) < k:
        nearest = distance[picked].min(dim=0).values
        nearest[picked] = -1
        picked.append(int(nearest.argmax()))
    return picked


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize(
    ("n", "d", "grids"), [(576, 64, None), (300, 128, [(1, 10, 12), (1, 9, 20)]), (512, 32, [(4, 8, 16)])]
)
def test_same_order_as_the_released_loop_at_the_size_of_an_image(n, d, grids, variant):
    for seed in range(3):
        tokens = sample(n, d, seed, grids=grids)
        assert DivPrune(variant=variant).select(tokens, n // 4).order.tolist() == published(tokens.features, n // 4)


def test_worked_example():
    assert DivPrune().select(worked_example(), 4).order.tolist() == [6, 3, 0, 4]


@pytest.mark.parametrize("copies", [4, 36, 129])
def test_equal_rows_tie_exactly(copies):
    for seed in range(20):
        first, others = torch.randn(2, 33, generator=torch.Generator().manual_seed(seed))
        tokens = Tokens(torch.cat([others.repeat(copies, 1), first[None]]), [(1, 1, copies + 1)])
        assert DivPrune().select(tokens, 4).order.tolist() == [copies, 0, 1, 2]


def test_copies_come_last_and_never_twice():
    tokens = sample(12, 16, 3)
    doubled = Tokens(tokens.features.repeat(2, 1), [(2, 1, 12)])
    kept = DivPrune().select(doubled, 20).order
    assert sorted((kept[:12] % 12).tolist()) == list(range(12))


@pytest.mark.parametrize("n", [2, 255, 256, 257, 600])
def test_the_start_is_the_same_in_one_tile_or_several(n):
    tokens = sample(n, 16, 11)
    assert DivPrune().select(tokens, 1).order.tolist() == published(tokens.features, 1)


def test_variants_differ_only_below_the_norm_that_the_comparison_holds_for_zero():
    tokens = sample(40, 8, 2)
    tiny = dataclasses.replace(tokens, features=tokens.features * 1e-20)
    normal = DivPrune().select(tokens, 10).order.tolist()
    assert DivPrune(variant="paper").select(tokens, 10).order.tolist() == normal
    assert DivPrune().select(tiny, 10).order.tolist() == normal
    assert DivPrune(variant="paper").select(tiny, 10).order.tolist() == list(range(10))


def test_many_tokens_never_form_the_similarity_of_all_pairs(monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", 999)
    monkeypatch.setattr(cosine, "TILE_32", 256 * 1000)
    with Largest() as seen:
        DivPrune().select(sample(1000, 4, 0), 50)
    assert seen.numel <= 256 * 1000
