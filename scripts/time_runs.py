"""Time whole processes of `python -m harness`, for two tables of docs/speed.md.

    python scripts/time_runs.py main [--batch N ...] [--repeats N]
    python scripts/time_runs.py sweep [--methods NAME ...] [--keep SHARE ...]

`main` answers the same questions with several batch sizes, in alternating rounds. `sweep` runs every method at every
budget, and the unpruned model, once in a process each and once as one sweep (`-m`). Both stop if the answers differ.
`--each KEY=VALUE ...` goes to all runs, `--limit N` asks the first N questions of each task, and `--out FILE` writes
FILE.csv and FILE.json.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm import tqdm

from harness.bench.environment import machine
from harness.core import hook
from harness.core.config import ModelConfig
from harness.core.console import print_json
from harness.core.files import from_json, json_line, read_jsonl, to_json
from harness.models.loading import device_of
from harness.results.run_folder import DONE, KEPT, RESPONSES

# The nine methods of arXiv 2602.13315.
METHODS = ["fastv", "visionzip", "hiprune", "visionselector", "divprune", "dart", "vispruner", "scope", "idpruner"]
STAGES = ("load", "data", "vision", "llm", "scoring")
STAGE_COLUMNS = {f"{stage}_s": f"of these, seconds of the stage {stage}" for stage in STAGES}
COLUMNS = {
    "main": {
        "batch": "questions in a batch",
        "wall_s": "seconds of a process from start to end, unpruned model included; the run with the median of n",
        "import_s": "of these, seconds in which Python imported modules, by its own -X importtime",
        **STAGE_COLUMNS,
        "other_s": "the rest: checking configurations, writing, start and end of Python",
        "n": "processes",
    },
    "sweep": {
        "how": "sweep: all runs in one process; apart: a process for each run",
        "run": "method and share of the visual tokens that stays; all: the sum over all runs",
        "wall_s": "seconds from the start of the process to its end",
        **STAGE_COLUMNS,
        "other_s": "the rest: imports, checking configurations, writing",
    },
}
_IMPORT = re.compile(r"^import time: +(\d+) \|", re.MULTILINE)  # microseconds in the module itself
Row = dict[str, Any]


def time_main(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for each batch size: the process with the median wall time, whole, so that its parts add up."""
    rows: dict[int, list[Row]] = {batch: [] for batch in args.batch}
    for number, batch in tqdm([(-1, args.batch[0]), *product(range(args.repeats), rows)], desc="processes"):
        row = timed([*args.each, f"model.batch_size={batch}"], folder / f"{number}-{batch}", "-X", "importtime")
        if number >= 0:  # the first process alone reads from disk and prepares the data sets
            rows[batch].append(row)
    for batch in rows:
        check_same(folder / f"0-{args.batch[0]}", folder / f"0-{batch}")
    medians = {batch: sorted(runs, key=lambda row: row["wall_s"])[(len(runs) - 1) // 2] for batch, runs in rows.items()}
    return [{"batch": batch, **row, "n": args.repeats} for batch, row in medians.items()]


def time_sweep(args: argparse.Namespace, folder: Path) -> list[Row]:
    """Return a row for the sweep, one for the sum of the separate runs, and one for each of these."""
    points = [["method=none"], *([f"method={m}", f"keep={k}"] for m, k in product(args.methods, args.keep))]
    swept = ["-m", *args.each, f"method={','.join(args.methods)}", f"keep={','.join(map(str, args.keep))}"]
    with tqdm(total=2 + len(points), desc="processes") as progress:

        def row(how: str, point: Sequence[str], call: Sequence[str]) -> Row:
            progress.set_postfix_str(f"{how} {' '.join(point)}")
            seconds = timed(call, folder / how)
            progress.update()
            return {"how": how, "run": " ".join(point), **seconds}

        row("warm-up", points[0], [*args.each, *points[0]])  # reads from disk and prepares the data sets
        sweep = row("sweep", ["all"], swept)
        apart = [row("apart", point, [*args.each, *point]) for point in points]
    check_same(folder / "sweep", folder / "apart")
    total = {name: round(sum(row[name] for row in apart), 2) for name in COLUMNS["sweep"] if name.endswith("_s")}
    return [sweep, {"how": "apart", "run": "all", **total}, *apart]


def timed(call: Sequence[str], runs: Path, *options: str) -> Row:
    """Run the main job in a process of its own and return the seconds of its parts."""
    finished, start = set(runs.rglob(DONE)), time.monotonic()
    stderr = run([*call, f"runs={runs}"], *options)
    wall = time.monotonic() - start
    stages = [from_json(done.read_text(encoding="utf-8"))["stages"] for done in set(runs.rglob(DONE)) - finished]
    parts = {"import": sum(map(int, _IMPORT.findall(stderr))) / 1e6} if options else {}
    parts |= {stage: sum(seconds[stage] for seconds in stages) for stage in STAGES}
    return {f"{k}_s": round(v, 2) for k, v in {"wall": wall, **parts, "other": wall - sum(parts.values())}.items()}


def run(call: Sequence[str], *options: str) -> str:
    """Return what `python OPTIONS -m harness CALL` writes to stderr; exit with its last line if it fails."""
    process = subprocess.run([sys.executable, *options, "-m", "harness", *call], capture_output=True, text=True)
    if process.returncode:
        *_, last = ["", *process.stderr.strip().splitlines()]
        raise SystemExit(f"error: exit code {process.returncode} of python -m harness {' '.join(call)}: {last}")
    return process.stderr


def check_same(first: Path, other: Path) -> None:
    """Exit unless the runs in both folders gave the same answers and kept the same tokens."""
    for name in (RESPONSES, KEPT):
        if sorted(map(_lines, first.rglob(name))) != sorted(map(_lines, other.rglob(name))):
            raise SystemExit(f"error: {name} differs between {first.name} and {other.name}: the work was not the same")


def _lines(file: Path) -> list[str]:
    """Return the lines of a run without `key`, which depends on the batch size."""
    lines = read_jsonl(file, "measure again")
    return [json_line({key: value for key, value in line.items() if key != "key"}) for line in lines]


def table(rows: Mapping[str, Row]) -> str:
    """Return a table of seconds; the last line is the last row over the first."""
    first, last = (list(rows.values())[index] for index in (0, -1))
    seconds = pd.DataFrame(rows).T.filter(regex="_s$").rename(columns=lambda name: name.removesuffix("_s"))
    ratio = [f"{last[f'{name}_s'] / first[f'{name}_s']:.2f}" if first[f"{name}_s"] else "-" for name in seconds]
    seconds = seconds.map("{:.1f}".format)
    seconds.loc["last / first"] = ratio
    return seconds.to_string()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table and one line of JSON, and write the files."""
    summary, _, details = str(__doc__).partition("\n")
    parser = argparse.ArgumentParser(description=summary, epilog=details, formatter_class=argparse.RawTextHelpFormatter)
    words = parser.add_subparsers(dest="word", required=True)
    batches, sweep = words.add_parser("main"), words.add_parser("sweep")
    batches.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    batches.add_argument("--repeats", type=int, default=3)
    sweep.add_argument("--methods", nargs="+", default=METHODS)
    sweep.add_argument("--keep", type=float, nargs="+", default=[0.25, 0.1])
    defaults = {batches: ["method=idpruner", "keep=0.25"], sweep: ["model=pocket", "tasks=pocket"]}
    for command, overrides in defaults.items():
        command.add_argument("--each", nargs="+", default=overrides, metavar="KEY=VALUE")
        command.add_argument("--limit", type=int)
        command.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.word == "main" and args.repeats < 1:
        parser.error(f"--repeats must be at least 1, got {args.repeats}")
    settings = {**vars(args), "out": args.out and str(args.out)}
    args.each = [*args.each, *([] if args.limit is None else [f"limit={args.limit}"])]
    with tempfile.TemporaryDirectory(prefix="harness-") as name:
        rows = (time_main if args.word == "main" else time_sweep)(args, Path(name))
        model = from_json(next(Path(name).rglob("run.json")).read_text(encoding="utf-8"))["config"]["model"]
    titled = {f"batch {row['batch']}": row for row in rows} if args.word == "main" else {}
    print(table(titled or {f"{len(rows) - 2} runs apart": rows[1], "one sweep": rows[0]}))
    about = {"machine": machine(torch.device(device_of(ModelConfig(**model)))), "settings": settings}
    report = {**about, "columns": COLUMNS[args.word], "rows": rows}
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=list(COLUMNS[args.word])).to_csv(f"{args.out}.csv", index=False, lineterminator="\n")
        Path(f"{args.out}.json").write_text(to_json(report), encoding="utf-8")
    print_json(report)


if __name__ == "__main__":
    hook.install()
    main()
