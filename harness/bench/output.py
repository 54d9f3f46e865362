"""Rows of numbers from timed answers, and the files they go to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.bench.columns import COLUMNS, STAGE_MEANINGS
from harness.bench.measure import Result, Times
from harness.bench.settings import Settings
from harness.bench.setup import Candidate, Prepared
from harness.bench.statistics import Spread, column, mean, savings
from harness.core.files import to_json, write_atomic
from harness.models.cost import Flops, count

TERA = 1e12
Row = dict[str, Any]


def about(chosen: Settings, machine: Mapping[str, Any]) -> Row:
    """Return what all rows share: machine and settings."""
    keys = ("warmup", "repeats", "seed", "text_tokens", "new_tokens", "question" if chosen.images else "weights")
    model = {key: getattr(chosen.model, key) for key in ("name", "dtype", "attn")}
    return {"machine": dict(machine), "model": model, "settings": {key: getattr(chosen, key) for key in keys}}


def rows(
    chosen: Settings,
    config: Any,
    contestants: Sequence[Candidate],
    inputs: Mapping[Candidate, Prepared],
    results: Sequence[Result],
    common: Row,
    batch: int,
) -> list[Row]:
    """Return one row a contestant, all columns in it; the first is the unpruned model."""
    timed = [
        _with_preprocessing(result.times, inputs[one].took) for one, result in zip(contestants, results, strict=True)
    ]
    made = []
    for one, result, times in zip(contestants, results, timed, strict=True):
        row: Row = dict.fromkeys(COLUMNS)
        row |= _who(chosen, one, inputs[one], result, batch) | {"n": len(times), "error": result.error}
        row |= _times(times, timed[0]) | _operations(chosen, config, one, inputs[one], batch)
        row |= {
            "peak_allocated_bytes": result.footprint.allocated,
            "peak_reserved_bytes": result.footprint.reserved,
            "kv_cache_bytes": result.footprint.cache,
            **{key: common["machine"][key] for key in ("device", "driver", "torch", "transformers")},
            "dtype": chosen.model.dtype,
            "kernel": chosen.model.attn,
        }
        made.append(row)
    return made


def _with_preprocessing(times: Sequence[Times], took: Sequence[float]) -> list[Times]:
    return [
        {**time, "preprocess": first, "ttft": time["ttft"] + first, "e2e": time["e2e"] + first, "answer": time["e2e"]}
        for time, first in zip(times, took, strict=False)
    ]


def _who(chosen: Settings, one: Candidate, given: Prepared, result: Result, batch: int) -> Row:
    visual, shown, found = given.whole.tokens, given.workload.tokens, result.footprint
    ids = given.tensors["input_ids"]
    named = {"model": chosen.model.name, "weights": chosen.weights, "method": one.name, "params": one.params}
    return named | {
        "budget": one.budget.label,
        "workload": given.whole.name,
        "visual_tokens": visual,
        "kept_tokens": shown if found.kept is None else found.kept,
        "tokens_per_layer": shown if found.per_layer is None else found.per_layer,
        "text_tokens": ids.shape[1] - shown,
        "new_tokens": chosen.new_tokens,
        "batch": batch,
    }


def _times(times: Sequence[Times], unpruned: Sequence[Times]) -> Row:
    if not times:
        return {}
    row: Row = {}
    for stage in STAGE_MEANINGS:
        spread = Spread.of(column(times, stage))
        row |= {f"{stage}_ms": spread.median, f"{stage}_iqr_ms": spread.iqr}
    for system, prefill, answer in (
        ("idpruner", "host_prefill", "host_e2e"),
        ("visionselector", "prefill", "answer"),
    ):
        row |= {f"{system}_prefill_ms": mean(times, prefill), f"{system}_e2e_ms": mean(times, answer)}
    if unpruned:
        saved = Spread.of(savings(unpruned, times, "e2e"))
        row |= {"e2e_saving_ms": saved.median, "e2e_saving_iqr_ms": saved.iqr}
        for stage in ("prefill", "e2e"):
            row[f"{stage}_speedup"] = Spread.of(column(unpruned, stage)).median / row[f"{stage}_ms"]
    return row


def _operations(chosen: Settings, config: Any, one: Candidate, given: Prepared, batch: int) -> Row:
    hidden = getattr(one.scorer, "hidden_dim", None)
    text = given.tensors["input_ids"].shape[1] - given.workload.tokens
    try:
        counted = count(config, given.whole.grids, text, one.method, one.budget, chosen.new_tokens, hidden)
    except ValueError:  # of this family only the time is known
        return {}
    return operations(counted, batch)


def operations(counted: Flops, batch: int) -> Row:
    """Return counts of a sample as columns, for the whole batch."""
    parts = {**asdict(counted), "total": counted.total, "paper_prefill": counted.paper}
    del parts["paper"]
    return {f"{part}_tflops": None if value is None else batch * value / TERA for part, value in parts.items()}


def csv_of(out: Path) -> Path:
    """Return the file of the rows."""
    return out.with_name(f"{out.name}.csv")


def json_of(out: Path) -> Path:
    """Return the file of the rows with machine, settings and what the columns mean."""
    return out.with_name(f"{out.name}.json")


def write(out: Path, found: Sequence[Row], common: Row) -> None:
    """Write both files whole, or leave the old ones."""
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(csv_of(out), pd.DataFrame(found, columns=list(COLUMNS)).to_csv(index=False, lineterminator="\n"))
    write_atomic(json_of(out), to_json({**common, "columns": COLUMNS, "rows": list(found)}))
