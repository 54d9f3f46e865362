"""VisPruner against a plain transcription of the authors' and the comparison's loops, and by its properties."""

import pytest
import torch
from per_image_references import prune
from properties import SEEDS, SHARE, VARIANTS, randomized
from reference_selection import attended, shuffled

from methods.base import Tokens
from methods.kernels import cosine
from methods.vispruner import VisPruner

KINDS = ("normal", "positive", "duplicates", "parallel", "equal", "zero_rows", "opposite", "levels")


def kept(tokens, k, **params):
    return VisPruner(**params).select(tokens, k).kept.tolist()


def test_the_last_few_others_may_lose_all_of_one_half():
    """An odd number of others, more to drop than half of them: the official code takes all from its half a."""
    x = torch.tensor([[0.1, 0.2, 0.7], [0, 0.5, 0.1], [2, -2.1, 1.1], [0, -0.3, 0.6], [0.5, 1.5, 1]])
    tokens = Tokens(x, [(1, 1, 5)], vit_attention={"last": torch.tensor([0.5, 0.4, 0.3, 0.2, 0.1])})
    assert kept(tokens, 1) == [3]


@randomized(
    80,
    n=range(2, 45),
    d=range(1, 17),
    share=SHARE,
    ratio=[0.0, 0.3, 0.5, 0.75, 1.0],
    variant=VARIANTS,
    seed=SEEDS,
    kind=KINDS,
)
def test_same_tokens_as_the_authors_algorithm(n, d, share, ratio, variant, seed, kind):
    tokens, k = attended([(1, 1, n)], d, seed, kind), max(1, int(share * n))
    expected = prune(tokens.features, tokens.vit_attention["last"], k, variant, ratio)
    assert kept(tokens, k, variant=variant, ratio=ratio) == expected


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize(("n", "k", "table"), [(144, 32, 2048), (145, 31, 2048), (144, 16, 0), (145, 1, 0)])
def test_same_tokens_at_the_size_of_an_image(variant, n, k, table, monkeypatch):
    monkeypatch.setattr(cosine, "TABLE", table)
    monkeypatch.setattr(cosine, "TILE", 1000)
    tokens = attended([(1, 1, n)], 32, n + k)
    assert kept(tokens, k, variant=variant) == prune(tokens.features, tokens.vit_attention["last"], k, variant)


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_images_and_videos_have_their_share(variant):
    tokens = attended([(1, 4, 4), (3, 2, 4), (1, 8, 8)], 6, 4)
    parts = [(0, 16), (16, 40), (40, 104)]
    for k, shares in [(26, (4, 6, 16)), (52, (8, 12, 32)), (2, (0, 1, 1)), (3, (1, 1, 1)), (99, (15, 23, 61))]:
        expected = []
        for (start, end), share in zip(parts, shares, strict=True):
            part = prune(tokens.features[start:end], tokens.vit_attention["last"][start:end], share, variant)
            expected += [start + i for i in part]
        assert kept(tokens, k, variant=variant) == expected


def test_the_variants_differ():
    tokens = attended([(1, 12, 12)], 16, 0)
    assert kept(tokens, 32) != kept(tokens, 32, variant="paper")
    # K = 3: one important token of three, or two
    scores = tokens.vit_attention["last"]
    second = scores.argsort(descending=True)[1].item()
    assert second in kept(tokens, 3, variant="paper")


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_ratio_1_ranks_by_attention(variant):
    tokens = attended([(1, 6, 6)], 8, 1)
    best = tokens.vit_attention["last"].argsort(descending=True).tolist()
    expected = {"official": best[:10], "paper": best[:9]}[variant]  # the comparison leaves one to the others
    assert set(expected) <= set(kept(tokens, 10, variant=variant, ratio=1.0))


@pytest.mark.parametrize("variant", ["official", "paper"])
def test_scale_of_rows_and_of_attention_does_not_matter(variant):
    tokens = attended([(1, 8, 8)], 12, 5)
    rows = 2.0 ** torch.arange(-32, 32).float()
    attention = {"last": tokens.vit_attention["last"] * 2.0**30}
    scaled = Tokens(tokens.features * rows[:, None], tokens.grids, vit_attention=attention)
    assert kept(scaled, 20, variant=variant) == kept(tokens, 20, variant=variant)


def test_permuting_tokens_permutes_the_official_picks():
    """The comparison's begin in raster order, so they do depend on it."""
    tokens = attended([(1, 8, 8)], 12, 5)
    other, origin = shuffled(tokens)
    assert sorted(origin[kept(other, 20)].tolist()) == kept(tokens, 20)
