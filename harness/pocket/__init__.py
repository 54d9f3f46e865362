"""The embedded model and benchmark suite: small enough for two CPU cores, trained, and run like any other model."""

import random
from pathlib import Path

HOME = Path(__file__).parent
WEIGHTS = HOME / "weights"
LLAVA_WEIGHTS = HOME / "weights_llava"
TASKS = HOME / "tasks"


def order(n: int) -> list[int]:
    """In which order a task asks its `n` rows, so that the first few are like the rest: some files are sorted."""
    return random.Random(n).sample(range(n), n)
