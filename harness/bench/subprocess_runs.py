"""Runs in processes of their own, timed from outside, and where these say that their time went."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from harness.core.config import ModelConfig
from harness.core.errors import UserError
from harness.core.files import to_json, write_atomic

STAGES = ("load", "data", "vision", "llm", "scoring")  # as `harness.core.timing` has them, which imports torch
STAGE_COLUMNS = {f"{stage}_s": f"of these, seconds of the stage {stage}" for stage in STAGES}
Row = dict[str, Any]


def run(call: Sequence[str], *options: str) -> str:
    """Return what `python OPTIONS -m harness CALL` writes to stderr; UserError with its last line if it fails."""
    done = subprocess.run(
        [sys.executable, *options, "-m", "harness", *call], capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"python -m harness {' '.join(call)}: {said[-1].removeprefix('error: ')}")
    return done.stderr


def seconds(wall: float, finished: Iterable[Path], **known: float) -> Row:
    """Columns for a process that took `wall` seconds and left the markers `finished`; of it, `known` ones are told."""
    spent = [json.loads(done.read_text(encoding="utf-8"))["stages"] for done in finished]
    parts = {**known, **{stage: sum(each[stage] for each in spent) for stage in STAGES}}
    return {f"{k}_s": round(v, 2) for k, v in {"wall": wall, **parts, "other": wall - sum(parts.values())}.items()}


def table(rows: Mapping[str, Row], ratio: str) -> str:
    """Rows under their titles, with the share of each column, and under `ratio` the last one over the first."""
    first, *_, last = rows.values()
    names = [name for name in first if name.endswith("_s")]
    lines = [f"{'':<16}" + "".join(f"{name.removesuffix('_s'):>18}" for name in names)]
    for title, row in rows.items():
        cells = (f"{row[name]:.1f} s ({row[name] / row['wall_s']:.0%})" for name in names)
        lines.append(f"{title:<16}" + "".join(f"{cell:>18}" for cell in cells))
    ratios = (f"{last[name] / first[name]:.2f}" if first[name] else "-" for name in names)
    return "\n".join([*lines, f"{ratio:<16}" + "".join(f"{ratio:>18}" for ratio in ratios)])


def about(cfg: DictConfig, columns: Mapping[str, str], runs: Path) -> Row:
    """What a report begins with; `runs` holds at least one run, which tells where they were computed."""
    import torch

    from harness.bench.environment import machine
    from harness.models.loading import device_of

    told = json.loads(next(runs.rglob("run.json")).read_text(encoding="utf-8"))["config"]["model"]
    device = torch.device(device_of(ModelConfig(**told)))
    return {"machine": machine(device), "settings": OmegaConf.to_container(cfg), "columns": dict(columns)}


def hand_over(report: Row, out: str | None) -> None:
    """Write FILE.csv and FILE.json if `out` names a file, and print the report as one line."""
    if out is not None:
        file = Path(str(out)).expanduser()
        file.parent.mkdir(parents=True, exist_ok=True)
        text = StringIO()
        pd.DataFrame(report["rows"], columns=list(report["columns"])).to_csv(text, index=False, lineterminator="\n")
        write_atomic(file.with_name(f"{file.name}.csv"), text.getvalue())
        write_atomic(file.with_name(f"{file.name}.json"), to_json(report))
        print(f"wrote {file}.csv and {file}.json")
    print(json.dumps(report))
