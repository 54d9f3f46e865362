"""harness.export: what other programs read is what the runs say."""

import json
import math

import pandas as pd
import pytest
from run_folders import make_run, sealed_again

from harness import export
from harness.core import command
from harness.core.errors import UserError
from harness.results.result import Result

BASE = {"t_one": [1.0, 1.0, 0.0, 1.0], "t_two": [1.0, 0.5]}
RECORDS = {"t_one": {"acc,none": [{"score": 1.0, "category": "c"}, {"score": 0.0, "category": "c"}]}}


@pytest.fixture
def folder(tmp_path):
    make_run(tmp_path / "runs", "none", BASE, said={"t_one": list("abcd"), "t_two": ["x", "y"]})
    for method, share in (("low", 0.5), ("high", 1.0)):
        make_run(tmp_path / "runs", method, {task: [share * v for v in values] for task, values in BASE.items()})
    return tmp_path


def exported(folder):
    export.main(command.compose("export", [f"runs={folder / 'runs'}", f"out={folder / 'out'}"]))
    return folder / "out"


def test_one_row_a_question_and_run(folder, capsys):
    out = exported(folder)
    rows = pd.read_parquet(out / "data" / "questions.parquet")
    assert len(rows) == 3 * 6
    assert not rows.duplicated(["hash", "task", "doc_id"]).any()
    base = rows[rows["method"] == "baseline"]
    assert base["score"].tolist() == [1, 1, 0, 1, 1, 0.5]
    assert base["response"].tolist() == list("abcdxy")
    assert rows[rows["method"] == "high"]["response"].isna().all()  # kept without answers
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["runs"] == 3
    assert all((out / name).is_file() for name in ("leaderboard.csv", "README.md"))


def test_why_a_question_failed_is_a_column(folder):
    (said,) = folder.rglob("responses.jsonl")
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    lines[1]["failed"] = "the question is empty"
    said.write_text("".join(json.dumps(line) + "\n" for line in lines))
    sealed_again(said.parent)
    rows = pd.read_parquet(exported(folder) / "data" / "questions.parquet")
    failed = rows[rows["failed"].notna()]
    assert failed[["method", "doc_id", "failed"]].to_numpy().tolist() == [["baseline", 1, "the question is empty"]]


def test_what_is_shown_of_videos_is_in_columns(folder):
    (said,) = folder.rglob("responses.jsonl")
    videos = [{"frames": 8, "seconds_per_step": seconds, "tokens": 40} for seconds in (1.0, 3.0)]
    line = {"key": "t_two 1", "task": "t_two", "doc_id": 1, "n": 90, "k": 0, "grids": [], "kept": [], "videos": videos}
    (said.parent / "kept.jsonl").write_text(json.dumps(line) + "\n")
    sealed_again(said.parent)
    rows = pd.read_parquet(exported(folder) / "data" / "questions.parquet")
    shown = rows[rows["video_frames"].notna()]
    assert shown[["task", "doc_id"]].to_numpy().tolist() == [["t_two", 1]]
    assert shown[["video_frames", "video_tokens", "seconds_per_step"]].to_numpy().tolist() == [[16, 80, 2.0]]


def test_half_of_a_surrogate_pair_is_shown_as_an_escape(folder):
    (said,) = folder.rglob("responses.jsonl")
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    lines[1]["response"] = "\ud800!"
    said.write_text("".join(json.dumps(line) + "\n" for line in lines))  # JSON in ASCII
    sealed_again(said.parent)
    rows = pd.read_parquet(exported(folder) / "data" / "questions.parquet")
    assert "\\ud800!" in set(rows["response"])


def test_datasets_loads_it(folder, tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    out = exported(folder)
    cache = str(tmp_path / "cache")
    files = {"train": str(out / "data" / "questions.parquet")}
    by_file = datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=cache)
    by_folder = datasets.load_dataset(str(out), split="train", cache_dir=cache)
    assert by_file.num_rows == by_folder.num_rows == 18
    assert {"task", "doc_id", "method", "budget", "score", "response"} <= set(by_folder.features)


def test_the_leaderboard_has_the_best_first(folder):
    board = pd.read_csv(exported(folder) / "leaderboard.csv")
    assert board["method"].tolist() == ["baseline", "high", "low"]
    assert board["rank"].tolist() == [1, 1, 2]
    assert board["avg"].tolist() == [100.0, 100.0, 50.0]
    assert set(board["lmms-eval"]) == {"0.7.3"}
    assert set(board["verified"]) == {False}  # these runs say nothing of a proof of decoding


def test_records_are_kept_as_json(tmp_path):
    run = Result.of(make_run(tmp_path, each=RECORDS, scores={"t_one": {"acc,none": 0.5}}))
    rows = export.per_question([run])
    assert json.loads(rows["record"].iloc[0]) == {"score": 1.0, "category": "c"}
    assert rows["score"].tolist() == [1.0, 0.0]


def test_what_has_no_number_is_nan(tmp_path):
    run = Result.of(make_run(tmp_path, each={"t": {"acc,none": ["text"]}}, scores={"t": {"acc,none": 0.5}}))
    assert math.isnan(export.per_question([run])["score"].iloc[0])


@pytest.mark.parametrize(("overrides", "message"), [([], "out is null"), (["out=a/b"], "a is a file")])
def test_a_mistake_is_one_line(overrides, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").write_text("")
    with pytest.raises(UserError, match=message):
        export.check(command.compose("export", overrides))


def test_weights_and_biases_gets_scores_and_answers(folder, monkeypatch):
    """Through lmms-eval's logger, without a server and without a process of W&B's own."""
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setenv("WANDB_DIR", str(folder))
    logged, configs = [], []
    init = wandb.init

    def spied(**arguments):
        run = init(**arguments)
        configs.append(arguments)
        log = run.log
        monkeypatch.setattr(run, "log", lambda data, *rest, **more: (logged.append(data), log(data, *rest, **more)))
        return run

    monkeypatch.setattr(wandb, "init", spied)
    run = next(path.parent for path in (folder / "runs").glob("none-*/DONE"))
    assert export.log_to_wandb([Result.of(run)], "pruning") == ["baseline"]
    assert configs[0]["project"] == "pruning"
    assert configs[0]["config"]["model"] == "m"
    assert logged[0] == {"t_one/acc": 0.75, "t_two/acc": 0.75}
    (answers,) = [data["t_one_eval_results"] for data in logged if "t_one_eval_results" in data]
    assert answers["filtered_predictions"].tolist() == list("abcd")
    assert answers["acc,none"].tolist() == [1, 1, 0, 1]
