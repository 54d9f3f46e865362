"""What a run does not store is found by asking again, and shown only where the same tokens are picked."""

import io

import numpy as np
import pandas as pd
import pytest
from in_process import run
from PIL import Image

from harness.core.config import validate
from harness.core.config_groups import register
from harness.core.overrides import compose
from harness.evaluation.reuse import RunContext
from harness.pocket import TASKS, order
from harness.report import gallery, images
from harness.report.answers import pack, text
from harness.report.replay import replay
from harness.results.result import collect

COUNT = 5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Runs of the embedded model whose selections are by importance, at random, inside the decoder, and by size."""
    root, context = tmp_path_factory.mktemp("replay"), RunContext()
    for method in ("idpruner", "random", "d2pruner", "resize"):
        overrides = [f"method={method}", "tasks=[pocket_text]", f"limit={COUNT}", f"runs={root}", "keep=0.25"]
        run(validate(compose("config", register(overrides))), context)
    return collect(root)


@pytest.fixture
def setting(made):
    (found,) = gallery.gather(made, None)["settings"]
    return found


def test_order_and_importance_are_those_of_the_run(made, setting):
    results = {result.hash: result for result in made}
    assert replay(setting, results) == []
    place = {results[name].method: index for index, name in enumerate(setting["runs"])}
    assert len(setting["questions"]) == COUNT
    for question in setting["questions"]:
        orders, answers = question["orders"], question["answers"]
        assert [orders[place[name]] for name in ("baseline", "random", "resize")] == [None] * 3
        for name in ("idpruner", "d2pruner"):
            picked = np.frombuffer(base64(orders[place[name]]), "<u2")
            assert text(pack(picked.tolist(), question["n"])) == answers[place[name]][3]
        levels = np.frombuffer(base64(question["importance"]), np.uint8)
        assert len(levels) == question["n"]
        first = np.frombuffer(base64(orders[place["idpruner"]]), "<u2")[0]
        assert levels[first] == levels.max() == 255  # the first pick has nothing to be like yet


def base64(data):
    from base64 import b64decode

    return b64decode(data)


def test_other_tokens_than_those_recorded_are_named_and_not_shown(made, setting):
    results = {result.hash: result for result in made}
    index = [results[name].method for name in setting["runs"]].index("idpruner")
    setting["questions"][2]["answers"][index][3] = text(pack([0], setting["questions"][2]["n"]))
    (failure,) = replay(setting, results)
    assert failure.endswith("1 selection other than recorded")
    assert [question["orders"][index] is None for question in setting["questions"]] == [
        False,
        False,
        True,
        False,
        False,
    ]


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
