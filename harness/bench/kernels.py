"""How much faster selection is than public implementations: python -m harness.bench kernels [sizes=[2691] out=FILE]."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from harness.core.command import command
from harness.core.console import print_json
from harness.core.errors import UserError
from harness.core.files import path_of

if TYPE_CHECKING:
    import torch

KERNELS = ("mmr", "divprune", "coverage", "dpp", "attention", "scorer")
RENAMED = {"maxmin": "divprune"}  # old names of kernels, removed in the next release
NO_CHOICE = ("attention", "scorer")  # which are numbers: features do not matter, and so one kind of them will do
KINDS = ("clusters", "image", "noise")
LOADS = ("idle", "busy")
DTYPES = ("float32", "bfloat16", "float16")
WIDTHS = {576: 4096, 1032: 2048, 2691: 3584}  # visual tokens -> width: LLaVA-1.5-7B, Qwen2.5-VL-3B and -7B (1080p)
CLIP = 11520  # visual tokens of a clip in Qwen2.5-VL
LEAST = {"width": 2, "repeats": 1, "warmup": 0, "threads": 1}
MOST_THREADS = 1024
ENOUGH = 5.0  # seconds after which a side is not run again
BUSY = "import torch; a = torch.randn(1500, 1500)\nwhile True: a @ a"  # with torch's default threads: one a core
Row = dict[str, Any]


def main() -> None:
    """`python -m harness.bench kernels`."""
    command("bench_kernels", bench, checks=[settings])


def settings(cfg: DictConfig) -> Row:
    """Check a composed configuration; UserError says in one line what to change."""
    chosen: Row = dict(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[arg-type]
    for key in ("kernels", "data", "sizes", "load"):
        if chosen[key] is not None and not isinstance(chosen[key], list):
            chosen[key] = [chosen[key]]
    chosen["kernels"] = [RENAMED.get(name, name) for name in chosen["kernels"] or KERNELS]
    for key, known in (("kernels", KERNELS), ("data", KINDS), ("load", LOADS)):
        if unknown := [name for name in chosen[key] or [] if name not in known]:
            raise UserError(f"{key} must be some of {', '.join(known)}, got {unknown[0]}")
    numbers = [(key, chosen[key], least) for key, least in LEAST.items()] + [
        ("sizes", size, 2) for size in chosen["sizes"] or []
    ]
    for key, value, least in numbers:
        if value is not None and (type(value) is not int or value < least):
            raise UserError(f"{key} must be a number of at least {least}, got {value}")
    if (chosen["threads"] or 1) > MOST_THREADS:  # OpenMP would end the process
        raise UserError(f"threads must be at most {MOST_THREADS}, got {chosen['threads']}")
    if not isinstance(chosen["keep"], float) or not 0 < chosen["keep"] < 1:
        raise UserError(f"keep must be a share between 0 and 1, got {chosen['keep']}")
    if chosen["dtype"] not in (None, *DTYPES):
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got {chosen['dtype']}")
    return chosen


def bench(cfg: DictConfig) -> None:
    """Time every kernel at every size, print a table for people, write it if asked, and end with one JSON line."""
    import torch

    from harness.bench import output
    from harness.bench.environment import machine

    chosen = settings(cfg)
    out = None if chosen["out"] is None else path_of(chosen["out"], "out")
    output.check(out)
    try:
        device = torch.device(chosen["device"] or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device={chosen['device']} is not there: leave it out for what is") from error
    if chosen["threads"] is not None:
        torch.set_num_threads(chosen["threads"])
    gpu = device.type == "cuda"
    chosen["dtype"] = chosen["dtype"] or ("bfloat16" if gpu else "float32")
    chosen["sizes"] = chosen["sizes"] or [*WIDTHS, *([CLIP] if gpu else [])]
    chosen["load"] = chosen["load"] or (["idle"] if gpu else list(LOADS))
    rows = []
    for load in chosen["load"]:
        with _busy_process(load == "busy"):
            rows += [
                {"load": load} | _row(name, kind, size, chosen, device)
                for size in chosen["sizes"]
                for kind in chosen["data"]
                for name in chosen["kernels"]
                if name not in NO_CHOICE or kind == chosen["data"][0]
            ]
    print(table(rows))
    about = {"machine": machine(device), "settings": {key: chosen[key] for key in chosen if key != "out"}}
    if out is not None:
        output.write(out, rows, about)
    print_json({**about, "rows": rows}, None if out is None else output.json_of(out))
    if wrong := sorted({row["kernel"] for row in rows if not row["same"]}):
        raise UserError(f"these kernels do not choose what public implementations choose: {', '.join(wrong)}")


@contextmanager
def _busy_process(wanted: bool) -> Iterator[None]:
    """Run a process within the block, if `wanted`, that multiplies matrices on all cores."""
    if not wanted:
        yield
        return
    process = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        time.sleep(5)  # until it has imported torch
        if process.poll() is not None:
            raise UserError(f"the busy process ended with code {process.returncode}: leave it out with load=idle")
        yield
    finally:
        process.kill()
        process.wait()


def _row(name: str, kind: str, n: int, chosen: Row, device: torch.device) -> Row:
    """Time one comparison, all sides in turn, and compare what they choose."""
    import torch

    from harness.bench.kernel_cases import loop
    from harness.bench.statistics import Spread
    from harness.bench.timers import clock_of

    k, clock = max(1, round(n * chosen["keep"])), clock_of(device)
    width = chosen["width"] or WIDTHS.get(n, WIDTHS[2691])
    comparison = loop(name, kind, n, width, k, chosen["seed"], (device, getattr(torch, chosen["dtype"])))
    sides = {"kernel": comparison.kernel, **comparison.published}
    times: dict[str, list[float]] = {side: [] for side in sides}
    results: dict[str, Any] = {}
    for turn in range(chosen["warmup"] + chosen["repeats"]):
        print(f"{name}, {n} tokens, {kind}: {turn + 1}", file=sys.stderr)
        for side, call in sides.items():
            if sum(times[side]) > 1000 * ENOUGH:
                continue
            clock.wait()
            start = clock.mark()
            results[side] = call()
            stop = clock.mark()
            clock.wait()
            times[side].append(clock.between(start, stop))
    counted = {side: taken[chosen["warmup"] :] or taken for side, taken in times.items()}
    spreads = {side: Spread.of(taken) for side, taken in counted.items()}
    fastest = min(comparison.published, key=lambda side: spreads[side].median)
    row: Row = {"kernel": name, "data": kind, "tokens": n, "kept": k, "width": width, "published": fastest}
    row |= {"published_n": len(counted[fastest]), "kernel_n": len(counted["kernel"])}
    row |= {"published_ms": spreads[fastest].median, "published_iqr_ms": spreads[fastest].iqr}
    row |= {"kernel_ms": spreads["kernel"].median, "kernel_iqr_ms": spreads["kernel"].iqr}
    row["ratio"] = spreads[fastest].median / spreads["kernel"].median
    sides_of_it = results["kernel"], results[fastest]
    return row | {"same": comparison.same(*sides_of_it), "shared": comparison.shared(*sides_of_it)}


def table(rows: list[Row]) -> str:
    """One line a comparison, and the worst of each kernel."""
    titles = f"{'kernel':10} {'data':8} {'load':4} {'tokens':>6} {'kept':>5}"
    lines = [f"{titles} {'published ms':>20} {'ours ms':>18} {'ratio':>7}  picks"]
    for row in rows:
        sides = [f"{row[f'{side}_ms']:.1f} ± {row[f'{side}_iqr_ms']:.1f}" for side in ("published", "kernel")]
        who = f"{row['kernel']:10} {row['data']:8} {row['load']:4} {row['tokens']:6} {row['kept']:5}"
        if row["shared"] is None:
            verdict = "the same numbers" if row["same"] else "NOT the same numbers"
        else:
            verdict = f"{100 * row['shared']:.1f} % of {row['published']}'s"
        lines.append(f"{who} {sides[0]:>20} {sides[1]:>18} {row['ratio']:7.1f}  {verdict}")
    lines.append(
        "median ± interquartile range, sides in turn; ratio of the medians, against the fastest public implementation"
    )
    for name in dict.fromkeys(row["kernel"] for row in rows):
        worst = min((row for row in rows if row["kernel"] == name), key=lambda row: row["ratio"])
        lines.append(
            f"worst of {name}: {worst['ratio']:.2f} ({worst['tokens']} tokens, {worst['data']}, {worst['load']})"
        )
    return "\n".join(lines)
