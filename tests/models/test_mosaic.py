"""Rows of tiled images in a prompt, compared with the packing functions of transformers' own models."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import LlavaNextModel
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from harness.models.layout import Layout
from harness.models.mosaic import Packing, mosaic_of

NEXT = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
ONEVISION = [[384 * rows, 384 * columns] for rows in range(1, 7) for columns in range(1, 7)]
NEWLINE = -7.0


def packed(image, side, pixels, pinpoints, resized=None):
    height, width = select_best_resolution(image, pinpoints)
    tiles = height // pixels, width // pixels
    packing = Packing(side, tiles, mosaic_of(tiles, side, image), resized)
    return packing, packing.crops


def theirs(model, features, image, side, pixels, pinpoints, **options):
    """The rows that transformers packs features [crops, patches, D] to."""
    vision = SimpleNamespace(image_size=pixels, patch_size=pixels // side)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=pinpoints)
    newline = torch.full(features.shape[-1:], NEWLINE).double()
    (rows,), _ = model.pack_image_features(
        SimpleNamespace(config=config), [features], torch.tensor([image]), image_newline=newline, **options
    )
    return rows


@pytest.mark.parametrize(
    ("image", "crops", "rows", "newlines"),
    [
        ((336, 336), 3, 1176, 24),
        ((672, 672), 5, 2928, 48),
        ((500, 700), 5, 2242, 34),
        ((640, 480), 5, 2352, 48),
        ((1000, 300), 4, 2232, 72),
        ((333, 1000), 4, 2328, 24),
    ],
)
def test_llava_next(image, crops, rows, newlines):
    packing, count = packed(image, 24, 336, NEXT)
    row = packing.placeholders
    assert (count, row.rows, int((~row.patches).sum())) == (crops, rows, newlines)
    features = torch.arange(crops * 576).double().view(crops, 576, 1)
    expected = theirs(LlavaNextModel, features, image, 24, 336, NEXT, vision_feature_select_strategy="default")[:, 0]
    assert torch.equal(expected == NEWLINE, ~row.patches)
    assert torch.equal(expected[row.patches], packing.carry(features.flatten(0, 1))[:, 0])
    assert torch.equal(row.crops, expected[row.patches].long() // 576)
    assert sum(t * h * w for t, h, w in row.grids) == rows - newlines
    assert row.grids == [(1, 24, 24), (1, newlines, (rows - 576) // newlines - 1)]


def test_sizes_at_which_rounding_decides():
    sizes = [(height, width) for height in range(30, 900, 137) for width in range(31, 1100, 153)]
    for image in sizes:
        packing, crops = packed(image, 24, 336, NEXT)
        features = torch.arange(crops * 576).double().view(crops, 576, 1)
        expected = theirs(LlavaNextModel, features, image, 24, 336, NEXT, vision_feature_select_strategy="default")
        assert torch.equal(expected[:, 0] == NEWLINE, ~packing.placeholders.patches), image
        kept = expected[packing.placeholders.patches]
        assert torch.equal(kept, packing.carry(features.flatten(0, 1))), image


@pytest.mark.parametrize(
    ("image", "size", "rows"),
    [((640, 480), None, 2943), ((1536, 1536), (81, 81), 7371), ((2304, 2000), (87, 75), 7341)],
)
def test_llava_onevision_interpolates_large_mosaics(image, size, rows):
    packing, crops = packed(image, 27, 384, ONEVISION, size)
    row = packing.placeholders
    assert row.rows == rows
    torch.manual_seed(0)
    features = torch.randn(crops, 729, 3, dtype=torch.float64)
    expected = theirs(LlavaOnevisionModel, features, image, 27, 384, ONEVISION, vision_aspect_ratio="anyres_max_9")
    assert torch.equal((expected == NEWLINE).all(1), ~row.patches)
    torch.testing.assert_close(expected[row.patches], packing.carry(features.flatten(0, 1)))
    if size is not None:  # the crop of a row is the one that most of its value comes from
        of_crop = F.one_hot(torch.arange(crops)).double().repeat_interleave(729, dim=0)
        share = packing.carry(of_crop)
        assert torch.equal(share.gather(1, row.crops[:, None])[:, 0], share.amax(1))


def test_an_image_of_one_crop_is_closed_by_one_newline():
    packing = Packing(27, (0, 0), None)
    features = torch.arange(729).double().view(1, 729, 1)
    expected = theirs(LlavaOnevisionModel, features, (9, 9), 27, 384, ONEVISION, vision_aspect_ratio="anyres_max_9")
    row = packing.placeholders
    assert (row.rows, row.grids, row.line_ends.unique().tolist()) == (730, [(1, 27, 27)], [729])
    assert torch.equal(expected[row.patches], packing.carry(features[0]))
    assert expected[~row.patches].tolist() == [[NEWLINE]]


def test_a_line_ends_at_the_newline_after_its_patches():
    row = Packing(2, (1, 2), mosaic_of((1, 2), 2, (2, 4))).placeholders
    assert row.line_ends.tolist() == [-1] * 4 + [8] * 5 + [13] * 5
    layout = Layout(row.patches[None], [list(row.grids)], torch.ones(1, 14), line_ends=row.line_ends[None])
    assert layout.newlines[0].nonzero()[:, 0].tolist() == [8, 13]


def test_a_layout_without_lines_has_no_newlines():
    assert not Layout(torch.ones(1, 4) > 0, [[(1, 2, 2)]], torch.ones(1, 4)).newlines.any()
