"""Draw the suite of photographs: `python -m harness.pocket.photo.suite` writes `photo_tasks/data/*.parquet`.

A file has the questions of all tasks, because many are about the same picture, whose bytes it then holds once. Answers
are balanced as scenes allow: 1/2 for existence, 1/4 for corners and counts, 1/6 for colours, 1/20 for signs. No
thing is the answer to more than 12 of 300 questions.
"""

from __future__ import annotations

import io
from collections import Counter
from itertools import count
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image, Value
from PIL import Image as Pillow
from pyarrow import parquet

from harness.pocket import PHOTO_TASKS
from harness.pocket.photo.questions import ask
from harness.pocket.photo.scenes import TEST, UNSEEN, draw
from harness.pocket.photo.words import COLORS, CORNERS, NUMBERS, SIGNS, THINGS
from harness.pocket.scenes import Question

SUITE_SEED, OTHER_SEED = 33, 34
OTHERS = 60
ROWS = {TEST: 300, UNSEEN: 100}  # questions of a task
CHOICES = {  # what is answered, and how often at most relative to an equal share
    "existence": (("yes", "no"), 1),
    "counting": (NUMBERS, 1),
    "where": (CORNERS, 1),
    "what": (THINGS, 1.6),
    "beside": (THINGS, 1.6),
    "color": (tuple(COLORS), 1),
    "reading": (tuple(sign.lower() for sign in SIGNS), 1),
}
A_PICTURE = 2  # questions of one task about it at most
LAYOUT = Features(
    {name: Value("string") for name in ("task", "question", "answer")} | {"id": Value("int64"), "image": Image()}
)


def select(split: str, rows: int) -> list[tuple[int, Pillow.Image, list[Question]]]:
    """Return pictures (index, picture, questions) until every task has `rows` questions."""
    left = dict.fromkeys(CHOICES, rows)
    room = {task: int(np.ceil(rows / len(answers) * factor)) for task, (answers, factor) in CHOICES.items()}
    used: Counter[tuple[str, str]] = Counter()
    pictures = []
    for index in count():
        rng = np.random.default_rng([SUITE_SEED, list(ROWS).index(split), index])
        scene = draw(rng, split)
        asked = ask(scene, rng)
        taken: list[Question] = []
        for i in rng.permutation(len(asked)):
            question = asked[i]
            task, cell = question.task, (question.task, question.answer)
            alike = [q.task for q in taken].count(task)
            if left[task] - alike > 0 and alike < A_PICTURE and used[cell] + taken.count(question) < room[task]:
                if any(q.task == task and q.answer == question.answer for q in taken):
                    continue
                taken.append(question)
        if len(taken) < (4 if all(left.values()) else 1):
            continue  # not worth a picture
        for question in taken:
            left[question.task] -= 1
            used[question.task, question.answer] += 1
        pictures.append((index, scene.image, taken))
        if not any(left.values()):
            return pictures
    raise AssertionError("unreachable: scenes are endless")


def others() -> list[tuple[int, Pillow.Image, list[Question]]]:
    """Return pictures for methods that learn from data, such as D2Pruner's prior; no question of the suite has them."""
    pictures = []
    for index in range(OTHERS):
        rng = np.random.default_rng([OTHER_SEED, index])
        scene = draw(rng, TEST)
        pictures.append((index, scene.image, ask(scene, rng)[:1]))
    return pictures


def write(folder: Path) -> None:
    """Write a file for each split, and one of other pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {split: select(split, rows) for split, rows in ROWS.items()} | {"scenes": others()}
    for split, pictures in files.items():
        table: list[dict[str, object]] = []
        for _, picture, taken in pictures:
            buffer = io.BytesIO()
            picture.save(buffer, "JPEG", quality=88)
            image = {"bytes": buffer.getvalue(), "path": None}
            for q in taken:
                table.append({"id": len(table), "task": q.task, "question": q.text, "answer": q.answer, "image": image})
        arrow = Dataset.from_list(table, features=LAYOUT).with_format("arrow")[:]
        # One group of rows and a large dictionary: a picture is stored once, however many questions it has.
        parquet.write_table(
            arrow,
            folder / f"{split}.parquet",
            row_group_size=len(table),
            use_dictionary=True,
            dictionary_pagesize_limit=1 << 28,
            compression="snappy",
        )


if __name__ == "__main__":
    write(PHOTO_TASKS / "data")
