"""python -m harness.bench [key=value ...] measures latency; the words kernels, flops, sweep and main measure those."""

import sys
from importlib import import_module

WORDS = {
    "kernels": "harness.bench.kernels",
    "flops": "harness.bench.flops",
    "sweep": "harness.bench.sweep",
    "main": "harness.bench.main_job",
}


def main() -> None:
    """Hand over to the command that the first word names; without one, to the measurement of latency."""
    module = WORDS.get(sys.argv[1] if len(sys.argv) > 1 else "", "harness.bench.latency")
    if module != "harness.bench.latency":
        del sys.argv[1]
    import_module(module).main()


if __name__ == "__main__":
    main()
