"""VisionZip against a plain transcription, for what is kept and for what each token is merged into."""

import pytest
import torch
from per_image_references import zip_unit
from properties import SEEDS, SHARE, VARIANTS, randomized
from reference_selection import attended

from methods.base import Tokens
from methods.visionzip import VisionZip


def merged(tokens, k, **params):
    selection = VisionZip(**params).select(tokens, k)
    return selection.kept.tolist(), selection.owner.tolist()


@randomized(
    80,
    n=range(2, 41),
    d=range(1, 13),
    share=SHARE,
    contextual=[10 / 64, 10 / 64, 0.01, 0.5, 1.0],
    variant=VARIANTS,
    seed=SEEDS,
    kind=["normal", "duplicates", "equal", "zero_rows", "opposite", "levels"],
)
def test_same_tokens_and_merges_as_the_authors_algorithm(n, d, share, contextual, variant, seed, kind):
    tokens, k = attended([(1, 1, n)], d, seed, kind), max(1, int(share * n))
    expected = zip_unit(tokens.vit_attention["last"], tokens.vit_keys, k, contextual)
    assert merged(tokens, k, contextual=contextual, variant=variant) == expected


@pytest.mark.parametrize(("k", "contextual"), [(64, 10), (128, 20), (192, 30), (32, 5)])
def test_the_split_of_the_presets(k, contextual):
    tokens = attended([(1, 24, 24)], 8, k)
    kept, owner = merged(tokens, k)
    assert (kept, owner) == zip_unit(tokens.vit_attention["last"], tokens.vit_keys, k)
    sizes = torch.bincount(torch.tensor(owner), minlength=k)
    assert (sizes == 1).sum() >= k - contextual
    assert sizes.sum() == 576


def test_images_and_time_steps_are_units_of_their_own():
    tokens = attended([(1, 4, 4), (3, 2, 4), (1, 8, 8)], 6, 4)
    sizes = (16, 8, 8, 8, 64)
    for k, shares in [(26, (4, 2, 2, 2, 16)), (52, (8, 4, 4, 4, 32)), (5, (1,) * 5), (101, (15, 8, 8, 8, 62))]:
        expected_kept, expected_owner, start = [], [], 0
        for size, share in zip(sizes, shares, strict=True):
            unit = slice(start, start + size)
            kept, owner = zip_unit(tokens.vit_attention["last"][unit], tokens.vit_keys[unit], share)
            expected_owner += [len(expected_kept) + i for i in owner]
            expected_kept += [start + i for i in kept]
            start += size
        assert merged(tokens, k) == (expected_kept, expected_owner)


def test_fewer_tokens_than_units():
    tokens = attended([(6, 2, 3)], 6, 4)
    assert merged(tokens, 4) == zip_unit(tokens.vit_attention["last"], tokens.vit_keys, 4)


def test_one_token_takes_all():
    assert merged(attended([(1, 3, 3)], 4, 0), 1) == ([0], [0] * 9)


def test_scale_of_keys_and_of_attention_does_not_matter():
    tokens = attended([(1, 8, 8)], 12, 5)
    rows = 2.0 ** torch.arange(-32, 32).float()
    attention = {"last": tokens.vit_attention["last"] * 2.0**30}
    scaled = Tokens(tokens.features, tokens.grids, vit_attention=attention, vit_keys=tokens.vit_keys * rows[:, None])
    assert merged(scaled, 20) == merged(tokens, 20)
