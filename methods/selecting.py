"""A selection in progress: faults name the method and the author's line, and values on the device are read once."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from contextvars import ContextVar
from functools import cached_property
from pathlib import Path
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from methods.base import Method

Place = tuple[str, int]  # file and line
OwnCode = tuple[frozenset[str], Place | None]  # the files of a method's functions; where its selection is defined
NAN = "it ranks scores that hold NaN, which sorts as the largest value: look for 0/0, as equal or zero features give"


class SelectionError(ValueError):
    """The input or the output of a method breaks the contract; commands show the message as one line."""


class Selecting:
    """The context in which a method selects.

    What depends on values is noted with `refuse` and `refuse_nan`, and read by `settle` once the method has returned: a
    selection waits for the device once, however much is checked.
    """

    def __init__(self, method: Method) -> None:
        self.method = method
        self._faults: list[tuple[Tensor, Callable[[], str]]] = []
        self._scores: list[tuple[Tensor, Place | None]] = []

    def __enter__(self) -> Selecting:
        """Make this the selection that `current` returns."""
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        """Restore the selection around this one, if any."""
        _current.reset(self._token)

    def error(self, what: str, place: Place | None = None) -> SelectionError:
        """Return the error that the method breaks its contract, at a line of its own code."""
        return SelectionError(f"{self.method.name} broke its contract: {what}{at(place or _line(self._code))}")

    def refuse(self, fault: Tensor, what: Callable[[], str]) -> None:
        """Let `settle` raise if the boolean `fault` [] is true; `what` then says what is wrong."""
        self._faults.append((fault, what))

    def refuse_nan(self, scores: Tensor) -> None:
        """Let `settle` raise if any of `scores` is NaN."""
        self._scores.append((scores.detach().flatten(), _line(self._code)))

    @cached_property
    def _code(self) -> OwnCode:
        return _own_code(type(self.method))

    def settle(self, device: torch.device) -> None:
        """Raise SelectionError for the first fault; NaN comes first, since it causes others."""
        flags = [fault for fault, _ in self._faults]
        if self._scores:
            flags.insert(0, torch.cat([scores.to(device) for scores, _ in self._scores]).isnan().any())
        if not flags or not any(holds := torch.stack([flag.to(device) for flag in flags]).tolist()):
            return
        if self._scores and holds.pop(0):
            raise self.error(NAN, next(place for scores, place in self._scores if bool(scores.isnan().any())))
        raise self.error(self._faults[holds.index(True)][1]())


_current: ContextVar[Selecting | None] = ContextVar("selecting", default=None)


def current() -> Selecting | None:
    """Return the selection that is in progress, if any."""
    return _current.get()


def error(what: str) -> SelectionError:
    """Return the error of `what` the method in progress does, or of `what` alone if there is none."""
    selecting = current()
    return SelectionError(what) if selecting is None else selecting.error(what)


def refuse_nan(scores: Tensor) -> None:
    """Refuse NaN in `scores` with SelectionError: outside a selection at once, within one when it is complete."""
    if not scores.is_floating_point() or not scores.numel():
        return
    if (selecting := current()) is not None:
        selecting.refuse_nan(scores)
    elif bool(scores.isnan().any()):
        raise SelectionError(NAN.removeprefix("it ranks "))


def line_of(method: Method) -> Place | None:
    """Return the innermost running line of the method's own code, or else the line that defines its selection."""
    return _line(_own_code(type(method)))


def at(place: Place | None) -> str:
    """Return " (file:line)", with the file as it is seen from the working directory; "" for None."""
    if place is None:
        return ""
    file = Path(place[0])
    return f" ({file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}:{place[1]})"


_ENTRIES = {str(Path(__file__).with_name(name)) for name in ("base.py", "testing.py")}  # which call a method's code


def _line(code: OwnCode) -> Place | None:
    files, definition = code
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename not in _ENTRIES:
        if frame.f_code.co_filename in files:
            return frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back
    return definition


def _own_code(method: type) -> OwnCode:
    owners = [cls for cls in method.__mro__ if cls.__module__ not in ("methods.base", "builtins")]
    codes = [(name, _code(value)) for cls in owners for name, value in vars(cls).items()]
    own = [(name, code) for name, code in codes if code is not None and code.co_filename != "<string>"]  # dataclasses
    selects = (code for name, code in own if name in ("_select", "_select_batch"))
    first = next(selects, None)
    return frozenset(code.co_filename for _, code in own), first and (first.co_filename, first.co_firstlineno)


def _code(value: Any) -> CodeType | None:
    return getattr(inspect.unwrap(value), "__code__", None) if callable(value) else None
