"""HiPrune against a plain transcription of the authors' and the comparison's code, and by its properties."""

from math import isqrt

import pytest
import torch
from layer_samples import best
from per_image_references import hierarchy
from properties import SEEDS, SHARE, VARIANTS, randomized
from reference_selection import attended

from methods.hiprune import HiPrune


def kept(tokens, k, **params):
    return HiPrune(**params).select(tokens, k).kept.tolist()


@randomized(
    80,
    t=range(1, 3),
    h=range(1, 9),
    w=range(2, 9),
    share=SHARE,
    alpha=[0.0, 0.1, 0.1, 0.5, 1.0],
    variant=VARIANTS,
    row=["grid", "sqrt"],
    seed=SEEDS,
    kind=["normal", "levels", "constant", "sums"],
)
def test_same_tokens_as_the_authors_algorithm(t, h, w, share, alpha, variant, row, seed, kind):
    tokens, k = attended([(t, h, w)], 4, seed, kind), max(1, int(share * t * h * w))
    width = w if row == "grid" else isqrt(t * h * w)
    expected = hierarchy(tokens.vit_attention["middle"], tokens.vit_attention["last"], width, k, variant, alpha)
    assert kept(tokens, k, alpha=alpha, variant=variant, row=row) == expected


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("k", [4, 5, 25, 26, 32, 64, 75, 128, 192])
def test_same_tokens_on_576(variant, k):
    tokens = attended([(1, 24, 24)], 4, k)
    expected = hierarchy(tokens.vit_attention["middle"], tokens.vit_attention["last"], 24, k, variant)
    assert kept(tokens, k, variant=variant) == expected


def test_official_subtracts_one_where_that_is_enough():
    """The released arithmetic, on attention that no token exceeds another's in by 1."""
    tokens = attended([(1, 24, 24)], 4, 0)
    middle, last = tokens.vit_attention["middle"], tokens.vit_attention["last"].clone()
    anchors = middle.topk(round(128 * 0.1 / 5)).indices
    near = torch.cat([anchors, anchors - 1, anchors + 1, anchors - 24, anchors + 24]).clamp(0, 575).unique()
    last[near] -= 1
    rest = last.topk(128 - len(near)).indices
    assert kept(tokens, 128) == torch.cat([near, rest]).unique().tolist()


def test_exactly_k_where_subtracting_one_is_not_enough():
    tokens = attended([(1, 16, 16)], 4, 1, "sums")
    tokens.vit_attention["last"][:40] += 50
    tokens.vit_attention["middle"][:2] += 50
    assert len(kept(tokens, 64)) == 64


def test_official_is_one_sequence_with_the_first_width_and_paper_takes_each_image():
    tokens = attended([(1, 6, 8), (2, 4, 6), (1, 8, 12)], 4, 3)
    middle, last = tokens.vit_attention["middle"], tokens.vit_attention["last"]
    for k, shares in [(48, (12, 12, 24)), (96, (24, 24, 48)), (190, (48, 47, 95)), (2, (1, 0, 1))]:
        assert kept(tokens, k) == hierarchy(middle, last, 8, k)
        expected = []
        for start, size, width, share in zip((0, 48, 96), (48, 48, 96), (8, 6, 12), shares, strict=True):
            image = slice(start, start + size)
            expected += [start + i for i in hierarchy(middle[image], last[image], width, share, "paper")]
        assert kept(tokens, k, variant="paper") == expected


def test_alpha_0_ranks_by_the_last_layer():
    tokens = attended([(1, 8, 8)], 4, 5)
    expected = sorted(best(tokens.vit_attention["last"].tolist(), 16))
    assert kept(tokens, 16, alpha=0.0) == kept(tokens, 16, alpha=0.0, variant="paper") == expected


def test_anchors_bring_their_neighbours():
    tokens = attended([(1, 10, 10)], 4, 5)
    tokens.vit_attention["middle"][55] = 9
    assert {45, 54, 55, 56, 65} <= set(kept(tokens, 30))


def test_reads_two_layers_as_either_did():
    official, paper = HiPrune().attention_spec, HiPrune(variant="paper").attention_spec
    assert official.roles == paper.roles == ("last", "middle")
    assert (official.queries, paper.queries) == ("all", "cls")
    assert (official.cls_key, paper.cls_key) == (True, False)
    assert (official.numbering, paper.numbering) == ("official", "paper")
