"""The suite of photographs: what is drawn, what is asked about it, what the committed files hold, how they load."""

import io
import json
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import yaml
from composed_sweeps import composed
from in_process import run
from PIL import Image

from harness.core.config import TasksConfig, conf
from harness.core.errors import UserError
from harness.evaluation.task_suite import TaskSuite
from harness.pocket import PHOTO_TASKS
from harness.pocket.photo import assets, scenes
from harness.pocket.photo.questions import ask
from harness.pocket.photo.scenes import CLUTTER, GRID, PATCH, SIDE, SIGN, TEST, TRAIN, UNSEEN, Scene, Thing, draw
from harness.pocket.photo.suite import CHOICES, ROWS
from harness.pocket.photo.words import CODES, COLORS, CORNERS, GROUP_OF, LETTERS, NUMBERS, SIGNS, THINGS

CHANCE = {"existence": 1 / 2, "counting": 1 / 4, "where": 1 / 4, "color": 0.17, "reading": 1 / 20}
CHANCE |= dict.fromkeys(("what", "beside"), 12 / 300)


def rows_of(split):
    rows = pd.read_parquet(PHOTO_TASKS / "data" / f"{split}.parquet")
    rows["picture"] = [image["bytes"] for image in rows["image"]]
    return rows


@pytest.mark.parametrize("split", [TRAIN, TEST, UNSEEN])
def test_a_scene_is_a_function_of_its_seed_and_its_labels_lie_where_its_things_are(drawn_assets, split):
    for seed in range(12):
        scene, again = (draw(np.random.default_rng(seed), split) for _ in range(2))
        assert scene.image.tobytes() == again.image.tobytes()
        assert scene.image.size == (SIDE, SIDE)
        named = [thing for thing in scene.things if thing.name]
        for thing in named:
            at = min(GRID - 1, int(thing.y // PATCH)) * GRID + min(GRID - 1, int(thing.x // PATCH))
            assert scene.middle[at]
            assert scene.shows[at] == THINGS.index(thing.name)
        centres = (np.arange(GRID) + 0.5) * PATCH
        for index in np.flatnonzero(scene.shows >= 0):
            x, y = centres[index % GRID], centres[index // GRID]
            name = THINGS[scene.shows[index]]
            assert any(abs(t.x - x) <= t.size and abs(t.y - y) <= t.size for t in named if t.name == name)
        assert (scene.shows[scene.letters >= 0] == SIGN).all()
        signs = [thing.sign for thing in scene.things if thing.sign]
        assert {LETTERS[i] for i in scene.letters[scene.letters >= 0]} <= set("".join(signs))
        assert bool((scene.shows == CLUTTER).any()) <= any(t.name is None and not t.sign for t in scene.things)
        painted = {t.color for t in named} - {None}
        assert {list(COLORS)[i] for i in scene.colors[scene.colors >= 0]} == painted


def test_signs_and_colours_are_drawn(drawn_assets):
    many = [draw(np.random.default_rng(seed)) for seed in range(60)]
    assert 10 <= sum(any(t.sign for t in s.things) for s in many) <= 30
    assert any((s.letters >= 0).any() for s in many)
    assert any((s.colors >= 0).any() for s in many)


def scene_of(*things):
    nothing = np.full(GRID * GRID, -1, np.int8)
    return Scene(Image.new("RGB", (SIDE, SIDE)), things, nothing, nothing, nothing, nothing > 0)


def test_questions_about_a_known_scene():
    dog, cat, key = Thing("dog", 40, 40, 40), Thing("cat", 180, 44, 40), Thing("key", 45, 150, 30, "green")
    cars = [Thing("car", 90, 210, 40, "red"), Thing("car", 120, 205, 30, "blue")]
    sign = Thing(None, 112, 112, 90, sign="TAXI")
    asked = ask(scene_of(dog, cat, key, *cars, sign), np.random.default_rng(0))
    answers = {q.text: q.answer for q in asked}
    assert len(answers) == len(asked)
    assert answers["How many times does the car appear?"] == "two"
    assert answers["Where is the dog?"] == "top-left"
    assert "Where is the car?" not in answers  # there are two
    assert "What color is the car?" not in answers
    assert answers["What is at the top-right?"] == "cat"
    assert answers["What is right of the dog?"] == "cat"
    assert answers["What color is the key?"] == "green"
    assert answers["What does the sign say?"] == "taxi"
    assert "What is above the dog?" not in answers


def test_no_question_is_asked_where_the_answer_is_a_matter_of_taste():
    near_the_middle = scene_of(Thing("dog", SIDE / 2 + 5, 40, 40), Thing("cat", 180, 180, 40))
    assert not [q for q in ask(near_the_middle, np.random.default_rng(0)) if q.text in ("Where is the dog?",)]
    diagonal = scene_of(Thing("dog", 40, 40, 40), Thing("cat", 150, 151, 40))
    assert not [q for q in ask(diagonal, np.random.default_rng(0)) if q.task == "beside"]


def test_what_is_not_there_is_often_of_the_same_group():
    hard = total = 0
    for seed in range(40):
        for q in ask(scene_of(Thing("dog", 40, 40, 40), Thing("apple", 180, 44, 40)), np.random.default_rng(seed)):
            name = q.text.removeprefix("Is there any ").removesuffix("?")
            if q.task == "existence" and q.answer == "no":
                hard, total = hard + (GROUP_OF[name] in ("animals", "food")), total + 1
    assert hard / total > 0.9


@pytest.mark.parametrize("split", [TEST, UNSEEN])
def test_the_committed_questions_are_balanced_and_their_pictures_stored_once(split):
    rows = rows_of(split)
    assert rows.groupby("task").size().to_dict() == dict.fromkeys(CHOICES, ROWS[split])
    for task, answers in rows.groupby("task")["answer"]:
        assert set(answers) <= set(CHOICES[task][0])
        most = answers.value_counts(normalize=True).max()
        assert most <= CHANCE[task] * (1 if task != "color" else 1.01) + 1e-9, (task, most)
    pictures = rows["picture"].unique()
    assert all(Image.open(io.BytesIO(data)).size == (SIDE, SIDE) for data in pictures[::20])
    assert (PHOTO_TASKS / "data" / f"{split}.parquet").stat().st_size < 1.1 * sum(map(len, pictures))
    assert max(Counter(zip(rows["picture"], rows["task"], rows["question"], strict=True)).values()) == 1


def test_the_files_hold_no_more_than_15_mb_and_share_no_picture():
    sizes = [file.stat().st_size for file in (PHOTO_TASKS / "data").iterdir()]
    assert sum(sizes) < 15e6
    pictures = [set(rows_of(split)["picture"]) for split in (TEST, UNSEEN, "scenes")]
    assert len(set.union(*pictures)) == sum(map(len, pictures))


def test_the_words_of_a_question_do_not_give_its_answer_away():
    rows = rows_of(TEST)
    for task in ("existence", "counting", "where", "color"):  # asked about the same thing, no answer is the rule
        part = rows[rows["task"] == task]
        thing = part["question"].str.extract(r"(\S+?)(?: appear)?\?$")[0]
        best = sum(part["answer"][thing == name].value_counts().max() for name in thing.unique())
        spread = {"existence": 0.68, "counting": 0.55, "where": 0.5, "color": 0.4}[task]
        assert best / len(part) < spread, (task, best / len(part))


@pytest.mark.parametrize("suite", ["photo", "photo_unseen", "photo_blank"])
def test_the_suites_load_through_lmms_eval(suite):
    settings = yaml.safe_load(conf("tasks", f"{suite}.yaml").read_text())
    assert settings["name"] == suite
    tasks = TaskSuite(TasksConfig(**settings))
    tasks.check()
    for name in settings["metrics"]:
        task = tasks.load(name)
        docs = task.task_docs
        assert len(docs) == ROWS[UNSEEN if suite == "photo_unseen" else TEST]
        assert set(docs["task"]) == {name.rpartition("_")[2]}
        ((media, text),) = (message["content"] for message in tasks.messages(task, docs[0]))
        assert text["text"] == docs[0]["question"]
        assert (np.ptp(np.asarray(media["url"])) == 0) == (suite == "photo_blank")


def test_without_the_packages_the_one_line_says_which_script_fetches_them(monkeypatch):
    monkeypatch.setattr(assets, "emoji", assets.emoji.__wrapped__)
    for folder in ("", "/nowhere"):
        monkeypatch.setenv(assets.FOLDER, folder)
        with pytest.raises(UserError, match=r"scripts/photo_assets\.sh"):
            assets.emoji("fluent", CODES["dog"])


def test_every_answer_is_a_word_of_its_own():
    words = [*THINGS, *COLORS, *CORNERS, *NUMBERS, *(sign.lower() for sign in SIGNS), "yes", "no"]
    repeated = {word for word, times in Counter(words).items() if times > 1}
    assert repeated == {"bus"}  # a thing, and a word on signs
    assert scenes.SMALLEST < PATCH  # things down to one token


def test_the_shipped_model_answers_and_cannot_from_random_tokens(tmp_path):
    tasks = [f"photo_{name}" for name in CHOICES]
    sweep = ["model=pocket_photo", "method=random", "keep=0.1", "limit=10", "verify=false"]
    sweep += [f"tasks=[{','.join(tasks)}]"]
    folder, baseline = run(composed(*sweep, f"runs={tmp_path}"))
    read = [json.loads((place.path / "metrics.json").read_text())["scores"] for place in (baseline, folder)]
    whole, few = ([scores[task]["accuracy,none"] for task in tasks] for scores in read)
    assert np.mean(whole) >= 0.7  # of 2,100 questions, docs/photo.md has it
    assert np.mean(few) <= np.mean(whole) - 0.2
