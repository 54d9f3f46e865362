"""Measure latency: every method at every budget, size and batch size, alternating with the unpruned model."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from harness.bench.columns import COLUMNS
from harness.bench.settings import Settings, settings
from harness.core.command import command
from harness.core.console import print_json, say
from harness.core.errors import UserError
from harness.core.files import check_place

_written: set[Path] = set()  # outputs of earlier jobs of this sweep


def main() -> None:
    """`python -m harness.bench`."""
    command("bench", bench, checks=[settings])


def bench(cfg: DictConfig) -> None:
    """Measure, print tables and one JSON line, and write the files of `out` and `plots`."""
    chosen = settings(cfg)
    _check_places(chosen)
    from harness.bench import output, plots, screen

    rows, about = measured(chosen, partial(print, file=sys.stderr, flush=True))
    print(screen.tables(rows))
    for line in [*screen.pays(rows), *screen.unsettled(rows)]:
        say(line)
    if chosen.out is not None:
        say(f"wrote {output.csv_of(chosen.out)} and {output.json_of(chosen.out)}")
    if chosen.plots is not None:
        say(f"wrote {', '.join(map(str, plots.draw(rows, chosen.plots)))}")
    print_json({**about, "rows": rows}, None if chosen.out is None else output.json_of(chosen.out))


def measured(chosen: Settings, tell: Callable[[str], None]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return a row for every candidate, size and batch size, and a description of machine and settings.

    Files are written after every size and batch size, so that an interrupted run keeps its results.
    """
    from harness.bench import output
    from harness.bench.environment import machine
    from harness.bench.measure import Runner, rounds
    from harness.bench.setup import subject
    from harness.bench.timers import clock_of
    from harness.models import adapter_for

    target = subject(chosen, tell)
    model: Any = target.model
    candidates = target.candidates
    clock = clock_of(model.device)
    runner = Runner(adapter_for(model), clock, chosen.new_tokens)
    about = output.about(chosen, machine(model.device))
    rows: list[dict[str, Any]] = []
    for workload in target.workloads:
        for batch in chosen.batch:
            inputs = _inputs(target, workload, batch, clock, chosen.repeats)
            total = len(candidates) * (1 + chosen.warmup + chosen.repeats)
            with tqdm(total=total, desc=f"{workload.name}, batch {batch}") as progress:

                def say(text: str, progress: Any = progress) -> None:
                    progress.set_postfix_str(text, refresh=False)
                    progress.update()

                tensors = {candidate: prompt.tensors for candidate, prompt in inputs.items()}
                results = rounds(candidates, tensors, runner, chosen.warmup, chosen.repeats, say)
            rows += output.rows(chosen, model.config, candidates, inputs, results, about, batch)
            if chosen.out is not None:
                output.write(chosen.out, rows, {**about, "columns": COLUMNS}, list(COLUMNS))
    return rows, about


def _inputs(target: Any, workload: Any, batch: int, clock: Any, repeats: int) -> dict[Any, Any]:
    """Return the inputs of each candidate: the same for all but those that make images smaller."""
    from harness.bench.setup import prepared

    unpruned, *_ = candidates = target.candidates
    inputs = {
        candidate: prepared(candidate, workload, batch, target.model.device, clock, repeats)
        for candidate in candidates
        if candidate.resizes or candidate is unpruned
    }
    return {candidate: inputs.get(candidate, inputs[unpruned]) for candidate in candidates}


def _check_places(chosen: Settings) -> None:
    if chosen.plots is not None:
        check_place(chosen.plots, "plots")
    if (out := chosen.out) is not None:
        from harness.bench import output

        output.check(out)
        if out.absolute() in _written:
            raise UserError(f"out={out} was written by an earlier job of this sweep: name it after what differs")
        _written.add(out.absolute())
