"""How much faster selection is than published loops: python -m harness.bench kernels [sizes=[2691] out=FILE]."""

from __future__ import annotations

import json
import sys
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from harness.core.command import command
from harness.core.errors import UserError

if TYPE_CHECKING:
    import torch

KERNELS = ("mmr", "maxmin", "divprune", "coverage", "dpp", "attention", "scorer")
NO_CHOICE = ("attention", "scorer")  # which are numbers: features do not matter, and so one kind of them will do
KINDS = ("image", "noise")
DTYPES = ("float32", "bfloat16", "float16")
IMAGE, CLIP = 2691, 11520  # visual tokens of a 1080p image and of a clip, in Qwen2.5-VL
LEAST = {"width": 2, "repeats": 1, "warmup": 0, "threads": 1}
Row = dict[str, Any]


def main() -> None:
    """`python -m harness.bench kernels`."""
    command("bench_kernels", bench, checks=[settings])


def settings(cfg: DictConfig) -> Row:
    """Check a composed configuration; UserError says in one line what to change."""
    chosen: Row = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    for key in ("kernels", "data", "sizes"):
        if chosen[key] is not None and not isinstance(chosen[key], list):
            chosen[key] = [chosen[key]]
    for key, known in (("kernels", KERNELS), ("data", KINDS)):
        if unknown := [name for name in chosen[key] if name not in known]:
            raise UserError(f"{key} must be some of {', '.join(known)}, got {unknown[0]}")
    numbers = [(key, chosen[key], least) for key, least in LEAST.items()] + [
        ("sizes", size, 2) for size in chosen["sizes"] or []
    ]
    for key, value, least in numbers:
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f"{key} must be a number of at least {least}, got {value}")
    if not isinstance(chosen["keep"], float) or not 0 < chosen["keep"] < 1:
        raise UserError(f"keep must be a share between 0 and 1, got {chosen['keep']}")
    if chosen["dtype"] not in (None, *DTYPES):
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {chosen['dtype']}")
    return chosen


def bench(cfg: DictConfig) -> None:
    """Time every kernel at every size, print a table for people, write it if asked, and end with one JSON line."""
    import torch

    from harness.bench.environment import machine

    chosen = settings(cfg)
    try:
        device = torch.device(chosen["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={chosen['device']} is not there: leave it out for what is") from error
    if chosen["threads"] is not None:
        torch.set_num_threads(chosen["threads"])
    gpu = device.type == "cuda"
    chosen["dtype"] = chosen["dtype"] or ("bfloat16" if gpu else "float32")
    chosen["sizes"] = chosen["sizes"] or ([IMAGE, CLIP] if gpu else [IMAGE])
    rows = [
        _row(name, kind, size, chosen, device)
        for size in chosen["sizes"]
        for kind in chosen["data"]
        for name in chosen["kernels"]
        if name not in NO_CHOICE or kind == chosen["data"][0]
    ]
    print(table(rows))
    about = {"machine": machine(device), "settings": {key: chosen[key] for key in chosen if key != "out"}}
    if chosen["out"] is not None:
        write(Path(str(chosen["out"])).expanduser(), rows, about)
    print(json.dumps({**about, "rows": rows}, allow_nan=False))
    if wrong := [row["kernel"] for row in rows if not row["same"]]:
        raise UserError(f"these kernels do not choose what their plain loops choose: {', '.join(wrong)}")


def _row(name: str, kind: str, n: int, chosen: Row, device: torch.device) -> Row:
    """Time one comparison, its two sides in turn, and compare what they choose."""
    import torch

    from harness.bench.kernel_cases import loop
    from harness.bench.statistics import Spread
    from harness.bench.timers import clock_of

    k, clock = max(1, round(n * chosen["keep"])), clock_of(device)
    one = loop(name, kind, n, chosen["width"], k, chosen["seed"], (device, getattr(torch, chosen["dtype"])))
    times: dict[str, list[float]] = {"published": [], "kernel": []}
    given: dict[str, Any] = {}
    turns = chosen["warmup"] + chosen["repeats"]
    for turn in range(turns):
        print(f"{name}, {n} tokens, {kind}: {turn + 1} of {turns}", file=sys.stderr)
        for side, taken in times.items():
            clock.wait()
            start = clock.mark()
            given[side] = getattr(one, side)()
            stop = clock.mark()
            clock.wait()
            if turn >= chosen["warmup"]:
                taken.append(clock.between(start, stop))
    published, kernel = Spread.of(times["published"]), Spread.of(times["kernel"])
    row: Row = {"kernel": name, "data": kind, "tokens": n, "kept": k, "width": chosen["width"], "n": chosen["repeats"]}
    row |= {"published_ms": published.median, "published_iqr_ms": published.iqr}
    row |= {"kernel_ms": kernel.median, "kernel_iqr_ms": kernel.iqr, "ratio": published.median / kernel.median}
    return row | {"same": one.same(given["kernel"]), "shared_with_published": one.shared(given)}


def table(rows: list[Row]) -> str:
    """One line a comparison."""
    lines = [
        f"{'kernel':10} {'data':6} {'tokens':>6} {'kept':>5} {'published ms':>20} {'ours ms':>18} {'ratio':>7}  picks"
    ]
    for row in rows:
        sides = [f"{row[f'{side}_ms']:.1f} ± {row[f'{side}_iqr_ms']:.1f}" for side in ("published", "kernel")]
        who = f"{row['kernel']:10} {row['data']:6} {row['tokens']:6} {row['kept']:5}"
        told = "as the plain loop" if row["same"] else "NOT those of the plain loop"
        if row["shared_with_published"] is None:
            told = "the same numbers" if row["same"] else "NOT the same numbers"
        else:
            told += f", {100 * row['shared_with_published']:.1f} % of the published"
        lines.append(f"{who} {sides[0]:>20} {sides[1]:>18} {row['ratio']:7.1f}  {told}")
    lines.append(f"median ± interquartile range of {rows[0]['n']} runs in turn; ratio of the medians")
    return "\n".join(lines)


def write(out: Path, rows: list[Row], about: Row) -> None:
    """Write FILE.csv and FILE.json whole."""
    import pandas as pd

    from harness.bench.output import csv_of, json_of
    from harness.core.files import to_json, write_atomic

    out.parent.mkdir(parents=True, exist_ok=True)
    text = StringIO()
    pd.DataFrame(rows).to_csv(text, index=False, lineterminator="\n")
    write_atomic(csv_of(out), text.getvalue())
    write_atomic(json_of(out), to_json({**about, "rows": rows}))
