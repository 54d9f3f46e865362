"""Run by test_kernels_triton.py in a process of its own: the Triton paths beside the plain loops, as JSON.

With TRITON_INTERPRET=1 they run in Triton's interpreter on the CPU, else compiled on a GPU.
"""

import json
import logging
import os
import sys
from dataclasses import replace

import torch
from kernel_cases import KERNELS, KINDS, batches, cases, tokens_of

from methods.kernels.dispatch import using
from methods.kernels.gpu import novelty, volume
from methods.kernels.received import received_by_keys

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
POOL = 16  # less than there are tokens, so that no pool sees all


def choices(kernel: str, seeds: int) -> dict:
    """Compare the picks of a kernel with those of its plain loop on small samples of every kind."""

    def run(seed):
        tokens, k = _sample(seed)
        return cases(tokens, k, seed)[kernel]

    return compared(run, range(seeds))


def side_by_side(kernel: str, seeds: int) -> dict:
    """Compare the picks of several samples at once, of different N and K, with those of the plain loop."""

    def run(seed):
        samples, ks = zip(*(_sample(seed + i, d=17) for i in range(3)), strict=True)
        picked = batches(samples, ks, seed)[kernel]
        return lambda: torch.cat(picked())

    return compared(run, range(0, seeds, 2))


def compared(case, seeds) -> dict:
    """Which seeds pick otherwise than the plain loop, and what was left to others."""
    told, handler = [], logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())
    log = logging.getLogger("methods.kernels.dispatch")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    wrong, done = [], 0
    for seed in seeds:
        run, before = case(seed), len(told)
        with using("plain"):
            plain = run()
        with using("gpu"):
            given = run()
        done += len(told) == before
        if not torch.equal(given, plain):
            wrong.append(seed)
    log.removeHandler(handler)
    return {"wrong": wrong, "share": done / len(seeds), "handed_over": sorted(set(told))}


def _sample(seed: int, d: int | None = None) -> tuple:
    """A small sample of one kind after the other, and how many are kept of it."""
    g = torch.Generator().manual_seed(seed)
    n, width = (int(torch.randint(low, high, (1,), generator=g)) for low, high in ((2, 70), (1, 40)))
    k = int(torch.randint(1, n, (1,), generator=g))
    tokens = _there(tokens_of(n, d or width, seed, KINDS[seed % len(KINDS)]))
    return (tokens if d is None else replace(tokens, features=tokens.features.float())), k


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
    seeds = int(sys.argv[1])
    alone = {name: choices(name, seeds) for name in KERNELS}
    several = {f"several {name}": side_by_side(name, seeds) for name in KERNELS}
    print(json.dumps({"attention": attention(), **alone, **several}))
