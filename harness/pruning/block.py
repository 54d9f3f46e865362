"""What `harness.prune` returns: a context manager that is new, then open, then closed."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Never
from weakref import WeakSet

from torch import nn

from harness.models.adapter import Adapter
from harness.models.hooks import Handles
from harness.pruning.handle import Pruning
from harness.pruning.session import Session

if TYPE_CHECKING:
    from types import TracebackType

    from harness.pruning.vision_cache import VisionCache

_pruned: WeakSet[nn.Module] = WeakSet()  # hooked modules of all open blocks
_lock = threading.Lock()

USE = "write `with harness.prune(...) as pruning:` around the passes"
CANNOT_OPEN = {
    "open": "this prune block is open already: enter it once, and share the handle that it yields",
    "closed": "this prune block is over: call harness.prune() again for a new one",
}


class Block:
    """A `with` statement that prunes a model; until it is entered, the model refuses its next pass.

    Args:
        adapter: the adapter of the model.
        pruning: the handle to yield.
        shared: passes through the vision tower to share with other blocks.
    """

    def __init__(self, adapter: Adapter, pruning: Pruning, shared: VisionCache | None = None) -> None:
        self._adapter = adapter
        self._pruning = pruning
        self._shared = shared
        self._state = "new"
        self._session: Session | None = None
        self._modules = frozenset(adapter.modules().values())
        # Who forgets `with` would get unpruned answers without a word.
        self._reminder = Handles()
        for role in ("root", "multimodal"):
            self._reminder.on_enter(adapter.modules()[role], self._refuse_pass)

    def __enter__(self) -> Pruning:
        with _lock:
            if self._state != "new":
                raise RuntimeError(CANNOT_OPEN[self._state])
            self._reminder.remove()
            self._state = "closed"  # unless it opens
            if not _pruned.isdisjoint(self._modules):
                raise RuntimeError(
                    f"this {self._adapter.name} is already being pruned: leave the outer block first "
                    "(a generator that is not exhausted may hold it open)"
                )
            _pruned.update(self._modules)
        try:
            session = Session(self._adapter, self._pruning, self._shared)
            session.open()
        except BaseException:  # the modules are free again, whatever went wrong
            _pruned.difference_update(self._modules)
            raise
        self._pruning.before_take = session.deferred.settle
        self._session, self._state = session, "open"
        return self._pruning

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        session, self._session = self._session, None
        if session is None:
            raise RuntimeError(f"this prune block is not open: {USE}")
        self._state = "closed"
        try:
            if kind is None:
                session.check()
        finally:
            session.close()
            _pruned.difference_update(self._modules)

    def _refuse_pass(self) -> None:
        """Raise RuntimeError in the first pass without `with`, unless another block prunes the model."""
        if not _pruned.isdisjoint(self._modules):
            return
        self._reminder.remove()  # once is enough; who goes on has been told
        raise RuntimeError(f"harness.prune() was called without `with`, so nothing would be pruned: {USE}")

    def __getattr__(self, name: str) -> Never:
        raise AttributeError(f"a prune block has no {name!r}, its handle may: {USE}, and ask `pruning`")
