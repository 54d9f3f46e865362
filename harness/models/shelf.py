"""Bytes by key: in memory up to a bound, past it in a temporary file that no kill leaves behind."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Hashable
from typing import IO

RESERVE = 2**30  # bytes of the disk that stay free

log = logging.getLogger(__name__)


class Shelf:
    """What comes first stays in memory: runs go through the same questions in the same order, each of them once.

    To drop what was used longest ago would then drop everything just before it is asked for.
    """

    def __init__(self, memory: int) -> None:
        self._free = memory
        self._held: dict[Hashable, bytes] = {}
        self._places: dict[Hashable, tuple[int, int]] = {}  # start and length in the file
        self._file: IO[bytes] | None = None

    def get(self, key: Hashable) -> bytes | None:
        """Return what was put there last, or None."""
        if key in self._held:
            return self._held[key]
        if key not in self._places or self._file is None:
            return None
        start, length = self._places[key]
        self._file.seek(start)
        return self._file.read(length)

    def put(self, key: Hashable, data: bytes) -> None:
        """Keep `data`; where neither memory nor the disk have room for it, it is as if it had not come."""
        self._free += len(self._held.pop(key, b""))
        self._places.pop(key, None)
        if len(data) <= self._free:
            self._free -= len(data)
            self._held[key] = data
        else:
            self._spill(key, data)

    def _spill(self, key: Hashable, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="harness-")  # noqa: SIM115 (closed with the shelf; has no name)
        disk = os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize - len(data) < RESERVE:
            log.warning("%s is nearly full: what runs could share is computed again", tempfile.gettempdir())
            return
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._places[key] = start, len(data)
