"""The script for the first day on a GPU, on a machine without one: what was not run never reads as passed."""

import json
import os
import subprocess
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import prove_decoding as script
import pytest
import torch
from last_line import report_of

import methods
from harness.models import FAMILIES
from harness.pruning.decoding_proof import Proof

SCRIPTS = Path(__file__).parents[2] / "scripts"
CASE = script.Case("llava", "float32", "sdpa", "random", control=False)
CONTROL = replace(CASE, control=True)


def first_gpu(folder, python, **environment):
    environment = {**os.environ, "PYTHON": str(python), **environment}
    call = [SCRIPTS / "first_gpu.sh", folder]
    return subprocess.run(call, env=environment, capture_output=True, text=True, timeout=900, check=False)


def test_the_whole_script_on_the_cpu_is_incomplete_and_says_so(tmp_path, python):
    done = first_gpu(tmp_path, python, DEVICE="cpu")
    assert done.returncode == 3, done.stderr
    proof = json.loads((tmp_path / "proof.json").read_text())
    flash = [case for case in proof["cases"] if case["kernel"] == "flash_attention_2"]
    others = [case for case in proof["cases"] if case["kernel"] == "sdpa"]
    assert len(others) == 2 * len(flash) == 2 * len(FAMILIES) * (4 + 2)  # four methods and two controls
    assert {case["state"] for case in others} == {"passed"}
    assert {case["state"] for case in flash} == {proof["verdict"]} == {"not run"}
    assert "NOT PASSED" in done.stdout
    assert "NOT PASSED" in done.stderr
    reports = [report_of(line) for line in done.stdout.splitlines() if line.startswith('{"')]
    assert [len(report["rows"]) for report in reports] == [14, len(methods.names()) - 2, 2 * 9]
    assert {row["visual_tokens"] for row in reports[1]["rows"]} == {2 * 4 * 6}
    assert not [row["error"] for report in reports[1:] for row in report["rows"] if row["error"]]
    for method in ("pyramiddrop", "sparsevlm"):  # a quarter is no mean of 4 layers, of which one sees all
        assert f"left out: {method}: keep=0.25 is too small" in done.stderr
    assert "pays" in done.stdout
    written = {"kernels.csv", "kernels.json", "table4.csv", "table4.json", "sweep.csv", "savings-qwen25vl7b-batch1.png"}
    assert written <= {file.name for file in tmp_path.rglob("*.*")}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_is_one_line_and_nothing_is_measured(tmp_path, python):
    done = first_gpu(tmp_path, python)
    assert done.returncode == 2
    assert done.stderr.startswith("error: torch sees no GPU; try DEVICE=cpu")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("code", "measured"), [(0, True), (1, False), (3, True), (139, False)])
def test_nothing_is_measured_unless_decoding_is_proven(code, measured, tmp_path):
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\necho "$*"\ncase "$1" in *prove_decoding.py) exit {code} ;; esac\n')
    python.chmod(0o755)
    done = first_gpu(tmp_path, python, DEVICE="cpu", STEPS="kernels")
    assert done.returncode == code
    assert ("-m harness.bench kernels" in done.stdout) == measured
    assert ("first day on a GPU: passed" in done.stdout) == (code == 0)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["passed", "passed"], "passed"),
        (["passed", "not run"], "not run"),
        (["not run", "failed", "passed"], "failed"),
        ([], "not run"),
    ],
)
def test_passed_means_that_everything_was_run_and_passed(states, expected):
    assert script.verdict([replace(CASE, state=state) for state in states]) == expected


def test_a_control_that_the_comparison_does_not_notice_fails(monkeypatch):
    assert script.checked(CONTROL, "cpu").state == "passed"
    monkeypatch.setattr(script, "prove", lambda *arguments: Proof(2, 4, 0.0, 0.1))
    assert script.checked(CONTROL, "cpu").state == "failed"
    assert script.checked(CASE, "cpu").state == "passed"
    monkeypatch.setattr(script, "prove", lambda *arguments: Proof())
    assert script.checked(CASE, "cpu").state == "failed"  # nothing was compared


def test_wrong_decoding_fails(monkeypatch):
    @contextmanager
    def block(*arguments, **named):
        with plain(*arguments, **named) as pruning:
            pruning.replaying = lambda replaying=pruning.replaying: wrong(pruning, replaying)
            yield pruning

    @contextmanager
    def wrong(pruning, replaying):
        right = pruning._asked
        pruning._asked = {
            layer: (sizes, [script.Selection.of((s.kept + 1) % 16) for s in selections])
            for layer, (sizes, selections) in right.items()
        }
        with replaying():
            yield
        pruning._asked = right

    plain = script.harness.prune
    monkeypatch.setattr(script.harness, "prune", block)
    found = script.checked(CASE, "cpu")
    assert (found.state, found.note.partition(":")[0]) == ("failed", "DecodingError")


@pytest.mark.parametrize(("installed", "said"), [(True, ""), (False, "flash-attn is not installed")])
def test_flash_attention_on_a_gpu_is_left_out_only_where_it_is_not_installed(installed, said, monkeypatch):
    monkeypatch.setattr(script.importlib.util, "find_spec", lambda name: installed or None)
    assert script.obstacle("flash_attention_2", "cuda").startswith(said)
    assert script.obstacle("sdpa", "cuda") == ""
    assert bool(script.obstacle("flash_attention_2", "cuda")) != installed
