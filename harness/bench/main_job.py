"""Where the seconds of the main job go, with batches of several sizes: python -m harness.bench main."""

from __future__ import annotations

import json
import re
import tempfile
import time
from itertools import product
from pathlib import Path

from omegaconf import DictConfig
from tqdm import tqdm

from harness.bench.subprocess_runs import STAGE_COLUMNS, Row, about, hand_over, run, seconds, table
from harness.core.command import command
from harness.core.config import validate
from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.files import check_place
from harness.core.overrides import compose
from harness.results.run_folder import DONE, KEPT, RESPONSES

COLUMNS = {
    "batch": "questions that the model answers at once",
    "wall_s": "seconds of a process from start to end, baseline included; the median of n, which the others are of",
    "import_s": "of these, seconds in which Python imported modules, by its own -X importtime",
    **STAGE_COLUMNS,
    "other_s": "what is left: checking configurations, writing, Python's start and end",
    "n": "processes",
}
_IMPORT = re.compile(r"^import time: +(\d+) \|", re.MULTILINE)  # microseconds in the module itself


def main() -> None:
    """`python -m harness.bench main`."""
    command("bench_main", bench, checks=[check])


def check(cfg: DictConfig) -> None:
    """Refuse what `python -m harness` would, before anything runs."""
    if not cfg.batch or cfg.repeats < 1:
        raise UserError("nothing to measure: name at least one batch, and repeats=1 or more")
    if cfg.out is not None:
        check_place(Path(str(cfg.out)).expanduser().parent, "out")
    for batch in cfg.batch:
        validate(compose("config", register(_call(cfg, batch))))


def bench(cfg: DictConfig) -> None:
    """Run the job with every batch size in turns, print a table for people and one JSON line, write what is asked."""
    turns: dict[int, list[Row]] = {int(batch): [] for batch in cfg.batch}
    with tempfile.TemporaryDirectory(prefix="harness-") as name:
        folder = Path(name)
        for turn, batch in tqdm([(-1, next(iter(turns))), *product(range(cfg.repeats), turns)], desc="processes"):
            row = _timed(_call(cfg, batch), folder / f"{turn}-{batch}")
            if turn >= 0:  # what the first process on a machine reads from the disk, no other one has to
                turns[batch].append(row)
        for batch in turns:
            check_same(folder / f"0-{batch}", folder / f"0-{next(iter(turns))}")
        common = about(cfg, COLUMNS, folder)
    rows = [{"batch": batch, **median(found), "n": len(found)} for batch, found in turns.items()]
    first, last = rows[0], rows[-1]
    print(table({f"batch {row['batch']}": row for row in rows}, f"batch {last['batch']} / {first['batch']}"))
    hand_over({**common, "last_over_first": round(last["wall_s"] / first["wall_s"], 3), "rows": rows}, cfg.out)


def median(rows: list[Row]) -> Row:
    """The row in the middle by wall time, whole, so that its parts add up; of two, the faster one."""
    return sorted(rows, key=lambda row: float(row["wall_s"]))[(len(rows) - 1) // 2]


def imported(stderr: str) -> float:
    """Seconds in which a process under -X importtime imported modules."""
    return sum(map(int, _IMPORT.findall(stderr))) / 1e6


def check_same(one: Path, other: Path) -> None:
    """UserError unless the runs in both folders gave the same answers and kept the same tokens."""
    for name in (RESPONSES, KEPT):
        found = [sorted(map(_lines, folder.rglob(name))) for folder in (one, other)]
        if found[0] != found[1]:
            raise UserError(f"{name} depends on the size of the batch: its times are not of the same work")


def _lines(file: Path) -> list[str]:
    lines = map(json.loads, file.read_text(encoding="utf-8").splitlines())
    return [json.dumps({key: value for key, value in line.items() if key != "key"}) for line in lines]


def _call(cfg: DictConfig, batch: int) -> list[str]:
    return [*map(str, cfg.each), *([] if cfg.limit is None else [f"limit={cfg.limit}"]), f"model.batch_size={batch}"]


def _timed(call: list[str], runs: Path) -> Row:
    start = time.monotonic()
    stderr = run([*call, f"runs={runs}"], "-X", "importtime")
    return seconds(time.monotonic() - start, runs.rglob(DONE), **{"import": imported(stderr)})
