"""Marks in time: on a GPU by events of its own, which do not make it wait, else by the clock of the host."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import torch


class Mark(NamedTuple):
    """A moment: seconds of the host's clock, and the event on the device, if there is one."""

    host: float
    event: Any = None


class Clock:
    """The host's, for devices that work while the host waits."""

    def mark(self) -> Mark:
        """Note this moment."""
        return Mark(time.perf_counter())

    def wait(self) -> None:
        """Return when the device has done all it was given; only then marks may be compared."""

    def between(self, start: Mark, stop: Mark) -> float:
        """Return the milliseconds that passed on the device."""
        return self.on_host(start, stop)

    def on_host(self, start: Mark, stop: Mark) -> float:
        """Return the milliseconds that passed on the host, whether the device had done its work or not."""
        return 1000 * (stop.host - start.host)


class DeviceClock(Clock):
    """A GPU's: a mark is reached when all work given to it before is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Note this moment on both clocks."""
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return Mark(time.perf_counter(), event)

    def wait(self) -> None:
        """Wait for the GPU."""
        torch.cuda.synchronize(self._device)

    def between(self, start: Mark, stop: Mark) -> float:
        """Return the milliseconds between two events."""
        return float(start.event.elapsed_time(stop.event))


def clock_of(device: torch.device) -> Clock:
    """Return the clock that is right for work on `device`."""
    return DeviceClock(device) if device.type == "cuda" else Clock()
