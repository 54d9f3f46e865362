"""Scenes from easy-VQA (PyPI package `easy-vqa`, MIT): 64-pixel images of one shape, made by others."""

from __future__ import annotations

from collections import defaultdict
from functools import cache

import numpy as np
from PIL import Image

from harness.pocket.scenes import Mark, Question, Scene
from harness.pocket.words import COLORS, SHAPES

SIDE = 224  # pixels to which images are enlarged: 8 x 8 visual tokens


@cache
def questions(split: str) -> dict[int, list[tuple[str, str]]]:
    """Return the (question, answer) pairs of each image of a split."""
    import easy_vqa

    texts, answers, ids = getattr(easy_vqa, f"get_{split}_questions")()
    grouped: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for text, answer, image in zip(texts, answers, ids, strict=True):
        grouped[int(image)].append((text, answer))
    return dict(grouped)


@cache
def _paths(split: str) -> dict[int, str]:
    import easy_vqa

    return {int(k): v for k, v in getattr(easy_vqa, f"get_{split}_image_paths")().items()}


@cache
def _ids(split: str) -> list[int]:
    return sorted(questions(split))


def n_train_images() -> int:
    """Return the number of images in the training split."""
    return len(_ids("train"))


def image(split: str, index: int) -> Image.Image:
    """Load an image, enlarged."""
    return Image.open(_paths(split)[index]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _words(pairs: list[tuple[str, str]]) -> tuple[str, ...]:
    """Return the colour and shape that the questions and answers reveal."""
    words = {answer for _, answer in pairs if answer in COLORS or answer in SHAPES}
    for text, answer in pairs:
        denied = " not " in text or " no " in text
        if answer not in ("yes", "no") or (answer == "yes") != denied:
            words |= {w for w in text.rstrip("?").split() if w in COLORS or w in SHAPES}
    return tuple(sorted(words))


def easyvqa_scene(split: str, position: int) -> Scene:
    """Return the scene at a position of the split; its mark is the box that differs from the background."""
    index = _ids(split)[position]
    pairs = questions(split)[index]
    picture = image(split, index)
    pixels = np.asarray(picture, dtype=int)
    ys, xs = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 60)
    box = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())) if len(xs) else (0.0, 0.0, 0.0, 0.0)
    asked = [Question("easyvqa", text, answer) for text, answer in pairs]
    return Scene([picture], [Mark(box, _words(pairs), ("object",))], asked)
