"""Where the seconds of the main job go: what is run, what is added up, and that other answers are not timed."""

import json

import pytest
from fork_server import Forks
from run_folders import make_run

from harness.bench import main_job
from harness.bench.main_job import COLUMNS, check, check_same, imported, median
from harness.bench.subprocess_runs import STAGES
from harness.core.errors import UserError
from harness.core.overrides import compose


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("batch=[]", "nothing to measure"),
        ("repeats=0", "nothing to measure"),
        ("batch=[1,0]", "model.batch_size"),
        ("each=['method=hipprune']", "hiprune"),
        ("out=/dev/null/main", "out="),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(override, message):
    with pytest.raises(UserError, match=message):
        check(compose("bench_main", [override]))


def test_other_answers_are_an_error(tmp_path):
    for batch in ("1", "8"):
        folder = make_run(
            tmp_path / batch, method="random", each={"t": [1, 0]}, said={"t": ["a", "b"]}, batch=batch
        ).path
        (folder / "kept.jsonl").write_text(json.dumps({"key": batch, "kept": [1]}) + "\n")
    check_same(tmp_path / "1", tmp_path / "8")
    (folder / "kept.jsonl").write_text(json.dumps({"key": batch, "kept": [2]}) + "\n")
    with pytest.raises(UserError, match=r"kept\.jsonl depends on the size of the batch"):
        check_same(tmp_path / "1", tmp_path / "8")


def test_the_middle_one_is_reported_whole():
    rows = [{"wall_s": wall, "llm_s": llm} for wall, llm in ((9.0, 1.0), (5.0, 3.0), (7.0, 2.0), (8.0, 0.0))]
    assert median(rows) == rows[2]
    assert median(rows[:1]) == rows[0]


def test_time_within_modules_is_added_up():
    said = ["import time: self [us] | cumulative | imported package", "import time:   2000000 |    2000000 |   torch"]
    said += ["import time:    500000 |    2500000 | harness", "Postprocessing: 100 |"]
    assert imported("\n".join(said)) == 2.5


def test_the_command_measures_real_runs(tmp_path, fork_server, monkeypatch, capsys):
    forks, said = Forks(tmp_path, tmp_path / "said"), tmp_path / "said"
    said.mkdir()
    monkeypatch.setattr(main_job, "run", lambda call, *options: forks.run("harness", *call).err)
    told = ["each=['tasks=[pocket_text]','method=random','keep=0.5']", "limit=3", "batch=[1,2]", "repeats=1"]
    main_job.bench(compose("bench_main", [*told, f"out={tmp_path / 'main'}"]))
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert forks.count == 3  # the first does not count
    assert [(row["batch"], row["n"]) for row in report["rows"]] == [(1, 1), (2, 1)]
    for row in report["rows"]:
        assert list(row) == list(COLUMNS)
        assert sum(row[f"{part}_s"] for part in ("import", *STAGES, "other")) == pytest.approx(row["wall_s"], abs=0.05)
        assert all(row[f"{stage}_s"] >= 0 for stage in STAGES)  # loading may round to nothing
        assert all(row[f"{stage}_s"] > 0 for stage in ("vision", "llm"))
    assert json.loads((tmp_path / "main.json").read_text()) == report
