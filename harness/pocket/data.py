"""Draw the suites: `python -m harness.pocket.data` writes `tasks/data/*.parquet` and `clip_tasks/data/*.parquet`.

Their seeds are never used in training. Answers are balanced, so that the chance level is known: 1/2 for yes/no and for
order, 1/4 for options and for times, 1/5 for counts and colours, 1/8 for shapes. No cell is the answer to more than six
questions of 240.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from itertools import count, islice
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as Pillow
from pyarrow import parquet

from harness.pocket import CLIP_TASKS, TASKS, easyvqa
from harness.pocket.clips import COLUMNS, LIVELY
from harness.pocket.draw import OTHER_SEED, SUITE_SEED, scene_at
from harness.pocket.scenes import Question, Scene, bars
from harness.pocket.words import COLORS, OPTIONS, SHAPES

ROWS = 240
EASY_VQA_ROWS = 500


def _png(image: Pillow.Image) -> dict[str, bytes | None]:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return {"bytes": buffer.getvalue(), "path": None}


def _scenes(kind: str, seed: int = SUITE_SEED) -> Iterator[Scene]:
    return (scene_at(kind, seed, index) for index in count())


def _questions(kind: str, task: str, answers: Collection[str] | Mapping[str, int] = ()) -> list[tuple[Scene, Question]]:
    """Return the first questions of a task, one for each picture; with `answers`, equally many or so many for each."""
    equal = {answer: ROWS // len(answers) for answer in answers}
    missing = dict(answers) if isinstance(answers, Mapping) else equal
    selected: list[tuple[Scene, Question]] = []
    for scene in _scenes(kind):
        for question in [q for q in scene.questions if q.task == task][:2]:
            if not answers or missing.get(question.answer, 0) > 0:
                selected.append((scene, question))
                if answers:
                    missing[question.answer] -= 1
                break
        if len(selected) == ROWS:
            return selected
    raise AssertionError("unreachable: scenes are endless")


def charts() -> list[tuple[Scene, Question]]:
    """Bar charts of random tables; every third question asks for the highest or lowest bar."""
    selected = []
    for i, scene in zip(range(ROWS), _scenes("chart"), strict=False):
        ranked = [q for q in scene.questions if q.text.startswith("Which")]
        valued = [q for q in scene.questions if q.text.startswith("What")]
        pool = ranked if i % 3 == 0 and ranked else valued
        selected.append((scene, pool[i % len(pool)]))
    return selected


def both_orders(kind: str, task: str) -> list[tuple[Scene, Question]]:
    """Both orders of the options for each clip."""
    pairs = ((scene, question) for scene in _scenes(kind) for question in scene.questions)
    return list(islice((pair for pair in pairs if pair[1].task == task), ROWS))


def easy_vqa() -> list[tuple[Scene, Question]]:
    """The first test images of easy-VQA with their first two questions."""
    scenes = (easyvqa.easyvqa_scene("test", position) for position in count())
    return list(islice(((scene, question) for scene in scenes for question in scene.questions[:2]), EASY_VQA_ROWS))


def vega_tables() -> list[list[int]]:
    """Return rows of real tables, with three to five whole numbers below 1,000 each."""
    from vega_datasets import local_data

    crimea, wheat, barley = local_data("crimea"), local_data("wheat"), local_data("barley")
    driving, power, cars = local_data("driving"), local_data("iowa-electricity"), local_data("cars")
    series = [list(row) for row in crimea[["wounds", "other", "disease"]].to_numpy()]
    series += [list(wheat["wheat"][i : i + 4]) for i in range(0, len(wheat) - 3, 4)]
    series += [list(group["yield"][:5]) for _, group in barley.groupby(["site", "year"])]
    series += [list(driving["miles"][i : i + 5] / 100) for i in range(0, len(driving) - 4, 5)]
    series += [list(group["net_generation"] / 100) for _, group in power.groupby("year")]
    by_year = cars.groupby([cars["Year"].dt.year, "Origin"])
    for column in ("Horsepower", "Miles_per_Gallon", "Displacement"):
        series += [list(row) for row in by_year[column].mean().unstack().to_numpy()]
    series += [list(cars["Horsepower"].dropna()[i : i + 4]) for i in range(0, 160, 4)]
    tables = [[round(float(v)) for v in row if pd.notna(v)] for row in series]
    return [
        row for row in tables if 3 <= len(row) <= 5 and len(set(row)) == len(row) and 0 < min(row) <= max(row) < 1000
    ]


def vega() -> list[tuple[Scene, Question]]:
    """Bar charts of real tables from vega-datasets, with two questions each."""
    rng = np.random.default_rng([SUITE_SEED, 99])
    selected: list[tuple[Scene, Question]] = []
    tables = vega_tables()
    for i in range(ROWS // 2):
        row = tables[i % len(tables)]
        colors = [list(COLORS)[j] for j in rng.permutation(len(COLORS))[: len(row)]]
        scene = bars(rng, row, colors)
        order = rng.permutation(len(scene.questions))[:2]
        selected += [(scene, scene.questions[j]) for j in order]
    return selected


def others() -> list[tuple[Scene, Question]]:
    """Images for methods that learn from data, such as D2Pruner's prior; not part of the suite."""
    kinds = ("objects", "counting", "text", "document", "chart")
    scenes = [scene for kind in kinds for _, scene in zip(range(24), _scenes(kind, OTHER_SEED), strict=False)]
    return [(scene, scene.questions[0]) for scene in scenes]


SUITE: dict[str, Callable[[], list[tuple[Scene, Question]]]] = {
    "existence": partial(_questions, "objects", "existence", ("yes", "no")),
    "attributes": partial(_questions, "objects", "attributes", OPTIONS),
    "counting": partial(_questions, "counting", "counting", "12345"),
    "text": partial(_questions, "text", "text"),  # strings of two to four characters
    "documents": partial(_questions, "document", "documents"),  # values of a form
    "charts": charts,
    "video": partial(both_orders, "video", "video"),
    "easyvqa": easy_vqa,
    "vega": vega,
    "scenes": others,
}


EVENTS = dict.fromkeys(LIVELY, ROWS // 2 // len(LIVELY)) | dict.fromkeys(SHAPES, ROWS // 2 // len(SHAPES))
CELLS = {
    f"{column}{row + 1}": 6 for column in COLUMNS for row in range(len(COLUMNS))
}  # few at the margin: 36 are common
CLIPS: dict[str, Callable[[], list[tuple[Scene, Question]]]] = {
    "order": partial(both_orders, "order", "order"),
    "around": partial(_questions, "order", "around", ("yes", "no")),  # before or after
    "ends": partial(_questions, "order", "ends", EVENTS),  # what appears first or last
    "times": partial(_questions, "times", "times", "1234"),
    "turns": partial(_questions, "turns", "turns", EVENTS),
    "places": partial(_questions, "places", "places", CELLS),
}


def write(
    folder: Path,
    suite: Mapping[str, Callable[[], list[tuple[Scene, Question]]]] = SUITE,
    repeats: bool = False,
) -> None:
    """Write a parquet file for each task, in the image layout of `datasets`, compressed if its frames repeat."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, build in suite.items():
        selected = build()
        video, where = len(selected[0][0].frames) > 1, selected[0][1].box is not None
        visual = {"frames": Sequence(Image())} if video else {"image": Image()}
        place = {"bbox": Sequence(Value("float64")), "image_width": Value("int64"), "image_height": Value("int64")}
        features = {"id": Value("int64"), "question": Value("string"), "answer": Value("string"), **visual}
        rows = []
        for i, (scene, question) in enumerate(selected):
            images = [_png(f) for f in scene.frames]
            row = {"id": i, "question": question.text, "answer": question.answer}
            row |= {"frames": images} if video else {"image": images[0]}
            if question.box:
                row |= {"bbox": list(question.box), **dict(zip(list(place)[1:], scene.frames[0].size, strict=True))}
            rows.append(row)
        layout = Features(features | (place if where else {}))
        table = Dataset.from_list(rows, features=layout)
        if repeats:  # `to_parquet` compresses no pictures
            parquet.write_table(table.with_format("arrow")[:], folder / f"{name}.parquet", compression="snappy")
        else:
            table.to_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    write(TASKS / "data")
    write(CLIP_TASKS / "data", CLIPS, repeats=True)
