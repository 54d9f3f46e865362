"""`harness.doctor` tells what is here from what is absent and what is broken, and ends as every command does."""

import json
import os
import re
import subprocess
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants
from omegaconf import OmegaConf
from packaging.utils import canonicalize_name
from runs import make_run

from harness import checkpoint, cli, doctor, loading
from harness.doctor import __main__ as command
from harness.doctor import band, machine, presence, reproduction
from harness.errors import UserError
from harness.models import decoding
from harness.models.scorer import VisionSelectorScorer, save_scorer
from harness.prune import Pruning

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PAPER = Path(__file__).parents[1] / "results" / "paper"


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
        assert found["cuda"][1].startswith("nvidia-smi lists 2 GPU(s), torch, built for ")


@pytest.mark.parametrize(("gpu", "state"), [(True, "broken"), (False, "ok")])
def test_kernels(gpu, state, monkeypatch, tmp_path):
    (tmp_path / "flash_attn.py").write_text("raise ImportError('undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "flash_attn", raising=False)
    monkeypatch.setenv("HARNESS_TRITON", "yes")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    found = states(machine.kernels())
    assert found["attention sdpa"][0] == found["attention eager"][0] == "ok"
    assert found["attention flash_attention_2"][0] == "broken"
    assert "undefined symbol" in found["attention flash_attention_2"][1]
    assert found["selection"][0] == state
    monkeypatch.delenv("HARNESS_TRITON")
    state, said = states(machine.kernels())["selection"]
    assert (state, said.partition(";")[0]) == ("ok", "plain loops")


MODELS = presence._choices("model")


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_read_as_the_main_job_composes_it(name):
    assert presence.model(name) == OmegaConf.to_container(cli.compose("config", [f"model={name}"]).model)


def test_models_that_are_here_not_here_and_damaged(monkeypatch, tmp_path):
    plain = checkpoint.at_hand

    def local(model):
        if model.name == "qwen25vl3b":
            raise UserError("missing weight file")
        return plain(model) if model.name == "pocket" else tmp_path if model.name == "qwen25vl7b" else None

    monkeypatch.setattr(presence.checkpoint, "at_hand", local)
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
    assert found["without"][1].startswith("no learned scorer beside the weights: ")
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
    assert said.startswith("1600.00 is outside (published 1702, band 1661 to 1742; ours by lmms-eval 0.7.3")
    assert found["qwen25vl7b pope"] == ("absent", "no run (published 87.8, band 85.8 to 89.8)")
    assert found["llava15_7b"] == ("absent", "no unpruned run of its 11 published benchmarks")
    assert found["pocket ai2d+mme"] == ("absent", "no published number")


def test_the_first_questions_alone_are_not_judged(tmp_path):
    unpruned(tmp_path, limit=20)
    state, said = states(band.baselines(tmp_path, PAPER))["qwen25vl7b mme"]
    assert (state, said.partition(" (")[0]) == ("absent", "1600.00 of the first 20 questions alone")


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


def expect(monkeypatch, file, *labels, **changes):
    """Have only these settings, and an expected file with `changes` (question -> text) to the first of them."""
    about = json.loads(reproduction.EXPECTED.read_text(encoding="utf-8"))
    about["answers"] = {label: about["answers"][label] for label in labels}
    for row in about["answers"][labels[0]]:
        row["text"] = changes.get(f"{row['task']}_{row['doc_id']}", row["text"])
    file.write_text(json.dumps(about), encoding="utf-8")
    monkeypatch.setattr(reproduction, "EXPECTED", file)
    settings = [setting for setting in reproduction.SETTINGS if setting.label in labels]
    monkeypatch.setattr(reproduction, "SETTINGS", settings)


def verdict():
    """State and text of the one finding, which is one line."""
    (finding,) = reproduction.reproduces()
    assert finding.said == " ".join(finding.said.split())
    return finding.state, finding.said


def test_the_embedded_models_answer_as_expected():
    state, said = verdict()
    assert (state, said.partition(", ")[0]) == ("ok", "reproduces: 255 of 255 answers equal")


def test_rounding_to_tf32_stays_within_the_bound(monkeypatch):
    """As a GPU may: every factor of a linear layer or convolution has a mantissa of 10 bits."""

    def rounded(x):
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    def convolve(convolution):
        return lambda self, x, weight, bias: convolution(self, rounded(x), rounded(weight), bias)

    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: linear(rounded(x), rounded(self.weight), self.bias))
    for module in (torch.nn.Conv2d, torch.nn.Conv3d):
        monkeypatch.setattr(module, "_conv_forward", convolve(module._conv_forward))
    monkeypatch.setattr(
        decoding, "tolerance_of", lambda dtype: decoding.TOLERANCE[torch.float16]
    )  # as where torch knows
    state, said = verdict()
    assert re.match(r"reproduces: 255 of 255 answers equal, [1-9]\d* of 9,308 kept tokens differ", said), said
    assert state == "ok"


def test_the_expected_answers_are_to_all_tasks_under_all_settings():
    about = json.loads(reproduction.EXPECTED.read_text(encoding="utf-8"))
    assert list(about["answers"]) == [setting.label for setting in reproduction.SETTINGS]
    for setting in reproduction.SETTINGS:
        rows = reproduction._parsed(about["answers"])[setting.label]
        tasks = list(setting.config().tasks.metrics)
        assert [row.question for row in rows] == [(task, i) for task in tasks for i in range(reproduction.QUESTIONS)]
        assert all(bool(row.kept) == (setting.method != "none") for row in rows)
        assert len({row.text for row in rows}) > len(tasks)


@pytest.mark.skipif(not CONSTRAINTS.is_file(), reason="no constraints.txt")
def test_the_expected_answers_are_of_the_locked_versions():
    about = json.loads(reproduction.EXPECTED.read_text(encoding="utf-8"))
    lines = (line.partition("==") for line in CONSTRAINTS.read_text(encoding="utf-8").splitlines() if "==" in line)
    locked = {canonicalize_name(name): version.strip() for name, _, version in lines}
    assert about["versions"] == {name: locked[canonicalize_name(name)] for name in about["versions"]}


def test_another_answer_is_named(monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none", pocket_text_1="46E1")
    state, said = verdict()
    assert state == "broken"
    assert said.startswith("does not reproduce: 23 of 24 answers equal, 0 of 0 kept tokens differ; different answers ")
    assert "under pocket_llava none (1); first: pocket_llava none, pocket_text 1: expected '46E1', got '46E0'" in said


def test_decoding_as_if_nothing_had_been_cut_is_found(monkeypatch, tmp_path):
    """The prefill, and with it the kept tokens, are right; decoding steps have the positions of the whole prompt."""
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none", "pocket_llava idpruner compact")

    def load(config):
        loaded = loading_load(config)
        loaded.model.model.language_model.register_forward_pre_hook(late, with_kwargs=True)
        return loaded

    def late(module, args, kwargs):
        (cache,) = (value for value in kwargs.values() if hasattr(value, "get_seq_length"))
        if kwargs["inputs_embeds"].shape[1] > 1 or cache.get_seq_length() > 256:
            return None  # a prefill, or nothing was cut
        return args, kwargs | {"position_ids": kwargs["position_ids"] + 192}

    loading_load = loading.load
    monkeypatch.setattr(loading, "load", load)
    state, said = verdict()
    assert state == "broken"
    assert re.match(r"does not reproduce: (\d+) of 48 answers equal, 0 of [\d,]+ kept tokens differ", said), said
    assert "pocket_llava none" not in said
    assert "pocket_llava idpruner compact" in said


def test_other_tokens_are_found_where_the_answers_are_equal(monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava idpruner")
    take = Pruning.take

    def shifted(self):
        return [replace(record, kept=[(index + 1) % record.n for index in record.kept]) for record in take(self)]

    monkeypatch.setattr(Pruning, "take", shifted)
    state, said = verdict()
    assert state == "broken"
    assert re.match(r"does not reproduce: 24 of 24 answers equal, \d+ of 1,536 kept tokens differ \(\d+\.", said), said


def test_what_a_library_raises_is_the_finding(monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none", "pocket_llava dart")
    attach = loading.Pruner.attach

    def refuse(self, model, shared=None):
        if self.name == "dart":
            raise RuntimeError("no known name for the cache\n in this version")
        return attach(self, model, shared)

    monkeypatch.setattr(loading.Pruner, "attach", refuse)
    state, said = verdict()
    assert state == "broken"
    assert "24 of 48 answers equal, 0 of 0 kept tokens differ; settings that stop: 1, first pocket_llava dart: " in said
    assert "RuntimeError: no known name for the cache in this version" in said
    with pytest.raises(UserError, match="pocket_llava dart stops, nothing is written: RuntimeError: no known name"):
        reproduction.write(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


def test_what_is_written_reproduces(monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava idpruner compact", "pocket_llava visionzip compact")
    reproduction.write(tmp_path / "written.json")
    texts = [(tmp_path / name).read_text(encoding="utf-8") for name in ("expected.json", "written.json")]
    expected, written = map(json.loads, texts)
    assert written["answers"] == expected["answers"]
    assert written["versions"] == machine.installed()


def a_setting(*kept, text="4"):
    return {"pocket random": [reproduction.Answer("pocket_counting", 0, text, kept)]}


@pytest.mark.parametrize("extra", [0, 1])
def test_the_bound_on_kept_tokens(extra):
    tokens = 10_000
    allowed = int(tokens * reproduction.MAX_KEPT_DIFFERENCE)
    other = range(allowed + extra, tokens + allowed + extra)
    comparison = reproduction.compare(a_setting(*range(tokens)), a_setting(*other))
    assert (comparison.kept_difference, comparison.reproduces) == (allowed + extra, not extra)
    assert str(comparison).startswith("does not reproduce: " if extra else "reproduces: ")


def test_fewer_or_more_tokens_count_as_different():
    for ours, theirs in [((1, 2, 3), (1, 2)), ((1, 2), (1, 2, 3)), ((1, 2), (1, 3))]:
        assert reproduction.compare(a_setting(*ours), a_setting(*theirs)).kept_difference == 1


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read"),
        ('{"answers": {}}', "is damaged (it lacks versions, answers)"),
        ('{"versions": {}, "answers": {"pocket_llava none": [{"task": "pocket_text"}]}}', "is damaged ("),
        ('{"versions": {}, "answers": {}}', "holds the settings , not pocket_llava none"),
        ('{"versions": {}, "answers": {"pocket_llava none": []}}', "has other questions under pocket_llava none"),
    ],
)
def test_an_expected_file_that_does_not_fit_is_broken(content, says, monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none")
    monkeypatch.setattr(reproduction, "answers", lambda: {"pocket_llava none": [reproduction.Answer("a", 0, "b", ())]})
    (tmp_path / "expected.json").unlink() if content is None else (tmp_path / "expected.json").write_text(content)
    state, said = verdict()
    assert (state, says in said) == ("broken", True), said
    assert said.endswith("python -m harness.doctor.reproduction")


@pytest.mark.parametrize("value", ["-1", "soon", "true"])
def test_a_time_that_is_none_is_refused(value):
    with pytest.raises(UserError, match="hub must be a number of seconds"):
        command.check(cli.compose("doctor", [f"hub={value}"]))


def test_a_part_that_is_none_is_refused():
    with pytest.raises(UserError, match=r"only must be one of versions, disk, .*, reproduces, got disc"):
        command.check(cli.compose("doctor", ["only=disc"]))


def fewer(monkeypatch, *states):
    found = [doctor.Finding("disk", f"place {i}", state, "said") for i, state in enumerate(states)]
    monkeypatch.setattr(command, "findings", lambda cfg: iter(found))


@pytest.mark.parametrize("strict", [True, False])
def test_only_what_is_broken_makes_it_strict(strict, monkeypatch, capsys):
    cfg = cli.compose("doctor", [f"strict={strict}"])
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
    report = json.loads(lines[-1])
    assert (report["counts"], report["broken"]) == ({"ok": 1, "broken": 2}, ["disk: place 1", "disk: place 2"])


@pytest.mark.parametrize("state", ["ok", "broken"])
def test_one_part_alone_is_its_lines(state, monkeypatch, capsys):
    cfg = cli.compose("doctor", ["only=disk", "strict=true"])
    command.check(cfg)
    monkeypatch.setitem(command.PARTS, "disk", lambda cfg: [doctor.Finding("disk", "runs", state, "is full")])
    with pytest.raises(UserError, match="broken: disk: runs") if state == "broken" else nullcontext():
        command.main(cfg)
    assert capsys.readouterr().out == "runs is full\n"


def test_the_command(tmp_path):
    call = [sys.executable, "-m", "harness.doctor", "strict=true", "data_root={pope: /no/such/folder}"]
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "home")}
    (tmp_path / "here").mkdir()
    done = subprocess.run(
        call, cwd=tmp_path / "here", env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: broken: ")
    assert "datasets: pope" in done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    parts = {finding["part"] for finding in report["findings"]}
    assert parts == set(command.PARTS)
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in (tmp_path / "home").iterdir()} == {"datasets"}  # the cache that every run makes
