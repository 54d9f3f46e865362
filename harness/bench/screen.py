"""Format tables for the screen; say from which size on a method saves time, and where times contradict each other."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from harness.bench.statistics import verdict
from harness.core.console import table_lines
from harness.core.escape import visible

Row = dict[str, Any]
SETTLED = 0.1  # share by which the time of the same work may differ between rounds
# Heading, column, decimal places, divisor.
TIMES = (
    ("kept", "kept_tokens", 0, 1),
    ("prep", "preprocess_ms", 1, 1),
    ("ViT", "vit_ms", 1, 1),
    ("proj", "projector_ms", 1, 1),
    ("signal", "signals_ms", 1, 1),
    ("select", "selection_ms", 1, 1),
    ("cut", "cut_ms", 1, 1),
    ("LLM", "llm_prefill_ms", 1, 1),
    ("other", "other_ms", 1, 1),
    ("prefill", "prefill_ms", 1, 1),
    ("+-", "prefill_iqr_ms", 1, 1),
    ("TTFT", "ttft_ms", 1, 1),
    ("TPOT", "tpot_ms", 2, 1),
    ("all", "e2e_ms", 1, 1),
    ("+-", "e2e_iqr_ms", 1, 1),
    ("saved", "e2e_saving_ms", 1, 1),
)
OPERATIONS = (
    ("kept", "kept_tokens", 0, 1),
    ("ViT", "vit_tflops", 1, 0.001),
    ("proj", "projector_tflops", 1, 0.001),
    ("signal", "signals_tflops", 1, 0.001),
    ("select", "selection_tflops", 1, 0.001),
    ("LLM", "prefill_tflops", 1, 0.001),
    ("decode", "decode_tflops", 1, 0.001),
    ("total", "total_tflops", 1, 0.001),
    ("paper's LLM", "paper_prefill_tflops", 1, 0.001),
)
MEMORY = (
    ("a layer", "tokens_per_layer", 0, 1),
    ("KV MiB", "kv_cache_bytes", 1, 2**20),
    ("peak MiB", "peak_allocated_bytes", 0, 2**20),
    ("reserved", "peak_reserved_bytes", 0, 2**20),
)
PUBLISHED = (
    ("prefill", "prefill_ms", 1, 1),
    ("IDPruner's", "idpruner_prefill_ms", 1, 1),
    ("its e2e", "idpruner_e2e_ms", 1, 1),
    ("VisionSelector's", "visionselector_prefill_ms", 1, 1),
    ("its e2e", "visionselector_e2e_ms", 1, 1),
    ("prefill x", "prefill_speedup", 2, 1),
    ("e2e x", "e2e_speedup", 2, 1),
)
TITLES = {
    TIMES: "milliseconds, medians, with the interquartile range after +-",
    OPERATIONS: "10^9 operations; the last column is the prefill as peers quote it",
    MEMORY: "visual tokens a decoder layer, and memory",
    PUBLISHED: "as published: means, by the host's clock without waiting, and by device events; x: unpruned over this",
}


def tables(rows: Sequence[Row], shown: Sequence[Any] = (TIMES, OPERATIONS, MEMORY, PUBLISHED)) -> str:
    """Return a block of tables for every size and batch size, with a line for each candidate."""
    blocks = []
    for (model, workload, batch), some in groupby(rows, key=lambda row: (row["model"], row["workload"], row["batch"])):
        group = list(some)
        first = group[0]
        about = f"{first['visual_tokens']} visual and {first['text_tokens']} text tokens ({workload}), batch {batch}"
        blocks.append(visible(f"{model}: {about}"))
        blocks += [f"{TITLES[columns]}\n{table(group, columns)}" for columns in shown]
    return "\n\n".join(blocks) + "\n"


def table(rows: Sequence[Row], columns: Sequence[tuple[str, str, int, int]]) -> str:
    """Return the heading and one line a row."""
    cells = [["method", *(name for name, *_ in columns)]]
    cells += [[label(row), *(_number(row[key], digits, by) for _, key, digits, by in columns)] for row in rows]
    for line, row in zip(cells[1:], rows, strict=True):
        line[-1] += f"   {row['error']}" if row.get("error") else ""
    return "\n".join(table_lines(cells))


def label(row: Row) -> str:
    """Return `idpruner 0.25`, or `unpruned`."""
    if row["method"] == "none":
        return "unpruned"
    return " ".join(filter(None, [row["method"], row["params"], row["budget"]]))


def pays(rows: Sequence[Row]) -> list[str]:
    """Say for every method, budget and batch size from how many visual tokens on it saves time."""
    lines = []
    for batch in dict.fromkeys(row["batch"] for row in rows):
        for name in dict.fromkeys(label(row) for row in rows if row["method"] != "none"):
            timed = [row for row in rows if row["batch"] == batch and label(row) == name]
            timed = [row for row in timed if row["e2e_saving_ms"] is not None]
            if timed:
                sizes, saved = ([row[key] for row in timed] for key in ("visual_tokens", "e2e_saving_ms"))
                lines.append(f"{name}, batch {batch}: {verdict(sizes, saved)}")
    return lines


def unsettled(rows: Sequence[Row]) -> list[str]:
    """Say where the vision tower took another time than in the unpruned rounds although it did the same work."""
    lines = []
    for (workload, batch), some in groupby(rows, key=lambda row: (row["workload"], row["batch"])):
        unpruned, *pruned = some
        if (usual := unpruned["vit_ms"]) is None:
            continue
        for row in pruned:
            if row["vit_ms"] is None or row["vit_tflops"] != unpruned["vit_tflops"]:
                continue
            noise = max(SETTLED * usual, row["vit_iqr_ms"], unpruned["vit_iqr_ms"])
            if abs(row["vit_ms"] - usual) > noise:
                times = f"took {row['vit_ms']:.1f} ms, and {usual:.1f} ms unpruned, for the same work"
                remedy = "do not believe the difference of their sums; use more warmup and repeats, or an idle machine"
                lines.append(f"{label(row)}, {workload}, batch {batch}: the vision tower {times}: {remedy}")
    return lines


def _number(value: float | None, digits: int, by: int) -> str:
    return "-" if value is None else f"{value / by:.{digits}f}"
