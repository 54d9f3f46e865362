"""Tables tell distinct runs apart, compare like with like, and say in one line what cannot be read or written."""

import io
import json

import pandas as pd
import pytest
from fork_server import completed
from run_folders import make_run, sealed_again

from harness import tables
from harness.core import command
from harness.core.errors import UserError
from harness.core.files import digest, to_json
from harness.results.formats import markdown, sheet
from harness.results.labels import labels, names, title
from harness.results.result import collect, merge_task_runs, relative
from harness.results.table import marks

FRONT = ["model", "tasks", "budget", "group", "method", "lambda", "questions", "setting", "hash", "K", "kept"]
COLUMNS = [
    *FRONT,
    "per_layer",
    "t",
    "avg",
    "low",
    "high",
    "lost",
    "gained",
    "agreement",
    "seeds",
    "seed_sd",
    "as_best",
    "untested",
]


def finished(root, method="none", score=0.5, questions=20, **more):
    """A run of one task whose score is `score`."""
    right = round(score * questions)
    return make_run(root, method, {"t": [1.0] * right + [0.0] * (questions - right)}, **more)


def made(folder):
    """The tables of a folder of runs."""
    return tables.of_runs(collect(folder))[0]


def test_runs_that_differ_are_rows_that_differ(tmp_path):
    for questions in (20, 10):
        for method, score in (("none", 0.5), ("random", 0.2)):
            finished(tmp_path, method, score, questions, limit=questions)
    finished(tmp_path, "random", 0.3, power=2, limit=20)
    table = sheet(made(tmp_path))
    assert list(table) == COLUMNS
    assert len(table) == 5
    assert not table.duplicated(["budget", "method", "setting"]).any()
    assert sorted(table["questions"]) == [10, 10, 20, 20, 20]
    assert set(table["avg"]) == {"100.00", "40.00", "60.00"}
    assert {"random (power None)", "random (power 2)"} < set(table["method"])


def test_a_row_names_its_parameters_unless_they_are_the_defaults(tmp_path):
    """Also where no other run of its budget has the same method: rows of two budgets would read as one method."""
    finished(tmp_path)
    runs = [("pyramiddrop", {"budget_at": "end"}), ("prumerge", {"fit": "official", "neighbours": 32})]
    runs += [("idpruner", {"lam": 0.5}), ("fastv", {"budget_at": "end", "needs": "no parameter"})]
    for method, params in [*runs, ("own.py-Mine", {"power": 1.0})]:
        finished(tmp_path, method, params=params)
    expected = ["pyramiddrop (budget_at end)", "prumerge (fit official)", "own.py-Mine (power 1.0)"]
    expected += ["idpruner", "fastv"]
    assert set(sheet(made(tmp_path))["method"]) == {"baseline", *expected}
    results = collect(tmp_path)
    assert {title(result) for result in results} == {"baseline", *expected}
    assert set(labels(results).values()) == {"baseline", *expected}
    assert set(names(results).values()) == {"unpruned", *expected}


def test_lambda_is_named_where_it_has_no_column(tmp_path):
    finished(tmp_path, "idpruner", params={"lam": 0.7})
    (result,) = collect(tmp_path)
    assert (title(result), *labels([result]).values()) == ("idpruner (lam 0.7)", "idpruner")


def test_runs_of_single_or_random_questions_are_joined_with_their_like_alone(tmp_path):
    def run(task, **choice):
        tasks = {"names": [task], "limit": None, "files": "f", **choice}
        return make_run(tmp_path, "random", {task: [1.0]}, tasks=tasks)

    run("t", questions=["t/1"])
    run("u", questions=["u/3", "u/4"])
    run("v")
    run("w", limit=1, sample="random", sample_seed=1)
    run("x", limit=1, sample="random", sample_seed=2)
    joined = merge_task_runs(collect(tmp_path))
    assert sorted(tuple(sorted(result.about["identity"]["tasks"]["names"])) for result in joined) == [
        ("t", "u"),
        ("v",),
        ("w",),
        ("x",),
    ]
    (both,) = (result for result in joined if result.parts)
    assert sorted(both.sample["questions"]) == ["t/1", "u/3", "u/4"]
    assert len({result.cell for result in joined}) == 4


def test_other_sample_sets_are_marked_and_ranked_apart(tmp_path):
    for questions in (20, 10):
        for method, score in (("none", 0.5), ("random", 0.2), ("dart", 0.4)):
            finished(tmp_path, method, score, questions, limit=questions)
    (table,) = made(tmp_path)
    assert any("tasks.limit: 10 and 20" in note or "tasks.limit: 20 and 10" in note for note in table.notes)
    assert markdown(table).count("**40.00**") == 2
    named = [line.split(" | ")[0] for line in markdown(table).splitlines() if line.startswith("| limit")]
    assert sorted(named) == ["| limit 10"] * 3 + ["| limit 20"] * 3


def test_a_trial_of_two_questions_has_no_marks_and_a_note(tmp_path):
    for method, score in (("none", 1.0), ("random", 0.5), ("idpruner", 1.0)):
        finished(tmp_path, method, score, 2, limit=2)
    (table,) = made(tmp_path)
    text = markdown(table)
    assert "**100" not in text
    assert "≈" not in text
    assert "t† (acc, %)" in text
    assert "untested: t, since it has 2 independent pictures, and a test needs at least 10" in table.notes
    assert any(note.startswith("limit=2 asks the first questions of each task") for note in table.notes)


def test_rows_whose_early_layers_see_more_are_ranked_among_their_like(tmp_path):
    """FastV is ahead of all, and still the others have a best row and rows that are not significantly different.

    PyramidDrop's layers see K tokens on average, so it is ranked among those that cut before the language model.
    """
    per_layer = {"fastv": 57.5, "dart": 57.5, "d2pruner": 80.0}
    scores = {"none": 1.0, "fastv": 0.95, "dart": 0.3, "d2pruner": 0.9, "random": 0.1, "greedy": 0.6, "idpruner": 0.59}
    scores["pyramiddrop"] = 0.2
    for method, score in scores.items():
        run = finished(tmp_path, method, score, 200)
        if method in per_layer:
            path = run.path / "metrics.json"
            metrics = json.loads(path.read_text())
            metrics["visual_tokens"]["t"]["per_layer"] = per_layer[method]
            path.write_text(to_json(metrics))
            sealed_again(run.path)
        if method == "pyramiddrop":
            path = run.path / "metrics.json"
            metrics = json.loads(path.read_text())
            counts = metrics["visual_tokens"]["t"]
            counts |= {"kept": counts["kept"] / 5, "per_layer": counts["kept"], "budget": counts["kept"]}
            path.write_text(to_json(metrics))
            sealed_again(run.path)
    (table,) = made(tmp_path)
    marked = dict(zip(table.frame["method"], marks(table)["t"], strict=True))
    assert marked == {
        **{"baseline": "", "fastv": "best", "dart": "second", "d2pruner": ""},  # one row alone is no comparison
        **{"greedy": "best", "idpruner": "second", "random": "", "pyramiddrop": ""},
    }
    same = dict(zip(table.frame["method"], table.frame["as_best"], strict=True))
    assert {method for method, names in same.items() if "t" in names.split()} == {"idpruner"}
    luck = next(note for note in table.notes if note.startswith("the best average was selected"))
    assert "(keep=0.25, 4 rows)" in luck
    assert "(keep=0.25, 2 rows with *)" in luck


def test_an_interval_ends_where_the_metric_does(tmp_path):
    """A share of right answers reaches 1, so the percentage of an unpruned 0.8 reaches 125."""
    finished(tmp_path, score=0.8, questions=10)
    run = make_run(tmp_path, "x", {"t": [1.0] * 9 + [0.0]})
    (table,), cells = tables.of_runs(collect(tmp_path))
    assert cells.loc[cells["hash"] == digest(run.identity)[:8], "high"].tolist() == [125, 125]
    assert (cells["low"] >= 0).all()
    assert not table.untested


def test_versions_and_positions_that_differ_are_noted(tmp_path):
    finished(tmp_path)
    finished(tmp_path, "random", 0.2, positions="keep")
    finished(tmp_path, "dart", 0.2, positions="compact")
    (table,) = made(tmp_path)
    assert any("positions: keep and compact" in note or "positions: compact and keep" in note for note in table.notes)


def test_other_source_text_and_patch_versions_are_noted(tmp_path):
    for method, sources, torch in (("none", "a", "2.15.0"), ("random", "b", "2.15.1")):
        about = {"sources": {"harness": sources, "method": method}, "packages": {"torch": torch, "pillow": "13.0.0"}}
        run = finished(tmp_path, method, 0.4)
        run.amend(about)
        sealed_again(run.path)
    (table,) = made(tmp_path)
    note = "rows come from different code of the same declared versions (sources: a and b; torch: 2.15.0 and 2.15.1)"
    assert note in table.notes


def test_a_run_of_a_later_format_is_refused(tmp_path):
    run = finished(tmp_path)
    run.amend({"format": 4})
    sealed_again(run.path)
    with pytest.raises(UserError, match=r"has a run\.json of format 4, expected 1 to 3: install a newer harness"):
        made(tmp_path)


def test_failed_questions_are_counted_in_a_note_and_a_column(tmp_path):
    finished(tmp_path)
    assert "failed" not in sheet(made(tmp_path))
    finished(tmp_path, "random", 0.2, failed={"t": 3})
    (table,) = made(tmp_path)
    assert "t: 3 of 20 questions failed, scored as empty answers, in random keep=0.25" in table.notes
    assert sheet([table])["failed"].tolist() == [0, 3]
    header, _, *rows = (line.split("|") for line in markdown(table).splitlines() if "|" in line)
    (column,) = (place for place, title in enumerate(header) if "Failed" in title)
    assert [row[column].strip() for row in rows if len(row) > column][-1] == "3"


def test_what_failed_everywhere_is_said_once(tmp_path):
    for method in ("none", "random", "dart"):
        finished(tmp_path, method, failed={"t": 1})
    (table,) = made(tmp_path)
    assert [note for note in table.notes if "failed" in note] == [
        "t: 1 of 20 questions failed, scored as empty answers, in every run"
    ]


def test_a_copy_of_a_run_is_not_a_second_row(tmp_path):
    finished(tmp_path / "one")
    finished(tmp_path / "two")
    assert len(collect(tmp_path)) == 1


def test_a_run_and_its_baseline_are_compared_by_the_same_metric(tmp_path):
    for method, score in (("none", 0.5), ("random", 0.25)):
        scores = {"t": {"a,none": score, "b,none": 8 * score**2}}
        folder = make_run(tmp_path, method, {"t": {"a,none": [1.0]}}, scores=scores, metric="a,none")
        if method == "none":
            folder.show({"t": "b,none"})
    baseline, result = collect(tmp_path)
    assert relative(result, baseline) == {"t": 50.0}
    (table,) = made(tmp_path)
    assert table.frame["avg"].tolist() == [100.0, 50.0]
    assert any("different metrics" in note for note in table.notes)
    assert any("it shows other metrics than the unpruned" in note for note in table.notes)


def test_the_shown_metric_of_a_finished_run_can_be_changed(tmp_path):
    folder = finished(tmp_path)
    before = folder.metrics()
    folder.show({"t": "b,none"})
    assert folder.metrics() == {**before, "primary": {"t": "b,none"}}
    assert folder.done


def test_without_the_unpruned_model_nothing_is_averaged(tmp_path):
    finished(tmp_path, "random")
    (table,) = made(tmp_path)
    assert table.frame["avg"].isna().all()
    assert "no averages, since there is no unpruned run" in " ".join(table.notes)
    assert sheet([table])["avg"].tolist() == [""]


def test_tasks_run_one_by_one_can_be_one_row(tmp_path):
    for task in ("s", "t"):
        for method, share in (("none", 8), ("dart", 6)):
            make_run(tmp_path, method, {task: [1.0] * share + [0.0] * (10 - share)})
    apart = made(tmp_path)
    assert [table.benchmarks for table in apart] == [["s"], ["t"]]
    (table,) = tables.of_runs(merge_task_runs(collect(tmp_path)))[0]
    assert table.benchmarks == ["s", "t"]
    assert table.frame["avg"].round(6).tolist() == [100.0, 75.0]
    assert table.frame["low"].notna().all()
    assert table.frame["questions"].tolist() == [20, 20]


def test_tasks_run_twice_are_not_joined(tmp_path):
    make_run(tmp_path, each={"s": [1.0]})
    make_run(tmp_path, each={"s": [1.0], "t": [1.0]})
    with pytest.raises(UserError, match="baseline was run more than once on s"):
        merge_task_runs(collect(tmp_path))


@pytest.mark.parametrize("text", [None, "{", "{}", to_json({"identity": {}})])
def test_a_stray_marker_is_named(tmp_path, text):
    finished(tmp_path)
    stray = tmp_path / "other"
    stray.mkdir()
    (stray / "DONE").write_text("")
    if text is not None:
        (stray / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"other.* (cannot be read|is damaged).*start again"):
        collect(tmp_path)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["runs=null"], "runs is null"),
        (["runs=nowhere"], "no finished run below runs=nowhere"),
        (["runs=[.,nowhere]"], "no finished run below runs=nowhere"),
        (["runs=.", "csv=/no/such/x.csv"], "cannot write csv=/no/such/x.csv: there is no folder"),
        (["runs=.", "out=file"], "out=file cannot be made"),
        (["source=web"], "source must be one of runs, scores, paper, paper+runs, got web"),
        (["source=scores"], "scores is null"),
        (["scores=nowhere.csv"], "cannot read scores=nowhere.csv"),
        (["scores=some.csv", "source=paper"], "exclude each other"),
        (["cells=percent"], "cells must be one of score, relative"),
        (["source=paper", "join=true"], "are of runs, not of source=paper"),
        (["source=paper+runs", "runs=.", "paper=PAPER"], "none of the 1 runs is in a published table"),
    ],
)
def test_a_mistake_is_a_user_error(args, message, tmp_path, monkeypatch, request):
    finished(tmp_path)
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    paper = request.config.rootpath / "results" / "paper"
    with pytest.raises(UserError, match=message.replace("+", r"\+")):
        tables.main(command.compose("tables", [text.replace("PAPER", str(paper)) for text in args]))
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["file"]


@pytest.mark.usefixtures("fork_server")
def test_the_command(tmp_path):
    finished(tmp_path)
    done = completed(tmp_path, "harness.tables", "runs=.", "csv=table.csv", "stats=stats.csv")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert (report["runs"], report["csv"], report["files"]) == (1, "table.csv", ["table.csv"])
    assert (tmp_path / "table.csv").read_text().splitlines()[0] == ",".join(COLUMNS)
    assert set(pd.read_csv(tmp_path / "stats.csv")["benchmark"]) == {"t", "avg"}
    failed = completed(tmp_path, "harness.tables", "runs=nowhere")
    assert (failed.returncode, failed.stderr.count("\n")) == (2, 1)
    assert failed.stderr.startswith("error: no finished run below")


# Raw scores in a CSV.

SCORES = """method,benchmark,score,budget
baseline,a,80,
baseline,b,50,
dart,a,40,keep=0.5
dart,b,50,keep=0.5
random,a,20,keep=0.5
"""


def of_scores(tmp_path, text):
    (tmp_path / "some.csv").write_text(text)
    return tables.tables_of(tables.read_scores(tmp_path / "some.csv"))


def test_raw_scores_become_a_table(tmp_path):
    (table,) = of_scores(tmp_path, SCORES)
    assert table.frame["avg"].iloc[[0, 2]].tolist() == [100.0, 75.0]
    text = sheet([table]).to_csv(index=False)
    assert text.splitlines()[0] == "budget,group,method,lambda,a,b,avg"
    read = pd.read_csv(io.StringIO(text))
    assert read["group"].fillna("").tolist() == ["", "control", "diversity"]


def test_a_missing_cell_is_named_and_not_averaged_over(tmp_path):
    (table,) = of_scores(tmp_path, SCORES)
    assert table.notes == ["no average, since scores are missing: random keep=0.5: b"]
    row = next(line for line in markdown(table).splitlines() if "Random" in line)
    assert row.split(" | ")[2:] == ["<ins>20</ins>", "–", "– |"]


def test_a_dash_is_a_missing_score(tmp_path):
    (table,) = of_scores(tmp_path, SCORES + "random,b,-,keep=0.5\n")
    assert table.notes == ["no average, since scores are missing: random keep=0.5: b"]


def test_a_missing_baseline_cell_leaves_no_average(tmp_path):
    (table,) = of_scores(tmp_path, SCORES.replace("baseline,b,50,\n", ""))
    assert table.frame["avg"].isna().all()
    assert table.notes[0].startswith("no average, since scores are missing: baseline: b")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method,score\n", "lacks the columns benchmark"),
        (SCORES.replace("40", "forty"), "line 4: score is 'forty', not a number"),
        (SCORES + "dart,a,41,keep=0.5\n", "has dart keep=0.5 a twice"),
    ],
)
def test_scores_that_cannot_be_read(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        of_scores(tmp_path, text)


def test_cells_can_be_percentages(tmp_path):
    (table,) = of_scores(tmp_path, SCORES)
    assert tables.shown_relative(table).frame["a"].tolist() == [100.0, 25.0, 50.0]
