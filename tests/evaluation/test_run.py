"""The main job from command to table on a tiny random model: in one go, resumed after a kill, run by lmms-eval."""

import json
import shutil
import signal
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from fork_server import Forks, counting
from tiny_models import HIDDEN, tiny_folder
from tiny_tasks import write_tiny_tasks

import methods
from harness.evaluation import identity
from harness.evaluation.identity import changes
from harness.models.scorer import VisionSelectorScorer, save_scorer
from harness.results.metrics import numeric
from harness.results.result import Result, collect

QUESTIONS, BATCH = 14, 2  # seven batches, and two of the four clips


@dataclass
class Place:
    """A folder with a model, tasks and nothing else."""

    root: Path
    model: Path
    tasks: Path
    forks: Forks

    def overrides(self, *more: str, runs: str = "runs") -> list[str]:
        tasks = ["tasks=[tiny_stills,tiny_clips]", f"tasks.include={self.tasks}", f"runs={runs}"]
        return [f"model.pretrained={self.model}", f"model.batch_size={BATCH}", *tasks, *more]

    def run(self, *call: str, code: int = 0) -> tuple[str, str]:
        done = self.forks.run(*call, code=code)
        return done.out, done.err


@pytest.fixture(scope="module")
def place(tmp_path_factory, fork_server):
    root = tmp_path_factory.mktemp("main-job")
    model = tiny_folder(root)
    torch.manual_seed(0)
    save_scorer(VisionSelectorScorer(HIDDEN, 16, init_scale=0.3), model / "scorer")
    forks = Forks(root, tmp_path_factory.mktemp("said"))
    return Place(root, model, write_tiny_tasks(root / "tasks", QUESTIONS), forks)


@pytest.fixture(scope="module")
def swept(place):
    """A sweep over two methods, and what it printed."""
    out, err = place.run("harness", "-m", *place.overrides("method=random,idpruner", "keep=0.5"))
    reports = [json.loads(line) for line in out.splitlines() if line.startswith('{"run"')]
    return out, err, reports


def folder_of(place: Place, method: str, runs: str = "runs") -> Path:
    (folder,) = place.root.glob(f"{runs}/{place.model.name}/tiny_stills+tiny_clips/{method}-*")
    return folder


def jsonl(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_every_question_has_its_score_and_their_mean_is_the_metric(place, swept):
    folder = folder_of(place, "random")
    each, metrics = (json.loads((folder / name).read_text()) for name in ("scores.json", "metrics.json"))
    assert {task: len(found["doc_id"]) for task, found in each.items()} == metrics["questions"]
    for task, scores in metrics["scores"].items():
        for metric, score in scores.items():
            assert sum(each[task][metric]) / len(each[task][metric]) == pytest.approx(score, abs=1e-12)


def test_each_run_has_a_report_and_the_sweep_the_last_line(swept):
    out, _, reports = swept
    report = reports[-1]
    assert json.loads(out.splitlines()[-1]) == {"finished": 2, "failed": [], "runs": ["runs"]}
    assert [r["method"] for r in reports] == ["random", "idpruner"]
    assert (report["method"], report["model"], report["budget"]) == ("idpruner", "tiny-qwen2.5-vl", "0.5")
    assert set(report["scores"]) == {"tiny_stills", "tiny_clips"}
    assert set(report["scores"]["tiny_stills"]) == {"even,none", "letters,none"}
    assert report["average"] == pytest.approx(sum(report["relative"].values()) / 2, abs=0.01)


def test_relative_is_percent_of_the_baseline(place, swept):
    _, _, reports = swept
    baseline = json.loads((folder_of(place, "none") / "metrics.json").read_text())["scores"]
    for report in reports:
        for task, percent in report["relative"].items():
            ratio = report["scores"][task]["even,none"] / baseline[task]["even,none"]
            assert percent == pytest.approx(100 * ratio, abs=0.01)


def test_the_baseline_is_run_once_for_both_methods(place, swept):
    _, err, _ = swept
    assert folder_of(place, "none")
    assert err.count(f"none-1.0: 0 of {QUESTIONS + 4} questions\n") == 1


def test_a_run_folder_holds_its_files_and_no_other(place, swept):
    for method in ("none", "random", "idpruner"):
        names = {path.name for path in folder_of(place, method).iterdir()}
        assert names == {"run.json", "responses.jsonl", "kept.jsonl", "scores.json", "metrics.json", "DONE"}


def test_every_question_is_answered_and_its_kept_tokens_recorded(place, swept):
    folder = folder_of(place, "idpruner")
    responses, kept = jsonl(folder / "responses.jsonl"), jsonl(folder / "kept.jsonl")
    assert [r["doc_id"] for r in responses if r["task"] == "tiny_stills"] == list(range(QUESTIONS))
    assert [r["key"] for r in responses] == [k["key"] for k in kept]
    assert len({r["key"] for r in responses}) == QUESTIONS + 4
    for line in kept:
        assert line["n"] == sum(t * h * w for t, h, w in line["grids"])
        assert line["k"] == round(line["n"] * 0.5) == len(line["kept"])
    clips = [line for line in kept if line["task"] == "tiny_clips"]
    assert {line["n"] for line in clips} == {8}  # 3 or 4 frames of 56 x 56: two temporal patches of 2 x 2 tokens


def test_methods_answer_differently(place, swept):
    texts = {m: [r["response"] for r in jsonl(folder_of(place, m) / "responses.jsonl")] for m in ("none", "idpruner")}
    assert texts["none"] != texts["idpruner"]


def test_nothing_is_written_outside_the_runs(place, swept):
    assert {path.name for path in place.root.iterdir()} <= {
        "runs",
        "killed",
        "edited",
        "out",
        "tasks",
        place.model.name,
    }


def test_a_finished_run_is_reused(place, swept):
    folder = folder_of(place, "random")
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    out, err = place.run("harness", *place.overrides("method=random", "keep=0.5"))
    assert json.loads(out.splitlines()[-1]) == swept[2][0]
    assert "random-0.5" not in err  # no progress bar: nothing was generated
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_killed_run_resumes_to_the_same_bytes(place, swept, tmp_path):
    call = ["harness", *place.overrides("method=random", "keep=0.5", runs="killed")]
    fourth = partial(counting, tmp_path / "heard", 9 + 4)  # after the baseline's nine batches
    place.forks.run(*call, code=-signal.SIGKILL, before=fourth)
    (log,) = place.root.glob("killed/*/*/random-*/responses.jsonl")
    folder = log.parent
    whole = log.read_bytes().splitlines(keepends=True)
    assert len(whole) == 3 * BATCH
    assert not (folder / "DONE").exists()
    log.write_bytes(b"".join(whole[:-1]) + whole[-1][:-30])  # as if the kill had come in the middle of a write

    place.run(*call)
    uninterrupted = folder_of(place, "random")
    assert (folder / "DONE").exists()
    for name in ("metrics.json", "responses.jsonl", "kept.jsonl"):
        assert (folder / name).read_bytes() == (uninterrupted / name).read_bytes()
    assert log.read_bytes().startswith(b"".join(whole[: len(whole) - BATCH]))


def test_a_run_that_other_code_goes_on_with_says_so(place, swept):
    """A comment, or a patch version of a library, is no other run; what it went on with stands in run.json."""
    folder = place.root / "edited" / folder_of(place, "none").relative_to(place.root / "runs")
    shutil.copytree(folder_of(place, "none"), folder)
    for name in ("DONE", "metrics.json", "scores.json"):
        (folder / name).unlink()
    about = json.loads((folder / "run.json").read_text())
    known, patch = about["sources"], about["packages"]["transformers"]
    about["sources"], about["packages"]["transformers"] = {"harness": "other", "method": "other"}, "5.0.99"
    (folder / "run.json").write_text(json.dumps(about))
    place.run("harness", *place.overrides("method=none", runs="edited"))
    assert (folder / "DONE").exists()
    about = json.loads((folder / "run.json").read_text())
    (entry,) = about["resumed"]
    assert (entry["sources"], entry["packages"]["transformers"]) == (known, patch)
    assert about["sources"]["harness"] == "other"
    assert (folder / "scores.json").read_bytes() == (folder_of(place, "none") / "scores.json").read_bytes()


class TestWhetherTodaysCodeWouldReuseARun:
    @pytest.fixture
    def about(self, place, swept):
        return json.loads((folder_of(place, "idpruner") / "run.json").read_text())

    def test_it_would(self, about):
        assert about["format"] == 3
        assert changes(about) == []

    def test_why_not(self, about, monkeypatch):
        monkeypatch.setattr(identity, "CUT", 9)
        monkeypatch.setattr(methods.get("idpruner"), "version", 9)
        monkeypatch.setattr(identity, "version", lambda package: "9.9.9")
        monkeypatch.setenv("MODEL_SEQ_LEN", "9")
        reasons = changes(about)
        assert "version of the cut was 1, is 9" in reasons
        assert "version of the method was 2, is 9" in reasons
        assert "$MODEL_SEQ_LEN was None, is 9" in reasons
        assert any(reason.startswith("transformers was 5.") and reason.endswith("is 9.9") for reason in reasons)

    def test_a_method_that_is_no_more(self, about):
        about["config"]["method"]["name"] = "gone.py:Gone"
        (reason,) = changes(about)
        assert "gone.py' does not exist" in reason

    def test_a_record_that_is_not_whole(self, about):
        del about["identity"]["method"]
        assert changes(about) == ["its run.json lacks 'method'"]

    def test_the_command_says_it(self, place, swept):
        out, _ = place.run("harness.status", "runs=runs")
        head, first, *_ = out.splitlines()
        assert head.split()[2] == "reusable"
        assert first.split()[:3] == ["done", str(QUESTIONS + 4), "yes"]
        assert {job["state"]: job["changed"] for job in json.loads(out.splitlines()[-1])["jobs"]} == {"done": []}


def test_force_repeats_a_finished_run_and_leaves_its_baseline(place, swept):
    folders = [folder_of(place, method) for method in ("none", "random")]
    before = [(folder / "DONE").stat().st_mtime_ns for folder in folders]
    answers = (folders[1] / "responses.jsonl").read_bytes()
    out, err = place.run("harness", *place.overrides("method=random", "keep=0.5", "force=true"))
    assert json.loads(out.splitlines()[-1]) == swept[2][0]
    assert "random-0.5: 0 of" in err
    assert "none-1.0" not in err
    assert [(folder / "DONE").stat().st_mtime_ns > then for folder, then in zip(folders, before, strict=True)] == [
        False,
        True,
    ]
    assert (folders[1] / "responses.jsonl").read_bytes() == answers


def test_another_metric_of_a_finished_run_needs_no_answers(place, swept):
    folder = folder_of(place, "random")
    metric = "tasks.metrics.tiny_stills='letters,none'"
    out, err = place.run("harness", *place.overrides("method=random", "keep=0.5", metric))
    report = json.loads(out.splitlines()[-1])
    assert "random-0.5" not in err
    assert report["scores"] == swept[2][0]["scores"]
    scores = [json.loads((folder_of(place, m) / "metrics.json").read_text())["scores"] for m in ("random", "none")]
    ratio = scores[0]["tiny_stills"]["letters,none"] / scores[1]["tiny_stills"]["letters,none"]
    assert report["relative"]["tiny_stills"] == pytest.approx(100 * ratio, abs=0.01)
    assert Result.of(folder).metrics["primary"]["tiny_stills"] == "letters,none"
    place.run("harness", *place.overrides("method=random", "keep=0.5"))
    assert Result.of(folder).metrics["primary"]["tiny_stills"] == "even,none"


def test_a_sweep_goes_on_after_a_job_that_fails(place, swept):
    (place.tasks / "tiny_broken.yaml").write_text(
        (place.tasks / "tiny_clips.yaml").read_text().replace("tiny_clips", "tiny_broken")
    )
    common = [f"model.pretrained={place.model}", f"tasks.include={place.tasks}", "runs=out", "model=qwen25vl7b"]
    try:
        out, err = place.run(
            "harness", "-m", *common, "method=random", "tasks=tiny_broken,tiny_clips", "limit=1", code=2
        )
    finally:
        (place.tasks / "tiny_broken.yaml").unlink()
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "task tiny_broken: Unable to find" in errors[0]
    assert "Traceback" not in err
    report, ended = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    assert ended == {"finished": 1, "failed": ["tasks=tiny_broken"], "runs": ["out"]}
    assert (report["model"], report["budget"]) == ("qwen25vl7b", "0.25")  # the given name, with a folder's weights
    assert (place.root / report["run"]).parts[-3:-1] == ("qwen25vl7b", "tiny_clips")
    shutil.rmtree(place.root / "out")


def test_the_table_of_all_runs(place, swept):
    out, _ = place.run("harness.tables", "runs=runs", f"csv={place.root / 'out'}")
    rows = [line.split(",") for line in (place.root / "out").read_text().splitlines()]
    fixed = ["model", "tasks", "budget", "group", "method", "lambda", "questions", "setting", "hash", "K"]
    statistics = ["low", "high", "lost", "gained", "agreement", "seeds", "seed_sd", "as_best", "untested"]
    assert rows[0] == [*fixed, "kept", "per_layer", "tiny_stills", "tiny_clips", "avg", *statistics]
    assert {(row[0], row[6]) for row in rows[1:]} == {(place.model.name, str(QUESTIONS + 4))}
    assert all(list(place.root.glob(f"runs/*/*/*-{row[8]}")) for row in rows[1:])
    assert [row[4] for row in rows[1:]] == ["baseline", "random", "idpruner"]
    assert rows[1][14] == "100.00"
    assert rows[3][5] == "0.5"
    assert json.loads(out.splitlines()[-1])["runs"] == 3
    (place.root / "out").unlink()


def test_smaller_images_are_recorded_beside_their_budget(place):
    out, _ = place.run("harness", *place.overrides("method=resize", "keep=0.5", "limit=4", runs="out"))
    kept = jsonl(folder_of(place, "resize", "out") / "kept.jsonl")
    stills = [(line["grids"], line["shown"], line["budget"], line["k"]) for line in kept[:4]]
    assert stills == [
        ([[1, 2, 2]], [[1, 1, 1]], 2, 1),  # no shape of two tokens is as square
        ([[1, 3, 3]], [[1, 2, 2]], 4, 4),
        ([[1, 2, 4]], [[1, 1, 3]], 4, 3),
        ([[1, 3, 2]], [[1, 2, 1]], 3, 2),
    ]
    assert "2.5 of 6.8 (K: 3.2)" in out
    assert "note: limit=4 asks the first questions of each task" in out
    (table,) = collect(place.root / "out")[1:]
    assert (table.tokens("budget"), table.tokens("kept")) == (3.6, 2.2)
    shutil.rmtree(place.root / "out")


def test_lmms_evals_own_command_line_gives_the_same_scores(place, swept):
    args = f"pretrained={place.model},method=idpruner,keep=0.5,method_lam=0.5,dtype=float32,min_pixels=3136"
    options = ["--model", "harness_qwen2_5_vl", "--model_args", f"{args},max_pixels=200704", "--batch_size", str(BATCH)]
    tasks = ["--tasks", "tiny_stills", "--include_path", str(place.tasks)]
    place.run("lmms_eval", *options, *tasks, "--output_path", str(place.root / "out" / "cli"))
    (file,) = place.root.glob("out/cli/*/*_results.json")
    scores = json.loads(file.read_text())["results"]["tiny_stills"]
    assert numeric(scores) == swept[2][1]["scores"]["tiny_stills"]


def test_lmms_evals_own_command_line_refuses_prompts_that_it_would_not_use(place):
    tasks = write_tiny_tasks(place.root / "asked", 2)
    with (tasks / "tiny_stills.yaml").open("a") as file:
        file.write("lmms_eval_specific_kwargs: {default: {}, qwen2_5_vl: {pre_prompt: Look.}}\n")
    options = ["--model", "harness", "--model_args", f"pretrained={place.model},dtype=float32"]
    said = place.run("lmms_eval", *options, "--tasks", "tiny_stills", "--include_path", str(tasks), code=2)
    assert "task tiny_stills has prompts for qwen2_5_vl" in "".join(said)
