"""Two lmms-eval tasks of random pixels in a folder: still images and short clips given as frames."""

from pathlib import Path

import datasets
import numpy as np
from PIL import Image

UTILS = """
def images(doc):
    return [doc["image"].convert("RGB")]


def clip(doc):
    return [{"type": "video", "url": [frame.convert("RGB") for frame in doc["frames"]]}]


def text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    letters = sum(map(ord, results[0]))
    return {"even": float(letters % 2 == 0), "letters": float(letters)}
"""
TASK = """
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {name}.parquet}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.{visual}
doc_to_text: !function utils.text
doc_to_target: answer
process_results: !function utils.process_results
generation_kwargs: {{max_new_tokens: 4}}
metric_list:
  - {{metric: even, aggregation: mean, higher_is_better: true}}
  - {{metric: letters, aggregation: mean, higher_is_better: true}}
metadata: {{version: 1.0}}
"""


def write_tiny_tasks(folder: Path, questions: int) -> Path:
    """Write `tiny_stills` with `questions` questions on images of several sizes, and `tiny_clips` with four."""
    folder.mkdir()
    rng = np.random.default_rng(0)

    def picture(width: int, height: int) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    def write(name: str, visual: str, column: str, feature: object, media: list) -> None:
        rows = {
            column: media,
            "question": [f"Is it {i}?" for i in range(len(media))],
            "answer": ["yes"] * len(media),
        }
        text = datasets.Value("string")
        features = datasets.Features({column: feature, "question": text, "answer": text})
        datasets.Dataset.from_dict(rows, features=features).to_parquet(folder / f"{name}.parquet")
        (folder / f"{name}.yaml").write_text(TASK.format(name=name, visual=visual))

    stills = [picture(56 + 28 * (i % 3), 56 + 28 * (i % 2)) for i in range(questions)]
    clips = [[picture(56, 56) for _ in range(3 + i % 2)] for i in range(4)]
    write("tiny_stills", "images", "image", datasets.Image(), stills)
    write("tiny_clips", "clip", "frames", datasets.Sequence(datasets.Image()), clips)
    (folder / "utils.py").write_text(UTILS)
    return folder
