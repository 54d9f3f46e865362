"""What a run records of a question's tokens, as fields of a line of `kept.jsonl`."""

import base64
from collections.abc import Iterable, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch

from harness.core.files import digest
from harness.evaluation.resize_baseline import ResizeRecord
from harness.models.preprocessing import ShownVideo
from harness.pruning.handle import Kept
from methods.base import Selection

DETAILED = 32  # questions of a task whose picking order and importance are recorded, for the gallery of the report


def kept_fields(record: Kept, videos: Sequence[ShownVideo] = ()) -> dict[str, Any]:
    """Return the fields of a line of kept.jsonl; `per_layer` is the mean number of visual tokens per decoder layer.

    `newlines`, the numbers of newline rows before and after, is there only in families that have such rows. `per_tile`,
    `k` of each tile, is there only in families that cut tiles, and for a budget per tile. `stages`, what each cut left,
    is there only after several cuts. `budget`, K, is there where it is not `k`: it counts the tokens of a layer on
    average, or the method keeps another number. `shown` are the grids of smaller images.
    `videos`, what is shown of each video, is there only for questions with some.
    """
    grids = [list(grid) for grid in record.grids]
    line = {"n": record.n, "k": record.k, "per_layer": record.per_layer, "grids": grids, "kept": record.kept}
    if record.newlines is not None:
        line["newlines"] = list(record.newlines)
    if record.per_tile is not None:
        line["per_tile"] = record.per_tile
    if record.stages:
        line["stages"] = [{"layer": stage.layer, "kept": stage.kept} for stage in record.stages]
    if record.budget is not None:
        line["budget"] = record.budget
    if isinstance(record, ResizeRecord):
        line["shown"] = [list(grid) for grid in record.shown]
    if videos:
        line["videos"] = list(videos)
    return line


def detailed(questions: Iterable[tuple[str, int]]) -> set[tuple[str, int]]:
    """Choose `DETAILED` questions (task, document) of each task by digest, the same in every run of a sweep."""
    ranked = sorted(set(questions), key=lambda question: (question[0], digest(question)))
    tasks = groupby(ranked, key=lambda question: question[0])
    return {question for _, of_task in tasks for question in islice(of_task, DETAILED)}


def picking_details(selection: Selection, importance: torch.Tensor | None) -> dict[str, Any]:
    """Return the fields of kept.jsonl for a detailed question, as far as the method provides them.

    `order` lists the kept indices in picking order. `importance` has a byte per token, in base64: the logits, scaled to
    0 for the least important token and 255 for the most important one.
    """
    details: dict[str, Any] = {}
    if selection.order is not None:
        details["order"] = selection.order.tolist()
    if importance is not None:
        logits = importance.float().cpu().numpy()
        low, high = logits.min(), logits.max()
        levels = (255 * (logits - low) / (high - low or 1)).round().astype(np.uint8)
        details["importance"] = base64.b64encode(levels.tobytes()).decode()
    return details
