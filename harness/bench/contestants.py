"""Who is measured against whom: the unpruned model, and methods at their budgets."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn

from harness.prune import prune
from harness.pruning.handle import Pruning
from methods.base import Method
from methods.budget import Budget


@dataclass(frozen=True, eq=False)
class Contestant:
    """One row of the table; without a method it is the unpruned model."""

    name: str
    params: str = ""
    method: Method | None = None
    budget: Budget = Budget(keep=1.0)  # noqa: RUF009 (frozen)
    scorer: nn.Module | None = None
    positions: str = "keep"
    seed: int = 0

    @property
    def label(self) -> str:
        """`idpruner 0.25`, `fastv variant=paper 0.25`, `unpruned`."""
        return " ".join(filter(None, [self.name, self.params, self.budget.label])) if self.method else "unpruned"

    @property
    def resizes(self) -> bool:
        """True if images are made smaller instead of dropping tokens."""
        return self.method is not None and self.method.stage == "pixels"

    @contextmanager
    def pruning(self, model: nn.Module) -> Iterator[Pruning | None]:
        """Prune `model` within the block; None where nothing is put on the model: the unpruned one, smaller images."""
        if self.method is None or self.resizes:
            yield None
            return
        settings: dict[str, Any] = {"scorer": self.scorer, "seed": self.seed, "positions": self.positions}
        with prune(model, self.method, keep=self.budget.keep, tokens=self.budget.tokens, **settings) as pruning:
            yield pruning
