"""Answers, timed: everyone in turn, round after round, the first rounds for memory and for warming up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from harness.bench.probes import probed
from harness.bench.setup import Candidate
from harness.bench.timers import Clock, Trace
from harness.core.errors import one_line
from harness.models.adapter import Adapter
from harness.models.calls import returned_cache

Times = dict[str, float]
GREEDY: dict[str, Any] = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}


@dataclass
class Footprint:
    """What one answer takes up, in bytes, and what was kept for it; a number is None where it cannot be known."""

    kept: float | None = None  # visual tokens of a prompt that stay, on average over the batch
    per_layer: float | None = None  # visual tokens of a prompt that a decoder layer sees, on average
    cache: int | None = None
    allocated: int | None = None
    reserved: int | None = None


@dataclass
class Result:
    """All timed answers of a contestant, or why there are none."""

    times: list[Times] = field(default_factory=list)
    footprint: Footprint = field(default_factory=Footprint)
    error: str | None = None


class Timer(Protocol):
    """What `rounds` asks."""

    def time(self, contestant: Candidate, inputs: Any) -> Times:
        """Return the milliseconds of every stage of one answer."""

    def footprint(self, contestant: Candidate, inputs: Any) -> Footprint:
        """Return what one answer takes up."""


class Runner:
    """Lets a contestant answer a prepared prompt with exactly `tokens` tokens."""

    def __init__(self, adapter: Adapter, clock: Clock, tokens: int) -> None:
        self._adapter = adapter
        self._model: Any = adapter.model
        self._clock = clock
        self._tokens = tokens

    def time(self, contestant: Candidate, inputs: Any) -> Times:
        """Return the milliseconds of every stage of one answer."""
        return self._answer(contestant, inputs)[0].times(self._tokens)

    def footprint(self, contestant: Candidate, inputs: Any) -> Footprint:
        """Return what one answer takes up; allocators count on GPUs alone, and none of their caches is left before."""
        gpu = self._model.device if self._model.device.type == "cuda" else None
        if gpu is not None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(gpu)
        _, output, records = self._answer(contestant, inputs)
        found = Footprint(cache=cache_bytes(returned_cache(output), self._tokens - 1))
        if records:
            found.kept = sum(record.k for record in records) / len(records)
            found.per_layer = sum(record.per_layer for record in records) / len(records)
        if gpu is not None:
            found.allocated = torch.cuda.max_memory_allocated(gpu)
            found.reserved = torch.cuda.max_memory_reserved(gpu)
        return found

    def _answer(self, contestant: Candidate, inputs: Any) -> tuple[Trace, Any, list[Any]]:
        trace = Trace(self._clock)
        length = {"max_new_tokens": self._tokens, "min_new_tokens": self._tokens}
        with torch.inference_mode(), probed(self._adapter, contestant, trace) as pruning:
            trace.begin()
            output = self._model.generate(**inputs, **length, **GREEDY, return_dict_in_generate=True)
            trace.end()
            records = [] if pruning is None else pruning.take()
        answered = output.sequences.shape[1] - inputs["input_ids"].shape[1]
        if answered != self._tokens:
            raise RuntimeError(f"{contestant.label} answered with {answered} tokens instead of {self._tokens}")
        return trace, output, records


def cache_bytes(cache: Any, decoded: int) -> int:
    """Return the bytes of keys and values that the prompt left, without the `decoded` tokens behind it."""
    total = 0
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            total += part.numel() * part.element_size() * (part.shape[-2] - decoded) // part.shape[-2]
    return total


def rounds(
    contestants: Sequence[Candidate],
    inputs: Mapping[Candidate, Any],
    runner: Timer,
    warmup: int,
    repeats: int,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Let everyone answer once a round, in turn, and return what was found of each, warm-up not counted.

    So the unpruned model and the pruned ones meet the same drift of clocks and heat: A B A B, or A B C A B C. One that
    runs out of memory, or that a method refuses, is left out from there on; the others go on.
    """
    results = [Result() for _ in contestants]
    for number in range(-1, warmup + repeats):
        for contestant, result in zip(contestants, results, strict=True):
            if result.error is not None:
                continue
            tell(f"{contestant.label}, {_round_name(number, warmup, repeats)}")
            try:
                if number < 0:
                    result.footprint = runner.footprint(contestant, inputs[contestant])
                    continue
                times = runner.time(contestant, inputs[contestant])
            except (torch.OutOfMemoryError, ValueError) as error:
                out = isinstance(error, torch.OutOfMemoryError)
                result.error, result.times = "out of memory" if out else one_line(error), []
                continue
            if number >= warmup:
                result.times.append(times)
    return results


def _round_name(number: int, warmup: int, repeats: int) -> str:
    if number < 0:
        return "memory"
    return "warm-up" if number < warmup else f"{number - warmup + 1} of {repeats}"
