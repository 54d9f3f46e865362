"""One prefill with visual tokens: ask the method for each of its samples, and apply the choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.models.layout import Layout
from harness.models.vision_tower import VisionSignals
from harness.pruning.gather import average_owned
from harness.pruning.handle import Kept, Pruning
from methods.base import LayerState, Selection, Tokens

ReadLayer = Callable[[int], LayerState]  # row of the batch -> state of a decoder layer, without padding


@dataclass(frozen=True, eq=False)
class Prefill:
    """A prefill as it enters the language model."""

    layout: Layout
    visual: Tensor  # [B, S] bool
    valid: Tensor  # [B, S] False on padding
    embeddings: Tensor  # [B, S, D]
    vision: list[VisionSignals] | None  # per prompt
    questions: list[Tensor] | None  # per prompt: rows [T] of the question

    def choose(
        self, pruning: Pruning, states: Tensor, full: float, read: ReadLayer | None = None
    ) -> tuple[Tensor, Tensor]:
        """Ask the method for each sample; return `states` with merged rows, and which rows stay [B, S].

        Args:
            pruning: the handle, which asks the method and holds the records.
            states: [B, S, D] at the place of the cut, for methods that merge; empty if nothing can be merged there.
            full: share of the decoder's work that is done for all tokens.
            read: returns the state of the decoder layer, for methods that need it.
        """
        stay, merged, records = ~(self.visual | self.newlines), False, []
        places = [
            self.visual[prompt * self.layout.copies].nonzero().squeeze(1) for prompt in range(len(self.layout.grids))
        ]
        samples = (self._tokens(prompt, visual, pruning, read) for prompt, visual in enumerate(places))
        selections = pruning.select(samples, [len(visual) for visual in places])
        for prompt, (visual, grids, selection) in enumerate(zip(places, self.layout.grids, selections, strict=True)):
            rows = slice(prompt * self.layout.copies, (prompt + 1) * self.layout.copies)
            stay[rows, visual[selection.kept]] = True
            stay[rows, self._newlines_to_keep(rows.start, visual, selection.kept, pruning.newlines)] = True
            if selection.owner is not None:
                if not states.numel():
                    raise ValueError(f"{pruning.method.name} merges, which needs the cut after the layer's MLP")
                states, merged = (states if merged else states.clone()), True
                index = visual.to(states.device)  # a model may be on several devices
                states[rows, index[selection.kept]] = _merge(states[rows.start, index], selection)
            kept = selection.kept.tolist()
            per_layer = full * len(visual) + (1 - full) * len(kept)
            records.append(Kept(len(visual), len(kept), kept, list(grids), per_layer))
        pruning.records.extend(records)
        return states, stay

    @cached_property
    def newlines(self) -> Tensor:
        """Newline rows [B, S] bool."""
        return self.layout.newlines.to(self.visual.device)

    def _newlines_to_keep(self, row: int, visual: Tensor, kept: Tensor, rule: str | None) -> Tensor:
        """Return the positions of the newlines of a row of the batch that stay when `kept` of `visual` [N] do."""
        if len(kept) == len(visual) or rule == "keep":
            return self.newlines[row].nonzero().squeeze(1)
        if rule != "follow" or self.layout.line_ends is None:
            return visual[:0]
        ends = self.layout.line_ends[row].to(visual.device)[visual[kept]]
        return ends[ends >= 0]

    def expected_rows(self, text_and_kept: list[int], stay: Tensor) -> list[int]:
        """Return the number of rows that each sample must have: text and K patches, and the newlines in `stay`."""
        newlines = (stay & self.newlines).sum(1).tolist()
        return [rows + kept for rows, kept in zip(text_and_kept, newlines, strict=True)]

    def _tokens(self, prompt: int, visual: Tensor, pruning: Pruning, read: ReadLayer | None) -> Tokens:
        """Return the method's input for a prompt with visual tokens at the rows `visual` [N]."""
        dropping = pruning.budget.count(len(visual)) < len(visual)
        signals = self._signals(prompt, read) if dropping else {}
        features = self.embeddings[prompt * self.layout.copies, visual].detach()
        return Tokens(features, list(self.layout.grids[prompt]), **signals)

    def _signals(self, prompt: int, read: ReadLayer | None) -> dict[str, Any]:
        """Return the signals that the method needs, as fields of `Tokens`."""
        row, signals = prompt * self.layout.copies, {}
        if self.vision is not None:
            signals = self.vision[prompt].fields(self.embeddings.device)
        if self.questions is not None:
            signals["text"] = self.embeddings[row, self.questions[prompt].to(self.embeddings.device)].detach()
        if read is not None:
            signals["llm"] = read(row)
        return signals


def _merge(features: Tensor, selection: Selection) -> Tensor:
    assert selection.owner is not None
    return average_owned(features, selection.kept, selection.owner)


def valid_rows(visual: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B, S], False on padding."""
    if mask is None:
        return torch.ones_like(visual)
    valid = mask.to(visual.device).bool()
    if bool((visual & ~valid).any()):
        raise ValueError("the attention mask hides visual tokens, which cannot be pruned: mask padding only")
    return valid
