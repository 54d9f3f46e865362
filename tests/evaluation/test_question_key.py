"""The key of an answer: a digest of the run's identity and of the question as the model sees it."""

import hashlib
from pathlib import Path
from types import MethodType, SimpleNamespace

import pytest
from PIL import Image

from harness.core.files import digest
from harness.evaluation.lmms_model import PrunedModel, Request, _numbered, _seed
from harness.models.preprocessing import messages_digest

ASKED = {
    "task": "t",
    "doc_id": 0,
    "turn": 0,
    "repeat": 0,
    "words": "Which?",
    "role": "user",
    "pixels": 0,
    "generation": {"max_new_tokens": 4},
    "film": b"frames",
    "identity": {"seed": 0},
}
OTHERS = {
    "task": "u",
    "doc_id": 1,
    "turn": 1,
    "repeat": 1,
    "words": "Which one?",
    "role": "system",
    "pixels": 1,
    "generation": {"max_new_tokens": 4, "temperature": 0.5},
    "film": b"others",  # as many bytes under the same name
    "identity": {"seed": 1},
}


def of_a_task(name, messages):
    """Return the method of a task by which lmms-eval asks for the messages of a question."""
    task = SimpleNamespace(config=SimpleNamespace(task=name, metadata=None))
    return MethodType(lambda task, doc: messages, task)


def key_of(folder: Path, asked: dict) -> str:
    file = folder / "film.mp4"
    file.write_bytes(asked["film"])
    parts = [
        {"type": "image", "url": Image.new("RGB", (4, 4), (asked["pixels"], 0, 0))},
        {"type": "video", "url": str(file)},
        {"type": "text", "text": asked["words"]},
    ]
    model = PrunedModel(SimpleNamespace(device="cpu"), None, asked["identity"])
    model.task_dict = {task: {"test": dict.fromkeys(range(2))} for task in ("t", "u")}
    messages = [{"role": asked["role"], "content": parts}]
    args = ("", of_a_task(asked["task"], messages), asked["generation"], asked["doc_id"], asked["task"], "test")
    return model._request(SimpleNamespace(args=args, idx=asked["turn"]), asked["repeat"]).key


def test_images_that_differ_in_their_palette_alone_have_two_keys():
    images = [Image.new("P", (4, 4)) for _ in range(2)]
    for image, level in zip(images, (0, 255), strict=True):
        image.putpalette([level] * 768)
    asked = [[{"role": "user", "content": [{"type": "image", "url": image}]}] for image in images]
    assert messages_digest(asked[0]) != messages_digest(asked[1])


def test_repeats_have_keys_and_seeds_of_their_own_and_the_first_has_those_of_a_task_without_repeats(tmp_path):
    asked = [ASKED, {**ASKED, "doc_id": 1}, {**ASKED, "task": "u"}]
    instances = [SimpleNamespace(args=("", None, {}, a["doc_id"], a["task"], "test"), idx=0) for a in asked]
    order = [0, 0, 1, 1, 1, 2, 0]  # the same objects again and again, as lmms-eval passes them
    assert [repeat for _, repeat in _numbered([instances[i] for i in order])] == [0, 1, 0, 1, 2, 0, 2]
    assert len({key_of(tmp_path, {**ASKED, "repeat": repeat}) for repeat in range(8)}) == 8
    requests = [Request("k", "t", 7, list, None, {}, repeat=repeat) for repeat in range(3)]
    first = hashlib.sha256(b"3 t 7").digest()[:7]
    assert _seed(3, requests[0]) == int.from_bytes(first, "big")
    assert len({_seed(3, request) for request in requests}) == 3
    assert [request.name.get("repeat") for request in requests] == [None, 1, 2]


def test_the_key_of_a_question_is_that_of_earlier_runs(tmp_path):
    """An unfinished run goes on only if its keys stay what they were."""
    model = PrunedModel(SimpleNamespace(device="cpu"), None, {"seed": 0})
    model.task_dict = {"t": {"test": [None]}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Which?"}]}]
    args = ("", of_a_task("t", messages), {"max_new_tokens": 4}, 0, "t", "test")
    instance = SimpleNamespace(args=args, idx=0)
    parts = [digest({"seed": 0}), "t", 0, 0, messages_digest(messages), {"max_new_tokens": 4}]
    assert model._request(instance).key == digest(parts)


@pytest.mark.parametrize("what", ASKED)
def test_all_that_is_asked_is_in_the_key(what, tmp_path):
    before = key_of(tmp_path, ASKED)
    assert key_of(tmp_path, {**ASKED, what: OTHERS[what]}) != before
    assert key_of(tmp_path, ASKED) == before
