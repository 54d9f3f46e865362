"""scripts/time_runs.py: both of its tables on a few questions, and answers that differ end it."""

import csv
import json
import sys
from pathlib import Path

import pytest
from fork_server import Forks
from run_folders import make_run
from script_modules import script as load

from harness.bench import __main__ as bench

SCRIPT = Path(__file__).parents[2] / "scripts" / "time_runs.py"


@pytest.fixture
def script():
    return load(SCRIPT.stem)


@pytest.fixture
def measure(script, tmp_path, fork_server, monkeypatch, capsys):
    """Run the script and return its report, which the files have to agree with."""
    (tmp_path / "output").mkdir()
    forks = Forks(tmp_path, tmp_path / "output")
    monkeypatch.setattr(script, "run", lambda call, *options: forks.run("harness", *call).err)

    def run_script(*arguments):
        script.main([*arguments, "--out", str(tmp_path / "times")])
        report = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert json.loads((tmp_path / "times.json").read_text()) == report
        lines = list(csv.DictReader((tmp_path / "times.csv").open()))
        assert lines == [{name: str(row[name]) for name in report["columns"]} for row in report["rows"]]
        for row in report["rows"]:
            parts = [row[name] for name in row if name.endswith("_s") and name != "wall_s"]
            assert sum(parts) == pytest.approx(row["wall_s"], abs=0.05)
        assert sum(row["llm_s"] for row in report["rows"]) > 0  # a single one may round to 0
        return report

    return run_script


def test_batch_sizes(measure):
    each = ["--each", "tasks=[pocket_text]", "method=random", "keep=0.5"]
    report = measure("main", *each, "--limit", "3", "--batch", "1", "2", "--repeats", "1")
    assert [(row["batch"], row["n"]) for row in report["rows"]] == [(1, 1), (2, 1)]


def test_a_sweep_and_its_runs_apart(measure):
    each = ["--each", "model=pocket", "tasks=[pocket_text]"]
    report = measure("sweep", *each, "--limit", "2", "--methods", "hiprune", "--keep", "0.25")
    _, total, *apart = report["rows"]
    assert [row["run"] for row in apart] == ["method=none", "method=hiprune keep=0.25"]
    for name in [name for name in total if name.endswith("_s")]:
        assert total[name] == pytest.approx(sum(row[name] for row in apart), abs=0.02)


def test_other_answers_are_an_error(script, tmp_path):
    for batch in ("1", "8"):
        folder = make_run(tmp_path / batch, "random", each={"t": [1, 0]}, said={"t": ["a", "b"]}, batch=batch).path
        (folder / "kept.jsonl").write_text(json.dumps({"key": batch, "kept": [1]}) + "\n")
    script.check_same(tmp_path / "1", tmp_path / "8")
    (folder / "kept.jsonl").write_text(json.dumps({"key": batch, "kept": [2]}) + "\n")
    with pytest.raises(SystemExit, match=r"kept\.jsonl differs between 1 and 8"):
        script.check_same(tmp_path / "1", tmp_path / "8")


def test_a_run_that_fails_is_one_line(script):
    with pytest.raises(SystemExit, match=r"^error: exit code 2 of python -m harness method=hipprune: .*mean hiprune"):
        script.run(["method=hipprune"])


@pytest.mark.parametrize("word", ["main", "sweep"])
def test_the_former_commands_name_the_script(word, script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["harness.bench", word, "limit=20"])
    with pytest.raises(SystemExit, match=r"^2$"):
        bench.main()
    assert capsys.readouterr().err.endswith(f"lies in scripts/ now: python scripts/time_runs.py {word}\n")
    with pytest.raises(SystemExit, match=r"^0$"):
        script.main([word, "--help"])
    assert "--limit" in capsys.readouterr().out
