"""Which tokens of some questions every method keeps, cut where it cuts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from omegaconf import DictConfig
from tqdm import tqdm

import methods
from harness.analyze import settings
from harness.analyze.questions import Question
from harness.core.errors import UserError, one_line
from harness.evaluation.pruner import pruner_of
from harness.models.loading import Loaded
from harness.pruning.handle import Kept


def check_cut(cfg: DictConfig) -> None:
    """Methods that make images smaller have no token that they keep."""
    for one in settings.contestants(cfg):
        if methods.load(one.name, **one.params).stage == "pixels":
            raise UserError(f"{one.name} makes images smaller, of which it keeps every token: leave it out")


def kept(cfg: DictConfig, loaded: Loaded, questions: Sequence[Question]) -> Iterator[tuple[str, float, Sequence[Kept]]]:
    """Method, share, and what was kept of each question; a forward pass of the model each."""
    asked = [(one, keep) for keep in settings.keeps(cfg) for one in settings.contestants(cfg)]
    pruners = [pruner_of(settings.run_of(cfg, one, keep), loaded.folder) for one, keep in asked]
    for (one, keep), pruner in zip(asked, tqdm(pruners, desc="methods"), strict=True):
        try:
            with pruner.attach(loaded.model) as pruning, torch.inference_mode():
                for question in questions:
                    loaded.model(**question.inputs(loaded))
        except ValueError as error:
            raise UserError(one_line(error)) from error
        yield one.label, keep, pruning.take()
