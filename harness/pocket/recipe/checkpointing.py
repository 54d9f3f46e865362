"""A training stage: optimizer, learning-rate schedule, and checkpoints to resume from."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm


def _schedule(step: int, steps: int, peak: float, warm: int = 100) -> float:
    if step < warm:
        return peak * (step + 1) / warm
    return peak * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm))))


class Stage:
    """Optimizer, checkpoint and schedule of a stage; `run` yields the remaining steps."""

    def __init__(self, name: str, work: Path, modules: dict[str, torch.nn.Module], steps: int, peak: float) -> None:
        self.file, self.modules, self.steps, self.peak = work / f"{name}.pt", modules, steps, peak
        parameters = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        self.parameters = list(dict.fromkeys(parameters))
        self.optimizer = torch.optim.AdamW(self.parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
        self.start = 0
        if self.file.exists():
            state = torch.load(self.file, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state[key])
            self.optimizer.load_state_dict(state["optimizer"])
            self.start = state["step"]

    def run(self, every: int = 200) -> Iterator[int]:
        """Yield the steps from the last checkpoint to the end, and save every `every` steps."""
        with tqdm(total=self.steps, initial=self.start, desc=self.file.stem, mininterval=5) as bar:
            for step in range(self.start, self.steps):
                for group in self.optimizer.param_groups:
                    group["lr"] = _schedule(step, self.steps, self.peak)
                torch.manual_seed(step)
                yield step
                bar.update()
                if (step + 1) % every == 0 or step + 1 == self.steps:
                    self.save(step + 1)

    def step(self, loss: Tensor) -> None:
        """Make an update with clipped gradients."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()

    def save(self, step: int) -> None:
        """Write the checkpoint atomically."""
        state = {key: module.state_dict() for key, module in self.modules.items()}
        temporary = self.file.with_suffix(".tmp")
        torch.save(state | {"optimizer": self.optimizer.state_dict(), "step": step}, temporary)
        os.replace(temporary, self.file)
