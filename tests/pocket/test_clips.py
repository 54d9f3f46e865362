"""The suites `clips` and `places`: what is drawn, what repeats, what the questions alone give away, how they load."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import yaml
from composed_sweeps import composed
from in_process import run
from PIL import Image

from harness.core.config import TasksConfig, conf
from harness.evaluation.grounding import target_of
from harness.evaluation.task_suite import TaskSuite
from harness.pocket import CLIP_TASKS
from harness.pocket.clips import COLUMNS, KINDS, SCENERY
from harness.pocket.data import CLIPS
from harness.pocket.scenes import TOKEN
from harness.pocket.words import COLORS, SHAPES

VIDEOS = [name for name in CLIPS if name != "places"]
CHANCE = {"order": 1 / 2, "around": 1 / 2, "ends": 1 / 10, "times": 1 / 4, "turns": 1 / 10, "places": 6 / 240}


def rows_of(name):
    return pd.read_parquet(CLIP_TASKS / "data" / f"{name}.parquet")


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png["bytes"])).convert("RGB"))


def changed(frames):
    """Which tokens differ from the same place one step before, [steps - 1, rows, columns]."""
    steps = np.stack(frames[::2])
    differs = (steps[1:] != steps[:-1]).any(-1)
    t, height, width = differs.shape
    return differs.reshape(t, height // TOKEN, TOKEN, width // TOKEN, TOKEN).any((2, 4))


@pytest.mark.parametrize("name", ["order", "turns", "places"])
def test_the_committed_questions_are_those_that_are_drawn(name):
    committed, drawn = rows_of(name), CLIPS[name]()
    assert [(row.question, row.answer) for row in committed.itertuples()] == [(q.text, q.answer) for _, q in drawn]
    picture = committed.iloc[7]["frames"][-1] if name in VIDEOS else committed.iloc[7]["image"]
    assert np.array_equal(pixels(picture), np.asarray(drawn[7][0].frames[-1]))


@pytest.mark.parametrize("name", VIDEOS)
def test_a_clip_has_8_to_16_frames_and_what_happens_lasts_whole_steps(name):
    for frames in rows_of(name)["frames"]:
        assert len(frames) in range(8, 17, 2)
        assert all(a["bytes"] == b["bytes"] for a, b in zip(frames[::2], frames[1::2], strict=True))


@pytest.mark.parametrize("name", VIDEOS)
def test_most_tokens_repeat(name):
    """At least 70 of 100 tokens are pixel for pixel those of the step before."""
    moved = [changed([pixels(png) for png in frames]).mean() for frames in rows_of(name)["frames"].iloc[::12]]
    assert 0 < np.mean(moved) < 0.3, np.mean(moved)
    print(f"{name}: {1 - np.mean(moved):.1%} of the tokens repeat")  # docs/pocket.md has these


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "places"])
def test_what_happens_is_coloured_and_rare_and_the_scenery_stays(kind):
    for seed in range(5):
        scene = KINDS[kind](np.random.default_rng(seed))
        steps = len(scene.frames) // 2
        seen = {mark.words: sum(other.words == mark.words for other in scene.marks) for mark in scene.marks}
        for (color, _), times in seen.items():
            assert times >= steps - 1 if color in SCENERY else times <= 4


@pytest.mark.parametrize("name", CLIPS)
def test_answers_are_balanced_so_that_chance_is_known(name):
    rows = rows_of(name)
    assert len(rows) == 240
    assert rows["answer"].value_counts(normalize=True).max() <= CHANCE[name] + 1e-9
    if name in ("ends", "turns"):
        colors, shapes = (rows[rows["answer"].isin(words)]["answer"].value_counts() for words in (COLORS, SHAPES))
        assert set(colors) == {24}
        assert set(shapes) == {15}
    if name in ("order", "around"):  # the words of a question do not give its answer away
        word = rows["question"].str.extract(r"(before|after|A\. the \w+)")[0]
        assert (rows["answer"].groupby(word).value_counts(normalize=True).groupby(level=0).max() < 0.75).all()


def test_the_cell_of_a_place_is_the_token_at_the_middle_of_its_box():
    for row in rows_of("places").to_dict("records"):
        left, top, right, bottom = row["bbox"]
        column, line = int((left + right) / 2 // TOKEN), int((top + bottom) / 2 // TOKEN)
        assert row["answer"] == f"{COLUMNS[column]}{line + 1}"
        assert (row["image_width"], row["image_height"]) == Image.open(io.BytesIO(row["image"]["bytes"])).size
        shares = target_of("pocket_places", row)
        assert 0 <= shares[0] < shares[2] <= 1
        assert 0 <= shares[1] < shares[3] <= 1


@pytest.mark.parametrize("suite", ["pocket_clips", "pocket_places", "pocket_clips_blank", "pocket_places_blank"])
def test_the_suites_load_through_lmms_eval(suite):
    settings = yaml.safe_load(conf("tasks", f"{suite}.yaml").read_text())
    assert settings["name"] == suite
    tasks = TaskSuite(TasksConfig(**settings))
    tasks.check()
    for name in settings["metrics"]:
        task = tasks.load(name)
        doc = task.task_docs[0]
        ((media, text),) = (message["content"] for message in tasks.messages(task, doc))
        assert text["text"] == doc["question"]
        shown = media["url"] if isinstance(media["url"], list) else [media["url"]]
        blank = {np.asarray(frame).tobytes() for frame in shown}
        assert media["type"] == ("image" if "places" in suite else "video")
        assert (len(blank) == 1 and np.ptp(np.asarray(shown[0])) == 0) == suite.endswith("_blank")


def test_the_shipped_model_answers_and_cannot_from_a_tenth_of_the_tokens(tmp_path):
    tasks = [f"pocket_{name}" for name in CLIPS]
    sweep = ["model=pocket_clip", "method=random", "keep=0.1", f"tasks=[{','.join(tasks)}]", "limit=8", "verify=false"]
    folder, baseline = run(composed(*sweep, f"runs={tmp_path}"))
    read = [json.loads((place.path / "metrics.json").read_text())["scores"] for place in (baseline, folder)]
    whole, few = ([scores[task]["accuracy,none"] for task in tasks] for scores in read)
    assert min(whole) >= 0.75  # of 240 questions, 0.93 at least
    assert np.mean(whole) >= 0.9
    assert np.mean(few) <= np.mean(whole) - 0.3
