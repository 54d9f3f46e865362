"""Questions that cannot be asked: pictures and videos that do not decode or have no usable shape, and empty text.

Such a question is recorded as failed, with its reason, and scored as an empty answer. What is wrong with the program
or the machine (a bug, a full memory, a file that is not there) is none of it, and stops the run. A picture that is
only cut short is shown as far as it goes: lmms-eval tells Pillow so.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

from harness.core.errors import UserError, one_line

_CHANGING = re.compile(r" at 0x[0-9a-f]+|\[\d\d:\d\d:\d\d\] \S+: ")  # addresses of Python's, times of decord's


class BadInput(Exception):  # noqa: N818  (the question's, not the program's)
    """What is wrong with one question; the same words whenever and wherever it is asked."""


@contextmanager
def reading(*more: type[Exception]) -> Iterator[None]:
    """Raise BadInput for what Pillow says of a damaged picture, and for the errors `more`; let all others pass."""
    try:
        yield
    except Exception as error:
        if not (isinstance(error, more) or _says_pillow(error)):
            raise
        raise BadInput(_CHANGING.sub("", f"{type(error).__name__}: {one_line(error)}")) from error


def check_asked(messages: Sequence[Mapping[str, Any]]) -> None:
    """BadInput if a chat asks nothing: methods that read the question could not even choose."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    if not any(part["text"].strip() for part in parts if part["type"] == "text"):
        raise BadInput("the question is empty")


def check_some_answered(lines: Sequence[Mapping[str, Any]]) -> None:
    """UserError if every question of a task failed: then there is nothing to score, and the cause is another."""
    for task in dict.fromkeys(line["task"] for line in lines):
        found = [line.get("failed") for line in lines if line["task"] == task]
        if all(found):
            raise UserError(f"task {task}: all {len(found)} questions failed, the first: {found[0]}")


def _says_pillow(error: Exception) -> bool:
    """True for errors of a decoder; the system's have a number, the compiler's a file, those of libraries a type."""
    if isinstance(error, SyntaxError):
        return error.filename is None
    if isinstance(error, OSError) and error.errno is None and type(error) is OSError:
        return True
    return isinstance(error, UnidentifiedImageError | Image.DecompressionBombError)
