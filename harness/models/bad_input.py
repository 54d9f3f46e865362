"""Questions that cannot be asked: images and videos that do not decode or have no usable shape, and unusable text.

Such a question is recorded as failed, with its reason, and scored as an empty answer. Errors of the program or the
machine (a bug, no memory left, a missing file) are not caught; they stop the run. Of a truncated image, the part that
decodes is shown, because lmms-eval sets Pillow to do so.
"""

import re
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from PIL import Image, UnidentifiedImageError

from harness.core.errors import UserError, one_line

# Attributes of a processor that hold the placeholder of an image or video in a prompt
PLACEHOLDERS = ("image_token", "video_token", "start_image_token", "end_image_token")
_VARIABLE_PARTS = re.compile(r" at 0x[0-9a-f]+|\[\d\d:\d\d:\d\d\] \S+: ")  # addresses of Python, times of decord


class BadInput(ValueError):  # noqa: N818  (a fault of the question, not of the program)
    """One question cannot be asked. The message is the same in every run and on every machine."""


@contextmanager
def reading(*more: type[Exception]) -> Iterator[None]:
    """Turn Pillow's errors about a damaged image, and the errors `more`, into BadInput; let all others pass."""
    try:
        yield
    except Exception as error:  # decoders have no error in common: those of others are raised again
        if isinstance(error, BadInput) or not (isinstance(error, more) or _is_decoder_error(error)):
            raise
        raise BadInput(_VARIABLE_PARTS.sub("", f"{type(error).__name__}: {one_line(error)}")) from error


def check_asked(messages: Sequence[Mapping[str, Any]]) -> None:
    """Raise BadInput if a chat has no text of the user: methods that read the question could not choose."""
    parts = [part for message in messages if message["role"] == "user" for part in message["content"]]
    if not any(part["text"].strip() for part in parts if part["type"] == "text"):
        raise BadInput("the question is empty")


def check_no_placeholder(processor: Any, conversations: Iterable[Sequence[Mapping[str, Any]]]) -> None:
    """Raise BadInput if a text contains an image placeholder: the processor would take it for an image."""
    tokens = {token for name in PLACEHOLDERS if (token := getattr(processor, name, None))}
    parts = [part for messages in conversations for message in messages for part in message["content"]]
    for text in (part["text"] for part in parts if part["type"] == "text"):
        for token in sorted(tokens):
            if token in text:
                raise BadInput(f"the question contains {token}, which stands for an image in the model's prompts")


def check_some_answered(lines: Sequence[Mapping[str, Any]]) -> None:
    """Raise UserError if every question of a task failed: the questions are then unlikely to be the cause."""
    for task in dict.fromkeys(line["task"] for line in lines):
        failures = [line.get("failed") for line in lines if line["task"] == task]
        if all(failures):
            raise UserError(f"task {task}: all {len(failures)} questions failed, the first: {failures[0]}")


def _is_decoder_error(error: Exception) -> bool:
    """Tell errors of Pillow's decoders, which are of many types, from others.

    An OSError of the operating system has a number, and running out of memory says nothing about a picture.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno is not None):
        return False
    if isinstance(error, UnidentifiedImageError | Image.DecompressionBombError):
        return True
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    return str(frame.f_globals.get("__name__")).startswith("PIL.")
