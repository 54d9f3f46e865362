"""tasks=video: each benchmark by lmms-eval's own task on data in the real columns, scored as by hand."""

import json
import os
import shutil
from fractions import Fraction

import miniature_datasets as miniatures
import miniature_videos as videos
import pytest
from composed_sweeps import composed
from in_process import run
from scripted_model import Scripted
from tiny_models import tiny_folder

from harness.core.config import TasksConfig
from harness.core.errors import UserError
from harness.core.question_sample import QuestionSample
from harness.evaluation import datasets
from harness.evaluation.task_suite import EVERY, TaskSuite
from harness.evaluation.video_tasks import SUB_TASKS
from harness.results.metrics import value

METRICS = composed("tasks=video").tasks.metrics
SEEN = {"videomme", "vinoground"}  # tested with the paper's benchmarks
LETTERS = ["A", "B.", "The best answer is: C", "A", "", "(B)", "C. a cup", "???", "A", "C", "C", "D) four"]
ANSWERS = {
    "videomme": LETTERS,
    "videomme_w_subtitle": LETTERS,
    "mvbench": [answer for n in range(20) for answer in (("A", "(B) two") if n % 2 else ("", "C"))],
    "longvideobench_val_v": [
        *("A", "The answer is B.", "(C)", "D. four", "", "no idea"),
        *("c", "D", "B", "The best option is: B", "C) three", "???"),
    ],
    "mlvu_dev": [*"ABCDAB", "", "D", "A", "C", "?", "A", "C", "no"],
    "egoschema_subset": [
        *("A", "B.", "(C)", "D", "The answer is E", ""),
        *("two", "c", "D. C counts to 3.", "E", "B", "It is B, surely"),
    ],
    "seedbench_video": ["A", "A", "C.", "D"],
}
RIGHT = {
    "videomme": Fraction(800, 12),
    "videomme_w_subtitle": Fraction(800, 12),
    "mvbench": 50,
    "longvideobench_val_v": Fraction(7, 12),
    "mlvu_dev": Fraction(100, 7) * (1 + 1 + 4 * Fraction(1, 2) + 0),  # both, both, one of two in four kinds, none
    "egoschema_subset": Fraction(7, 12),
    "seedbench_video": Fraction(3, 4),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    miniatures.disable_progress_bars()
    for write in (*videos.VIDEOS, videos.videomme, miniatures.seedbench):
        write(root)
    return root


@pytest.fixture(autouse=True)
def offline(tmp_path_factory, monkeypatch, cache, no_network):
    monkeypatch.setenv("HF_HOME", str(tmp_path_factory.getbasetemp() / "nothing"))


def suite(root, *tasks):
    config = TasksConfig(name="video", metrics={task: METRICS.get(task) for task in tasks})
    made = TaskSuite(config, data=datasets.local(config, str(root)))
    made.looked_at = Scripted.looked_at
    return made


def test_every_task_of_the_set_is_tried():
    assert {*RIGHT, *SEEN} == set(METRICS)
    assert all(METRICS.values())


@pytest.mark.parametrize("task", RIGHT)
def test_a_benchmark_is_read_asked_and_scored_as_by_hand(task, root, tmp_path):
    videos, model = suite(root, task), Scripted(ANSWERS)
    videos.check()
    metrics, each = videos.run(model, EVERY, tmp_path)
    assert value(metrics["scores"][task], METRICS[task]) == pytest.approx(float(RIGHT[task]), abs=6e-6)
    assert metrics["questions"] == {task: len(ANSWERS[task])} == {task: len(each[task]["doc_id"])}
    record = metrics["noise"][task][METRICS[task]]
    assert record["from"] == "units"
    assert len(record["clusters"]) == len(set(each[task]["picture"]))
    content, _ = model.asked[task][0]
    assert {part["type"] for part in content[:-1]} == ({"image"} if task == "seedbench_video" else {"video"})


def test_a_whole_run_of_a_model_goes_through_every_task(root, tmp_path, monkeypatch):
    """All but Vinoground, which has 2,000 questions; the answers are noise."""
    monkeypatch.setattr("harness.evaluation.generation.MAX_NEW_TOKENS", 2)
    tasks = [task for task in METRICS if task != "vinoground"]
    call = [
        f"model.pretrained={tiny_folder(tmp_path)}",
        "method=random",
        "keep=0.5",
        "limit=2",
        f"runs={tmp_path}/runs",
    ]
    call += [f"tasks=[{','.join(tasks)}]", f"data_root={root}", "model.max_frames=4", "model.max_pixels=6272"]
    folder, _ = run(composed(*call, "model.min_pixels=784", "model.device=cpu", "model.dtype=float32"))
    metrics = json.loads((folder.path / "metrics.json").read_text())
    assert metrics["questions"] == dict.fromkeys(tasks, 2)
    assert metrics["failed"] == dict.fromkeys(tasks, 0)
    assert all(0 < counts["kept"] < counts["all"] for counts in metrics["visual_tokens"].values())


def test_subtitles_are_part_of_the_question_and_must_have_been_unpacked(root, tmp_path):
    model = Scripted(ANSWERS)
    suite(root, "videomme_w_subtitle").run(model, QuestionSample(4), tmp_path)
    first, *_, last = (content[-1]["text"] for content, _ in model.asked["videomme_w_subtitle"])
    assert first.startswith("This video's subtitles are listed below: \ncup 1\ncup 2\n")
    assert last.startswith("This video's subtitles are listed below: \nNo subtitles available\n")
    videos.videomme(tmp_path)
    (tmp_path / "Video-MME" / "subtitle").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lacks subtitle, which task videomme_w_subtitle reads: unpack the archives"):
        suite(tmp_path, "videomme_w_subtitle")
    suite(tmp_path, "videomme")


def test_mvbench_is_all_of_its_sub_tasks(root, tmp_path):
    whole, model = suite(root, "mvbench"), Scripted(ANSWERS)
    _, each = whole.run(model, EVERY, tmp_path)
    records = each["mvbench"]["mvbench_accuracy,none"]
    assert [record["sub_task"] for record in records] == [name for name in SUB_TASKS for _ in range(2)]
    task = suite(root, "mvbench_scene_transition").load("mvbench_scene_transition")
    assert task.doc_to_messages(task.task_docs[1])[0]["content"] == model.asked["mvbench"][21][0]
    assert set(SUB_TASKS) == set(task.config.process_results.__closure__[0].cell_contents.__globals__["DATA_LIST"])


@pytest.mark.parametrize("name", ["mvbench", "mvbench_action_count"])
def test_an_empty_answer_of_mvbench_counts(name, root, tmp_path):
    """lmms-eval divides by the answers that are not empty, so that a model which says nothing can have 100."""
    metrics, _ = suite(root, name).run(Scripted({name: ["A"] + [""] * 39}), QuestionSample(2), tmp_path)
    assert metrics["scores"][name] == {"mvbench_accuracy,none": 50}


def test_frames_in_folders_are_refused(tmp_path):
    videos.mvbench(tmp_path)
    file = next(tmp_path.rglob("episodic_reasoning.mp4"))
    file.unlink()
    file.mkdir()
    with pytest.raises(UserError, match=r"is a folder of frames, MVBench is read as files: copy its branch video"):
        suite(tmp_path, "mvbench").check()


@pytest.mark.parametrize("task", ["longvideobench_val_v", "egoschema_subset"])
def test_no_answer_is_drawn(task, root, tmp_path):
    for _ in range(3):
        metrics, _ = suite(root, task).run(Scripted({task: ["?"] * 12}), EVERY, tmp_path)
        assert value(metrics["scores"][task], METRICS[task]) == 0


def test_a_limit_of_mlvu_averages_over_the_kinds_that_were_asked(root, tmp_path):
    metrics, _ = suite(root, "mlvu_dev").run(Scripted(ANSWERS), QuestionSample(4), tmp_path)
    assert metrics["scores"]["mlvu_dev"] == {"mlvu_percetion_score,none": 100}


def test_without_hf_home_mlvu_is_read_where_lmms_eval_unpacks_it(root, tmp_path, monkeypatch):
    """Its code looks in ./~/.cache/huggingface then."""
    import datasets as library

    load_dataset = library.load_dataset
    monkeypatch.delenv("HF_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(library, "load_dataset", lambda path, **more: load_dataset(str(root / path), **more))
    place = tmp_path / ".cache" / "huggingface" / "mlvu"
    place.parent.mkdir(parents=True)
    os.symlink(root / "sy1998" / "MLVU_dev", place)
    task = TaskSuite(TasksConfig(metrics={"mlvu_dev": None})).load("mlvu_dev")
    assert task.doc_to_visual(task.task_docs[0]) == [str(place / "clip0.mp4")]


MISSING = {
    "egoschema_subset": "egoschema/videos/clip7.mp4",
    "longvideobench_val_v": "longvideobench/LongVideoBench/videos/clip2.mp4",
    "mlvu_dev": "sy1998/MLVU_dev/clip3.mp4",
    "mvbench": "OpenGVLab/MVBench/scene_qa/video/scene_transition.mp4",
}


@pytest.mark.parametrize("task", MISSING)
def test_a_video_that_is_missing_shows_before_the_model_runs(task, root, tmp_path):
    shutil.copytree(root, tmp_path / "copy")
    file = tmp_path / "copy" / MISSING[task]
    file.unlink()
    with pytest.raises(UserError, match=rf"task {task}: .*{file.name}"):
        suite(tmp_path / "copy", task).check()


def test_the_rest_of_egoschema_has_no_labels_here(tmp_path):
    videos.egoschema(tmp_path)
    card = tmp_path / "egoschema" / "README.md"
    card.write_text(card.read_text().replace("config_name: Subset", "config_name: GENERATION"))
    with pytest.raises(UserError, match="has no labels, it only writes a file to submit"):
        TaskSuite(TasksConfig(metrics={"egoschema": None}), data={"egoschema": tmp_path / "egoschema"}).check()
