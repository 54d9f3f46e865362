"""The embedded models and their benchmark suite: trained, small enough for two CPU cores, used like any other model."""

import random
from pathlib import Path

HOME = Path(__file__).parent
WEIGHTS = HOME / "weights"
LLAVA_WEIGHTS = HOME / "weights_llava"
CLIP_WEIGHTS = HOME / "weights_clip"
PHOTO_WEIGHTS = HOME / "weights_photo"
TASKS = HOME / "tasks"
CLIP_TASKS = HOME / "clip_tasks"
PHOTO_TASKS = HOME / "photo_tasks"


def order(n: int) -> list[int]:
    """Return a fixed shuffle of `n` rows, so that the first few are representative: some files are sorted."""
    return random.Random(n).sample(range(n), n)
