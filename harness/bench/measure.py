"""Measure all candidates in alternating rounds, so that drift of the machine cancels out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

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
    """Memory of one answer in bytes, and its number of visual tokens; None where a number is unknown."""

    kept: float | None = None  # visual tokens kept per prompt, mean over the batch
    per_layer: float | None = None  # visual tokens per prompt and decoder layer, mean over layers and batch
    cache: int | None = None
    allocated: int | None = None
    reserved: int | None = None


@dataclass
class Measurement:
    """All timed answers of a candidate, or the error that stopped it."""

    times: list[Times] = field(default_factory=list)
    footprint: Footprint = field(default_factory=Footprint)
    error: str | None = None


class Runner:
    """Generates answers of exactly `tokens` tokens."""

    def __init__(self, adapter: Adapter, clock: Clock, tokens: int) -> None:
        self._adapter = adapter
        self._model: Any = adapter.model
        self._clock = clock
        self._tokens = tokens

    def time(self, candidate: Candidate, inputs: Any) -> Times:
        """Return the milliseconds of every stage of one answer."""
        return self._answer(candidate, inputs)[0].times(self._tokens)

    def footprint(self, candidate: Candidate, inputs: Any) -> Footprint:
        """Return the memory of one answer; peaks are measured on GPUs only, from an emptied allocator cache."""
        gpu = self._model.device if self._model.device.type == "cuda" else None
        if gpu is not None:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(gpu)
        _, output, records = self._answer(candidate, inputs)
        footprint = Footprint(cache=cache_bytes(returned_cache(output), self._tokens - 1))
        if records:
            footprint.kept = sum(record.k for record in records) / len(records)
            footprint.per_layer = sum(record.per_layer for record in records) / len(records)
        if gpu is not None:
            footprint.allocated = torch.cuda.max_memory_allocated(gpu)
            footprint.reserved = torch.cuda.max_memory_reserved(gpu)
        return footprint

    def _answer(self, candidate: Candidate, inputs: Any) -> tuple[Trace, Any, list[Any]]:
        trace = Trace(self._clock)
        length = {"max_new_tokens": self._tokens, "min_new_tokens": self._tokens}
        with torch.inference_mode(), probed(self._adapter, candidate, trace) as pruning:
            trace.begin()
            output = self._model.generate(**inputs, **length, **GREEDY, return_dict_in_generate=True)
            trace.end()
            records = [] if pruning is None else pruning.take()
        answered = output.sequences.shape[1] - inputs["input_ids"].shape[1]
        if answered != self._tokens:
            raise RuntimeError(f"{candidate.label} answered with {answered} tokens instead of {self._tokens}")
        return trace, output, records


def cache_bytes(cache: Any, decoded: int) -> int:
    """Return the bytes of the keys and values of the prompt, without those of the `decoded` tokens after it."""
    total = 0
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            total += part.numel() * part.element_size() * (part.shape[-2] - decoded) // part.shape[-2]
    return total


def rounds(
    candidates: Sequence[Candidate],
    inputs: Mapping[Candidate, Any],
    runner: Runner,
    warmup: int,
    repeats: int,
    tell: Callable[[str], None] = lambda text: None,
) -> list[Measurement]:
    """Let every candidate answer once a round, and return their results without the warm-up rounds.

    The order is A B C A B C, so that changes of clock and temperature affect all candidates equally. A candidate that
    runs out of memory, or whose method raises ValueError, is left out of later rounds.
    """
    results = [Measurement() for _ in candidates]
    for number in range(-1, warmup + repeats):
        for candidate, result in zip(candidates, results, strict=True):
            if result.error is not None:
                continue
            tell(f"{candidate.label}, {_round_name(number, warmup, repeats)}")
            try:
                if number < 0:
                    result.footprint = runner.footprint(candidate, inputs[candidate])
                    continue
                times = runner.time(candidate, inputs[candidate])
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
