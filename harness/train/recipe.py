"""Hyperparameters of a training; the defaults in conf/train.yaml are those of arXiv 2510.16598."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from harness.core.errors import UserError
from harness.core.rules import at_least, between, optional, require
from harness.core.values import in_words


@dataclass
class Recipe:
    """All settings besides model and data that affect the weights or the curve; conf/train.yaml explains them."""

    steps: int | None = MISSING
    batch: int = MISSING
    lr: float = MISSING
    warmup: float = MISSING
    bce: list[float] = MISSING
    soft: float = MISSING
    hidden: int | None = MISSING
    seed: int = MISSING
    keep: float = MISSING
    valid: int = MISSING
    every: int = MISSING

    @classmethod
    def of(cls, cfg: Mapping[Any, Any]) -> Recipe:
        """Read the fields from a composed configuration; UserError if a value is invalid."""
        values = {field.name: cfg[field.name] for field in fields(cls)}
        try:
            recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(cls), values))
        except OmegaConfBaseException as error:
            raise UserError(in_words(error)) from error
        assert isinstance(recipe, Recipe)
        recipe.check()
        return recipe

    def check(self) -> None:
        """Raise UserError for values out of range."""
        require(
            self,
            {
                **dict.fromkeys(("steps", "hidden"), optional(at_least(1))),
                **dict.fromkeys(("batch", "valid", "every"), at_least(1)),
                **dict.fromkeys(("soft", "keep"), between(0, 1)),
                "warmup": ("be at least 0 and below 1", lambda share: 0 <= share < 1),
                "lr": ("be above 0", lambda rate: rate > 0),
                "seed": at_least(0),
                "bce": (
                    "be two weights, at the beginning and at the end, as in [0.1,2.0]",
                    lambda weights: len(weights) == 2 and min(weights) >= 0,
                ),
            },
        )

    def steps_of(self, conversations: int) -> int:
        """Return the number of updates: `steps`, else one pass over the conversations that are not held out."""
        if conversations <= self.valid:
            raise UserError(f"data has {conversations} conversations, of which valid={self.valid} are held out")
        return self.steps or max(1, (conversations - self.valid) // self.batch)

    def bce_weight(self, step: int, steps: int) -> float:
        """Return the weight of the BCE term, which changes linearly over all steps."""
        first, last = self.bce
        return first + (last - first) * step / steps
