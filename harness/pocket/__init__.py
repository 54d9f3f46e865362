"""The embedded model and benchmark suite: small enough for two CPU cores, trained, and run like any other model."""

from pathlib import Path

HOME = Path(__file__).parent
WEIGHTS = HOME / "weights"
TASKS = HOME / "tasks"
