"""Admit the forward passes of one thread at a time."""

from __future__ import annotations

import threading

from torch import nn


class OneThread:
    """Refuses a pass that begins while another thread's pass runs, because hooks hold the state of one pass."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pass: tuple[int, nn.Module] | None = None  # the running thread, and the module that it entered first

    @property
    def admitted(self) -> bool:
        """Tell whether a pass of this thread runs."""
        return self._pass is not None and self._pass[0] == threading.get_ident()

    def enter(self, module: nn.Module) -> None:
        """Begin a pass through `module`, or go deeper in one; RuntimeError if another thread's pass runs."""
        with self._lock:
            if self._pass is None:
                self._pass = threading.get_ident(), module
            elif not self.admitted:
                raise RuntimeError(
                    "two threads ran the model at once within a prune block, which follows one pass at a time: "
                    "hold a lock around generate(), or give each thread a model of its own"
                )

    def leave(self, module: nn.Module) -> None:
        """End the pass of this thread if it began with `module`."""
        with self._lock:
            if self._pass == (threading.get_ident(), module):
                self._pass = None
