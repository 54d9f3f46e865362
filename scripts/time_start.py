"""Time the unpruned embedded model from the start of its process: python scripts/time_start.py [--against CHECKOUT]

In turns: the imports that any such run needs (torch, a model's classes, lmms-eval), `python -m harness` of this
checkout and of another one, and lmms-eval's own `qwen2_5_vl`, all in bfloat16, as the latter is. Printed are seconds to
the first question and to the end, processor seconds and peak memory, medians; and scores that differ.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

ROOT = Path(__file__).parents[1]
IMPORTS = "import lmms_eval.evaluator; from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor"
POCKET = ROOT / "harness" / "pocket"
FIRST = re.compile(rb": 0 of | 0/\d")  # what a run prints as it asks the first question, and older ones did
Times = tuple[float | None, float, float, float]  # s to the first question, s to the end, processor s, GB


def tasks() -> list[str]:
    """Return the tasks of `tasks=pocket_image`."""
    sys.path.insert(0, str(ROOT))
    from harness.core.overrides import compose

    return list(compose("config", ["tasks=pocket_image"]).tasks.metrics)


def calls(checkouts: Sequence[Path], limit: int, folder: Path) -> Iterator[tuple[str, Path, list[str]]]:
    """Yield a name, the working directory and the words after `python` of each process."""
    yield "imports", ROOT, ["-c", IMPORTS]
    for checkout in checkouts:
        name = "this checkout" if checkout == ROOT else checkout.name
        what = ["method=none", "model=pocket", "model.dtype=bfloat16", "tasks=pocket_image", f"limit={limit}"]
        yield name, checkout, ["-m", "harness", *what, "force=true", f"runs={folder / name}"]
    pixels = "min_pixels=3136,max_pixels=200704"  # conf/model/pocket.yaml
    given = f"pretrained={POCKET / 'weights'},device=cpu,device_map=cpu,{pixels},system_prompt="
    call = ["-m", "lmms_eval", "--model", "qwen2_5_vl", "--model_args", given, "--tasks", ",".join(tasks())]
    call += ["--include_path", str(POCKET / "tasks"), "--batch_size", "8", "--limit", str(limit)]
    yield "lmms-eval's qwen2_5_vl", ROOT, [*call, "--output_path", str(folder / "stock")]


def timed(place: Path, call: Sequence[str]) -> Times:
    """Run a process and return its times."""
    env = {**os.environ, "PYTHONPATH": str(place), "HF_HUB_OFFLINE": "1"}
    began, first, said = time.perf_counter(), None, b""
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen([sys.executable, *call], cwd=place, env=env, stdout=out, stderr=subprocess.PIPE)
        assert process.stderr is not None
        while piece := os.read(process.stderr.fileno(), 2**16):
            said += piece
            first = time.perf_counter() - began if first is None and FIRST.search(said) else first
        _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"{' '.join(call)} failed: {said.decode(errors='replace')[-500:]}")
    first = first if "harness" in call else None  # bars of data sets
    return first, time.perf_counter() - began, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e6


def scores(folder: Path) -> list[tuple[str, float]]:
    """Return task -> score of the one run below a folder, ours or lmms-eval's."""
    (file,) = {*folder.rglob("metrics.json"), *list(folder.rglob("*_results.json"))[:1]}
    found = json.loads(file.read_text(encoding="utf-8"))
    of_task = found.get("scores") or found["results"]
    metrics = {task: next(v for k, v in of_task[task].items() if k.endswith(",none")) for task in tasks()}
    return sorted((task, round(float(score), 6)) for task, score in metrics.items())


def main() -> None:
    """Time all of them in turns, and print a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--against", type=Path, help="another checkout of this repository")
    parser.add_argument("--limit", type=int, default=100, help="questions of each task")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    checkouts = [ROOT, *([args.against.absolute()] if args.against else [])]
    times: dict[str, list[Times]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for _ in range(args.repeats):
            for which, place, call in calls(checkouts, args.limit, folder):
                times.setdefault(which, []).append(timed(place, call))
        ours, stock = scores(folder / "this checkout"), scores(folder / "stock")
    print("| | first question, s | end, s | processor, s | GB |\n| --- | ---: | ---: | ---: | ---: |")
    for which, runs in times.items():
        first, *rest = zip(*runs, strict=True)
        shown = "-" if None in first else f"{median(map(float, first)):.1f}"
        end, processor, peak = map(median, rest)
        print(f"| {which} | {shown} | {end:.1f} | {processor:.1f} | {peak:.2f} |")
    other = [f"{task} {score} and {dict(stock)[task]}" for task, score in ours if score != dict(stock)[task]]
    print(f"scores here and of lmms-eval: {', '.join(other) or 'equal'}")


if __name__ == "__main__":
    main()
