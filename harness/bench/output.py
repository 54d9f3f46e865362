"""Turn timed answers into rows, and write them to files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from harness.bench.columns import COLUMNS, STAGE_MEANINGS
from harness.bench.measure import Measurement, Times
from harness.bench.settings import Settings
from harness.bench.setup import Candidate, Prepared
from harness.bench.statistics import Spread
from harness.core.escape import csv
from harness.core.files import check_file, make_folder, to_json, write_atomic
from harness.models.cost import Flops, count

TERA = 1e12
Row = dict[str, Any]


def about(chosen: Settings, machine: Mapping[str, Any]) -> Row:
    """Return machine and settings, which all rows share."""
    keys = ("warmup", "repeats", "seed", "text_tokens", "new_tokens", "question" if chosen.images else "weights")
    model = {key: getattr(chosen.model, key) for key in ("name", "dtype", "attn")}
    return {"machine": dict(machine), "model": model, "settings": {key: getattr(chosen, key) for key in keys}}


def rows(
    chosen: Settings,
    config: Any,
    candidates: Sequence[Candidate],
    inputs: Mapping[Candidate, Prepared],
    results: Sequence[Measurement],
    common: Row,
    batch: int,
) -> list[Row]:
    """Return a row with all columns for each candidate; the first is the unpruned model."""
    timed = [
        _with_preprocessing(result.times, inputs[candidate].milliseconds)
        for candidate, result in zip(candidates, results, strict=True)
    ]
    table = []
    for candidate, result, times in zip(candidates, results, timed, strict=True):
        row: Row = dict.fromkeys(COLUMNS)
        row |= _description(chosen, candidate, inputs[candidate], result, batch)
        row |= {"n": len(times), "error": result.error}
        row |= timing(times, timed[0]) | _operations(chosen, config, candidate, inputs[candidate], batch)
        row |= {
            "peak_allocated_bytes": result.footprint.allocated,
            "peak_reserved_bytes": result.footprint.reserved,
            "kv_cache_bytes": result.footprint.cache,
            **{key: common["machine"][key] for key in ("device", "driver", "torch", "transformers")},
            "dtype": chosen.model.dtype,
            "kernel": chosen.model.attn,
        }
        table.append(row)
    return table


def _with_preprocessing(times: Sequence[Times], preprocessing: Sequence[float]) -> list[Times]:
    return [
        {**time, "preprocess": first, "ttft": time["ttft"] + first, "e2e": time["e2e"] + first, "answer": time["e2e"]}
        for time, first in zip(times, preprocessing, strict=False)
    ]


def _description(chosen: Settings, candidate: Candidate, prompt: Prepared, result: Measurement, batch: int) -> Row:
    shown, footprint = prompt.workload.tokens, result.footprint
    ids = prompt.tensors["input_ids"]
    return {
        "model": chosen.model.name,
        "weights": chosen.weights,
        "method": candidate.name,
        "params": candidate.params,
        "budget": candidate.budget.label,
        "workload": prompt.whole.name,
        "visual_tokens": prompt.whole.tokens,
        "kept_tokens": shown if footprint.kept is None else footprint.kept,
        "tokens_per_layer": shown if footprint.per_layer is None else footprint.per_layer,
        "text_tokens": ids.shape[1] - shown,
        "new_tokens": chosen.new_tokens,
        "batch": batch,
    }


def timing(times: Sequence[Times], unpruned: Sequence[Times]) -> Row:
    """Return the columns of times: medians and interquartile ranges, and what is saved in the same round."""
    if not times:
        return {}
    answers = pd.DataFrame(times)
    row: Row = {}
    for stage in STAGE_MEANINGS:
        spread = Spread.of(answers[stage])
        row |= {f"{stage}_ms": spread.median, f"{stage}_iqr_ms": spread.iqr}
    means = answers.mean().to_dict()  # published code reports means
    row |= {"idpruner_prefill_ms": means["host_prefill"], "idpruner_e2e_ms": means["host_e2e"]}
    row |= {"visionselector_prefill_ms": means["prefill"], "visionselector_e2e_ms": means["answer"]}
    if unpruned:
        baseline = pd.DataFrame(unpruned)
        saved = Spread.of(baseline["e2e"] - answers["e2e"])
        row |= {"e2e_saving_ms": saved.median, "e2e_saving_iqr_ms": saved.iqr}
        for stage in ("prefill", "e2e"):
            row[f"{stage}_speedup"] = float(baseline[stage].median()) / row[f"{stage}_ms"]
    return row


def _operations(chosen: Settings, config: Any, candidate: Candidate, prompt: Prepared, batch: int) -> Row:
    hidden = getattr(candidate.scorer, "hidden_dim", None)
    text = prompt.tensors["input_ids"].shape[1] - prompt.workload.tokens
    try:
        flops = count(config, prompt.whole.grids, text, candidate.method, candidate.budget, chosen.new_tokens, hidden)
    except ValueError:  # this family has no FLOPs model
        return {}
    return operations(flops, batch)


def operations(flops: Flops, batch: int) -> Row:
    """Return the FLOPs of one prompt as columns for the whole batch."""
    parts = {**asdict(flops), "total": flops.total, "paper_prefill": flops.paper}
    del parts["paper"]
    return {f"{part}_tflops": None if value is None else batch * value / TERA for part, value in parts.items()}


def csv_of(out: Path) -> Path:
    """Return the path of the CSV file."""
    return out.with_name(f"{out.name}.csv")


def json_of(out: Path) -> Path:
    """Return the path of the JSON file, which also holds machine, settings and meanings of columns."""
    return out.with_name(f"{out.name}.json")


def check(out: Path | None) -> None:
    """Raise UserError unless both files can be written; None is no file."""
    for file in [] if out is None else [csv_of(out), json_of(out)]:
        check_file(file, "out", may_make_folder=True)


def write(out: Path, rows: Sequence[Row], common: Row, columns: list[str] | None = None) -> None:
    """Write both files atomically; `columns` are those of the CSV file, by default all that the rows have."""
    make_folder(out.parent)
    write_atomic(csv_of(out), csv(pd.DataFrame(rows, columns=columns), lineterminator="\n"))
    write_atomic(json_of(out), to_json({**common, "rows": list(rows)}))
