"""Measure what a choice among many tokens takes: python scripts/selection_costs.py [1024 4096]

One CPU thread. Prints seconds of that thread and the peak of memory above what the process holds before, each in a
process of its own, of the kernel with the most arithmetic and of the method with the largest table.
"""

import subprocess
import sys
from resource import RUSAGE_SELF, getrusage
from time import process_time

import torch

import methods
from methods.base import Tokens
from methods.kernels.density_peaks import density_peaks

WIDTH, STATES, WORDS, KEEP = 3584, 1280, 20, 0.25  # of Qwen2.5-VL-7B; tokens of a question; share of tokens


def costs(what: str, n: int) -> tuple[float, float]:
    """Return seconds and peak in MiB of "density_peaks" or a method on `n` tokens of noise."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, text, states = (torch.randn(*size, generator=generator) for size in ((n, WIDTH), (WORDS, WIDTH), (n, STATES)))
    before, start = getrusage(RUSAGE_SELF).ru_maxrss, process_time()
    if what == "density_peaks":
        density_peaks(x, int(KEEP * n), 8)
    else:
        tokens = Tokens(features=x, grids=[(1, 1, n)], text=text, vit_features=states)
        methods.load(what).select(tokens, int(KEEP * n), generator)
    return process_time() - start, (getrusage(RUSAGE_SELF).ru_maxrss - before) / 1024


def main(sizes: list[int]) -> None:
    """Print a row for each kernel and size."""
    print("| | tokens | seconds | MiB |\n| --- | ---: | ---: | ---: |")
    for what in ("density_peaks", "mmtok"):
        for n in sizes:
            call = [sys.executable, __file__, "of", what, str(n)]
            print(subprocess.run(call, capture_output=True, text=True, check=True).stdout, end="", flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["of"]:
        seconds, mebibytes = costs(sys.argv[2], int(sys.argv[3]))
        print(f"| `{sys.argv[2]}` | {int(sys.argv[3]):,} | {seconds:.1f} | {mebibytes:,.0f} |")
    else:
        main([int(size) for size in sys.argv[1:]] or [1024, 4096])
