"""Files that are whole or as they were before, and what is said when one cannot be written or read."""

import hashlib
import json
import os
import re
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


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that a reader, or a crash, sees the old one or the new one and nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(content.encode() if isinstance(content, str) else content)
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


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def slug(name: str) -> str:
    """A name as one path component."""
    return re.sub(r"[^\w.+-]+", "-", Path(name).name)


def check_place(folder: Path, key: str = "runs") -> None:
    """UserError unless `folder` can be made and written to; makes nothing."""
    place = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not place.is_dir():
        raise UserError(f"{key}={folder} cannot be made: {place} is a file")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} cannot be written: no permission in {place}")


def to_json(value: Any) -> str:
    """JSON for people and diffs: indented, ending in a newline; NaN is an error."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
