"""Time `harness.tables` and `harness.report` over many runs: python scripts/time_tables.py [--against CHECKOUT]

It makes 61 runs of 11 benchmarks with 40,000 questions (two minutes), and prints seconds and peak memory of each
command, in a process of its own. With another checkout of this repository, both read the same runs in turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
KEEPS = (0.25, 0.1, 0.05)


def make(place: Path, methods: int, questions: int, tasks: int) -> None:
    """Write the unpruned run and `methods` pruned ones at each of KEEPS; `questions` are of all tasks."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]
    from synthetic_runs import write_run

    common = {"questions": questions // tasks, "tasks": {f"bench_{i}": "accuracy,none" for i in range(tasks)}}
    write_run(place, "none", **common)
    for method in range(methods):
        for keep in KEEPS:
            write_run(place, f"method_{method}", keep=keep, skill=0.5 + 0.01 * method + keep / 2, **common)


def timed(checkout: Path, *call: str) -> tuple[float, float]:
    """Return seconds and peak memory in GB of a command of a checkout."""
    env = {**os.environ, "PYTHONPATH": str(checkout)}
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *call], cwd=checkout, env=env, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(call)} failed in {checkout}")
    return time.perf_counter() - began, usage.ru_maxrss / 1e6


def main() -> None:
    """Make the runs, and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout, which reads the same runs")
    parser.add_argument("--methods", type=int, default=20)
    parser.add_argument("--questions", type=int, default=40_000)
    parser.add_argument("--tasks", type=int, default=11)
    args = parser.parse_args()
    checkouts = [ROOT, *([args.against.absolute()] if args.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        runs = Path(folder, "runs")
        make(runs, args.methods, args.questions, args.tasks)
        print("| command | checkout | seconds | peak, GB |\n| --- | --- | ---: | ---: |")
        for command, out in (("tables", "csv=tables.csv"), ("report", "out=report.html")):
            name, _, file = out.partition("=")
            for checkout in checkouts:
                seconds, peak = timed(checkout, f"harness.{command}", f"runs={runs}", f"{name}={folder}/{file}")
                which = "this" if checkout == ROOT else "other"
                print(f"| {command} | {which} | {seconds:.1f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
