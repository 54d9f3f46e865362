"""Passes through the vision tower, kept: blocks that show the same pixels one after another compute each pass once.

What leaves the tower depends on what the whole pass was shown and on nothing that a method drops later. The first block
computes it and reads, inside the tower, what the methods of all blocks need; the others get the same bits back. Where
they ask the same questions, they need no pixels at all.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from typing import IO, Any

import torch
from torch import Tensor, nn

from harness.models.adapter import Adapter
from harness.models.calls import PIXELS
from harness.models.hooks import Handles
from harness.models.vision_tower import Reading, VisionReader, VisionSignals
from methods.base import Method

Pass = tuple[Any, VisionSignals | None]  # what left the tower, and what was read of it


class VisionCache:
    """The passes of one model, whose weights have to stay as they are; no gradient flows through a kept pass.

    Args:
        model: the model.
        memory: bytes of passes to hold in memory; what is more goes to a temporary file.
        methods: whose signals are read of every pass; for another one, the passes before it are computed again.
    """

    def __init__(self, model: nn.Module, memory: int, methods: Iterable[Method] = ()) -> None:
        self.model = model
        self.computed = 0  # passes
        self.reused = 0
        self.repeats = False
        self._shelf = SpillCache(memory)
        self._readings = list(dict.fromkeys(filter(None, map(Reading.of, methods))))
        self._kind: type[Any] = dict  # of what leaves the tower
        self._reading: Reading | None = None  # of the latest block
        self._keys: list[str] = []  # of the passes of this batch
        self._passes: list[Pass] | None = None  # those of a batch that comes without its pixels
        self._next = 0  # which of them the tower is called for next

    def reader(self, adapter: Adapter, reading: Reading | None) -> CachedVisionReader:
        """Return the hooks of a block whose method reads this."""
        if adapter.model is not self.model:
            raise ValueError(f"these passes are of another model than this {adapter.name}: share those of one model")
        if reading is not None and reading not in self._readings:
            self._readings.append(reading)
        self._reading, self._keys, self._next = reading, [], 0  # a block may go without `inputs`
        return CachedVisionReader(self, adapter, reading, self._readings)

    @contextmanager
    def inputs(self, batch: str, make: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Give what `make` does to the one prompt, or batch of them, that the model sees within the block.

        `batch` stands for what is shown. Once its passes are kept it comes without its pixels: instead of them, there
        are tensors of their shape that are not a number anywhere, and take no room.
        """
        found = self._shelf.get(("inputs", batch))
        inputs, keys = ({}, []) if found is None else torch.load(BytesIO(found), weights_only=True)
        passes = [kept for key in keys if (kept := self.get(key, self._reading))]
        known = found is not None and len(passes) == len(keys)
        self._keys, self._passes, self._next, self.repeats = [], passes if known else None, 0, False
        try:
            yield inputs if known else (inputs := make())
        finally:
            self._passes = None
        if not known:
            data = BytesIO()
            torch.save(({name: _without_pixels(name, value) for name, value in inputs.items()}, self._keys), data)
            self._shelf.put(("inputs", batch), data.getvalue())

    def pass_of(self, call: Mapping[str, Any]) -> tuple[str, Pass | None]:
        """Return the key of the pass that the tower is called for, and the pass if it is there."""
        number, self._next = self._next, self._next + 1
        if self._passes is None:
            key = fingerprint(call)
            if number == len(self._keys):
                self._keys.append(key)
            elif self._keys[number] != key:
                raise RuntimeError("the vision tower was shown something else when this batch was repeated")
            return key, self.get(key, self._reading)
        if number == len(self._passes):
            raise RuntimeError("the vision tower is called more often than when it was shown this batch first")
        output, signals = self._passes[number]
        return "", (type(output)(**output), signals)  # the model changes fields of what it gets

    def again(self) -> None:
        """Begin once more with the passes of this batch, which no longer count as reused."""
        self._next, self.repeats = 0, True

    def get(self, key: str, reading: Reading | None) -> Pass | None:
        """Return a pass and what was read of it; None if it is not there, or was not read so."""
        data = self._shelf.get(key)
        if data is None:
            return None
        fields, read = torch.load(BytesIO(data), weights_only=True)
        place = None if reading is None else self._readings.index(reading)
        if place is not None and place not in read:
            return None
        return self._kind(**fields), None if place is None else VisionSignals(*read[place])

    def put(self, key: str, output: Any, fields: Iterable[str], read: Mapping[Reading, VisionSignals]) -> None:
        """Keep those fields of a pass, and what was read of it."""
        self._kind = type(output)
        kept = {name: _own(output[name]) for name in fields if output.get(name) is not None}
        signals = {self._readings.index(one): _own((found.attention, found.keys)) for one, found in read.items()}
        data = BytesIO()
        torch.save((kept, signals), data)
        self._shelf.put(key, data.getvalue())


class CachedVisionReader:
    """In the place of a `VisionReader`: the tower runs only where its pass is not there yet."""

    def __init__(
        self, shared: VisionCache, adapter: Adapter, reading: Reading | None, readings: Iterable[Reading]
    ) -> None:
        self._shared, self._adapter, self._reading = shared, adapter, reading
        self._readers = {one: VisionReader(adapter.tower, one) for one in readings}
        self._signals: VisionSignals | None = None

    def attach(self, model: nn.Module, handles: Handles) -> None:
        """Hook the tower and the layers to read."""
        for reader in self._readers.values():
            reader.attach(model, handles)
        handles.replace_method(self._adapter.modules()["vision"], self._pass)

    def take(self) -> VisionSignals | None:
        """Return what the pass that just ended had, or None if the method reads nothing."""
        signals, self._signals = self._signals, None
        return signals

    def _pass(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key, found = self._shared.pass_of({str(place): value for place, value in enumerate(args)} | kwargs)
        if found:
            self._shared.reused += not self._shared.repeats
            for reader in self._readers.values():
                reader.forget()
            output, self._signals = found
            return output
        output = forward(*args, **kwargs)
        self._shared.computed += 1
        read = {one: reader.take() for one, reader in self._readers.items()}
        self._shared.put(key, output, self._adapter.vision_fields, read)
        self._signals = None if self._reading is None else read[self._reading]
        return output


def fingerprint(value: Any) -> str:
    """Digest of the arguments of a pass: tensors by type, shape, place and content.

    TypeError for what has no content that could be compared.
    """
    if isinstance(value, Tensor):
        rows = value.detach().flatten().cpu().view(torch.uint8).numpy().data
        content = f"{value.dtype} {list(value.shape)} {value.device} {hashlib.sha256(rows).hexdigest()}"
    elif isinstance(value, Mapping):
        content = repr([(name, fingerprint(value[name])) for name in sorted(value)])
    elif isinstance(value, list | tuple):
        content = repr([fingerprint(part) for part in value])
    elif value is None or isinstance(value, bool | int | float | str):
        content = repr(value)
    else:
        raise TypeError(f"a pass through the vision tower was called with a {type(value).__name__}, cannot share it")
    return hashlib.sha256(f"{type(value).__name__} {content}".encode()).hexdigest()


def _without_pixels(name: str, value: Any) -> Any:
    if name not in PIXELS.values():
        return value
    return value.new_full((), float("nan")).expand(value.shape)


def _own(value: Any) -> Any:
    """Copies of tensors, which may be views of larger ones, and plain containers of them."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _own(part) for name, part in value.items()}
    return type(value)(map(_own, value)) if isinstance(value, list | tuple) else value


RESERVE = 2**30  # bytes of the disk that stay free

log = logging.getLogger(__name__)


class SpillCache:
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
