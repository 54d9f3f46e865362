"""How many threads torch takes on a CPU that other processes use, too.

Threads that share a product wait for each other: one that waits for a core holds up all of them, in every layer.
"""

import os
import sys

import psutil
import torch

from harness.core.console import say

WATCHED = 0.3  # seconds


def leave_busy_cores() -> None:
    """Take no more threads than there are idle cores, at least one; OMP_NUM_THREADS has the last word."""
    threads = torch.get_num_threads()
    if threads == 1 or "OMP_NUM_THREADS" in os.environ:
        return
    shares = psutil.cpu_percent(WATCHED, percpu=True)
    ours = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(len(shares))
    busy = round(sum(shares[core] for core in ours) / 100)
    if (idle := max(1, len(ours) - busy)) < threads:
        torch.set_num_threads(idle)
        cause = f"other processes use {busy} of {len(ours)} cores, so torch takes {idle} of {threads} threads"
        say(f"note: {cause}; OMP_NUM_THREADS={threads} takes all", sys.stderr)
