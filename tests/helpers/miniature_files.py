"""The parts of miniature data sets: pictures, videos, and splits as the Hub stores them."""

from pathlib import Path
from typing import Any

import av
import numpy as np
import yaml
from datasets import Dataset, Features, Value
from PIL import Image as Pictures
from PIL import ImageDraw

ROWS = 12
TEXT, INT = Value("string"), Value("int64")
COLOURS = ("red", "green", "blue", "orange", "purple", "brown")
LETTERS = "ABCD"


def picture(number: int, width: int = 84, height: int = 56) -> Pictures.Image:
    """Draw a rectangle on a coloured background, different for every number."""
    image = Pictures.new("RGB", (width, height), COLOURS[number % len(COLOURS)])
    left, top = 5 * number % (width // 2), 3 * number % (height // 2)
    ImageDraw.Draw(image).rectangle((left, top, left + 20, top + 20), fill="white")
    return image


def video(file: Path, number: int, frames: int = 8) -> None:
    """Write a video of a rectangle that moves for `frames` frames."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 84, 56, "yuv420p"
        for step in range(frames):
            shown = av.VideoFrame.from_ndarray(np.asarray(picture(number + step)), format="rgb24")
            container.mux(stream.encode(shown))
        container.mux(stream.encode())


def write(folder: Path, split: str, columns: dict[str, Any], rows: list[dict[str, Any]], config: str = "") -> None:
    """Write a split as the Hub stores it, and the lines of the card that describe it."""
    place = config or "data"
    file = folder / place / f"{split}-00000-of-00001.parquet"
    file.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=Features(columns)).to_parquet(file)
    card = folder / "README.md"
    configs = yaml.safe_load(card.read_text().strip("-\n"))["configs"] if card.exists() else []
    entry = {"split": split, "path": f"{place}/{split}-*"}
    same = [known for known in configs if known["config_name"] == (config or "default")]
    if same:
        same[0]["data_files"].append(entry)
    else:
        configs.append({"config_name": config or "default", "data_files": [entry]})
    card.write_text(f"---\n{yaml.safe_dump({'configs': configs}, sort_keys=False)}---\n")
