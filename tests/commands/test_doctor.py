"""`harness.doctor` tells what is here from what is absent and what is broken, and ends as every command does."""

import json
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fork_server import completed
from huggingface_hub import constants
from last_line import report_of
from run_folders import make_run

from harness import doctor
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.doctor import __main__ as command
from harness.doctor import band, machine, presence
from harness.models import checkpoint
from harness.models.scorer import VisionSelectorScorer, save_scorer

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"
PAPER = Path(__file__).parents[2] / "results" / "paper"


def states(findings) -> dict[str, tuple[str, str]]:
    return {finding.name: (finding.state, finding.said) for finding in findings}


def test_versions_are_held_against_the_bounds(monkeypatch):
    needs = ["torch>=2.15", "scipy>=1", "lmms-eval<0.8", "mac-only; sys_platform == 'none'", "more; extra == 'test'"]
    installed = {"torch": "2.14.0", "lmms-eval": "0.7.3"}

    def version(name):
        if name not in installed:
            raise machine.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(machine, "requires", lambda name: [*needs, "flash-attn>=2.7; extra == 'flash'"])
    monkeypatch.setattr(machine, "version", version)
    found = states(machine.versions())
    assert {name: state for name, (state, _) in found.items()} == {
        "python": "ok",
        "torch": "broken",
        "scipy": "broken",
        "lmms-eval": "ok",
        "flash-attn": "absent",
    }
    assert found["torch"][1] == "2.14.0, but >=2.15 is needed"


def test_what_is_installed_here_is_what_is_asked_for():
    assert {state for state, _ in states(machine.versions()).values()} <= {"ok", "absent"}


@pytest.mark.parametrize(("free", "state"), [(0.5, "broken"), (2, "ok")])
def test_a_disk_with_little_room_is_broken(free, state, monkeypatch, tmp_path):
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=free * 2**30))
    found = states(machine.disk(tmp_path / "not" / "there"))
    assert set(found) == {"runs", "models", "datasets", "temporary"}
    assert found["runs"] == (state, f"{free:.1f} GiB free in {tmp_path / 'not' / 'there'}")


def answering(monkeypatch, head, offline=False):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))


def test_the_hub_answers_or_not_in_time(monkeypatch):
    answering(monkeypatch, lambda url, timeout: None)
    assert machine.hub(2).state == "ok"
    answering(monkeypatch, lambda url, timeout: time.sleep(5))
    began = time.perf_counter()
    found = machine.hub(0.1)
    assert time.perf_counter() - began < 4
    assert (found.state, "does not answer in 0.1 s (TimeoutError)" in found.said) == ("absent", True)


@pytest.mark.parametrize(("seconds", "offline", "why"), [(2, True, "HF_HUB_OFFLINE or"), (0, False, "hub=0")])
def test_the_hub_is_not_asked_where_nobody_wants_it(seconds, offline, why, monkeypatch):
    asked = []
    answering(monkeypatch, lambda url, timeout: asked.append(url), offline)
    found = machine.hub(seconds)
    assert (found.state, asked) == ("absent", [])
    assert found.said.startswith("not asked")
    assert why in found.said


@pytest.mark.parametrize("listed", [0, 2])
def test_gpus_that_torch_does_not_see_are_broken(listed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(machine, "_listed_gpus", lambda: listed)
    found = states(machine.device())
    assert ("cuda" in found) == bool(listed)
    assert found["cpu"][0] == "ok"
    if listed:
        assert found["cuda"][0] == "broken"
        assert found["cuda"][1].startswith("nvidia-smi lists 2 GPU(s), but torch, built for ")


@pytest.mark.parametrize("gpu", [True, False])
def test_kernels(gpu, monkeypatch, tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = states(machine.kernels())
    assert found["attention sdpa"][0] == found["attention eager"][0] == "ok"
    assert found["attention flash_attention_2"][0] == "broken"
    assert "undefined symbol" in found["attention flash_attention_2"][1]


MODELS = presence._choices("model")


def test_models_that_are_here_not_here_and_damaged(monkeypatch, tmp_path):
    plain = checkpoint.local_folder

    def local(model):
        if model.name == "qwen25vl3b":
            raise UserError("missing weight file")
        return plain(model) if model.name == "pocket" else tmp_path if model.name == "qwen25vl7b" else None

    monkeypatch.setattr(presence.checkpoint, "local_folder", local)
    pairs = {finding.name: (finding, folder) for finding, folder in presence.models()}
    assert sorted(pairs) == MODELS
    found = {name: (finding.state, folder) for name, (finding, folder) in pairs.items()}
    assert found["qwen25vl3b"] == ("broken", None)
    assert found["qwen25vl7b"] == ("ok", tmp_path)
    assert found["llava15_7b"] == ("absent", None)
    assert (found["pocket"][1] / "config.json").is_file()


def test_scorers_beside_the_models(tmp_path):
    folders = {name: tmp_path / name for name in ("with", "without", "other", "damaged")}
    for name, folder in folders.items():
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"text_config": {"hidden_size": 32}}))
        if name != "without":
            save_scorer(VisionSelectorScorer(16 if name == "other" else 32, 8), folder / "scorer")
    (folders["with"] / "d2prior.safetensors").write_bytes(b"")
    (folders["damaged"] / "scorer" / "model.safetensors").write_bytes(b"nothing")
    found = states(presence.scorers({**folders, "not here": None}))
    assert found["without"][1].startswith("no learned scorer next to the weights: ")
    assert found["with"] == ("ok", "a learned scorer for tokens of width 32 and a prior for d2pruner")
    assert {name: state for name, (state, _) in found.items()} == {
        "with": "ok",
        "without": "absent",
        "other": "broken",
        "damaged": "broken",
    }


def test_data_sets_in_a_root_in_the_cache_and_nowhere(monkeypatch, tmp_path):
    for name in ("POPE", "Video-MME"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "README.md").write_text("")
    cached = tmp_path / "hub" / "datasets--lmms-lab-encoder--MME" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "prepared"))
    found = states(presence.datasets(str(tmp_path / "root")))
    assert found["pope"] == ("ok", f"in {tmp_path / 'root' / 'POPE'}")
    assert found["videomme"][0] == "broken"
    assert found["mme"][0] == found["mmstar"][0] == "absent"
    assert found["pocket"] == ("ok", "9 tasks with their data ship with the harness")
    without = states(presence.datasets(None))
    assert without["mme"] == ("ok", f"in {cached.parent}")
    assert without["pope"][0] == "absent"
    one = states(presence.datasets({"mme": str(tmp_path / "nothing"), "pope": str(tmp_path / "root" / "POPE")}))
    assert (one["mme"][0], one["pope"][0], one["mmstar"][0]) == ("broken", "ok", "absent")


def unpruned(root, model="qwen25vl7b", **more):
    """A run of AI2D (published: 82.48) and MME (1702 and 1701) in lmms-eval's scales."""
    scores = {"ai2d": {"exact_match,flexible-extract": 0.81}, "mme": {"mme_perception_score,none": 1600.0}}
    make_run(root, "none", {task: {name: [1.0] for name in columns} for task, columns in scores.items()}, scores=scores,
             model=model, **more)  # fmt: skip


def test_unpruned_scores_lie_in_the_published_band_or_outside(tmp_path):
    unpruned(tmp_path)
    unpruned(tmp_path, "pocket")
    make_run(tmp_path, "random", {"ai2d": {"exact_match,flexible-extract": [0.0]}}, model="llava15_7b")
    found = states(band.baselines(tmp_path, PAPER))
    assert found["qwen25vl7b ai2d"] == ("ok", "81.00 (published 82.48, band 80.48 to 84.48)")
    state, said = found["qwen25vl7b mme"]
    assert state == "broken"
    assert said.startswith("1600.00 is outside (published 1702, band 1661 to 1742; our run used lmms-eval 0.7.3")
    assert found["qwen25vl7b pope"] == ("absent", "no run (published 87.8, band 85.8 to 89.8)")
    assert found["llava15_7b"] == ("absent", "no unpruned run of its 11 published benchmarks")
    assert found["pocket ai2d+mme"] == ("absent", "no published number")


def test_the_first_questions_alone_are_not_judged(tmp_path):
    unpruned(tmp_path, limit=20)
    state, said = states(band.baselines(tmp_path, PAPER))["qwen25vl7b mme"]
    assert (state, said.partition(" (")[0]) == ("absent", "1600.00 of only the first 20 questions of each task")


def test_no_runs_and_no_published_scores(tmp_path):
    found = states(band.baselines(tmp_path / "none", PAPER))
    assert {state for state, _ in found.values()} == {"absent"}
    (name,) = states(band.baselines(tmp_path, tmp_path))
    assert name == "published scores"


def test_a_damaged_run_is_broken(tmp_path):
    unpruned(tmp_path)
    (metrics,) = tmp_path.rglob("metrics.json")
    metrics.write_text("{")
    ((state, said),) = states(band.baselines(tmp_path, PAPER)).values()
    assert (state, str(metrics.parent) in said) == ("broken", True)


def test_packages_outside_the_tested_range_are_named(monkeypatch):
    needs = ["torch>=2.6", "scipy>=1.13,<2", "pandas>=2", "av", "transformers>=5.0,!=5.18.*", "more; extra == 'test'"]
    here = {"torch": "2.15.0+cpu", "scipy": "2.1", "pandas": "3.2", "av": "16.0", "transformers": "5.18.0"}
    monkeypatch.setattr(machine, "requires", lambda name: needs)
    monkeypatch.setattr(machine, "version", here.__getitem__)
    assert machine.installed() == {**here, "torch": "2.15.0"}
    newest = {"torch": "2.15.0", "scipy": "2.1", "pandas": "3.1.1", "av": "15.1", "transformers": "5.23.0"}
    outside = machine.outside_tested_range(newest)
    assert outside == [
        "scipy 2.1 (tested: 1.13 to 2.1)",
        "pandas 3.2 (tested: 2 to 3.1.1)",
        "av 16.0 (tested: any to 15.1)",
        "transformers 5.18.0 (tested: 5.0 to 5.23.0 without 5.18.*)",
    ]


def test_packages_that_are_not_installed_are_named(monkeypatch):
    def version(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "version", version)
    monkeypatch.setattr(machine, "requires", lambda name: ["torch>=2.6"])
    assert machine.outside_tested_range({}) == ["torch (not installed)"]
    monkeypatch.setattr(machine, "requires", version)
    assert machine.outside_tested_range({}) == ["pruning-harness (not installed)"]


@pytest.mark.parametrize("value", ["-1", "soon", "true"])
def test_a_time_that_is_none_is_refused(value):
    with pytest.raises(UserError, match="hub must be a number of seconds"):
        command.check(compose("doctor", [f"hub={value}"]))


def test_a_part_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"only must be null or one of versions, disk, .*, reproduces, got disc"):
        command.check(compose("doctor", ["only=disc"]))


def fewer(monkeypatch, *states):
    found = [doctor.Finding("disk", f"place {i}", state, "said") for i, state in enumerate(states)]
    monkeypatch.setattr(command, "findings", lambda cfg: iter(found))


@pytest.mark.parametrize("strict", [True, False])
def test_only_what_is_broken_makes_it_strict(strict, monkeypatch, capsys):
    cfg = compose("doctor", [f"strict={strict}"])
    fewer(monkeypatch, "ok", "absent")
    command.main(cfg)
    fewer(monkeypatch, "ok", "broken", "broken")
    if strict:
        with pytest.raises(UserError, match="broken: disk: place 1, disk: place 2"):
            command.main(cfg)
    else:
        command.main(cfg)
    lines = capsys.readouterr().out.splitlines()
    assert "1 ok, 0 absent (-), 2 broken (!)" in lines
    report = report_of(lines[-1])
    assert (report["counts"], report["broken"]) == ({"ok": 1, "broken": 2}, ["disk: place 1", "disk: place 2"])


@pytest.mark.parametrize("state", ["ok", "broken"])
def test_one_part_alone_is_its_lines(state, monkeypatch, capsys):
    cfg = compose("doctor", ["only=disk", "strict=true"])
    command.check(cfg)
    monkeypatch.setitem(command.PARTS, "disk", lambda cfg: [doctor.Finding("disk", "runs", state, "is full")])
    with pytest.raises(UserError, match="broken: disk: runs") if state == "broken" else nullcontext():
        command.main(cfg)
    assert capsys.readouterr().out == "runs is full\n"


@pytest.mark.parametrize("only", ["disk", None])
def test_a_finding_shows_control_characters(only, monkeypatch, capsys):
    finding = doctor.Finding("disk", "\x1b[2Jruns", "ok", "in \r\u202e\nfolder")
    monkeypatch.setitem(command.PARTS, "disk", lambda cfg: [finding])
    monkeypatch.setattr(command, "PARTS", {"disk": command.PARTS["disk"]})
    command.main(compose("doctor", ["only=disk"] if only else []))
    lines = capsys.readouterr().out.split("\n")
    assert all(line.isprintable() for line in lines)
    assert any("\\x1b[2Jruns" in line and "in \\r\\u202e\\nfolder" in line for line in lines)


def test_the_command(tmp_path, fork_server):
    before = set(fork_server.iterdir())
    (tmp_path / "here").mkdir()
    done = completed(tmp_path / "here", "harness.doctor", "strict=true", "data_root={pope: /no/such/folder}")
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: broken: ")
    assert "datasets: pope" in done.stderr
    report = report_of(done.stdout)
    parts = {finding["part"] for finding in report["findings"]}
    assert parts == set(command.PARTS)
    (reproduced,) = [finding for finding in report["findings"] if finding["part"] == "reproduces"]
    assert reproduced["state"] == "ok"
    assert reproduced["said"].startswith("reproduces: 291 of 291 answers equal, ")
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in {*fork_server.iterdir()} - before} <= {"datasets"}  # the cache that every run makes
