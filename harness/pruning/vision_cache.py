"""Cache of vision-tower passes: prune blocks that show the same pixels one after another compute each pass once.

The output of the tower depends on the inputs of the pass only, not on what a method drops later. The first block
computes it and reads the signals that the methods of all blocks need. Later blocks get identical tensors. If they ask
the same questions, they need no pixels.
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

Pass = tuple[Any, VisionSignals | None]  # output of the tower, and the signals that were read


class VisionCache:
    """Stored passes of one model, whose weights must not change; no gradient flows through a stored pass.

    Args:
        model: the model.
        memory: bytes of passes to hold in memory; the rest goes to a temporary file.
        methods: methods whose signals are read in every pass; for other methods, earlier passes are computed again.
    """

    def __init__(self, model: nn.Module, memory: int, methods: Iterable[Method] = ()) -> None:
        self.model = model
        self.computed = 0  # passes
        self.reused = 0
        self.repeats = False
        self._storage = SpillCache(memory)
        self._readings = list(dict.fromkeys(filter(None, map(Reading.of, methods))))
        self._output_type: type[Any] = dict
        self._reading: Reading | None = None  # of the latest block
        self._keys: list[str] = []  # of the passes of this batch
        self._passes: list[Pass] | None = None  # stored passes of a batch without pixels
        self._next = 0  # number of the next pass of this batch

    def reader(self, adapter: Adapter, reading: Reading | None) -> CachedVisionReader:
        """Return the hooks of a block whose method reads `reading`."""
        if adapter.model is not self.model:
            raise ValueError(f"these passes are of another model than this {adapter.name}: share those of one model")
        if reading is not None and reading not in self._readings:
            self._readings.append(reading)
        self._reading, self._keys, self._next = reading, [], 0  # a block may go without `inputs`
        return CachedVisionReader(self, adapter, reading, self._readings)

    @contextmanager
    def inputs(self, batch: str, make: Callable[[], Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """Yield the model inputs that `make` returns, for the one batch that the model sees within the block.

        `batch` is a key of the batch. If all of its passes are stored, `make` is not called, and pixels are replaced by
        NaN tensors of the same shape, which take no memory.
        """
        data = self._storage.get(("inputs", batch))
        inputs, keys = ({}, []) if data is None else torch.load(BytesIO(data), weights_only=True)
        passes = [stored for key in keys if (stored := self.get(key, self._reading))]
        complete = data is not None and len(passes) == len(keys)
        self._keys, self._passes, self._next, self.repeats = [], passes if complete else None, 0, False
        try:
            yield inputs if complete else (inputs := make())
        finally:
            self._passes = None
        if not complete:
            buffer = BytesIO()
            torch.save(({name: _without_pixels(name, value) for name, value in inputs.items()}, self._keys), buffer)
            self._storage.put(("inputs", batch), buffer.getvalue())

    def pass_of(self, call: Mapping[str, Any]) -> tuple[str, Pass | None]:
        """Return the key of the next pass, which has the arguments `call`, and the pass if it is stored."""
        number, self._next = self._next, self._next + 1
        if self._passes is None:
            key = arguments_digest(call)
            if number == len(self._keys):
                self._keys.append(key)
            elif self._keys[number] != key:
                raise RuntimeError("the vision tower was shown something else when this batch was repeated")
            return key, self.get(key, self._reading)
        if number == len(self._passes):
            raise RuntimeError("the vision tower is called more often than when it was shown this batch first")
        output, signals = self._passes[number]
        return "", (type(output)(**output), signals)  # a copy, because the model changes fields of the output

    def again(self) -> None:
        """Start again with the first pass of this batch; its passes are not counted as reused any more."""
        self._next, self.repeats = 0, True

    def get(self, key: str, reading: Reading | None) -> Pass | None:
        """Return a stored pass with its signals; None if it is not stored, or these signals were not read."""
        data = self._storage.get(key)
        if data is None:
            return None
        fields, read = torch.load(BytesIO(data), weights_only=True)
        place = None if reading is None else self._readings.index(reading)
        if place is not None and place not in read:
            return None
        return self._output_type(**fields), None if place is None else VisionSignals(*read[place])

    def put(self, key: str, output: Any, fields: Iterable[str], read: Mapping[Reading, VisionSignals]) -> None:
        """Store the given fields of an output, and the signals of each reading."""
        self._output_type = type(output)
        stored = {name: _copied(output[name]) for name in fields if output.get(name) is not None}
        signals = {self._readings.index(reading): _copied(tuple(vars(part).values())) for reading, part in read.items()}
        buffer = BytesIO()
        torch.save((stored, signals), buffer)
        self._storage.put(key, buffer.getvalue())


class CachedVisionReader:
    """Replacement of a `VisionReader`: the tower runs only if its pass is not stored yet."""

    def __init__(
        self, shared: VisionCache, adapter: Adapter, reading: Reading | None, readings: Iterable[Reading]
    ) -> None:
        self._cache, self._adapter, self._reading = shared, adapter, reading
        self._readers = {item: VisionReader(adapter.tower, item) for item in readings}
        self._signals: VisionSignals | None = None

    def attach(self, model: nn.Module, handles: Handles) -> None:
        """Hook the tower and the layers to read."""
        for reader in self._readers.values():
            reader.attach(model, handles)
        handles.replace_method(self._adapter.modules()["vision"], self._pass)

    def take(self) -> VisionSignals | None:
        """Return the signals of the pass that just ended, or None if the method reads none."""
        signals, self._signals = self._signals, None
        return signals

    def _pass(self, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        key, stored = self._cache.pass_of({str(place): value for place, value in enumerate(args)} | kwargs)
        if stored:
            self._cache.reused += not self._cache.repeats
            for reader in self._readers.values():
                reader.forget()
            output, self._signals = stored
            return output
        output = forward(*args, **kwargs)
        self._cache.computed += 1
        read = {reading: reader.take() for reading, reader in self._readers.items()}
        self._cache.put(key, output, self._adapter.vision_fields, read)
        self._signals = None if self._reading is None else read[self._reading]
        return output


def arguments_digest(value: Any) -> str:
    """Return a digest of the arguments of a pass; tensors count by type, shape, device and content.

    TypeError for a type whose content cannot be compared.
    """
    if isinstance(value, Tensor):
        rows = value.detach().flatten().cpu().view(torch.uint8).numpy().data
        content = f"{value.dtype} {list(value.shape)} {value.device} {hashlib.sha256(rows).hexdigest()}"
    elif isinstance(value, Mapping):
        content = repr([(name, arguments_digest(value[name])) for name in sorted(value)])
    elif isinstance(value, list | tuple):
        content = repr([arguments_digest(part) for part in value])
    elif value is None or isinstance(value, bool | int | float | str):
        content = repr(value)
    else:
        raise TypeError(f"a pass through the vision tower was called with a {type(value).__name__}, cannot share it")
    return hashlib.sha256(f"{type(value).__name__} {content}".encode()).hexdigest()


def _without_pixels(name: str, value: Any) -> Any:
    if name not in PIXELS.values():
        return value
    return value.new_full((), float("nan")).expand(value.shape)


def _copied(value: Any) -> Any:
    """Return `value` with copies of its tensors, which may be views of larger ones, in plain containers."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {name: _copied(part) for name, part in value.items()}
    return type(value)(map(_copied, value)) if isinstance(value, list | tuple) else value


RESERVE = 2**30  # bytes of the disk that stay free

log = logging.getLogger(__name__)


class SpillCache:
    """Store of bytes by key: in memory up to a limit, then in a temporary file.

    What comes first stays in memory. Runs ask the same questions in the same order, so dropping the least recently used
    entry would drop every entry shortly before it is needed.
    """

    def __init__(self, memory: int) -> None:
        self._free = memory
        self._held: dict[Hashable, bytes] = {}
        self._places: dict[Hashable, tuple[int, int]] = {}  # start and length in the file
        self._file: IO[bytes] | None = None

    def get(self, key: Hashable) -> bytes | None:
        """Return the latest data of `key`, or None."""
        if key in self._held:
            return self._held[key]
        if key not in self._places or self._file is None:
            return None
        start, length = self._places[key]
        self._file.seek(start)
        return self._file.read(length)

    def put(self, key: Hashable, data: bytes) -> None:
        """Store `data`; if neither memory nor the disk has room, `key` has no data afterwards."""
        self._free += len(self._held.pop(key, b""))
        self._places.pop(key, None)
        if len(data) <= self._free:
            self._free -= len(data)
            self._held[key] = data
        else:
            self._spill(key, data)

    def _spill(self, key: Hashable, data: bytes) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="harness-")  # noqa: SIM115 (closed with this object; has no name)
        disk = os.fstatvfs(self._file.fileno())
        if disk.f_bavail * disk.f_frsize - len(data) < RESERVE:
            log.warning("%s is nearly full: vision passes that do not fit are computed again", tempfile.gettempdir())
            return
        start = self._file.seek(0, os.SEEK_END)
        self._file.write(data)
        self._places[key] = start, len(data)
