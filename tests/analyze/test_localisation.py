"""python -m harness.analyze localisation: how much of a target was kept, and what that does to the answer."""

import json
from pathlib import Path

import pandas as pd
import pytest
from printed import percent, rows_below
from run_folders import make_run, sealed_again

from harness.analyze import localisation
from harness.core.errors import UserError
from harness.core.escape import csv
from harness.core.files import json_lines
from harness.core.overrides import compose
from harness.results.result import Result, load_results

GRID, CORNER = [1, 4, 4], [0.0, 0.0, 0.5, 0.5]  # the target is tokens 0, 1, 4 and 5
RIGHT, WRONG = [0.0, 0.0, 0.5, 0.4], [0.0, 0.0, 0.5, 0.2]  # overlaps of 0.8 and 0.4
TASK = "refcoco_bbox_rec_val"


def line(kept, target=CORNER, grids=(GRID,), **more):
    n = sum(t * h * w for t, h, w in grids)
    return {"n": n, "k": len(kept), "grids": list(grids), "kept": kept, "target": target, **more}


def write(root, kept, preds, method="random", task=TASK, **more):
    """Write a run of a question for each list of kept tokens, scored as lmms-eval scores REC, or right (1) or wrong."""
    boxes = isinstance(preds[0], list)
    each = [{"bbox": CORNER, "pred": pred} for pred in preds] if boxes else preds
    metric, score = localisation.IOU if boxes else "acc,none", sum(pred in (RIGHT, 1.0) for pred in preds) / len(preds)
    picture = [f"{i // 2:016}" for i in range(len(preds))]
    columns = {task: {metric: each, "picture": picture}}
    folder = make_run(root, method, columns, scores={task: {metric: score}}, metric=metric, **more)
    lines = [{"key": str(i), "task": task, "doc_id": i, **record} for i, record in enumerate(kept)]
    (folder.path / "kept.jsonl").write_text(json_lines(lines))
    sealed_again(folder.path)
    return folder.path


@pytest.mark.parametrize(
    ("record", "share"),
    [
        (line([0, 1, 4, 5]), 1),
        (line([0, 1, 2, 3]), 0.5),
        (line([10, 15]), 0),
        (line([0], target=[0.2, 0.0, 0.3, 0.25]), 0.5),  # half of it in token 0, half in token 1
        (line([0], target=[-0.5, -0.5, 0.25, 0.25]), 1),  # the part in the picture counts
        (line([0, 1, 2, 3], grids=([1, 2, 2], GRID)), 0.5),  # all of the first grid, none of the second
        (line([4, 5], grids=([2, 2, 2],)), 0.5),  # two steps
        # the middle half of the picture: the target from 0.25 to 0.5 is the left half of what is shown
        (line([0, 4, 8, 12], target=[0.25, 0, 0.5, 1], view=[0.25, 0, 0.75, 1]), 0.5),
        (line([0, 1], target=[0.0, 0, 0.1, 1], view=[0.25, 0, 0.75, 1]), 0),  # it is not shown at all
    ],
)
def test_the_share_of_a_target_counts_cells_by_what_they_hold_of_it(record, share):
    assert localisation.share(record) == pytest.approx(share)


def run(tmp_path, *more):
    out = tmp_path / "out"
    localisation.localisation(compose("analyze_localisation", [f"runs={tmp_path}/runs", f"out={out}", *more]))
    return json.loads((out / "m.json").read_text()), pd.read_csv(out / "m.csv")


def test_accuracy_is_given_for_each_share(tmp_path, capsys):
    kept = [[0, 1, 4, 5], [0, 1, 4, 5], [0, 1, 2, 3], [0, 2, 3, 6], [12, 13, 14, 15], [8, 9, 10, 11]]
    preds = [RIGHT, RIGHT, RIGHT, WRONG, WRONG, RIGHT]
    write(tmp_path / "runs", [line(tokens) for tokens in kept], preds)
    write(tmp_path / "runs", [line(list(range(16)))] * 6, [RIGHT] * 6, "none")
    summary, table = run(tmp_path)
    mine = table[table["method"] == "random"].set_index("band")
    assert mine["questions"].to_dict() == {"0 to 0.25": 2, "0.25 to 0.5": 1, "0.5 to 0.75": 1, "0.75 to 1": 2, "all": 6}
    accuracy = {"0 to 0.25": 0.5, "0.25 to 0.5": 0, "0.5 to 0.75": 1, "0.75 to 1": 1}
    assert mine["accuracy"].to_dict() == pytest.approx({**accuracy, "all": 4 / 6}, abs=1e-5)
    assert mine.loc["all", "share"] == pytest.approx((1 + 1 + 0.5 + 0.25 + 0 + 0) / 6, abs=1e-5)
    assert (mine["low"] <= mine["accuracy"]).all()
    assert (mine["accuracy"] <= mine["high"]).all()
    unpruned = table[table["method"] == "baseline"]
    assert set(unpruned["band"]) == {"0.75 to 1", "all"}
    assert [each["accuracy"] for each in summary["runs"]] == pytest.approx([1, 4 / 6], abs=1e-5)
    assert (tmp_path / "out" / "m.png").stat().st_size > 5000
    rows = pd.read_parquet(tmp_path / "out" / "m-questions.parquet")
    assert rows.loc[rows["method"] == "random", "share"].tolist() == [1, 1, 0.5, 0.25, 0, 0]
    assert rows.loc[rows["method"] == "random", "right"].tolist() == [1, 1, 1, 0, 0, 1]
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["analysis"] == "localisation"


def test_a_task_that_scores_right_and_wrong_is_read_by_its_metric(tmp_path):
    kept = [line([0, 1, 4, 5]), line([10, 11, 14, 15])]
    write(tmp_path / "runs", kept, [1.0, 0.0], task="pocket_places")
    _, table = run(tmp_path, "bands=2")
    assert table["accuracy"].tolist() == [0, 1, 0.5]


def test_questions_that_failed_or_name_no_tokens_have_no_share(tmp_path):
    failed = {"n": 0, "k": 0, "grids": [], "kept": []}
    write(tmp_path / "runs", [line([0, 1, 4, 5]), failed, line([])], [RIGHT, WRONG, WRONG])
    _, table = run(tmp_path)
    assert table["questions"].tolist() == [1, 1]


def test_a_run_without_boxes_is_one_line(tmp_path):
    make_run(tmp_path / "runs", "random", {"t": [1.0, 0.0]})
    with pytest.raises(
        UserError, match=r"no run below .* has the target of a question .*: start with python -m harness t"
    ):
        run(tmp_path)


def test_answers_that_do_not_give_the_score_are_refused(tmp_path):
    path = write(tmp_path / "runs", [line([0, 1, 4, 5])] * 2, [RIGHT, WRONG])
    metrics = json.loads((path / "metrics.json").read_text())
    metrics["scores"][TASK][localisation.IOU] = 1.0
    (path / "metrics.json").write_text(json.dumps(metrics))
    sealed_again(path)
    with pytest.raises(UserError, match=r"the answers of refcoco_bbox_rec_val give 0.5, its score is 1"):
        run(tmp_path)


def test_runs_of_two_models_are_refused(tmp_path):
    for model in ("m", "n"):
        write(tmp_path / "runs", [line([0, 1, 4, 5])] * 2, [RIGHT, WRONG], model=model)
    with pytest.raises(UserError, match=r"the runs are of several models \(m, n\)"):
        run(tmp_path)


def test_tiles_whose_place_is_unknown_are_refused(tmp_path):
    path = write(tmp_path / "runs", [line([0, 1], grids=(GRID, GRID))] * 2, [RIGHT, WRONG])
    lines = {0: line([0, 1], grids=(GRID, GRID))}
    with pytest.raises(UserError, match="question 0: InternVL's runs do not record where the tiles of a picture lie"):
        localisation._refuse_tiles(TASK, lines)
    assert len(list(localisation.asked(Result.of(path)))) == 1  # crops of other families show all of the picture


ROOT = Path(__file__).parents[2]
COMMITTED, PAGE = ROOT / "results" / "analysis" / "localisation", ROOT / "docs" / "benchmarks.md"


@pytest.fixture(scope="module")
def rows():
    return pd.read_parquet(COMMITTED / "pocket_clip-questions.parquet")


def test_the_committed_bands_are_what_the_questions_give(rows):
    table = localisation.banded(rows, 4, 1000, 0)
    written = csv(table, lineterminator="\n", float_format="%.6g")
    assert written == (COMMITTED / "pocket_clip.csv").read_text(encoding="utf-8")


def test_the_committed_questions_are_right_where_the_archived_runs_are(rows):
    results = load_results(str(COMMITTED / "archive" / "pocket_clip"))
    titles = localisation.titles_of(results)
    assert set(titles.values()) == set(rows["run"])
    for result in results:
        columns = result.per_question["pocket_places"]
        right = dict(zip(columns["doc_id"], localisation.hits(result, "pocket_places"), strict=True))
        mine = rows[rows["run"] == titles[result.hash]]
        assert dict(zip(mine["doc_id"], mine["right"], strict=True)) == right


def test_the_experiment_agrees_with_the_committed_table_of_places(rows):
    table = pd.read_csv(COMMITTED.parents[1] / "pocket" / "places.csv").fillna({"budget": ""})
    scores = {(row.method, row.budget): row.pocket_places for row in table.itertuples()}
    ours = rows.groupby(["method", "budget"])["right"].mean().round(4).to_dict()
    shared = scores.keys() & ours.keys()
    assert {method for method, _ in shared} == {"baseline", "random", "uniform", "visionzip", "divprune"}
    assert {key: ours[key] for key in shared} == pytest.approx({key: scores[key] for key in shared}, abs=1e-4)


def test_the_page_shows_the_committed_figures():
    table = pd.read_csv(COMMITTED / "pocket_clip.csv", dtype=str, keep_default_na=False)
    whole = table[table["band"] == "all"]
    _, *shown = rows_below(PAGE, "kept at 0.25")
    names = {"unpruned": "", "`d2pruner`, its prior": "d2pruner* (prior 2cb1a290, alpha 0.5)"}
    names["`d2pruner`, `prior: none`"] = "d2pruner* (prior none, alpha 0.5)"
    for name, _, *cells in shown:
        name = names.get(name, name.strip("`"))
        for budget, given in (("keep=0.25", cells[:2]), ("keep=0.1", cells[2:])):
            (row,) = whole[whole["run"] == (f"{name} {budget}" if name else "unpruned")].to_dict("records")
            interval = f"({percent(row['low'])} to {percent(row['high'])})"
            assert given == [percent(row["share"]), f"{percent(row['accuracy'])} {interval}"]
    assert len(shown) == len(whole) // 2 + 1


def test_the_page_shows_what_renumbered_positions_cost():
    table = pd.read_csv(COMMITTED / "positions.csv", dtype=str)
    scores = dict(zip(table["method"], table["avg"], strict=True))
    _, *shown = rows_below(PAGE, "positions kept")
    assert {(name.strip("`"), kept, compact) for name, kept, compact in shown} == {
        (name, scores[f"{name} (positions keep)"], scores[f"{name} (positions compact)"])
        for name in ("visionzip", "divprune")
    }
    results = load_results(str(COMMITTED / "archive" / "pocket_llava"))
    assert {result.hash for result in results} == set(table["hash"])
    for result in results:
        row = table[table["hash"] == result.hash].iloc[0]
        for task, metric in result.metrics["primary"].items():
            assert f"{result.score(task, metric):.4f}" == row[task]
