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
def images(split: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the file of each image of a split, with its (question, answer) pairs."""
    import easy_vqa

    files = {int(image): file for image, file in getattr(easy_vqa, f"get_{split}_image_paths")().items()}
    pairs: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for text, answer, image in zip(*getattr(easy_vqa, f"get_{split}_questions")(), strict=True):
        pairs[int(image)].append((text, answer))
    return [(files[image], pairs[image]) for image in sorted(pairs)]


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
    file, pairs = images(split)[position]
    picture = Image.open(file).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    pixels = np.asarray(picture, dtype=int)
    ys, xs = np.nonzero(np.abs(pixels - pixels[0, 0]).sum(-1) > 60)
    box = (float(xs.min()), float(ys.min()), float(xs.max()), float(ys.max())) if len(xs) else (0.0, 0.0, 0.0, 0.0)
    asked = [Question("easyvqa", text, answer) for text, answer in pairs]
    return Scene([picture], [Mark(box, _words(pairs), ("object",))], asked)
