"""Boxes in answers, converted from each family's coordinates to shares of the picture, with examples worked by hand."""

from types import SimpleNamespace

import pytest
from tiny_llava_next import tiny_llava_next_processor
from tiny_models import tiny_llava_processor, tiny_processor

from harness.models import FAMILIES, adapter_class
from harness.models.coordinates import WHOLE, Coordinates, box_in, in_picture, inward, outward, overlap, view_of


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("[0.1, 0.2, 0.6, 0.6]", (0.1, 0.2, 0.6, 0.6)),
        ("It is at [ 1,2 , 3,4 ].", (1, 2, 3, 4)),
        ('```json\n[{"bbox_2d": [17, 22, 101, 67], "label": "square"}]\n```', (17, 22, 101, 67)),
        ("<ref>square</ref><box>[[100, 200, 600, 600]]</box>", (100, 200, 600, 600)),
        (
            "<|object_ref_start|>square<|object_ref_end|><|box_start|>(100,200),(600,600)<|box_end|>",
            (100, 200, 600, 600),
        ),
        ("[1, 2, 3, 4] or [5, 6, 7, 8]", (1, 2, 3, 4)),
        ("(1, 2), (3, 4), that is [5, 6, 7, 8]", (1, 2, 3, 4)),
        ("[.5, 0., 1, 1.]", (0.5, 0, 1, 1)),
        ("[-5, 0, 10, 10]", (-5, 0, 10, 10)),
        ("[3, 2, 1, 4]", None),  # its corners are exchanged
        ("[1, 2, 1, 4]", None),
        ("[1, 2, 3]", None),
        ("[1, 2, 3, 4, 5]", None),
        ("[1e9, 2, 3, 4]", None),
        (f"[0, 0, {'9' * 400}, 4]", None),
        ("", None),
    ],
)
def test_the_first_box_of_an_answer_is_found_however_it_is_written(answer, box):
    assert box_in(answer) == box


# A picture of 160 x 120; 168 x 112 after a processor has resized it to multiples of 28.
@pytest.mark.parametrize(
    ("unit", "box", "shares"),
    [
        ("pixels", (42, 28, 126, 84), (0.25, 0.25, 0.75, 0.75)),
        ("pixels", (0, 0, 168, 112), WHOLE),
        ("thousandths", (100, 200, 600, 1000), (0.1, 0.2, 0.6, 1)),
        ("shares", (0.1, 0.2, 0.6, 0.7), (0.1, 0.2, 0.6, 0.7)),
        ("shares", (1, 2, 3, 4), (1, 2, 3, 4)),  # outside the picture, as it says
        ("pixels", (0.1, 0.2, 0.6, 0.7), (0.1, 0.2, 0.6, 0.7)),  # as the prompt asks
        ("thousandths", (0.1, 0.2, 0.6, 1), (0.1, 0.2, 0.6, 1)),
        ("pixels", (-42, 28, 126, 140), (-0.25, 0.25, 0.75, 1.25)),
    ],
)
def test_each_unit_becomes_shares_of_the_picture(unit, box, shares):
    assert in_picture(box, Coordinates(unit), (168, 112)) == pytest.approx(shares)


def test_shares_of_a_part_and_of_the_whole_are_inverse():
    view = (0.125, 0, 0.875, 1)
    assert outward((0, 0.2, 0.5, 0.6), view) == pytest.approx((0.125, 0.2, 0.5, 0.6))
    assert inward((0.125, 0.2, 0.5, 0.6), view) == pytest.approx((0, 0.2, 0.5, 0.6))
    assert in_picture((0, 200, 500, 600), Coordinates.THOUSANDTHS, (1, 1), view) == pytest.approx(
        (0.125, 0.2, 0.5, 0.6)
    )


def test_what_a_processor_crops_away_or_adds_is_known():
    crop = tiny_llava_processor().image_processor
    assert view_of(crop, (160, 120)) == pytest.approx((0.125, 0, 0.875, 1))
    assert view_of(crop, (60, 120)) == pytest.approx((0, 0.25, 1, 0.75))
    assert view_of(crop, (50, 50)) == WHOLE
    padded = SimpleNamespace(size=None, do_pad=True, pad_size={"width": 448, "height": 448})  # as pocket_llava's
    assert view_of(padded, (448, 224)) == (0, 0, 1, 2)
    assert view_of(tiny_processor().image_processor, (160, 120)) == WHOLE
    assert view_of(tiny_llava_next_processor().image_processor, (160, 120)) == WHOLE  # whole, and in tiles


def test_the_shown_part_is_what_the_tensor_shows():
    """A picture with a gradient from 0 at its left to 255 at its right: the crop's ends are the view's."""
    import numpy as np
    from PIL import Image

    processor = tiny_llava_processor().image_processor
    row = np.linspace(0, 255, 160).round().astype(np.uint8)
    image = Image.fromarray(np.broadcast_to(row[None, :, None], (120, 160, 3)).copy())
    pixels = processor(images=image, do_normalize=False, return_tensors="pt")["pixel_values"][0, 0, 28]
    left, _, right, _ = view_of(processor, image.size)
    half = (right - left) / len(pixels) / 2  # of a pixel
    assert float(pixels[0]) == pytest.approx(left + half, abs=0.01)
    assert float(pixels[-1]) == pytest.approx(right - half, abs=0.01)


def test_every_family_says_what_its_answers_count_in():
    units = {family: adapter_class(family).coordinates for family in FAMILIES}
    assert units == {
        "qwen2_5_vl": "pixels",
        "qwen2_vl": "thousandths",
        "qwen3_vl": "thousandths",
        "internvl": "thousandths",
        "llava": "shares",
        "llava_next": "shares",
        "llava_onevision": "shares",
        "llavaonevision1_5": None,
    }


def test_overlap_is_that_of_lmms_eval():
    from lmms_eval.tasks.refcoco.utils_rec import compute_iou

    boxes = [(0.1, 0.2, 0.6, 0.6), (0.5, 0.1, 0.9, 0.7), (0, 0, 1, 1), (-1, -1, -1, -1), (0.1, 0.2, 0.6, 0.6)]
    for box in boxes[:3]:
        for other in boxes:
            assert overlap(box, other) == pytest.approx(compute_iou(box, other))
