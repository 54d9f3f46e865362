"""Draw scenes by kind, seed and index; the seeds keep training, probes and the suite apart."""

from __future__ import annotations

import numpy as np

from harness.pocket import clips
from harness.pocket.easyvqa import easyvqa_scene, images
from harness.pocket.scenes import KINDS, Scene

TRAIN_SEED, PROBE_SEED, SUITE_SEED, OTHER_SEED = 1, 2, 3, 4  # OTHER_SEED: of pictures that methods may learn from
SHARES = {"objects": 5, "counting": 4, "text": 2, "document": 2, "chart": 3, "video": 3, "easyvqa": 2}  # in training
DRAWN = KINDS | clips.KINDS  # a kind's place is part of its seed: append only


def scene_at(kind: str, seed: int, index: int) -> Scene:
    """Return the scene at an index of a kind's endless sequence; `easyvqa` has the pictures of its training split."""
    if kind == "easyvqa":
        return easyvqa_scene("train", index % len(images("train")))
    return DRAWN[kind](np.random.default_rng([seed, list(DRAWN).index(kind), index]))
