"""`python -m harness.bench` as it is called, and scripts/gpu_bench.sh without a GPU."""

import csv
import json
import os
import subprocess
from pathlib import Path

import pytest
import torch
from fork_server import completed
from last_line import report_of

from harness.bench import kernels

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_bench.sh"


def command(*arguments, cwd):
    return completed(cwd, "harness.bench", *arguments)


@pytest.mark.usefixtures("fork_server")
def test_operations_from_the_command_line(tmp_path):
    done = command("flops", "model=qwen25vl7b", "keep=0.25", "sizes=[2691]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    unpruned, pruned = report_of(done.stdout, tmp_path)["rows"]
    assert (unpruned["method"], pruned["method"], pruned["kept_tokens"]) == ("none", "idpruner", 673)
    assert 3.5 < unpruned["prefill_tflops"] / pruned["prefill_tflops"] < 4.5
    assert unpruned["vit_tflops"] == pruned["vit_tflops"]
    assert "idpruner 0.25" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("fork_server")
def test_operations_of_all_methods_leave_out_those_that_cannot_meet_the_budget(tmp_path):
    done = command("flops", "model=pocket", "methods=all", "keep=0.1", "sizes=[104]", "out=made/cost", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "left out: pyramiddrop: keep=0.1 is too small" in done.stderr
    with (tmp_path / "made" / "cost.csv").open() as file:
        written = {line["method"]: float(line["prefill_tflops"]) for line in csv.DictReader(file)}
    rows = report_of(done.stdout, tmp_path)["rows"]
    assert written == {row["method"]: pytest.approx(row["prefill_tflops"]) for row in rows}
    assert written["random"] < written["fastv"] < written["none"]
    assert "pyramiddrop" not in written
    asked = ("flops", "model=pocket", "methods=[pyramiddrop]", "keep=0.1", "sizes=[104]")
    done = command(*asked, cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.usefixtures("fork_server")
def test_every_kernel_beside_its_published_loop(tmp_path):
    done = command(
        "kernels", "sizes=[60]", "width=24", "warmup=0", "repeats=2", "load=idle", "out=made/kernels", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    report = report_of(done.stdout, tmp_path)
    assert [row["kernel"] for row in report["rows"]] == [
        *kernels.KERNELS,
        *("mmr", "divprune", "coverage", "dpp") * 2,
    ]
    assert all(row["same"] and row["kept"] == 15 for row in report["rows"])
    assert {(row["published_n"], row["kernel_n"]) for row in report["rows"]} == {(2, 2)}
    assert report["machine"]["processor"]
    assert report["settings"]["dtype"] == "float32"
    written = json.loads((tmp_path / "made" / "kernels.json").read_text())
    assert written.items() <= report.items()
    with (tmp_path / "made" / "kernels.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line, row in zip(lines, report["rows"], strict=True):
        assert float(line["ratio"]) == pytest.approx(float(line["published_ms"]) / float(line["kernel_ms"]))
        assert f"{row['ratio']:.1f}" in done.stdout


@pytest.mark.usefixtures("fork_server")
def test_a_mistake_is_one_line(tmp_path):
    done = command("model=qwen25vl7b", "weights=tiny", "repeat=3", cwd=tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "did you mean repeats?" in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_the_command_for_a_gpu_says_that_there_is_none(tmp_path, python):
    environment = {**os.environ, "PYTHON": str(python)}
    done = subprocess.run([SCRIPT, tmp_path], env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode != 0
    assert "error: torch sees no GPU; try --smoke FOLDER" in done.stderr
    assert list(tmp_path.iterdir()) == []
