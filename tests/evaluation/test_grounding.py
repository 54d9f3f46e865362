"""tasks=grounding: a box in each family's coordinates is scored by lmms-eval as the same box, and recorded."""

import json
from types import SimpleNamespace

import miniature_datasets as miniatures
import pytest
from composed_sweeps import composed
from PIL import Image
from tiny_families import tiny

from harness.core.config import ModelConfig, TasksConfig, shipped
from harness.core.errors import UserError
from harness.evaluation import datasets, grounding
from harness.evaluation.lmms_model import PrunedModel, Request, _first_picture
from harness.evaluation.pruner import Pruner
from harness.evaluation.task_suite import EVERY, TaskSuite
from harness.models import adapter_class, adapter_for
from harness.models.loading import Loaded
from harness.results.response_log import ResponseLog
from methods.budget import Budget
from methods.none import KeepAll
from methods.random import Random

TASKS = list(composed("tasks=grounding").tasks.metrics)
IOU = "refcoco_ACC@0.5,none"
# The first two questions ask for (16, 24, 80, 48) of 160 x 120: from 0.1 and 0.2 to 0.6 and 0.6 of the picture.
TARGET = [0.1, 0.2, 0.6, 0.6]
ANSWERS = {  # of the target, as a family says it; and what that is in shares of the picture
    # resized to 168 x 112: 17 / 168, 22 / 112, 101 / 168, 67 / 112
    "qwen2_5_vl": ('[{"bbox_2d": [17, 22, 101, 67], "label": "square"}]', [0.10119, 0.196429, 0.60119, 0.598214]),
    "qwen2_vl": ("square(100,200),(600,600)", TARGET),
    "qwen3_vl": ('```json\n[{"bbox_2d": [100, 200, 600, 600]}]\n```', TARGET),
    "internvl": ("<ref>square</ref><box>[[100, 200, 600, 600]]</box>", TARGET),
    # of the middle 120 x 120 of the picture: its left edge is 20 / 160, and 0.63 of it is 75.6 more
    "llava": ("[0, 0.2, 0.63, 0.6]", [0.125, 0.2, 0.5975, 0.6]),
    "llava_next": ("[0.1, 0.2, 0.6, 0.6]", TARGET),
    "llava_onevision": ("[0.1, 0.2, 0.6, 0.6]", TARGET),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("miniatures")
    miniatures.disable_progress_bars()
    miniatures.refcoco(root)
    return root


@pytest.fixture(autouse=True)
def short_answers(monkeypatch, cache):
    monkeypatch.setattr("harness.evaluation.generation.MAX_NEW_TOKENS", 2)  # which are not read


def suite_of(root, task):
    config = composed("tasks=grounding").tasks
    config = TasksConfig(name="grounding", metrics={task: config.metrics[task]})
    return TaskSuite(config, data=datasets.local(config, str(root)))


def answered(family, answers, root, tmp_path, monkeypatch, task=TASKS[0], method=None, sample=EVERY):
    """Return metrics, values, and lines of responses and kept tokens of a tiny model that says `answers`."""
    model, processor = tiny(family)
    left = iter(answers)
    monkeypatch.setattr(processor, "batch_decode", lambda tokens, **_: [next(left) for _ in tokens], raising=False)
    sized = (
        {"min_pixels": 784, "max_pixels": 784 * 64} if "qwen" in family else dict.fromkeys(("min_pixels", "max_pixels"))
    )
    config = ModelConfig(name="tiny", pretrained="tiny", max_frames=None, **sized)
    suite, log = suite_of(root, task), ResponseLog(tmp_path)
    pruner = Pruner(method or KeepAll(), "m", Budget(keep=0.5 if method else 1.0))
    loaded = Loaded(model, processor, config, tmp_path)
    asking = PrunedModel(loaded, pruner, {}, log, verify=False, looked_at=suite.looked_at)
    metrics, each = suite.run(asking, sample, tmp_path)
    return metrics, each[task], list(log.responses.values()), list(log.kept.values())


@pytest.mark.parametrize("family", ANSWERS)
def test_a_family_s_box_is_scored_in_shares_of_the_picture(family, root, tmp_path, monkeypatch):
    answer, box = ANSWERS[family]
    answers = [answer, "There is no such square.", "", "?", "?", "?"]
    metrics, each, responses, kept = answered(family, answers, root, tmp_path, monkeypatch, method=Random())
    assert [line["response"] for line in responses] == answers  # as the model said it
    assert responses[0]["box"] == pytest.approx(box, abs=1e-6)
    assert [line["box"] for line in responses[1:]] == [None] * 5
    assert metrics["scores"][TASKS[0]][IOU] == pytest.approx(1 / 6)
    records = each[IOU]
    assert records[0]["pred"] == pytest.approx(box, abs=1e-6)
    assert kept[0]["target"] == kept[1]["target"] == pytest.approx(TARGET, abs=1e-6)
    assert kept[0].get("view") == (pytest.approx([0.125, 0, 0.875, 1]) if family == "llava" else None)
    assert 0 < len(kept[0]["kept"]) < kept[0]["n"]


def test_without_a_box_every_metric_is_zero_also_where_the_target_is_in_the_corner(root, tmp_path, monkeypatch):
    """lmms-eval reads no box as four zeros, whose centre lies in a target that begins at the corner."""
    wrong = [
        "no",
        "[0.6, 0.2, 0.1, 0.6]",
        "",
        "[0, 0, 0, 0]",
        f"[0, 0, {'9' * 400}, 1]",
        "<think>[0.2, 0.1, 0.3, 0.9]</think> no",
    ]
    metrics, *_ = answered("qwen3_vl", wrong, root, tmp_path, monkeypatch)
    assert set(metrics["scores"][TASKS[0]].values()) == {0.0}
    task = suite_of(root, TASKS[0]).load(TASKS[0])
    assert task.process_results(task.task_docs[2], [""])[IOU.partition(",")[0]]["bbox"][:2] == [0, 0]


def test_lmms_eval_divides_by_zero_at_a_box_with_exchanged_corners(root):
    task = suite_of(root, TASKS[0]).load(TASKS[0])
    found = task.process_results(task.task_docs[2], ["[0.25, 0, 0, 0.25]"])["refcoco_IoU"]
    with pytest.raises(ZeroDivisionError):
        task.aggregation()["refcoco_IoU"]([found])


def test_what_is_said_after_reasoning_counts(root, tmp_path, monkeypatch):
    answers = ["<think>[[0, 0, 900, 900]]?</think>[100, 200, 600, 600]"] * 6
    metrics, _, responses, _ = answered("internvl", answers, root, tmp_path, monkeypatch)
    assert responses[0]["box"] == TARGET
    assert metrics["scores"][TASKS[0]][IOU] == pytest.approx(2 / 6)


def test_the_control_resize_answers_in_pixels_of_its_smaller_picture(root, tmp_path, monkeypatch):
    from methods.resize import Resize

    answers = ["[8, 11, 50, 34]"] + ["-"] * 5
    _, _, responses, kept = answered("qwen2_5_vl", answers, root, tmp_path, monkeypatch, method=Resize())
    ((_, rows, columns),) = kept[0]["shown"]
    assert (rows, columns) < (4, 6)
    width, height = 28 * columns, 28 * rows
    assert responses[0]["box"] == pytest.approx([8 / width, 11 / height, 50 / width, 34 / height], abs=1e-6)


@pytest.mark.parametrize("answer", ["[0, 0, 0.000000001, 0.000000001]", "[0, 0, 1000000, 1000000]"])
def test_a_box_that_has_no_area_or_is_endless_in_shares_is_none(answer):
    """The first would be scored as four zeros, the second be more than a line of responses.jsonl may hold."""
    shown = SimpleNamespace(size=None, do_pad=True, pad_size={"width": 512, "height": 512})
    about = Image.new("RGB", (10, 10)), None, adapter_for(tiny("llava")[0]), SimpleNamespace(image_processor=shown)
    assert grounding.answer_fields(TASKS[0], answer, *about) == {"box": None}
    assert grounding.answer_fields(TASKS[0], "[0, 0, 0.5, 1]", *about) == {"box": [0.0, 0.0, 25.6, 51.2]}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_of_the_set_is_asked_and_scored_with_an_interval(task, root, tmp_path, monkeypatch):
    answers = [
        "[100, 200, 600, 600]",
        "[300, 200, 600, 600]",
        "-",
        "[750, 500, 1000, 1000]",
        "-",
        "[200, 100, 260, 900]",
    ]
    metrics, each, *_ = answered("qwen3_vl", answers, root, tmp_path, monkeypatch, task=task)
    assert metrics["primary"] == {task: IOU}
    # overlaps: 1, 0.3 / 0.5, none, 1, none, 0.06 / 0.1
    scores = metrics["scores"][task]
    assert scores[IOU] == pytest.approx(4 / 6)
    assert scores["refcoco_ACC@0.7,none"] == pytest.approx(2 / 6)
    assert scores["refcoco_IoU,none"] == pytest.approx((1 + 0.6 + 1 + 0.6) / 6, abs=1e-6)
    assert {record["from"] for record in metrics["noise"][task].values()} == {"units"}
    assert (
        len(set(metrics["noise"][task][IOU]["clusters"])) == 4
    )  # pictures; two questions about one are not independent
    json.dumps([metrics, each], allow_nan=False)


def test_rows_are_read_in_parts_as_lmms_eval_reads_them_at_once(root, monkeypatch):
    whole = suite_of(root, TASKS[0]).load(TASKS[0]).task_docs
    monkeypatch.setattr("harness.evaluation.task_overrides.PART", 3)
    parts = suite_of(root, TASKS[0]).load(TASKS[0]).task_docs
    assert parts.features == whole.features
    assert [dict(row, image=row["image"].tobytes()) for row in parts] == [
        dict(row, image=row["image"].tobytes()) for row in whole
    ]


def test_a_family_whose_coordinates_are_unknown_is_refused_before_it_is_asked():
    family = adapter_class("llavaonevision1_5")
    with pytest.raises(
        UserError, match=r"unknown: set LlavaOnevision15.coordinates to one of shares, thousandths, pix"
    ):
        grounding.unit_of(family)


ROW = {"bbox": [56, 28, 112, 84], "image_width": 224, "image_height": 112}


def a_task(name, metadata=None):
    return SimpleNamespace(config=SimpleNamespace(task=name, metadata=metadata))


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        (a_task("pocket_places"), True),
        (a_task("blank_places", [{"version": 1.0}]), True),
        (a_task(TASKS[0]), True),
        (a_task("my_places", [{"version": 1.0}]), False),
        (a_task("mine", [{"version": 1.0}, {"asks_where": True}]), True),
        (a_task("mine", {"asks_where": True}), True),
        (a_task("mine", "a text"), False),
        (a_task("mine"), False),
        (a_task("pocket_places", [{"asks_where": False}]), False),
    ],
)
def test_a_task_declares_that_it_asks_where(task, expected):
    assert grounding.asks_where(task) is expected


def test_a_declaration_that_is_neither_true_nor_false_is_refused():
    with pytest.raises(UserError, match="task mine: asks_where in its metadata must be true or false, got 'bbox'"):
        grounding.asks_where(a_task("mine", {"asks_where": "bbox"}))


MINE = """
include: {folder}/_default_yaml
task: mine
dataset_kwargs: {{data_files: {{test: {folder}/data/places.parquet}}}}
process_results: !function {folder}/utils.exact
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
"""


@pytest.mark.parametrize("declared", [False, True])
def test_targets_of_a_task_of_one_s_own_are_recorded_where_it_declares_them(declared, tmp_path):
    text = MINE.format(folder=shipped("harness://pocket/clip_tasks"))
    (tmp_path / "mine.yaml").write_text(text + "metadata: [{version: 1.0, asks_where: true}]\n" * declared)
    suite = TaskSuite(TasksConfig(name="mine", include=str(tmp_path), metrics={"mine": None}))
    config = ModelConfig(name="tiny", pretrained="tiny", min_pixels=784, max_pixels=784 * 64, max_frames=None)
    log = ResponseLog(tmp_path)
    loaded, pruner = Loaded(*tiny("qwen2_5_vl"), config, tmp_path), Pruner(KeepAll(), "m", Budget(keep=1.0))
    model = PrunedModel(loaded, pruner, {}, log, verify=False, looked_at=suite.looked_at)
    model.generate_until(suite.requests(suite.load("mine"), range(2), model))
    assert ["target" in line for line in log.kept.values()] == [declared] * 2


def test_an_embedded_task_says_its_target_in_pixels():
    assert grounding.target_of("pocket_places", ROW) == (0.25, 0.25, 0.5, 0.75)
    fields = grounding.target_fields("clip_places", ROW, Image.new("RGB", (224, 112)), tiny("qwen2_5_vl")[1])
    assert fields == {"target": [0.25, 0.25, 0.5, 0.75]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"bbox": [1, 2, 3, 4]}, "task places asks where, so its rows need image_width, got bbox"),
        ({**ROW, "bbox": None}, "need bbox"),
        ({**ROW, "bbox": [1, 2, 3]}, r"bbox must be left, top, right, bottom, got \[1.0, 2.0, 3.0\]"),
        ({**ROW, "bbox": [56, 28, 56, 84]}, "has no part in a picture"),
        ({**ROW, "bbox": [300, 28, 400, 84]}, "has no part in a picture of 224.0 x 112.0"),
        ({**ROW, "bbox": [0, 0, float("nan"), 1]}, "bbox must be"),
    ],
)
def test_a_target_that_is_none_is_refused(row, message):
    with pytest.raises(UserError, match=message):
        grounding.target_of("places", row)


@pytest.mark.parametrize(("shown", "got"), [([], "none"), ([{"type": "video", "url": "clip.mp4"}], "video first")])
def test_a_question_that_asks_where_needs_a_picture(shown, got):
    content = [{"type": "text", "text": "Which cell?"}, *shown]
    asked = Request("key", "my_places", 3, lambda: [{"role": "user", "content": content}], "", {})
    with pytest.raises(UserError, match=f"task my_places asks where, so question 3 needs a picture, got {got}"):
        _first_picture(asked)
