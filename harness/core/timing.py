"""Measure the stages of a run: time counts for the innermost stage that is open."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

MEANINGS = {
    "load": "the model from the disk",
    "data": "questions from the tasks, pixels from their images, tokens to words, answers to the disk",
    "vision": "the vision tower, with what methods read in it",
    "llm": "the rest of generation: projector, selection, language model",
    "verify": "the first questions once more, without the cache, to prove the decoding",
    "scoring": "lmms-eval around the answers",
}


class Stages:
    """The seconds spent in each stage of MEANINGS."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(MEANINGS, 0.0)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, stage: str) -> None:
        """Start a stage; the surrounding one pauses."""
        self._settle()
        self._open.append(stage)

    def leave(self) -> None:
        """End the innermost stage; the surrounding one continues."""
        self._settle()
        self._open.pop()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Measure a block as a stage."""
        self.enter(stage)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def watching(self, stage: str, module: nn.Module) -> Iterator[None]:
        """Measure forward passes of `module` as a stage within the block."""

        def before(module: nn.Module, args: object) -> None:
            _wait()
            self.enter(stage)

        def after(module: nn.Module, args: object, output: object) -> None:
            _wait()
            self.leave()

        hooks = (module.register_forward_pre_hook(before), module.register_forward_hook(after, always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _settle(self) -> None:
        now = self._clock()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _wait() -> None:
    """Wait for the GPU, which runs asynchronously to the host."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def importing() -> Iterator[None]:
    """Turn off garbage collection while large libraries are imported."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
