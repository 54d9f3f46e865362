"""A run.json that lacks what readers need is one line in every command that reads runs."""

import json
import re

import pytest
from run_folders import coins, make_run, sealed_again

from harness import compare, export, status, tables
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.report.build import build
from harness.results import schema
from harness.results.result import Result, load_results
from harness.results.submissions import list_runs

FIELDS = ["method", "model", "config.model.name", "config.tasks.name", "config.method"]
FIELDS += ["identity.model", "identity.tasks", "identity.model.weights"]


@pytest.fixture
def runs(tmp_path):
    """A folder of two runs, as in MODEL/TASKS."""
    place = tmp_path / "runs" / "m" / "t"
    for method, seed in (("none", 0), ("fps", 1)):
        make_run(place, method, coins(seed, 0.7))
    return tmp_path / "runs"


def changed(runs, name, value):
    """Set a field of the pruned run's run.json, or take it away, as if it had been recorded so."""
    (folder,) = runs.glob("*/*/fps-*")
    about = json.loads((folder / "run.json").read_text())
    *outer, last = name.split(".")
    part = about
    for key in outer:
        part = part[key]
    part.pop(last)
    if value is not None:
        part[last] = value
    (folder / "run.json").write_text(json.dumps(about))
    sealed_again(folder)
    return folder


def commands(runs, tmp_path):
    folders = sorted(runs.glob("*/*/*-*"))
    yield lambda: tables.main(compose("tables", [f"runs={runs}"]))
    yield lambda: compare.main(compose("compare", [f"a={folders[0]}", f"b={folders[1]}"]))
    yield lambda: export.main(compose("export", [f"runs={runs}", f"out={tmp_path / 'out'}"]))
    yield lambda: build(compose("report", [f"runs={runs}", f"out={tmp_path / 'page.html'}", "gallery=none"]))


@pytest.mark.parametrize("value", [None, 3, []])
@pytest.mark.parametrize("name", FIELDS)
def test_a_field_that_is_not_there_or_of_another_kind_is_named(name, value, runs, tmp_path):
    changed(runs, name, value)
    for command in commands(runs, tmp_path):
        with pytest.raises(UserError, match=rf"run\.json is damaged \({name}[\w.]*: (Field|Input) .+\): move"):
            command()
    assert not (tmp_path / "out").exists()


def test_whole_runs_pass_all_of_these_commands(runs, tmp_path, capsys):
    *of_scores, report = commands(runs, tmp_path)
    for command in of_scores:
        command()
    with pytest.raises(UserError, match=r"run\.json is damaged, it lacks python: move the run away and start it again"):
        report()  # which alone shows how a number was made


def test_a_key_of_the_metrics_that_is_missing_is_named(runs):
    (folder,) = runs.glob("*/*/fps-*")
    result = Result.of(folder)
    with pytest.raises(UserError, match=r"metrics\.json is damaged, it lacks scores\.t_three: move"):
        result.metrics["scores"]["t_three"]
    assert result.metrics["scores"].get("t_three") is None


@pytest.mark.parametrize("value", [None, 3, [], {"model": 3}])
def test_a_run_without_an_identity_is_listed_as_damaged(value, runs, capsys):
    folder = changed(runs, "identity", value)
    states = {run.run: run.state for run in list_runs(runs)}
    assert states.pop(str(folder.relative_to(runs))) == "damaged"
    assert set(states.values()) == {"done"}
    status.main(compose("status", [f"runs={runs}"]))
    assert "run.json cannot be read: move the folder away" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["config", "config.method", "identity.tasks", "identity.method"])
@pytest.mark.parametrize("value", [None, 3, []])
def test_a_state_says_what_a_run_lacks(name, value, runs, capsys):
    changed(runs, name, value)
    status.main(compose("status", [f"runs={runs}"]))
    out = capsys.readouterr().out
    assert "its run.json lacks" in out or "its run.json is damaged" in out


def test_a_deep_run_is_one_line(runs):
    (folder,) = runs.glob("*/*/fps-*")
    (folder / "run.json").write_text("[" * 100_000)
    assert sorted(run.state for run in list_runs(runs)) == ["damaged", "done"]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("primary", {}, "primary has the tasks none, not those of questions"),
        ("scores", {"other": {"acc,none": 1.0}}, "scores has the tasks other, not those of questions"),
        ("failed", {"t": 10**6}, "1000000 questions of t failed, of "),
        ("scores", {"t": {"acc,none": 1e308}}, "scores.t.acc,none"),
    ],
)
def test_metrics_that_contradict_themselves_are_refused(key, value, message, tmp_path):
    run = make_run(tmp_path, each={"t": [1.0, 0.0]}).path
    metrics = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**metrics, key: value}))
    sealed_again(run)
    with pytest.raises(UserError, match=re.escape(message)):
        tables.of_runs(load_results(str(tmp_path)))


@pytest.mark.parametrize(("key", "value"), [("order", [4]), ("n", 10**15), ("kept", [9, 1])])
def test_kept_tokens_that_the_prompt_does_not_have_are_refused(key, value):
    line = {"key": "a", "task": "t", "doc_id": 0, "n": 4, "k": 2, "grids": [[1, 2, 2]], "kept": [0, 1], "order": [1, 0]}
    assert schema.fault(schema.Kept, line) is None
    assert schema.fault(schema.Kept, {**line, key: value})
