"""Boxes in answers: find one, and convert it from the coordinates that a model's family was taught.

A `Box` is (left, top, right, bottom) in shares of the picture's width and height, whatever else the model answers in.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

Box = tuple[float, float, float, float]
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)
MOST = 1e6  # a larger number counts nothing in a picture, and its square may be infinite
NUMBER = r"\s*(-?(?:\d+(?:\.\d*)?|\.\d+))\s*"
FORMS = (  # [1, 2, 3, 4], also inside JSON or another list; Qwen2-VL's (1,2),(3,4)
    re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]"),
    re.compile(rf"\({NUMBER},{NUMBER}\)\s*,\s*\({NUMBER},{NUMBER}\)"),
)


class Coordinates(StrEnum):
    """The unit in which a family was taught to say where something is."""

    SHARES = "shares"  # 0 to 1 of what the model is shown
    THOUSANDTHS = "thousandths"  # 0 to 1000 of what the model is shown
    PIXELS = "pixels"  # of the picture after it was resized


def box_in(answer: str) -> Box | None:
    """Return the first four numbers in brackets of an answer, as they stand there; None if they span no area."""
    matches = [match for form in FORMS if (match := form.search(answer))]
    if not matches:
        return None
    left, top, right, bottom = map(float, min(matches, key=lambda match: match.start()).groups())
    box = left, top, right, bottom
    return box if spans(box) else None


def spans(box: Sequence[float]) -> bool:
    """Tell whether four numbers span an area, and are none that count nothing."""
    return box[0] < box[2] and box[1] < box[3] and all(abs(number) <= MOST for number in box)


def in_picture(box: Box, unit: Coordinates, size: tuple[int, int], view: Box = WHOLE) -> Box:
    """Convert a box of an answer to shares of the picture.

    Numbers of 0 to 1 are shares whatever the family's unit: prompts may ask for them, and no family's box of something
    visible is as small.

    Args:
        box: the numbers of the answer.
        unit: the family's.
        size: width and height in pixels of the picture as it was resized for the model.
        view: the part of the picture that the model is shown.
    """
    is_share = unit is Coordinates.SHARES or all(0 <= number <= 1 for number in box)
    width, height = (1.0, 1.0) if is_share else size if unit is Coordinates.PIXELS else (1000.0, 1000.0)
    return outward((box[0] / width, box[1] / height, box[2] / width, box[3] / height), view)


def outward(box: Box, view: Box) -> Box:
    """Convert shares of a part of a picture to shares of the whole."""
    width, height = view[2] - view[0], view[3] - view[1]
    left, top, right, bottom = box
    return view[0] + left * width, view[1] + top * height, view[0] + right * width, view[1] + bottom * height


def inward(box: Box, view: Box) -> Box:
    """Convert shares of the whole picture to shares of a part of it."""
    width, height = view[2] - view[0], view[3] - view[1]
    left, top, right, bottom = box
    return (left - view[0]) / width, (top - view[1]) / height, (right - view[0]) / width, (bottom - view[1]) / height


def view_of(image_processor: Any, size: tuple[int, int]) -> Box:
    """Return the part of a picture of `size` (width, height) that a processor shows which crops the middle or pads.

    A part that is larger than the picture has margins. Processors that cut pictures into tiles show all.
    """
    wide, high = size
    edge, crop = getattr(image_processor.size, "shortest_edge", None), getattr(image_processor, "crop_size", None)
    if hasattr(image_processor, "image_grid_pinpoints"):
        return WHOLE
    if getattr(image_processor, "do_center_crop", False) and edge and crop:
        across, down = (crop[name] * min(size) / edge / side / 2 for name, side in (("width", wide), ("height", high)))
        return 0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down
    if getattr(image_processor, "do_pad", False) and (padded := getattr(image_processor, "pad_size", None)):
        return 0.0, 0.0, padded["width"] / wide, padded["height"] / high
    return WHOLE


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Return the intersection over union of two boxes."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    areas = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return both / (sum(areas) - both)
