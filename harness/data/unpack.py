"""Unpack the archives of a data set where its task looks for their files: at the root of its folder."""

import io
import re
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import UserError, one_line
from harness.core.files import load, make_folder, to_json, write_atomic, writing

STAMP = ".cache/harness/unpacked.json"  # archives that were unpacked whole; folders with a dot are no part of the data
TAR = re.compile(r"\.tar(\.(gz|bz2|xz))?$|\.tgz$")
PART = re.compile(r"^(.*\.tar(?:\.gz)?)\.(?:part)?[_.-]?\w{1,4}$")  # x.tar.part_aa, x.tar.001


def archives(names: Iterable[str]) -> list[list[str]]:
    """Return the archives among files; one that was cut into parts is the list of them, in order."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        part = PART.match(name) if not TAR.search(name) else None
        if part or TAR.search(name) or name.endswith(".zip"):
            groups.setdefault(part[1] if part else name, []).append(name)
    return list(groups.values())


def unpack(folder: Path, names: Iterable[str], say: Callable[[str], Any]) -> None:
    """Unpack archives that have not been unpacked yet; UserError if one is damaged or the disk is full.

    An interrupted archive is unpacked from its beginning again.
    """
    stamp = folder / STAMP
    done: dict[str, Any] = load(stamp, (), f"delete {stamp}") if stamp.is_file() else {}
    for parts in archives(names):
        size = sum((folder / part).stat().st_size for part in parts)
        if done.get(parts[0]) == size:
            continue
        say(f"unpacking {', '.join(parts)}")
        with writing(folder):
            _extract(folder, parts)
        done[parts[0]] = size
        make_folder(stamp.parent)
        write_atomic(stamp, to_json(done))


def _extract(folder: Path, parts: Sequence[str]) -> None:
    try:
        if parts[0].endswith(".zip"):
            with zipfile.ZipFile(folder / parts[0]) as archive:
                archive.extractall(folder)  # leaves no folder: absolute names and .. are cut off
            return
        with _Joined([folder / part for part in parts]) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            archive.extractall(folder, filter="data")  # refuses names and links that leave the folder
    except (zipfile.BadZipFile, tarfile.TarError, EOFError) as error:
        remedy = "delete it and fetch it again"
        raise UserError(f"{folder / parts[0]} is damaged ({one_line(error)[:120]}): {remedy}") from error


class _Joined(io.RawIOBase):
    """The bytes of several files, one after the other."""

    def __init__(self, files: Sequence[Path]):
        self._rest = list(files)
        self._stream: Any = None

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream is None:
                if not self._rest:
                    return 0
                self._stream = self._rest.pop(0).open("rb")
            if count := self._stream.readinto(buffer):
                return int(count)
            self._stream.close()
            self._stream = None

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        super().close()
