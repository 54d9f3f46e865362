"""Scenes of `pocket_photo` and their features in the frozen tower, computed once and kept in files of 500 scenes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from harness.core.files import json_line
from harness.pocket.photo.questions import ask
from harness.pocket.photo.scenes import Scene, draw
from harness.pocket.scenes import Question

PART = 500
TRAIN_SEED, PROBE_SEED = 31, 32
FEATURE_LAYER = 8
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained


@dataclass
class Bank:
    """What tokens show [N, 256] (see `Scene`) and the questions of N scenes; their features, file by file.

    A part of the features is [500, 256, 384] float16 and stays on the disk: those of 16,000 scenes are 3 GB.
    """

    parts: list[NDArray[np.float16]]
    labels: dict[str, NDArray[Any]]
    questions: list[list[Question]]

    def __len__(self) -> int:
        return len(self.questions)


def scenes_of(split: str, seed: int, part: int) -> Iterator[tuple[Scene, list[Question]]]:
    """Draw the scenes of one part."""
    for index in range(part * PART, (part + 1) * PART):
        rng = np.random.default_rng([seed, index])
        scene = draw(rng, split)
        yield scene, ask(scene, rng)


def pixels_of(images: list[Image.Image]) -> Tensor:
    """Return pixels [N, 3, 224, 224] as the image processor of the model gives them."""
    pixels = torch.from_numpy(np.stack([np.asarray(image, np.float32) for image in images])) / 255
    return ((pixels - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)


@torch.no_grad()
def encode(tower: Any, images: list[Image.Image]) -> NDArray[np.float16]:
    """Return the features [N, 256, 384] of the tokens of pictures."""
    rows = []
    for start in range(0, len(images), 16):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            states = tower(pixels_of(images[start : start + 16]), output_hidden_states=True).hidden_states
        rows.append(states[FEATURE_LAYER][:, 1:].half().numpy())
    return np.concatenate(rows)


def make_part(tower: Any, work: Path, split: str, seed: int, part: int) -> Path:
    """Draw and encode a part unless its files exist; the last of them is written last."""
    stem = work / f"{split}-{seed}-{part:03d}"
    done = stem.with_suffix(".json")
    if done.exists():
        return stem
    drawn = list(scenes_of(split, seed, part))
    np.save(stem.with_suffix(".npy"), encode(tower, [scene.image for scene, _ in drawn]))
    labels: dict[str, Any] = {
        name: np.stack([getattr(s, name) for s, _ in drawn]) for name in ("shows", "colors", "letters", "middle")
    }
    np.savez(stem.with_suffix(".npz"), **labels)
    partial = done.with_suffix(".tmp")
    partial.write_text(json_line([[(q.task, q.text, q.answer) for q in asked] for _, asked in drawn]))
    partial.rename(done)
    return stem


def make_bank(tower: Any, work: Path, split: str, seed: int, parts: range) -> Bank:
    """Return the scenes of some parts, which are drawn and encoded where their files are missing."""
    work.mkdir(parents=True, exist_ok=True)
    stems = [make_part(tower, work, split, seed, part) for part in tqdm(parts, desc=f"{split} scenes")]
    labels = [np.load(stem.with_suffix(".npz")) for stem in stems]
    return Bank(
        parts=[np.load(stem.with_suffix(".npy"), mmap_mode="r") for stem in stems],
        labels={name: np.concatenate([part[name] for part in labels]) for name in labels[0].files},
        questions=[
            [Question(*question) for question in asked]
            for stem in stems
            for asked in json.loads(stem.with_suffix(".json").read_text())
        ],
    )
