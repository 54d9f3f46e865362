"""Training data of a scorer: conversations about images, in the JSON format of LLaVA.

[{"image": "cat.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                        {"from": "gpt", "value": "A cat."}, ...]}, ...]

`image` and `video` are a path or a list of paths; they replace <image> and <video> in order.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from harness.core.errors import UserError, as_user_error
from harness.core.files import BAD_JSON, from_json, read_jsonl
from harness.models.checkpoint import content_digest
from harness.models.preprocessing import Message

ROLES = {"human": "user", "gpt": "assistant", "system": "system"}
_PLACEHOLDER = re.compile(r"\s*<(image|video)>\s*")


@dataclass(frozen=True)
class Example:
    """A conversation up to a question, and the answer."""

    messages: list[Message]
    answer: str


class Source(Protocol):
    """A sequence of conversations."""

    @property
    def digest(self) -> str:
        """A digest of the content: a training resumes only with the same data."""

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Return a conversation up to one of its answers, which `rng` chooses."""


class Conversations:
    """The conversations of a JSON or JSON-lines file; images lie in `media`, or next to the file."""

    def __init__(self, file: Path, media: Path | None, shown: Collection[str], limit: int | None = None) -> None:
        self._conversations = [
            _conversation(record, f"record {number} of {file}", media or file.parent, shown)
            for number, record in enumerate(_records(file)[:limit])
        ]
        self.digest = content_digest(file)

    def __len__(self) -> int:
        return len(self._conversations)

    def draw(self, index: int, rng: np.random.Generator) -> Example:
        """Return a conversation up to one of its answers, with the turns before it."""
        messages = self._conversations[index]
        answers = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
        answer = answers[int(rng.integers(len(answers)))]
        return Example(messages[:answer], messages[answer]["content"][0]["text"])


def _records(file: Path) -> list[Any]:
    remedy = "pass a .json or .jsonl of conversations"
    with as_user_error((OSError, *BAD_JSON), f"cannot read data={file}", remedy):
        records = list(read_jsonl(file, remedy)) if file.suffix == ".jsonl" else from_json(file.read_bytes())
    if not isinstance(records, list) or not records:
        raise UserError(f"data={file} is no list of conversations: see python -m harness.train --help")
    return records


def _conversation(record: Any, name: str, media: Path, shown: Collection[str]) -> list[Message]:
    """Return the messages of a record; UserError unless it shows an image or video and ends in an answer."""
    turns = record.get("conversations") if isinstance(record, dict) else None
    if not isinstance(turns, list) or not all(isinstance(t, dict) and {"from", "value"} <= t.keys() for t in turns):
        raise UserError(f"{name} has no conversations, a list of {{from, value}}")
    files = {kind: _files(record.get(kind), media, name) for kind in ("image", "video")}
    if unseen := [kind for kind, paths in files.items() if paths and kind not in shown]:
        raise UserError(f"{name} shows a {unseen[0]}: the model takes {' and '.join(sorted(shown))} only")
    messages: list[Message] = []
    for turn in turns:
        if turn["from"] not in ROLES:
            raise UserError(f"{name} has a turn from {turn['from']}, expected {', '.join(ROLES)}")
        messages.append({"role": ROLES[turn["from"]], "content": _content(str(turn["value"]), files, name)})
    if any(files.values()):
        raise UserError(f"{name} names more files than it has places <image> or <video> for")
    _check_turns([message for message in messages if message["role"] != "system"], name)
    return messages


def _check_turns(messages: list[Message], name: str) -> None:
    roles = [message["role"] for message in messages]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise UserError(f"{name} must go from human to gpt in turns and end with gpt, it goes {', '.join(roles)}")
    if any([part["type"] for part in answer["content"]] != ["text"] for answer in messages[1::2]):
        raise UserError(f"{name} has an answer that is no text, or empty")
    if all(part["type"] == "text" for part in messages[0]["content"]):
        raise UserError(f"{name} shows nothing in its first turn: a scorer learns from questions about images")


def _files(value: Any, media: Path, name: str) -> list[str]:
    paths = [media / str(path) for path in ([value] if isinstance(value, str) else value or [])]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{name} shows {path}, which does not exist: media= is the folder that paths start from")
    return list(map(str, paths))


def _content(text: str, files: dict[str, list[str]], name: str) -> list[Message]:
    """Split a turn into text and media; each placeholder takes the next of `files`."""
    parts: list[Message] = []
    for position, piece in enumerate(_PLACEHOLDER.split(text)):
        if position % 2:
            if not files[piece]:
                raise UserError(f"{name} has more places <{piece}> than files for them")
            parts.append({"type": piece, "url": files[piece].pop(0)})
        elif piece:
            parts.append({"type": "text", "text": piece})
    return parts
