"""A sweep in one process beside its runs one by one: python -m harness.bench sweep limit=20."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from harness.bench.subprocess_runs import STAGE_COLUMNS, Row, about, hand_over, run, seconds, table
from harness.core.command import command
from harness.core.config import validate
from harness.core.config_groups import register
from harness.core.errors import UserError
from harness.core.files import check_place
from harness.core.overrides import compose
from harness.results.run_folder import DONE, KEPT, METRICS, RESPONSES, SCORES

COLUMNS = {
    "how": "sweep: all runs in one process; apart: each in its own, whose times are added up where run is all",
    "run": "method and share of the visual tokens that stays",
    "wall_s": "seconds from the start of the process to its end",
    **STAGE_COLUMNS,
    "other_s": "what is left: imports, checking configurations, writing",
}


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
        rows, common = measured(plan, Path(folder)), about(cfg, COLUMNS, Path(folder))
    sweep, apart, *each = rows
    print(table({f"{len(each)} runs apart": apart, "one sweep": sweep}, "sweep / apart"))
    hand_over({**common, "sweep_over_apart": round(sweep["wall_s"] / apart["wall_s"], 3), "rows": rows}, cfg.out)


def measured(plan: Plan, folder: Path) -> list[Row]:
    """Return the row of the sweep, that of all runs apart, and those of each; UserError if their answers differ."""
    calls = plan.apart()
    with tqdm(total=2 + len(calls), desc="processes") as progress:

        def timed(how: str, name: str, call: Sequence[str], runs: Path) -> Row:
            progress.set_postfix_str(f"{how} {name}")
            before, start = set(runs.rglob(DONE)), time.monotonic()
            run([*call, f"runs={runs}"])
            wall = time.monotonic() - start
            progress.update()
            return {"how": how, "run": name, **seconds(wall, set(runs.rglob(DONE)) - before)}

        # What the first run on a machine reads from the disk, and prepares of the data sets, no other one has to.
        timed("warm-up", *calls[0], folder / "warm-up")
        sweep = timed("sweep", "all", plan.swept(), folder / "sweep")
        apart = [timed("apart", name, call, folder / "apart") for name, call in calls]
    check_same(folder / "sweep", folder / "apart")
    total = {name: round(sum(row[name] for row in apart), 2) for name in COLUMNS if name.endswith("_s")}
    return [sweep, {"how": "apart", "run": "all", **total}, *apart]


def check_same(one: Path, other: Path) -> None:
    """UserError unless both hold the same runs, with the same bytes."""
    found = [{done.parent.relative_to(root) for done in root.rglob(DONE)} for root in (one, other)]
    if found[0] != found[1]:
        raise UserError(f"runs that only one way has: {', '.join(map(str, sorted(found[0] ^ found[1])))}")
    for each in sorted(found[0]):
        for name in (RESPONSES, KEPT, SCORES, METRICS):
            if (one / each / name).read_bytes() != (other / each / name).read_bytes():
                raise UserError(f"{each}: its {name} in the sweep is not that of the run on its own")


def _typed(method: Any) -> str:
    """A method as the command line has it, with its parameters if there are any."""
    if not isinstance(method, DictConfig):
        return str(method)
    return "{" + ",".join(f"{key!s}:{value}" for key, value in method.items()) + "}"
