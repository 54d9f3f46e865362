"""Local copies of data sets: found however they were downloaded, named when missing, part of a run's identity."""

import json
import shutil

import miniature_datasets as miniatures
import pytest
from composed_sweeps import composed
from fork_server import completed
from miniature_files import INT, TEXT, Dataset, write
from tiny_models import tiny_folder

from harness.core.config import TasksConfig
from harness.core.errors import UserError
from harness.evaluation import datasets
from harness.evaluation.preflight import locate
from harness.evaluation.run_plan import plan
from harness.evaluation.task_suite import TaskSuite


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    for benchmark in (miniatures.pope, miniatures.mme, miniatures.ocrbench, miniatures.seedbench, miniatures.videomme):
        benchmark(root)
    return root


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_folder(tmp_path_factory.mktemp("model"))


def where(root, *tasks):
    return datasets.local(TasksConfig(metrics=dict.fromkeys(tasks)), root if isinstance(root, dict) else str(root))


@pytest.mark.parametrize(
    "place", ["POPE", "lmms-lab-encoder/POPE", "lmms-lab/POPE", "datasets--lmms-lab--POPE/snapshots/0a1b"]
)
def test_a_copy_is_found_as_it_was_downloaded(place, root, tmp_path):
    shutil.copytree(root / "POPE", tmp_path / place)
    if place.startswith("datasets--"):
        (tmp_path / "datasets--lmms-lab--POPE" / "refs").mkdir()
        (tmp_path / "datasets--lmms-lab--POPE" / "refs" / "main").write_text("0a1b")
    assert where(tmp_path, "pope") == {"pope": tmp_path / place}


def test_each_task_may_have_a_folder_of_its_own(root):
    assert where({"pope": str(root / "POPE")}, "pope", "mme") == {"pope": root / "POPE"}  # the other from the Hub


def test_tasks_that_bring_their_data_need_no_copy(root):
    config = composed("tasks=pocket_existence").tasks
    assert datasets.local(config, str(root)) == {}


@pytest.mark.parametrize(
    ("place", "tasks", "message"),
    [
        ("", ["pope", "ai2d"], r"no copy of lmms-lab-encoder/ai2d \(task ai2d\) in data_root=.*: .* tasks=ai2d to="),
        ("nowhere", ["pope"], "no copy of lmms-lab-encoder/POPE"),
        ({"pope": "/nowhere"}, ["pope"], "no data set of task pope in /nowhere"),
        ({"mme": "/x"}, ["pope"], "data_root has a folder for mme, but the tasks are pope"),
    ],
)
def test_a_copy_that_is_missing_is_named(place, tasks, message, root):
    with pytest.raises(UserError, match=message):
        where(place if isinstance(place, dict) else root / place, *tasks)


def test_archives_that_were_not_unpacked_are_named(root, tmp_path):
    shutil.copytree(root / "Video-MME", tmp_path / "Video-MME")
    shutil.rmtree(tmp_path / "Video-MME" / "data")
    with pytest.raises(UserError, match="lacks data, which task videomme reads: unpack the archives of the data set"):
        where(tmp_path, "videomme")


@pytest.mark.parametrize("value", ["3", "[a,b]", "{pope: 3}"])
def test_a_data_root_that_is_no_folder_is_refused(value):
    with pytest.raises(UserError, match="data_root must be a folder or"):
        composed(f"data_root={value}")


def identity(model, *overrides):
    config = composed(f"model.pretrained={model}", "method=random", *overrides)
    return plan(locate(config)).runs[-1].folder.identity


def test_a_run_is_identified_by_what_its_data_are_and_not_by_where(root, model, tmp_path):
    one = identity(model, "tasks=pope", f"data_root={root}")
    shutil.copytree(root / "POPE", tmp_path / "elsewhere" / "lmms-lab" / "POPE")
    moved = tmp_path / "elsewhere"
    assert identity(model, "tasks=pope", f"data_root={moved}") == one
    assert identity(model, "tasks=pope", f"data_root={{pope: {moved / 'lmms-lab' / 'POPE'}}}") == one
    assert identity(model, "tasks=pope") != one
    (moved / "lmms-lab" / "POPE" / ".cache").write_text("what a download leaves behind")
    datasets.fingerprint.cache_clear()
    assert identity(model, "tasks=pope", f"data_root={moved}") == one
    file = next(moved.rglob("*.parquet"))
    file.write_bytes(file.read_bytes() + b"\0")
    datasets.fingerprint.cache_clear()
    assert identity(model, "tasks=pope", f"data_root={moved}") != one


def test_what_scores_a_task_and_whose_prompts_it_has_count(root, model, monkeypatch):
    from harness.evaluation import task_overrides
    from harness.models.qwen25vl import Qwen25VL

    one, other = (identity(model, f"tasks={task}", f"data_root={root}") for task in ("ocrbench", "mme"))
    assert one["tasks"]["scoring"] is not None
    assert other["tasks"]["scoring"] is None  # by lmms-eval alone
    monkeypatch.setattr(task_overrides, "SCORING", task_overrides.SCORING + 1)
    assert identity(model, "tasks=ocrbench", f"data_root={root}") != one
    assert identity(model, "tasks=mme", f"data_root={root}") == other
    monkeypatch.setattr(Qwen25VL, "prompts", "qwen3_vl")
    assert identity(model, "tasks=mme", f"data_root={root}") != other


def test_changed_rows_are_read_although_name_and_card_are_the_same(root, tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    asked = []
    for word in ("dog", "cat"):
        folder = tmp_path / word
        miniatures.pope(folder)
        rows = Dataset.from_parquet(str(next(folder.rglob("*.parquet"))), cache_dir=str(tmp_path / "rows"))
        rows = rows.map(lambda row, word=word: {"question": f"Is there a {word}?"})
        rows.to_parquet(next(folder.rglob("*.parquet")))
        suite = TaskSuite(TasksConfig(metrics={"pope": None}), data=where(folder, "pope"))
        asked.append(suite.load("pope").task_docs[0]["question"])
    assert asked == ["Is there a dog?", "Is there a cat?"]


READING = """
from datasets import load_dataset


def process_docs(rows):
    words = load_dataset("owner/Things", "words", split="test", token=True)
    return rows.map(lambda row, place: {"word": words[place]["word"]}, with_indices=True)


def text(doc):
    import datasets

    return doc["word"] + datasets.load_dataset("former-owner/Things", "words", split="test")[0]["word"]


def process_results(doc, results):
    from huggingface_hub import hf_hub_download, snapshot_download

    folder, file = snapshot_download("owner/Things"), hf_hub_download(repo_id="owner/Things", filename="README.md")
    return {"same": float(file == folder + "/README.md")}
"""


def test_a_task_s_own_code_reads_the_copy_wherever_it_asks_for_it(tmp_path, monkeypatch):
    monkeypatch.setattr("lmms_eval.api.task._resolve_hf_datasets_cache_dir", lambda: str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    word = {"word": TEXT}
    write(tmp_path / "Things", "test", {"number": INT}, [{"number": 1}, {"number": 2}], "numbers")
    write(tmp_path / "Things", "test", word, [{"word": "one"}, {"word": "two"}], "words")
    (tmp_path / "utils.py").write_text(READING)
    (tmp_path / "things.yaml").write_text(
        "task: things\ndataset_path: owner/Things\ndataset_name: numbers\ntest_split: test\n"
        "output_type: generate_until\nprocess_docs: !function utils.process_docs\n"
        "doc_to_text: !function utils.text\ndoc_to_target: word\nprocess_results: !function utils.process_results\n"
        "metric_list: [{metric: same, aggregation: mean, higher_is_better: true}]\n"
    )
    config = TasksConfig(include=str(tmp_path), metrics={"things": None})
    suite = TaskSuite(config, data=datasets.local(config, str(tmp_path)))
    suite.check()
    task = suite.load("things")
    assert suite.messages(task, task.task_docs[1])[0]["content"][-1]["text"] == "twoone"
    assert task.process_results(task.task_docs[1], ["two"]) == {"same": 1.0}


@pytest.mark.usefixtures("fork_server")
def test_the_command_runs_real_tasks_on_local_copies(root, model, tmp_path):
    call = ["harness", f"model.pretrained={model}", "tasks=[mme,ocrbench,seedbench,videomme]"]
    call += ["method=random", "keep=0.5", "limit=2", f"data_root={root}", "model.batch_size=1"]
    done = completed(tmp_path, *call)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert {task: sorted(scores) for task, scores in report["scores"].items()} == {
        "mme": ["mme_perception_score,none"],
        "ocrbench": ["ocrbench_accuracy,none"],
        "seedbench": ["seed_all,none", "seed_image,none"],
        "videomme": ["videomme_perception_score,none"],
    }
    metrics = json.loads((tmp_path / report["run"] / "metrics.json").read_text())
    assert metrics["questions"] == dict.fromkeys(report["scores"], 2)
    assert all(0 < counts["kept"] < counts["all"] for counts in metrics["visual_tokens"].values())
