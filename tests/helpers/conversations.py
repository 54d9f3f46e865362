"""Synthetic conversations about random pictures, as a file for training."""

import json
from pathlib import Path

import numpy as np
from PIL import Image


def write_conversations(folder: Path, count: int, most: int = 3) -> Path:
    """Write `count` conversations of one to `most` questions about pictures of several sizes; return the file."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        side = 56 + 28 * (number % 3)
        Image.fromarray(rng.integers(0, 256, (56, side, 3), dtype=np.uint8)).save(folder / f"{number}.png")
        turns = []
        for question in range(1 + number % most):
            place = "<image>\n" * (question == 0)
            turns.append({"from": "human", "value": f"{place}Question {question}?"})
            turns.append({"from": "gpt", "value": "yes " * question + "no"})
        records.append({"image": f"{number}.png", "conversations": turns})
    (folder / "data.json").write_text(json.dumps(records))
    return folder / "data.json"
