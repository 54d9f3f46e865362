"""Files that are whole or as they were before, and what is said when one cannot be written or read."""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, one_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """A disk that is full, or gone, in one line."""
    try:
        yield
    except OSError as error:
        then = "once that is put right, the same command goes on from here"
        raise UserError(f"cannot write {path} ({error.strerror or one_line(error)}): {then}") from error


def write_atomic(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def append(file: Path, text: str) -> None:
    """Add to the end of a file: all of the text or, if the disk is full, nothing."""
    with writing(file):
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("a", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        except OSError:
            if file.exists():
                os.truncate(file, size)
            raise


def load(file: Path, keys: Iterable[str], remedy: str) -> dict[str, Any]:
    """A JSON object that has these keys; UserError if it is not that any more."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file} cannot be read ({one_line(error)}): {remedy}") from error
    if not isinstance(found, dict) or not set(keys) <= found.keys():
        raise UserError(f"{file} is damaged (it lacks {', '.join(keys)}): {remedy}")
    return found
