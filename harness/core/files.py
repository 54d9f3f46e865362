"""Read and write files and JSON: atomic writes, appends that succeed or change nothing, and one-line errors.

All JSON of the project is written here: NaN and infinity, which are no JSON, never enter it.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pydantic_core

from harness.core.errors import UserError, as_user_error, one_line

LOST_LOCKS: dict[Path, str] = {}  # locks that another process has taken from this one, and why; see `locks.py`


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as a full disk, into a UserError; refuse to write after this process has lost a lock."""
    for reason in LOST_LOCKS.values():
        raise UserError(reason)
    try:
        yield
    except OSError as error:
        remedy = "once that is put right, the same command goes on from here"
        raise UserError(f"cannot write {path} ({error.strerror or one_line(error)}): {remedy}") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write a file so that readers and crashes leave either the old or the new content, never a part of it.

    The file behind a link is written, and what is no regular file is refused: a device would be replaced.
    """
    with writing(path):
        path = Path(os.path.realpath(path)) if path.is_symlink() else path
        if path.exists() and not path.is_file():
            raise UserError(f"cannot write {path}, which is {_kind(path)}: name a file")
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with temporary.open("wb") as stream:
                stream.write(utf8(content) if isinstance(content, str) else content)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:  # also an interrupt: nothing half-written stays
            temporary.unlink(missing_ok=True)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def append(file: Path, text: str, sync: bool = True) -> None:
    """Append to a file: the whole text or, if the disk is full, nothing.

    Without `sync` the text survives the process, and the machine only once the system has written it.
    """
    with writing(file):
        size = file.stat().st_size if file.exists() else 0
        try:
            with file.open("ab") as stream:
                stream.write(utf8(text))
                stream.flush()
                if sync:
                    os.fsync(stream.fileno())
        except OSError:
            if file.exists():
                os.truncate(file, size)
            raise


def sync(file: Path) -> None:
    """Wait until what was written to a file is on the disk."""
    with writing(file), file.open("rb") as stream:
        os.fsync(stream.fileno())


def utf8(text: str) -> bytes:
    """Encode text as UTF-8; halves of surrogate pairs, which it lacks, become escapes, as JSON has them, too."""
    return text.encode("utf-8", "backslashreplace")


BAD_JSON = (ValueError, RecursionError)  # what `from_json` raises; the latter for lists nested thousands deep


def from_json(text: str | bytes) -> Any:
    """Parse JSON; NaN and infinity, which `json.loads` lets pass, are a ValueError."""
    try:
        return pydantic_core.from_json(text, allow_inf_nan=False)  # several times as fast
    except ValueError:  # also for halves of surrogate pairs, which are JSON
        return json.loads(text, parse_constant=_refuse_constant)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def load(file: Path, keys: Iterable[str], remedy: str) -> dict[str, Any]:
    """Read a JSON object with these keys; UserError if the file is unreadable or a key is missing."""
    with as_user_error((OSError, *BAD_JSON), f"{file} cannot be read", remedy):
        content = from_json(file.read_bytes())
    if not isinstance(content, dict) or not set(keys) <= content.keys():
        raise UserError(f"{file} is damaged (it lacks {', '.join(keys) or 'a JSON object'}): {remedy}")
    return content


def read_jsonl(file: Path, remedy: str, fault: Callable[[Any], str | None] = lambda value: None) -> Iterator[Any]:
    """Yield the JSON value in each line that is not blank; a UserError names a line that is damaged or has a `fault`.

    Lines end at a newline alone: answers may hold other separators, at which `str.splitlines` would cut them in two. A
    carriage return in front of the newline, as editors on Windows leave it, is a space to JSON.
    """
    with as_user_error(OSError, f"{file} cannot be read"), file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            if not line.strip():
                continue
            try:  # millions of lines: a context manager for each would take as long as parsing it
                value = from_json(line)
            except BAD_JSON:
                with as_user_error(BAD_JSON, f"{file} is damaged in line {number}", remedy):
                    raise
            if (wrong := fault(value)) is not None:
                raise UserError(f"{file} is damaged in line {number} ({wrong}); {remedy}")
            yield value


def from_jsonl(content: bytes) -> list[Any]:
    """Parse lines of JSON, which end as for `read_jsonl`."""
    return [from_json(line) for line in content.split(b"\n") if line.strip()]


def to_json(value: Any) -> str:
    """Return indented JSON that ends in a newline; NaN is an error."""
    return json_line(value, indent=1) + "\n"


def json_line(value: Any, **form: Any) -> str:
    """Return JSON on one line, without a newline; NaN is an error. `form` holds other options of `json.dumps`."""
    return json.dumps(value, **{"ensure_ascii": False, **form}, allow_nan=False)


def nan_as_null(value: Any) -> Any:
    """Return a JSON value with None for NaN, where NaN says that a statistic is undefined; infinity stays an error."""
    if isinstance(value, dict):
        return {key: nan_as_null(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [nan_as_null(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def json_lines(values: Iterable[Any]) -> str:
    """Return a line of JSON per value, as `read_jsonl` reads it."""
    return "".join(json_line(value) + "\n" for value in values)


def digest(value: Any) -> str:
    """Return the SHA-256 of a JSON value, independent of the order of its keys."""
    return hashlib.sha256(utf8(json.dumps(value, sort_keys=True, ensure_ascii=False))).hexdigest()


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def has_crlf(content: bytes, digest_without: str) -> bool:
    """Return whether all that changed bytes of this SHA-256 are line ends of Windows."""
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest() == digest_without


def slug(name: str) -> str:
    """Return a name as a single path component; UserError for one that leaves a folder, as "..", or stays, as "."."""
    component = re.sub(r"[^\w.+-]+", "-", Path(name).name)
    if not component.strip("."):
        raise UserError(f"{name!r} cannot be the name of a folder or file: choose another, of letters and digits")
    return component


def expanded(path: str | Path) -> Path:
    """Return a path with `~` or `~user` at its beginning written out; UserError if there is no such home folder."""
    with as_user_error(RuntimeError, f"cannot find the home folder in {path}", "write the whole path"):
        return Path(path).expanduser()


def _kind(path: Path) -> str:
    return "a folder" if path.is_dir() else "a file" if path.is_file() else "a device or a pipe"


def make_folder(folder: Path) -> None:
    """Make a folder and those above it; UserError if the system refuses."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)


def path_of(value: Any, key: str) -> Path:
    """Return a setting as a path; UserError for lists, mappings and true or false."""
    if not isinstance(value, str | int | Path) or isinstance(value, bool):
        raise UserError(f"{key} must be one path, got {value}: write it as in {key}=PATH")
    return Path(str(value))


def check_place(value: Any, key: str = "runs") -> None:
    """Raise UserError unless the folder `value` can be created and written to; creates nothing."""
    folder = path_of(value, key)
    folders = (folder.absolute(), *folder.absolute().parents)
    existing = next(path for path in folders if path.exists() or path.is_symlink())
    if not existing.is_dir():
        kind = _kind(existing) if existing.exists() else "a link that leads nowhere"
        raise UserError(f"{key}={folder} cannot be made: {existing} is {kind}")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(f"{key}={folder} cannot be written: no permission in {existing}")


def check_file(value: Any, key: str, may_make_folder: bool = False) -> None:
    """Raise UserError unless the file `value` can be written; None is no file.

    Its folder has to exist, or with `may_make_folder` be one that can be made.
    """
    if value is None:
        return
    file = path_of(value, key)
    if not may_make_folder and not file.parent.is_dir():
        raise UserError(f"cannot write {key}={file}: there is no folder {file.parent}")
    check_place(file.parent, key)
    if file.exists() and not file.is_file():
        raise UserError(f"cannot write {key}={file}, which is {_kind(file)}: name a file")


def check_apart(values: Mapping[str, Any]) -> None:
    """Raise UserError if two keys name one file, of which the second would replace the first."""
    keys: dict[str, str] = {}
    for key, value in values.items():
        if value is not None and (other := keys.setdefault(os.path.realpath(str(value)), key)) != key:
            raise UserError(f"{other} and {key} are one file, {value}: name two")
