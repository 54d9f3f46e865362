"""Read and write files: atomic writes, appends that succeed or change nothing, and one-line errors."""

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, as_user_error, one_line


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a UserError."""
    try:
        yield
    except OSError as error:
        remedy = "once that is put right, the same command goes on from here"
        raise UserError(f"cannot write {path} ({error.strerror or one_line(error)}): {remedy}") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers and crashes leave either the old or the new content, never a part of it."""
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
    """Append to a file: the whole text or, if the disk is full, nothing."""
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
    """Read a JSON object with these keys; UserError if the file is unreadable or a key is missing."""
    with as_user_error((OSError, ValueError), f"{file} cannot be read", remedy):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise UserError(f"{file} is damaged (it lacks {', '.join(keys)}): {remedy}")
    return content


def read_jsonl(file: Path, remedy: str) -> Iterator[Any]:
    """Yield the JSON value in each line that is not blank; a UserError names a line that is damaged.

    Lines end at a newline alone: answers may hold other separators, at which `str.splitlines` would cut them in two.
    """
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            with as_user_error(ValueError, f"{file} is damaged in line {number}", remedy):
                if line.strip():
                    yield json.loads(line)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def slug(name: str) -> str:
    """Return a name as a single path component."""
    return re.sub(r"[^\w.+-]+", "-", Path(name).name)


def expanded(path: str | Path) -> Path:
    """Return a path with `~` or `~user` at its beginning written out; UserError if there is no such home folder."""
    with as_user_error(RuntimeError, f"cannot find the home folder in {path}", "write the whole path"):
        return Path(path).expanduser()


def check_place(folder: Path, key: str = "runs") -> None:
    """Raise UserError unless `folder` can be created and written to; creates nothing."""
    folders = (folder.absolute(), *folder.absolute().parents)
    existing = next(path for path in folders if path.exists() or path.is_symlink())
    if not existing.is_dir():
        kind = "a file" if existing.exists() else "a link that leads nowhere"
        raise UserError(f"{key}={folder} cannot be made: {existing} is {kind}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} cannot be written: no permission in {existing}")


def check_parent(file: Any, key: str) -> None:
    """Raise a UserError unless the folder of `file` exists; None is no file."""
    if file is not None and not (folder := Path(str(file)).parent).is_dir():
        raise UserError(f"cannot write {key}={file}: there is no folder {folder}")


def to_json(value: Any) -> str:
    """Return indented JSON that ends in a newline; NaN is an error."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
