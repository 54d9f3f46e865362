"""A sweep beside its runs one by one: what is run, what is added up, and that other answers are not timed."""

import csv
import json

import pytest
from fork_server import Forks
from run_folders import make_run

from harness.bench import sweep
from harness.bench.subprocess_runs import STAGES, run, table
from harness.bench.sweep import COLUMNS, Plan, check, check_same
from harness.core.errors import UserError
from harness.core.overrides import compose

METHODS = "methods=[random,{name:hiprune,variant:paper}]"


def plan(*overrides):
    return Plan.of(compose("bench_sweep", list(overrides)))


def test_the_sweep_and_the_runs_apart_are_the_same_runs():
    planned = plan(METHODS, "keep=[0.5,0.25]", "limit=2")
    methods, keeps = ["random", "{name:hiprune,variant:paper}"], ["0.5", "0.25"]
    told = ["model=pocket", "tasks=pocket", "limit=2"]
    assert planned.swept() == ["-m", *told, f"method={','.join(methods)}", f"keep={','.join(keeps)}"]
    points = [[f"method={method}", f"keep={keep}"] for method in methods for keep in keeps]
    assert [call for _, call in planned.apart()] == [[*told, *point] for point in [["method=none"], *points]]


def test_nine_methods_at_two_budgets_are_the_default():
    assert len(plan().apart()) == 1 + 9 * 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("keep=[2]", "keep"),
        ("methods=[]", "nothing to sweep"),
        ("methods=[hipprune]", "hiprune"),
        ("each=['tasks=pocket','modell=pocket']", "modell"),
        ("out=/dev/null/sweep", "out="),
    ],
)
def test_what_cannot_be_run_is_refused_before_anything_is(override, message):
    with pytest.raises(UserError, match=message):
        check(compose("bench_sweep", [override]))


def test_other_answers_are_an_error(tmp_path):
    for side in ("sweep", "apart"):
        for name in ("none", "random"):
            folder = make_run(tmp_path / side, method=name, each={"t": [1, 0]}, said={"t": ["a", "b"]})
            (folder.path / "kept.jsonl").write_text("{}\n")
    check_same(tmp_path / "sweep", tmp_path / "apart")
    file = next((tmp_path / "apart").glob("random-*/responses.jsonl"))
    file.write_text(file.read_text().replace('"b"', '"c"'))
    with pytest.raises(UserError, match=r"random-.*: its responses\.jsonl in the sweep is not that of the run"):
        check_same(tmp_path / "sweep", tmp_path / "apart")
    (file.parent / "DONE").unlink()
    with pytest.raises(UserError, match=r"only one way has: random-"):
        check_same(tmp_path / "sweep", tmp_path / "apart")


def test_a_run_that_fails_is_one_line():
    with pytest.raises(UserError, match=r"^python -m harness method=hipprune: .*did you mean hiprune"):
        run(["method=hipprune"])


def row(**seconds):
    return {**dict.fromkeys((name for name in COLUMNS if name.endswith("_s")), 0.0), **seconds}


def test_the_table_has_shares_and_ratios():
    rows = {"2 runs apart": row(wall_s=120.0, vision_s=24.0), "one sweep": row(wall_s=30.0, vision_s=3.0)}
    *_, apart, swept, ratios = table(rows, "sweep / apart").splitlines()
    nothing = "0.0 s (0%)"
    shares = f"120.0 s (100%) {nothing} {nothing} 24.0 s (20%) {nothing} {nothing} {nothing}"
    assert " ".join(apart.split()) == f"2 runs apart {shares}"
    assert "3.0 s (10%)" in swept
    assert ratios.split() == ["sweep", "/", "apart", "0.25", "-", "-", "0.12", "-", "-", "-"]


def test_the_command_measures_real_runs(tmp_path, fork_server, monkeypatch, capsys):
    forks, said = Forks(tmp_path, tmp_path / "said"), tmp_path / "said"
    said.mkdir()
    monkeypatch.setattr(sweep, "run", lambda call: forks.run("harness", *call))
    told = ["methods=[hiprune]", "keep=[0.25]", "limit=2", "each=['model=pocket','tasks=[pocket_text]']"]
    sweep.bench(compose("bench_sweep", [*told, f"out={tmp_path / 's'}"]))
    *_, last = capsys.readouterr().out.splitlines()
    report = json.loads(last)
    swept, total, *apart = report["rows"]
    assert [one["run"] for one in apart] == ["method=none", "method=hiprune keep=0.25"]
    for stage in ("wall", *STAGES, "other"):
        assert total[f"{stage}_s"] == pytest.approx(sum(one[f"{stage}_s"] for one in apart), abs=0.02)
    for row in report["rows"]:
        assert sum(row[f"{stage}_s"] for stage in (*STAGES, "other")) == pytest.approx(row["wall_s"], abs=0.05)
        assert all(row[f"{stage}_s"] >= 0 for stage in STAGES)  # loading may round to nothing
        assert all(row[f"{stage}_s"] > 0 for stage in ("vision", "llm"))
    assert report["sweep_over_apart"] == pytest.approx(swept["wall_s"] / total["wall_s"], abs=0.002)
    assert list(csv.DictReader((tmp_path / "s.csv").open())) == [
        {k: str(v) for k, v in r.items()} for r in report["rows"]
    ]
    assert json.loads((tmp_path / "s.json").read_text()) == report
