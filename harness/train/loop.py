"""The training loop: steps, checkpoints, and a curve of the loss and accuracy on held-out conversations.

The loss of a step is the mean cross-entropy of its answer tokens under the soft mask plus the weighted mean BCE between
each prompt's mask and its hard top-k. The weight grows linearly over the steps. Source: arXiv 2510.16598.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

import harness
from harness.core.distributed import Processes
from harness.core.errors import UserError, as_user_error
from harness.models.adapter import Adapter
from harness.models.loading import Loaded
from harness.models.preprocessing import media_of
from harness.models.scorer import VisionSelectorScorer
from harness.train.batches import Batch, answer_loss, to_batch
from harness.train.conversations import Example, Source
from harness.train.recipe import Recipe
from harness.train.sampler import Sampler
from harness.train.soft_mask import SoftMask
from harness.train.state import TrainingFolder

CLIP = 1.0  # norm of the gradient, as published
LOSSES = ("train_answers", "train_mask")
HELD_OUT = ("valid_answers", "valid_mask", "valid_accuracy", "pruned_answers", "pruned_accuracy")


class Training:
    """The training of a scorer on the frozen model of `adapter`; the processes split every batch."""

    def __init__(
        self,
        loaded: Loaded,
        adapter: Adapter,
        scorer: VisionSelectorScorer,
        source: Source,
        recipe: Recipe,
        processes: Processes,
    ) -> None:
        self.loaded, self.scorer, self.recipe, self.processes = loaded, scorer, recipe, processes
        loaded.model.requires_grad_(False)
        self.steps = recipe.steps_of(len(source))
        self.step = 0
        self.curve: list[dict[str, float]] = []
        self.mask = SoftMask(adapter, scorer, recipe.soft)
        self.optimizer = torch.optim.AdamW(scorer.parameters(), lr=recipe.lr, weight_decay=0.0)
        warm = round(recipe.warmup * self.steps)
        self.schedule = get_cosine_schedule_with_warmup(self.optimizer, warm, self.steps)
        self._parts: dict[str, Any] = {"scorer": scorer, "optimizer": self.optimizer, "schedule": self.schedule}
        self.sampler = Sampler(source, recipe.valid, recipe.batch, recipe.seed, processes)

    def run(self, folder: TrainingFolder, settings: dict[str, Any]) -> None:
        """Train to the last step, from the checkpoint in `folder` if there is one; its settings must be the same."""
        if (state := folder.load(settings)) is not None:
            self._restore(state)
        self.processes.gather()  # the first process must not write before the others have read
        if not self.curve:
            self._checkpoint(folder, settings, dict.fromkeys(LOSSES, math.nan))
        losses: list[dict[str, float]] = []  # of the steps since the last checkpoint
        with tqdm(
            total=self.steps, initial=self.step, desc="scorer", disable=not self.processes.first, mininterval=2
        ) as bar:
            while self.step < self.steps:
                losses.append(self.advance())
                if not all(map(math.isfinite, losses[-1].values())):
                    remedy = f"lower lr={self.recipe.lr:g} and start over with force=true"
                    raise UserError(f"the loss of step {self.step + 1} is not finite, as it has to be: {remedy}")
                self.step += 1
                bar.update()
                bar.set_postfix({name: f"{value:.3f}" for name, value in losses[-1].items()}, refresh=False)
                if self.step % self.recipe.every == 0 or self.step == self.steps:
                    means = {name: float(np.mean([step[name] for step in losses])) for name in LOSSES}
                    self._checkpoint(folder, settings, means)
                    losses.clear()

    def advance(self) -> dict[str, float]:
        """Make one update; return the mean cross-entropy of answer tokens and the mean BCE of masks before it."""
        mine = list(self._batches(self.sampler.step(self.step)))
        tokens, prompts = self._sum([sum(b.answered for b in mine), sum(len(b.labels) for b in mine)])
        for parameter in self.scorer.parameters():
            parameter.grad = torch.zeros_like(parameter)
        weight = self.recipe.bce_weight(self.step, self.steps)
        losses = np.zeros(2)
        for batch in mine:
            answers, binary, _ = self._masked_loss(batch)
            answers, binary = answers / tokens, binary / prompts
            (answers + weight * binary).backward()
            losses += answers.item(), binary.item()
        self._share_gradient()
        clip_grad_norm_(self.scorer.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        return dict(zip(LOSSES, self._sum(losses.tolist()), strict=True))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return cross-entropy and accuracy on held-out conversations, under the soft mask and pruned to `keep`."""
        batches = list(self._batches(self.sampler.held_out()))
        sums = np.zeros(7)
        for batch in batches:
            answers, binary, right = self._masked_loss(batch)
            sums[:5] += batch.answered, len(batch.labels), answers.item(), binary.item(), right.sum().item()
        with harness.prune(self.loaded.model, "visionselector", keep=self.recipe.keep, scorer=self.scorer):
            for batch in batches:
                answers, right = answer_loss(self.loaded.model, batch)
                sums[5:] += answers.item(), right.sum().item()
        tokens, prompts, *totals = self._sum(sums.tolist())
        counts = (tokens, prompts, prompts, tokens, prompts)
        return {name: total / count for name, total, count in zip(HELD_OUT, totals, counts, strict=True)}

    def _masked_loss(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Return summed cross-entropy, summed BCE, and which answers are right [B], under the soft mask."""
        with self.mask.attached():
            answers, right = answer_loss(self.loaded.model, batch)
        return answers, self.mask.take(len(batch.labels)).sum().to(answers), right

    def _checkpoint(self, folder: TrainingFolder, settings: dict[str, Any], means: dict[str, float]) -> None:
        """Add a row to the curve; the first process writes the checkpoint."""
        row = {
            "step": self.step,
            "lr": self.schedule.get_last_lr()[0],
            "bce_weight": self.recipe.bce_weight(self.step, self.steps),
        }
        self.curve.append(row | means | self.validate())
        if self.processes.first:
            folder.save(self.scorer, self._state(settings))

    def _batches(self, examples: Sequence[Example]) -> Iterator[Batch]:
        size = self.loaded.config.batch_size
        for start in range(0, len(examples), size):
            part = examples[start : start + size]
            media = [item for _, item in media_of([e.messages for e in part]) if isinstance(item, str)]
            with as_user_error((OSError, ValueError, RuntimeError), f"cannot show one of {', '.join(media)}"):
                batch = to_batch(self.loaded, part)
            yield batch

    def _share_gradient(self) -> None:
        """Sum the gradients over all processes."""
        gradients = [parameter.grad for parameter in self.scorer.parameters() if parameter.grad is not None]
        vector_to_parameters(self.processes.sum(parameters_to_vector(gradients)), gradients)

    def _sum(self, numbers: Sequence[float]) -> list[float]:
        totals: list[float] = self.processes.sum(torch.tensor(numbers, dtype=torch.float64)).tolist()
        return totals

    def _state(self, settings: dict[str, Any]) -> dict[str, Any]:
        parts = {name: part.state_dict() for name, part in self._parts.items()}
        return {"settings": settings, "step": self.step, "curve": self.curve, **parts}

    def _restore(self, state: dict[str, Any]) -> None:
        self.step, self.curve = state["step"], state["curve"]
        for name, part in self._parts.items():
            part.load_state_dict(state[name])
