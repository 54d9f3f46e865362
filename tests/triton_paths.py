"""Run by test_kernels_triton.py in a process of its own: the Triton paths beside the plain loops, as JSON.

With TRITON_INTERPRET=1 they run in Triton's interpreter on the CPU, else compiled on a GPU.
"""

import json
import logging
import os
import sys
from dataclasses import replace

import torch
from kernel_cases import KERNELS, KINDS, cases, tokens_of

from methods.kernels.gpu import novelty, volume
from methods.kernels.paths import using
from methods.kernels.received import received_by_keys

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
POOL = 16  # less than there are tokens, so that no pool sees all


def choices(kernel: str, seeds: int) -> dict:
    """Compare the picks of a kernel with those of its plain loop on small samples of every kind."""
    told, handler = [], logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    log = logging.getLogger("methods.kernels.paths")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    wrong, done = [], 0
    for seed in range(seeds):
        kind = KINDS[seed % len(KINDS)]
        g = torch.Generator().manual_seed(seed)
        n, d = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((2, 70), (1, 40)))
        k = int(torch.randint(1, n, (1,), generator=g))
        run = cases(_there(tokens_of(n, d, seed, kind)), k, seed)[kernel]
        before = len(told)
        with using("plain"):
            plain = run()
        with using("gpu"):
            given = run()
        done += len(told) == before
        if not torch.equal(given, plain):
            wrong.append([seed, kind, n, d, k])
    log.removeHandler(handler)
    return {"wrong": wrong, "done": done, "handed_over": sorted(set(told))}


def _there(tokens):
    features = tokens.features
    if INTERPRETED and features.dtype == torch.bfloat16:  # its products take these for whole numbers
        features = features.half()
    return replace(tokens, features=features.to(DEVICE), importance=tokens.importance.to(DEVICE))


def attention() -> float:
    """The largest relative error of the streamed score."""
    worst = 0.0
    half = torch.float16 if INTERPRETED else torch.bfloat16
    for heads, queries, keys, d, dtype in ((2, 70, 130, 24, torch.float32), (1, 5, 64, 80, half)):
        g = torch.Generator().manual_seed(keys)
        q, k = (torch.randn(heads, rows, d, generator=g).to(DEVICE, dtype) for rows in (queries, keys))
        with using("gpu"):
            given = received_by_keys(q, k, 0.3)
        dense = (0.3 * q.double() @ k.double().mT).softmax(-1).mean(0).sum(0)
        worst = max(worst, float(((given - dense) / dense).abs().max()))
    return worst


if __name__ == "__main__":
    novelty.POOL = volume.POOL = POOL
    print(json.dumps({"attention": attention(), **{name: choices(name, int(sys.argv[1])) for name in KERNELS}}))
