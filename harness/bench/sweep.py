"""A sweep in one process beside its runs one by one: python -m harness.bench sweep limit=20."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from io import StringIO
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from harness.choices import register
from harness.cli import command, compose
from harness.config import ModelConfig, validate
from harness.errors import UserError
from harness.store import DONE, KEPT, METRICS, RESPONSES, SCORES, check_place, to_json, write_atomic

STAGES = ("load", "data", "vision", "llm", "scoring")  # as `harness.stages` has them, which imports torch
COLUMNS = {
    "how": "sweep: all runs in one process; apart: each in its own, whose times are added up where run is all",
    "run": "method and share of the visual tokens that stays",
    "wall_s": "seconds from the start of the process to its end",
    **{f"{stage}_s": f"of these, seconds of the stage {stage}" for stage in STAGES},
    "other_s": "what is left: imports, checking configurations, writing",
}
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What to run: overrides of all runs, the methods, and the shares of the visual tokens that stay."""

    each: list[str]
    methods: list[str]
    keeps: list[str]

    @classmethod
    def of(cls, cfg: DictConfig) -> Plan:
        """Read a composed conf/bench_sweep.yaml."""
        limit = [] if cfg.limit is None else [f"limit={cfg.limit}"]
        keeps = [str(keep) for keep in cfg.keep]
        return cls([*map(str, cfg.each), *limit], [_typed(method) for method in cfg.methods], keeps)

    def swept(self) -> list[str]:
        """Return the command of the sweep."""
        return ["-m", *self.each, f"method={','.join(self.methods)}", f"keep={','.join(self.keeps)}"]

    def apart(self) -> list[tuple[str, list[str]]]:
        """Return name and command of every run, the unpruned model's first, which the others then find."""
        points = [[f"method={method}", f"keep={keep}"] for method, keep in product(self.methods, self.keeps)]
        return [(" ".join(point), [*self.each, *point]) for point in [["method=none"], *points]]


def main() -> None:
    """`python -m harness.bench sweep`."""
    command("bench_sweep", bench, checks=[check])


def check(cfg: DictConfig) -> None:
    """Refuse what `python -m harness` would, before anything runs."""
    plan = Plan.of(cfg)
    if not plan.methods or not plan.keeps:
        raise UserError("nothing to sweep: name at least one of methods, and of keep")
    if cfg.out is not None:
        check_place(Path(str(cfg.out)).expanduser().parent, "out")
    for _, call in plan.apart():
        validate(compose("config", register(call)))


def bench(cfg: DictConfig) -> None:
    """Run everything both ways, print a table for people and one JSON line, and write what was asked for."""
    plan = Plan.of(cfg)
    with tempfile.TemporaryDirectory(prefix="harness-") as folder:
        rows, about = measured(plan, Path(folder)), _about(cfg, Path(folder))
    report = about | {"sweep_over_apart": round(rows[0]["wall_s"] / rows[1]["wall_s"], 3), "rows": rows}
    print(table(rows))
    if cfg.out is not None:
        out = Path(str(cfg.out)).expanduser()
        out.parent.mkdir(parents=True, exist_ok=True)
        text = StringIO()
        pd.DataFrame(rows, columns=list(COLUMNS)).to_csv(text, index=False, lineterminator="\n")
        write_atomic(out.with_name(f"{out.name}.csv"), text.getvalue())
        write_atomic(out.with_name(f"{out.name}.json"), to_json(report))
        print(f"wrote {out}.csv and {out}.json")
    print(json.dumps(report))


def measured(plan: Plan, folder: Path) -> list[Row]:
    """Return the row of the sweep, that of all runs apart, and those of each; UserError if their answers differ."""
    calls = plan.apart()
    with tqdm(total=2 + len(calls), desc="processes") as progress:

        def timed(how: str, run: str, call: Sequence[str], runs: Path) -> Row:
            progress.set_postfix_str(f"{how} {run}")
            before, start = set(runs.rglob(DONE)), time.monotonic()
            _run([*call, f"runs={runs}"])
            wall = time.monotonic() - start
            progress.update()
            return _row(how, run, wall, sorted(set(runs.rglob(DONE)) - before))

        # What the first run on a machine reads from the disk, and prepares of the data sets, no other one has to.
        timed("warm-up", *calls[0], folder / "warm-up")
        sweep = timed("sweep", "all", plan.swept(), folder / "sweep")
        apart = [timed("apart", run, call, folder / "apart") for run, call in calls]
    check_same(folder / "sweep", folder / "apart")
    total = {name: round(sum(row[name] for row in apart), 2) for name in COLUMNS if name.endswith("_s")}
    return [sweep, {"how": "apart", "run": "all", **total}, *apart]


def check_same(one: Path, other: Path) -> None:
    """UserError unless both hold the same runs, with the same bytes."""
    found = [{done.parent.relative_to(root) for done in root.rglob(DONE)} for root in (one, other)]
    if found[0] != found[1]:
        raise UserError(f"runs that only one way has: {', '.join(map(str, sorted(found[0] ^ found[1])))}")
    for run in sorted(found[0]):
        for name in (RESPONSES, KEPT, SCORES, METRICS):
            if (one / run / name).read_bytes() != (other / run / name).read_bytes():
                raise UserError(f"{run}: its {name} in the sweep is not that of the run on its own")


def table(rows: Sequence[Row]) -> str:
    """Both ways stage by stage, with the share of each, and what the sweep takes of the other's time."""
    sweep, apart = rows[:2]
    names = [name for name in COLUMNS if name.endswith("_s")]
    lines = [f"{'':<16}" + "".join(f"{name.removesuffix('_s'):>18}" for name in names)]
    for title, row in ((f"{len(rows) - 2} runs apart", apart), ("one sweep", sweep)):
        cells = (f"{row[name]:.1f} s ({row[name] / row['wall_s']:.0%})" for name in names)
        lines.append(f"{title:<16}" + "".join(f"{cell:>18}" for cell in cells))
    ratios = (f"{sweep[name] / apart[name]:.2f}" if apart[name] else "-" for name in names)
    return "\n".join([*lines, f"{'sweep / apart':<16}" + "".join(f"{ratio:>18}" for ratio in ratios)])


def _run(call: Sequence[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "harness", *call], capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise UserError(f"python -m harness {' '.join(call)}: {said[-1].removeprefix('error: ')}")


def _row(how: str, run: str, wall: float, finished: Sequence[Path]) -> Row:
    spent = [json.loads(done.read_text(encoding="utf-8"))["stages"] for done in finished]
    stages = {stage: sum(each[stage] for each in spent) for stage in STAGES}
    seconds = {"wall": wall, **stages, "other": wall - sum(stages.values())}
    return {"how": how, "run": run, **{f"{name}_s": round(value, 2) for name, value in seconds.items()}}


def _about(cfg: DictConfig, runs: Path) -> Row:
    import torch

    from harness.bench.machine import machine
    from harness.loading import device_of

    told = json.loads(next(runs.rglob("run.json")).read_text(encoding="utf-8"))["config"]["model"]
    device = torch.device(device_of(ModelConfig(**told)))
    return {"machine": machine(device), "settings": OmegaConf.to_container(cfg), "columns": COLUMNS}


def _typed(method: Any) -> str:
    """A method as the command line has it, with its parameters if there are any."""
    if not isinstance(method, DictConfig):
        return str(method)
    return "{" + ",".join(f"{key!s}:{value}" for key, value in method.items()) + "}"
