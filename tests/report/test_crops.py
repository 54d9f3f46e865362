"""Pictures of the gallery where a model sees crops: the whole image, the mosaic of its tiles, and frames."""

import pytest
import torch
from PIL import Image
from questions import ask
from tiny_llava_next import tiny_llava_next, tiny_llava_next_processor
from tiny_llava_onevision import tiny_llava_onevision, tiny_llava_onevision_processor

import harness
from harness.core.config import ModelConfig
from harness.models.limits import limits_of
from harness.models.preprocessing import to_inputs
from harness.report import images

COLOURS = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
FAMILIES = {
    "llava_next": (tiny_llava_next, tiny_llava_next_processor),
    "llava_onevision": (tiny_llava_onevision, tiny_llava_onevision_processor),
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return [build() for build in FAMILIES[request.param]]


def quarters(width, height):
    """A picture with another colour in each quarter."""
    picture = Image.new("RGB", (width, height))
    for place, colour in enumerate(COLOURS):
        left, top = place % 2 * width // 2, place // 2 * height // 2
        picture.paste(colour, (left, top, left + width // 2, top + height // 2))
    return picture


@torch.no_grad()
def shown(model, processor, *media):
    """The pictures of a question, and the grids that a run records of it."""
    messages = ask(*media)
    inputs = to_inputs(processor, [messages], limits_of(processor, ModelConfig("tiny", "tiny")))
    with harness.prune(model, "uniform", keep=0.5) as pruning:
        model(**inputs)
    grids = pruning.records[0].grids
    pictures, same = images.shown(processor, inputs, messages, grids)
    assert same == [list(grid) for grid in grids]
    with pytest.raises(ValueError, match="rows for images and videos"):
        images.shown(processor, inputs, messages, [*grids[:-1], (grids[-1][0], grids[-1][1] + 1, grids[-1][2])])
    return pictures, grids


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (140, 140), (280, 80)])
def test_a_mosaic_of_tiles_is_one_picture_without_padding(family, size):
    pictures, grids = shown(*family, quarters(*size))
    assert len(pictures) == len(grids) == 2
    edge = 14  # the outermost patches of the mosaic may be padding in part
    for whole in pictures:
        for place, colour in enumerate(COLOURS):
            row, column = divmod(place, 2)
            ends = [(edge, length - 1 - edge) for length in whole.size]
            for corner in (ends[0][column], ends[1][row]), ((ends[0][column], whole.height // 4 * (1 + 2 * row))):
                assert whole.getpixel(corner) == pytest.approx(colour, abs=12)
    width, height = pictures[1].size
    assert width / height == pytest.approx(size[0] / size[1], rel=0.35)


def test_frames_and_several_images_are_shown_one_by_one():
    frames = [Image.new("RGB", (60, 60), (40 * i, 0, 0)) for i in range(3)]
    build, process = FAMILIES["llava_onevision"]
    pictures, grids = shown(build(), process(), quarters(90, 60), quarters(60, 90), frames)
    assert grids == [(1, 5, 5), (1, 5, 5), (3, 3, 3)]
    assert [picture.size for picture in pictures] == [(70, 70)] * 5
    assert [picture.getpixel((35, 35))[0] for picture in pictures[2:]] == [0, 40, 80]


def test_what_is_left_over_at_the_end_of_a_crop_is_no_patch(monkeypatch):
    """A crop of the released models has 27 patches of 14 in 384 pixels; here it has 5 in 73."""
    monkeypatch.setattr("tiny_llava_onevision.PIXELS", 73)
    monkeypatch.setattr("tiny_llava_onevision.PINPOINTS", [[73, 73], [73, 146]])
    pictures, grids = shown(tiny_llava_onevision(), tiny_llava_onevision_processor(), quarters(140, 70))
    assert grids == [(1, 5, 5), (1, 5, 10)]
    assert [picture.size for picture in pictures] == [(70, 70), (140, 70)]
