"""Runs record picking order and importance for some questions of each task, which the gallery then shows."""

import io
import json
import shutil
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
from composed_sweeps import composed
from in_process import run
from PIL import Image
from run_folders import sealed_again
from transformers.utils import logging

from harness.core.overrides import compose
from harness.evaluation import records
from harness.pocket import TASKS, order
from harness.report import gallery, images
from harness.report.answers import pack, text
from harness.report.build import build
from harness.results.result import collect

COUNT, DETAILED = 5, 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of the embedded model whose selections are by importance, at random, inside the decoder, and by size."""
    root = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "DETAILED", DETAILED)
        for method in ("idpruner", "random", "d2pruner", "resize"):
            overrides = [f"method={method}", "tasks=[pocket_text]", f"limit={COUNT}", f"runs={root}", "keep=0.25"]
            run(composed(*overrides))
    return collect(root)


def kept_lines(result):
    return [json.loads(line) for line in (result.folder / "kept.jsonl").read_text().splitlines()]


@pytest.fixture
def setting(made):
    (found,) = gallery.gather(made, None)["settings"]
    return found


def test_every_run_of_a_sweep_records_the_same_questions(made):
    of_method = {result.method: kept_lines(result) for result in made}
    recorded = {
        method: {key: [line["doc_id"] for line in lines if key in line] for key in ("order", "importance")}
        for method, lines in of_method.items()
    }
    chosen = recorded["idpruner"]["order"]
    assert len(chosen) == DETAILED
    assert recorded["idpruner"]["importance"] == recorded["d2pruner"]["order"] == chosen
    for method in ("baseline", "random", "resize"):
        assert recorded[method] == {"order": [], "importance": []}
    for line in of_method["idpruner"] + of_method["d2pruner"]:
        assert sorted(line.get("order", line["kept"])) == line["kept"]
        assert len(b64decode(line.get("importance", ""))) in (0, line["n"])


def test_the_gallery_shows_what_the_runs_recorded(made, setting):
    results = {result.hash: result for result in made}
    place = {results[name].method: index for index, name in enumerate(setting["runs"])}
    runs = {result.method: result for result in made}
    assert len(setting["questions"]) == COUNT
    recorded = [question for question in setting["questions"] if "orders" in question]
    assert len(recorded) == DETAILED == sum("importance" in question for question in setting["questions"])
    for question in recorded:
        orders, answers = question["orders"], question["answers"]
        assert [orders[place[name]] for name in ("baseline", "random", "resize")] == [None] * 3
        for name in ("idpruner", "d2pruner"):
            picked = np.frombuffer(b64decode(orders[place[name]]), "<u2")
            (line,) = (it for it in kept_lines(runs[name]) if it["doc_id"] == question["doc_id"])
            assert picked.tolist() == line["order"]
            assert text(pack(picked.tolist(), question["n"])) == answers[place[name]][3]
        levels = np.frombuffer(b64decode(question["importance"]), np.uint8)
        assert len(levels) == question["n"]
        first = np.frombuffer(b64decode(orders[place["idpruner"]]), "<u2")[0]
        assert levels[first] == levels.max() == 255  # the first pick has nothing to be like yet


@pytest.mark.parametrize(("per_task", "candidates"), [(1, DETAILED), (DETAILED, DETAILED), (DETAILED + 1, COUNT)])
def test_the_gallery_chooses_among_recorded_questions_if_they_suffice(made, per_task, candidates):
    (setting,) = gallery.gather(made, per_task)["settings"]
    assert (len(setting["questions"]), setting["candidates"], setting["answered"]) == (per_task, candidates, COUNT)
    assert sum("orders" in question for question in setting["questions"]) >= min(per_task, DETAILED - 1)


def test_runs_without_order_and_importance_are_shown_as_they_are(made, tmp_path):
    shutil.copytree(made[0].folder.parents[2], tmp_path / "runs")
    for file in (tmp_path / "runs").rglob("kept.jsonl"):
        lines = [json.loads(line) for line in file.read_text().splitlines()]
        older = [{key: line[key] for key in line if key not in ("order", "importance")} for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in older))
        sealed_again(file.parent)
    (setting,) = gallery.gather(collect(tmp_path / "runs"), 2)["settings"]
    assert setting["candidates"] == setting["answered"] == COUNT
    assert [set(question) for question in setting["questions"]] == [{"task", "doc_id", "n", "grids", "answers"}] * 2


def test_the_gallery_shows_what_each_cut_left(made, tmp_path):
    """As a method with a schedule writes it: here idpruner's tokens, and twice as many after an earlier layer."""
    shutil.copytree(made[0].folder.parents[2], tmp_path / "runs")
    stages = {}
    for result in collect(tmp_path / "runs"):
        if result.method == "idpruner":
            lines = kept_lines(result)
            for line in lines:
                early = sorted({*line["kept"], *range(0, line["n"], 2)})
                line["stages"] = [{"layer": 3, "kept": early}, {"layer": 7, "kept": line["kept"]}]
                stages[line["doc_id"]] = [
                    (3, len(early), text(pack(early, line["n"]))),
                    (7, line["k"], text(pack(line["kept"], line["n"]))),
                ]
            (result.folder / "kept.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            sealed_again(result.folder)
    results = collect(tmp_path / "runs")
    methods = {result.hash: result.method for result in results}
    (setting,) = gallery.gather(results, None)["settings"]
    for question in setting["questions"]:
        shown = dict(zip((methods[name] for name in setting["runs"]), question["stages"], strict=True))
        assert shown.pop("idpruner") == stages[question["doc_id"]]
        assert not any(shown.values())


def test_detailed_questions_depend_on_task_and_document_alone():
    questions = [(task, doc) for task in ("a", "b") for doc in range(100)]
    chosen = records.detailed(questions)
    assert [sum(task == name for task, _ in chosen) for name in ("a", "b")] == [32, 32]
    assert (
        chosen
        == records.detailed(reversed(questions))
        == records.detailed(questions[:100]) | records.detailed(questions[100:])
    )
    assert records.detailed(questions[:7]) == set(questions[:7])
    assert {doc for task, doc in chosen if task == "a"} != {doc for task, doc in chosen if task == "b"}


def test_pictures_are_what_the_model_was_shown(made, setting):
    kept = []
    assert images.illustrate(setting, made[0].about["config"], lambda it: kept.append(it) or "address") == []
    rows = pd.read_parquet(TASKS / "data" / "text.parquet")
    for place, (question, picture) in enumerate(zip(setting["questions"], kept, strict=True)):
        row = rows.iloc[order(len(rows))[place]]
        assert (question["text"], question["target"]) == (row["question"], row["answer"])
        (grid,) = question["grids"]
        assert picture.size == (28 * grid[2], 28 * grid[1])
        original = Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")
        assert np.abs(np.asarray(picture, int) - np.asarray(original, int)).max() <= 1


def test_other_data_than_the_runs_saw_is_named(made, setting):
    setting["questions"][1]["grids"] = [[1, 2, 2]]
    (missing,) = images.illustrate(setting, made[0].about["config"], lambda it: "address")
    assert "pocket, pocket_text: task pocket_text shows" in missing


def test_a_processor_that_pads_is_shown_with_its_margin():
    config = {
        "model": {"name": "pocket_llava", "pretrained": "harness://pocket/weights_llava"},
        "tasks": {"name": "text", "include": "harness://pocket/tasks", "metrics": {"pocket_text": None}},
    }
    questions = images.Questions(config)
    assert questions.suite.prompts == "llava"  # as the run was asked
    (asked,) = questions.ask("pocket_text", [(0, [[1, 16, 16]])])
    rows = pd.read_parquet(TASKS / "data" / "text.parquet")
    original = Image.open(io.BytesIO(rows.iloc[order(len(rows))[0]]["image"]["bytes"])).convert("RGB")
    (picture,) = asked.pictures
    assert picture.size == (448, 448)
    inside = np.asarray(picture, int)[: original.height, : original.width]
    assert np.abs(inside - np.asarray(original, int)).max() <= 1


def test_the_frames_of_a_video_are_shown_without_a_warning(caplog):
    verbosity = logging.get_verbosity()
    logging.set_verbosity_warning()  # as in a new process
    logging.enable_propagation()
    logging.warning_once.cache_clear()
    try:
        config = {
            "model": {"name": "pocket", "pretrained": "harness://pocket/weights"},
            "tasks": {"name": "video", "include": "harness://pocket/tasks", "metrics": {"pocket_video": None}},
        }
        questions = images.Questions(config)
        (asked,) = questions.ask("pocket_video", [(7, [[3, 16, 16]])])
    finally:
        logging.disable_propagation()
        logging.set_verbosity(verbosity)
    assert len(asked.pictures) == 3
    assert not [record for record in caplog.records if record.name.startswith("transformers")]


def test_the_page_says_among_which_questions_it_chose(made, tmp_path):
    where = [f"runs={made[0].folder.parents[2]}", f"out={tmp_path / 'page.html'}", "pictures=false"]
    for questions, says in ((2, True), (COUNT - 1, False)):
        build(compose("report", [*where, f"questions={questions}"]))
        page = (tmp_path / "page.html").read_text()
        assert f"{questions} of {COUNT} questions" in page
        assert ("They come from the 3 whose picking order or importance was recorded." in page) == says
        assert '"orders"' in page
