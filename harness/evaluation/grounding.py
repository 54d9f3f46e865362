"""Questions that ask where: the box of what they ask about, and the model's box in the form that a task scores.

lmms-eval's tasks of referring expression comprehension (REC) ask for a box in shares of the picture and score the first
[left, top, right, bottom] of an answer as such. Models answer in the coordinates that they were taught, so their box is
converted first, here and nowhere else. The answer itself is logged as it is, the converted box next to it.
"""

import math
from collections.abc import Iterable, Mapping
from json import loads
from typing import Any

from PIL import Image

from harness.core.errors import UserError
from harness.evaluation import task_overrides
from harness.evaluation.resize_baseline import ResizeRecord
from harness.models.adapter import Adapter
from harness.models.coordinates import WHOLE, Box, Coordinates, box_in, in_picture, spans, view_of
from harness.pruning.handle import Kept

REC = frozenset(task_overrides.REC)
# A key in their files would rename the runs that exist: the digest of a suite's files is a part of what names them.
EMBEDDED = frozenset({"pocket_places", "blank_places"})
# An answer without a box is scored as this one. lmms-eval's stand-in of zeros has its centre in every target that
# begins at the corner of the picture, and an answer with its corners exchanged can make it divide by zero.
NOWHERE: Box = (-1.0, -1.0, -1.0, -1.0)
DIGITS = 6  # of a share; a picture of 100,000 pixels has fewer


def scores_boxes(tasks: Iterable[str]) -> bool:
    """Tell whether one of the tasks scores boxes in shares of the picture."""
    return not REC.isdisjoint(tasks)


def unit_of(family: type[Adapter]) -> Coordinates:
    """Return what a family's boxes count in; UserError if that is unknown."""
    if family.coordinates is None:
        raise UserError(
            f"tasks ask for boxes, and what {family.family} counts in is unknown: set {family.__name__}.coordinates "
            f"to one of {', '.join(Coordinates)}, or leave these tasks out"
        )
    return family.coordinates


def target_of(task: str, row: Mapping[str, Any]) -> Box:
    """Return where in the picture lies what a question asks about; UserError if its row does not say.

    A row of a REC task has `bbox` in shares, as lmms-eval's own code leaves it. A row of any other task has it in
    pixels, with `image_width` and `image_height`. Both are left, top, right, bottom.
    """
    names = ("image_width", "image_height")
    width, height = (1.0, 1.0) if task in REC else (float(_field(task, row, name)) for name in names)
    numbers = [float(number) for number in _field(task, row, "bbox")]
    if len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise UserError(f"task {task}: bbox must be left, top, right, bottom, got {numbers}: mend its data")
    left, top, right, bottom = numbers
    if not (right > 0 and left < min(right, width) and bottom > 0 and top < min(bottom, height)):
        raise UserError(f"task {task}: bbox {numbers} has no part in a picture of {width} x {height}: mend its data")
    return left / width, top / height, right / width, bottom / height


def _field(task: str, row: Mapping[str, Any], name: str) -> Any:
    if row.get(name) is None:
        raise UserError(f"task {task} asks where, so its rows need {name}, got {', '.join(row)}: add it to its data")
    return row[name]


def asks_where(task: Any) -> bool:
    """Tell whether the questions of an lmms-eval Task have a target in the picture.

    A task says so by `asks_where: true` in the `metadata` of its file; lmms-eval's own, and the embedded ones, are
    known by name.
    """
    name = task.config.task
    for entry in task_overrides.metadata_of(task):
        if (declared := entry.get("asks_where")) is not None:
            if not isinstance(declared, bool):
                raise UserError(f"task {name}: asks_where in its metadata must be true or false, got {declared!r}")
            return declared
    return name in REC or name in EMBEDDED


def target_fields(task: str, row: Mapping[str, Any], picture: Image.Image, processor: Any) -> dict[str, Any]:
    """Return what a line of kept.jsonl says of a question that asks where, in shares of the picture.

    `target` is what it asks about. `view`, the part of the picture that the grids cover, is there unless that is all.
    """
    target, view = target_of(task, row), _view(picture, processor)
    return {"target": _rounded(target)} | ({} if view == WHOLE else {"view": _rounded(view)})


def answer_fields(
    task: str, answer: str, picture: Image.Image, record: Kept, family: Adapter, processor: Any
) -> dict[str, Any]:
    """Return what a line of responses.jsonl says of an answer that is scored as a box: `box`, null if it has none."""
    if task not in REC:
        return {}
    from lmms_eval.api.reasoning import strip_reasoning_tags

    unit = unit_of(type(family))
    box = box_in(strip_reasoning_tags(answer, loads(task_overrides.REASONING_TAGS)))
    if box is None:
        return {"box": None}
    size = _resized(record, processor.image_processor) if unit is Coordinates.PIXELS else picture.size
    found = _rounded(in_picture(box, unit, size, _view(picture, processor)))
    return {"box": found if spans(found) else None}  # a large view enlarges, and rounding may leave no area


def scored_text(line: Mapping[str, Any]) -> str:
    """Return what lmms-eval scores of a line of responses.jsonl."""
    if line["task"] not in REC:
        return str(line["response"])
    box = None if "failed" in line else line["box"]
    return "[" + ", ".join(f"{number:.{DIGITS}f}" for number in box or NOWHERE) + "]"


def _view(picture: Image.Image, processor: Any) -> Box:
    return view_of(processor.image_processor, picture.size)


def _resized(record: Kept, image_processor: Any) -> tuple[int, int]:
    """Return width and height in pixels of the picture that the model was shown, of a family with one grid for each."""
    grids = record.shown if isinstance(record, ResizeRecord) else record.grids
    _, rows, columns = grids[0]
    token = image_processor.patch_size * image_processor.merge_size
    return columns * token, rows * token


def _rounded(box: Box) -> list[float]:
    return [round(number, DIGITS) for number in box]
