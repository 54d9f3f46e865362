"""Time marks: CUDA events on a GPU, which need no synchronisation, and the host clock elsewhere."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch


class Mark(NamedTuple):
    """A moment: seconds of the host clock, and the CUDA event on a GPU."""

    host: float
    event: Any = None


class Clock:
    """The host clock, for devices that run synchronously."""

    def mark(self) -> Mark:
        """Record this moment."""
        return Mark(time.perf_counter())

    def wait(self) -> None:
        """Wait for the device; marks can be compared only after that."""

    def between(self, start: Mark, stop: Mark) -> float:
        """Return the milliseconds between two marks on the device."""
        return self.on_host(start, stop)

    def on_host(self, start: Mark, stop: Mark) -> float:
        """Return the milliseconds between two marks on the host, without waiting for the device."""
        return 1000 * (stop.host - start.host)


class DeviceClock(Clock):
    """The clock of a GPU: a mark is reached when all earlier work is done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> Mark:
        """Record this moment on both clocks."""
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
    """Return the clock for work on `device`."""
    return DeviceClock(device) if device.type == "cuda" else Clock()


# Span -> stage that its time counts for, without the time of the spans inside it.
STAGES = {
    "vision": "vit",
    "projector": "projector",
    "read": "signals",
    "score": "signals",
    "select": "selection",
    "cut": "cut",
    "decoder": "llm_prefill",
    "root": "other",
}
ROOT = "root"  # the whole model: the end of its first pass ends the prefill, the second pass starts with a token


class Trace:
    """The time marks of one answer: nested spans of the prefill; later passes are not recorded."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.marks: list[tuple[str, bool, Mark]] = []  # name of a span, whether it begins, when
        self.start: Mark | None = None
        self.stop: Mark | None = None
        self.first_token: Mark | None = None
        self._prefilled = False

    def begin(self) -> None:
        """Wait for the device and start the clock."""
        self._clock.wait()
        self.start = self._clock.mark()

    def end(self) -> None:
        """Stop the clock and wait for the device."""
        self.stop = self._clock.mark()
        self._clock.wait()

    def enter(self, span: str) -> None:
        """Record the start of a span."""
        if not self._prefilled:
            self.marks.append((span, True, self._clock.mark()))
        elif span == ROOT and self.first_token is None:
            self.first_token = self._clock.mark()

    def leave(self, span: str) -> None:
        """Record the end of a span."""
        if not self._prefilled:
            self.marks.append((span, False, self._clock.mark()))
            self._prefilled = span == ROOT

    def times(self, tokens: int) -> dict[str, float]:
        """Return the milliseconds of the stages, of the prefill they add up to, and of an answer of `tokens` tokens.

        RuntimeError if no prefill was recorded.
        """
        start, stop, between = self.start, self.stop, self._clock.between
        if start is None or stop is None or not self._prefilled:
            raise RuntimeError("no prefill was recorded: nothing was measured")
        first, last = self.marks[0][2], self.marks[-1][2]
        stages = dict.fromkeys(STAGES.values(), 0.0)
        for span, spent in own_times(self.marks, between).items():
            stages[STAGES[span]] += spent
        prefill = between(first, last)
        stages["other"] = prefill - sum(spent for stage, spent in stages.items() if stage != "other")
        first_token = stop if self.first_token is None else self.first_token
        answer = between(start, stop)
        return {
            **stages,
            "prefill": prefill,
            "ttft": between(start, first_token),
            "tpot": between(first_token, stop) / (tokens - 1) if tokens > 1 else 0.0,
            "e2e": answer,
            "host_prefill": self._clock.on_host(first, last),
            "host_e2e": self._clock.on_host(start, stop),
        }


def own_times(marks: Sequence[tuple[str, bool, Mark]], between: Callable[[Mark, Mark], float]) -> dict[str, float]:
    """Return the milliseconds spent in the spans of each name, without those of the spans inside them.

    RuntimeError if spans do not nest.
    """
    own: dict[str, float] = defaultdict(float)
    open_spans: list[tuple[str, Mark]] = []
    for span, begins, mark in marks:
        if begins:
            open_spans.append((span, mark))
            continue
        if not open_spans or open_spans[-1][0] != span:
            raise RuntimeError(f"the span {span} ends inside {open_spans[-1][0] if open_spans else 'none'}")
        spent = between(open_spans.pop()[1], mark)
        own[span] += spent
        if open_spans:
            own[open_spans[-1][0]] -= spent
    if open_spans:
        raise RuntimeError(f"the span {open_spans[-1][0]} does not end")
    return dict(own)
