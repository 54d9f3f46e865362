"""What differs from the committed answers of the embedded models is named; test_doctor.py compares all of them."""

import json
import re
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from packaging.utils import canonicalize_name

from harness.core.errors import UserError
from harness.doctor import machine, reproduction
from harness.evaluation.pruner import Pruner
from harness.models import loading
from harness.pruning import decoding_proof
from harness.pruning.handle import Pruning

CONSTRAINTS = Path(__file__).parents[2] / "constraints.txt"


def expect(monkeypatch, file, *labels, **changes):
    """Have only these settings and the first question of each task, and an expected file with other texts for some."""
    about = json.loads(reproduction.EXPECTED.read_text(encoding="utf-8"))
    about["answers"] = {label: [row for row in about["answers"][label] if row["doc_id"] == 0] for label in labels}
    monkeypatch.setattr(reproduction, "QUESTIONS", 1)
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


def test_rounding_to_tf32_stays_within_the_bound(monkeypatch):
    """As a GPU may: every factor of a linear layer or convolution has a mantissa of 10 bits."""

    def rounded(x):
        bits = x.contiguous().view(torch.int32)
        return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)

    weights = cache(rounded)  # which stay as they are

    def convolve(convolution):
        return lambda self, x, weight, bias: convolution(self, rounded(x), weights(weight), bias)

    linear = torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.Linear, "forward", lambda self, x: linear(rounded(x), weights(self.weight), self.bias))
    for module in (torch.nn.Conv2d, torch.nn.Conv3d):
        monkeypatch.setattr(module, "_conv_forward", convolve(module._conv_forward))
    monkeypatch.setattr(
        decoding_proof, "tolerance_of", lambda dtype: decoding_proof.TOLERANCE[torch.float16]
    )  # as where torch knows
    state, said = verdict()
    assert re.match(r"reproduces: 291 of 291 answers equal, [1-9]\d* of 9,675 kept tokens differ", said), said
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
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none", pocket_text_0="P633")
    state, said = verdict()
    assert state == "broken"
    assert said.startswith("does not reproduce: 7 of 8 answers equal, 0 of 0 kept tokens differ; different answers ")
    assert "under pocket_llava none (1); first: pocket_llava none, pocket_text 0: expected 'P633', got 'P632'" in said


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
    assert re.match(r"does not reproduce: (\d+) of 16 answers equal, 0 of [\d,]+ kept tokens differ", said), said
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
    assert re.match(r"does not reproduce: 8 of 8 answers equal, \d+ of 512 kept tokens differ \(\d+\.", said), said


def test_what_a_library_raises_is_the_finding(monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none", "pocket_llava dart")
    attach = Pruner.attach

    def refuse(self, model, shared=None):
        if self.name == "dart":
            raise RuntimeError("no known name for the cache\n in this version")
        return attach(self, model, shared)

    monkeypatch.setattr(Pruner, "attach", refuse)
    state, said = verdict()
    assert state == "broken"
    assert "8 of 16 answers equal, 0 of 0 kept tokens differ; settings that stop: 1, first pocket_llava dart: " in said
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
    return {"pocket random": [reproduction.Reply("pocket_counting", 0, text, kept)]}


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
        ('{"versions": {}, "answers": {"pocket_llava none": [{"task": "pocket_text"}]}}', "is damaged: "),
        ('{"versions": {}, "answers": {}}', "holds the settings , not pocket_llava none"),
        ('{"versions": {}, "answers": {"pocket_llava none": []}}', "has other questions under pocket_llava none"),
    ],
)
def test_an_expected_file_that_does_not_fit_is_broken(content, says, monkeypatch, tmp_path):
    expect(monkeypatch, tmp_path / "expected.json", "pocket_llava none")
    monkeypatch.setattr(reproduction, "answers", lambda: {"pocket_llava none": [reproduction.Reply("a", 0, "b", ())]})
    (tmp_path / "expected.json").unlink() if content is None else (tmp_path / "expected.json").write_text(content)
    state, said = verdict()
    assert (state, says in said) == ("broken", True), said
    assert said.endswith("python -m harness.doctor.reproduction")
