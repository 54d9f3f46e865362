"""Which questions are learned: conversations as they stand in a file, dealt out so that every process knows its own."""

import json
from collections import Counter

import numpy as np
import pytest
from conversations import write_conversations
from PIL import Image

from harness.core.distributed import Processes
from harness.core.errors import UserError
from harness.pocket.draw import OTHER_SEED, PROBE_SEED, SUITE_SEED
from harness.pocket.questions import SEED, DrawnClips, DrawnQuestions
from harness.train.conversations import Conversations
from harness.train.sampler import Sampler

BOTH = {"image", "video"}
TURN = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]


@pytest.fixture
def folder(tmp_path):
    for name in ("a.png", "b.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def read(folder, *records, shown=BOTH, name="data.json", **more):
    file = folder / name
    lines = [json.dumps(record) for record in records]
    file.write_text("\n".join(lines) if name.endswith("l") else f"[{','.join(lines)}]")
    return Conversations(file, None, shown, **more)


def answers(source, index, draws=40):
    return [source.draw(index, np.random.default_rng(seed)) for seed in range(draws)]


@pytest.mark.parametrize("name", ["data.json", "data.jsonl"])
def test_images_take_their_places(folder, name):
    turns = [
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "<image> or\n<image>\nWhich?"},
        TURN[1],
    ]
    source = read(folder, {"image": ["a.png", "b.png"], "conversations": turns}, name=name)
    (found,) = {repr(example) for example in answers(source, 0)}
    example = source.draw(0, np.random.default_rng(0))
    assert repr(example) == found
    assert example.answer == "A cat."
    assert [message["role"] for message in example.messages] == ["system", "user"]
    assert example.messages[1]["content"] == [
        {"type": "image", "url": str(folder / "a.png")},
        {"type": "text", "text": "or"},
        {"type": "image", "url": str(folder / "b.png")},
        {"type": "text", "text": "Which?"},
    ]


def test_one_of_several_answers_is_drawn_and_those_before_it_are_shown(folder):
    more = [{"from": "human", "value": "Sure?"}, {"from": "gpt", "value": "Yes."}]
    source = read(folder, {"image": "a.png", "conversations": [*TURN, *more]})
    drawn = {example.answer: [m["role"] for m in example.messages] for example in answers(source, 0)}
    assert drawn == {"A cat.": ["user"], "Yes.": ["user", "assistant", "user"]}


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"image": "a.png"}, r"record 1 of .*data.json has no conversations"),
        ({"image": "c.png", "conversations": TURN}, r"shows .*c.png, which does not exist: media= is the folder"),
        ({"conversations": TURN}, r"has more places <image> than files"),
        ({"image": ["a.png", "b.png"], "conversations": TURN}, r"names more files than it has places"),
        ({"image": "a.png", "conversations": TURN[:1]}, r"must go from human to gpt in turns .* it goes user"),
        ({"image": "a.png", "conversations": TURN[::-1]}, r"it goes assistant, user"),
        ({"image": "a.png", "conversations": [{"from": "bot", "value": "<image>"}]}, r"a turn from bot"),
        ({"conversations": [{"from": "human", "value": "Hi"}, TURN[1]]}, r"shows nothing in its first turn"),
        ({"image": "a.png", "conversations": [TURN[0], {"from": "gpt", "value": ""}]}, r"an answer that is no text"),
        ({"video": "a.png", "conversations": TURN}, r"shows a video: the model takes image only"),
    ],
)
def test_what_is_no_conversation_about_an_image_is_named(folder, record, message):
    with pytest.raises(UserError, match=message):
        read(folder, {"image": "a.png", "conversations": TURN}, record, shown={"image"})
    assert len(read(folder, {"image": "a.png", "conversations": TURN}, record, shown={"image"}, limit=1)) == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"a": 1}'])
def test_what_is_no_list_is_one_line(folder, text):
    (folder / "data.json").write_text(text)
    with pytest.raises(UserError, match=r"data=.*data\.json"):
        Conversations(folder / "data.json", None, BOTH)


def test_each_turn_shows_every_conversation_once_but_those_held_out(tmp_path):
    source = Conversations(write_conversations(tmp_path / "data", 11), None, BOTH)
    sampler = Sampler(source, 3, 4, 42, Processes())
    held_out = [pictures(example) for example in sampler.held_out()]
    first, second = (Counter(pictures(e) for step in steps for e in sampler.step(step)) for steps in ((0, 1), (2, 3)))
    assert len(set(held_out)) == 3
    assert first == second == dict.fromkeys(set(first), 1)
    assert set(first) | set(held_out) == {str(tmp_path / "data" / f"{i}.png") for i in range(11)}
    assert list(map(pictures, sampler.step(0))) != list(map(pictures, sampler.step(2)))
    assert sampler.held_out() == sampler.held_out()


@pytest.mark.parametrize("count", [2, 3])
def test_processes_share_a_step(tmp_path, count):
    source = Conversations(write_conversations(tmp_path / "data", 11), None, BOTH)
    whole = Sampler(source, 3, 5, 42, Processes())
    shares = [Sampler(source, 3, 5, 42, Processes(rank, rank, count)) for rank in range(count)]
    for step in range(4):
        parts = [share.step(step) for share in shares]
        assert sorted(repr(example) for part in parts for example in part) == sorted(map(repr, whole.step(step)))
        assert max(map(len, parts)) - min(map(len, parts)) <= 1


def pictures(example):
    return next(part["url"] for part in example.messages[0]["content"] if part["type"] == "image")


@pytest.mark.parametrize("source", [DrawnQuestions, DrawnClips])
def test_the_pocket_models_learn_from_scenes_that_nobody_is_asked_about(source):
    assert SEED not in (SUITE_SEED, OTHER_SEED, PROBE_SEED)
    drawn = source(30, {"image"})
    assert len(drawn) == 30
    for index in range(5):
        one, again = (drawn.draw(index, np.random.default_rng(1)) for _ in range(2))
        assert one.answer == again.answer
        media, question = one.messages[0]["content"]
        assert (media["type"], question["type"]) == ("image", "text")
        assert media["url"].tobytes() == again.messages[0]["content"][0]["url"].tobytes()
    kinds = {
        example.messages[0]["content"][0]["type"]
        for index in range(30)
        for example in [source(30, BOTH).draw(index, np.random.default_rng(0))]
    }
    assert kinds == BOTH
