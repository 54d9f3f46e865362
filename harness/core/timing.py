"""Where the time of a run goes: every moment belongs to the stage that was entered last and not left yet."""

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
    "llm": "all that generates beside it: projector, selection, language model",
    "verify": "the first questions once more, without the cache, to prove the decoding",
    "scoring": "lmms-eval around the answers",
}


class Stages:
    """Seconds by the names in MEANINGS."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = dict.fromkeys(MEANINGS, 0.0)
        self._clock = clock
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, stage: str) -> None:
        """Let the time from here on be this stage's."""
        self._settle()
        self._open.append(stage)

    def leave(self) -> None:
        """Let it be again that of the stage around this one, if there is one."""
        self._settle()
        self._open.pop()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Enter a stage for the length of a block."""
        self.enter(stage)
        try:
            yield
        finally:
            self.leave()

    @contextmanager
    def watching(self, stage: str, module: nn.Module) -> Iterator[None]:
        """Let the passes through `module` be a stage within the block."""

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
    """A GPU works behind the host's clock."""
    import torch

    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def importing() -> Iterator[None]:
    """Turn off garbage collection while large libraries are imported, which takes a fifth less time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
