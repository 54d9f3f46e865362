"""A finished run cannot contradict itself: whatever changed one of its files, every reader refuses it by name."""

import json

import pytest
from run_folders import as_before_digests, sealed_again
from synthetic_runs import write_run

from harness import compare, export, status, tables
from harness.core.errors import UserError
from harness.core.overrides import compose
from harness.report.build import build
from harness.results import run_folder, seal
from harness.results.result import Result
from harness.results.run_folder import AGAIN, RunFolder
from harness.results.submissions import list_runs


@pytest.fixture
def runs(tmp_path):
    for method in ("none", "random", "greedy"):
        run = write_run(tmp_path / "runs", method, questions=6)
        run.amend({"identity": {**run.identity, "seed": 0}})  # which export prints
        sealed_again(run.path)
    return tmp_path / "runs"


def folder_of(runs, method="random"):
    (folder,) = runs.rglob(f"{method}-*-*")
    return folder


def in_json(name, change):
    """A damage: another value in a JSON file, which stays JSON."""

    def damage(folder):
        content = json.loads((folder / name).read_text())
        change(content)
        (folder / name).write_text(json.dumps(content))

    return damage


def another_runs_metrics(folder):
    (folder / "metrics.json").write_bytes((folder_of(folder.parent, "greedy") / "metrics.json").read_bytes())


def another_k(folder):
    file = folder / "kept.jsonl"
    file.write_text(file.read_text().replace('"k": 25', '"k": 24', 1))


def windows(folder):
    file = folder / "responses.jsonl"
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r\n"))


DAMAGES = {
    "numbers": ("metrics.json was changed", in_json("metrics.json", lambda it: it["scores"]["one"].update(a=1))),
    "another run's": ("metrics.json was changed", another_runs_metrics),
    "all right": ("scores.json was changed", in_json("scores.json", lambda it: it["one"].update(a=[1.0] * 6))),
    "no scores": ("scores.json was changed", in_json("scores.json", lambda it: it.clear())),
    "k": ("kept.jsonl was changed", another_k),
    "windows": ("responses.jsonl has got CRLF line ends", windows),
    "gone": ("kept.jsonl is missing", lambda folder: (folder / "kept.jsonl").unlink()),
    "configuration": ("run.json was changed", in_json("run.json", lambda it: it["config"].update(keep=0.5))),
    "time": ("DONE was changed", in_json("DONE", lambda it: it.update(seconds=1))),
    "digest": ("DONE was changed", in_json("DONE", lambda it: it["sha256"].update({"metrics.json": "0"}))),
    "no digests": ("DONE lacks the digests", in_json("DONE", lambda it: it.pop("sha256"))),
}


def reuse(runs, folder):
    RunFolder(folder, json.loads((folder / "run.json").read_text())["identity"]).check()


READERS = {
    "reuse": reuse,
    "tables": lambda runs, folder: tables.main(compose("tables", [f"runs={runs}"])),
    "compare": lambda runs, folder: compare.main(compose("compare", [f"a={folder_of(runs, 'none')}", f"b={folder}"])),
    "report": lambda runs, folder: build(compose("report", [f"runs={runs}", f"out={runs / 'x'}", "pictures=false"])),
    "export": lambda runs, folder: export.main(compose("export", [f"runs={runs}", f"out={runs.parent / 'out'}"])),
    "archive": lambda runs, folder: export.main(compose("export", [f"runs={runs}", f"archive={runs.parent / 'out'}"])),
}


@pytest.mark.parametrize("reader", READERS)
def test_what_changed_after_the_end_is_refused_by_every_reader(reader, runs, capsys):
    folder = folder_of(runs)
    whole = {file: file.read_bytes() for file in folder.iterdir()}
    READERS[reader](runs, folder)
    before = sorted(runs.parent.rglob("*"))
    for words, damage in DAMAGES.values():
        damage(folder)
        capsys.readouterr()
        with pytest.raises(UserError) as caught:
            READERS[reader](runs, folder)
        assert f"{folder} is damaged ({words}" in str(caught.value)
        assert "start again" in str(caught.value)
        assert "\n" not in str(caught.value)
        assert capsys.readouterr().out == ""
        for file, content in whole.items():
            file.write_bytes(content)
    assert sorted(runs.parent.rglob("*")) == before


@pytest.mark.parametrize(("words", "damage"), DAMAGES.values(), ids=DAMAGES)
def test_status_lists_it(words, damage, runs, capsys, monkeypatch):
    monkeypatch.setattr("harness.evaluation.identity.changes", lambda about: [])
    folder = folder_of(runs)
    damage(folder)
    status.main(compose("status", [f"runs={runs}"]))
    *lines, totals, report = capsys.readouterr().out.splitlines()
    (row,) = [number for number, line in enumerate(lines) if line.startswith("damaged")]
    assert lines[row].split()[2] == "no"  # reusable
    assert f"is damaged ({words}" in lines[row + 1]
    assert json.loads(report)["counts"] == {"done": 2, "damaged": 1}
    assert "1 damaged" in totals


def test_files_that_appear_after_the_end_are_none_of_the_run(runs):
    folder = folder_of(runs)
    (folder / "responses.jsonl").unlink()
    sealed_again(folder)
    Result.of(folder)
    (folder / "responses.jsonl").write_text("")
    with pytest.raises(UserError, match=r"responses.jsonl was added after the end"):
        Result.of(folder)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_kill_while_the_shown_metric_changes_leaves_a_run_that_is_right(cut, runs, monkeypatch):
    folder = RunFolder(folder_of(runs), {})
    before = folder.finished()[1]["primary"]
    wanted = dict.fromkeys(before, "other,none")
    write = seal.write_atomic

    def killed(path, content):
        if cut == "after":
            write(path, content)
        raise KeyboardInterrupt

    monkeypatch.setattr(seal, "write_atomic", killed)
    monkeypatch.setattr(run_folder, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.show(wanted)
    assert folder.finished()[1]["primary"] == (wanted if cut == "after" else before)


def test_a_run_from_before_digests_is_read_and_reused_and_status_says_so(runs):
    for method in ("none", "random", "greedy"):
        as_before_digests(folder_of(runs, method))
    for reader in READERS.values():
        reader(runs, folder_of(runs))
    assert {(run.state, run.why) for run in list_runs(runs)} == {("done", seal.UNSEALED)}


def another_task(folder):
    in_json("metrics.json", lambda it: it["questions"].update(three=6))(folder)


NO_COLUMNS = r"scores.json is damaged .(it does not have 6 questions of one|one: Input should be a valid dict)"
CONTRADICTIONS = {
    "scores.json is damaged .it has the tasks none, expected one, two": in_json("scores.json", lambda it: it.clear()),
    "metrics.json has other tasks than run.json": another_task,
    NO_COLUMNS: in_json("scores.json", lambda it: it.update(one=[])),
}


@pytest.mark.parametrize("words", CONTRADICTIONS)
@pytest.mark.parametrize("reader", READERS)
def test_a_run_from_before_digests_is_refused_if_it_contradicts_itself(reader, words, runs):
    as_before_digests(folder_of(runs))
    CONTRADICTIONS[words](folder_of(runs))
    with pytest.raises(UserError, match=f"{words}.*{AGAIN}"):
        READERS[reader](runs, folder_of(runs))


@pytest.mark.parametrize("reader", ["reuse", "report", "export"])  # those that read kept.jsonl
def test_a_k_that_is_not_the_number_of_kept_tokens_is_refused_without_digests_too(reader, runs):
    as_before_digests(folder_of(runs))
    another_k(folder_of(runs))
    says = r"kept.jsonl is damaged in line 1 \(k is 24, but 25 tokens are kept\); " + AGAIN
    with pytest.raises(UserError, match=says):
        READERS[reader](runs, folder_of(runs))
