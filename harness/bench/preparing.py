"""Inputs on the device, and how long it takes to make them: once for all who get the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness.bench.contestants import Contestant
from harness.bench.timers import Clock
from harness.bench.workloads import Workload


@dataclass(frozen=True, eq=False)
class Prepared:
    """What a contestant is asked."""

    workload: Workload  # as it is shown: with smaller images for one that resizes
    whole: Workload  # as it was given
    tensors: Any
    took: list[float]  # milliseconds, each time


def prepared(
    contestant: Contestant, workload: Workload, batch: int, device: torch.device, clock: Clock, repeats: int
) -> Prepared:
    """Preprocess `repeats` times, after a first that does not count."""
    shown, taken = workload.shrunk(contestant.budget) if contestant.resizes else workload, []
    for _ in range(1 + repeats):
        clock.wait()
        start = clock.mark()
        made = shown.prepare(batch)
        tensors = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in made.items()}
        clock.wait()
        taken.append(clock.on_host(start, clock.mark()))
    return Prepared(shown, workload, tensors, taken[1:])
