"""Measure latency, selection kernels or FLOPs: python -m harness.bench [kernels|flops] [key=value ...]."""

import sys
from importlib import import_module

from harness.core.command import fail

WORDS = {"kernels": "harness.bench.kernels", "flops": "harness.bench.flops"}
MOVED = ("sweep", "main")


def main() -> None:
    """Run the command that the first word names; without such a word, measure latency."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    if word in MOVED:
        fail(f"bench {word} lies in scripts/ now: python scripts/time_runs.py {word}")
    if word in WORDS:
        del sys.argv[1]
    import_module(WORDS.get(word, "harness.bench.latency")).main()


if __name__ == "__main__":
    main()
