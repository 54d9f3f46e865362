"""One prefill with visual tokens: what is known of it, and letting the method choose for each of its samples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.models.layout import Layout
from harness.models.vision_tower import VisionSignals
from harness.pruning.gather import averaged
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
        """Let the method choose for each sample; return `states` with merged rows and who stays [B, S].

        Args:
            pruning: chooses, and keeps the records.
            states: [B, S, D] at the place of the cut, for methods that merge; empty where nothing can be merged.
            full: share of the decoder's work that all tokens go through.
            read: gives the state of the decoder layer, to methods that need it.
        """
        stay, merged, records = ~self.visual, False, []
        places = [
            self.visual[prompt * self.layout.copies].nonzero().squeeze(1) for prompt in range(len(self.layout.grids))
        ]
        samples = (self._tokens(prompt, where, pruning, read) for prompt, where in enumerate(places))
        chosen = zip(places, self.layout.grids, pruning.select(samples, [len(where) for where in places]), strict=True)
        for prompt, (where, grids, selection) in enumerate(chosen):
            rows = slice(prompt * self.layout.copies, (prompt + 1) * self.layout.copies)
            stay[rows, where[selection.kept]] = True
            if selection.owner is not None:
                if not states.numel():
                    raise ValueError(f"{pruning.method.name} merges, which needs the cut behind the layer's MLP")
                states, merged = (states if merged else states.clone()), True
                here = where.to(states.device)  # a model may be spread over several
                states[rows, here[selection.kept]] = _merge(states[rows.start, here], selection)
            kept = selection.kept.tolist()
            records.append(Kept(len(where), len(kept), kept, list(grids), full * len(where) + (1 - full) * len(kept)))
        pruning.records.extend(records)
        return states, stay

    def _tokens(self, prompt: int, where: Tensor, pruning: Pruning, read: ReadLayer | None) -> Tokens:
        """Return what the method sees of a prompt whose visual tokens stand at `where` [N]."""
        dropping = pruning.budget.count(len(where)) < len(where)
        signals = self._signals(prompt, read) if dropping else {}
        features = self.embeddings[prompt * self.layout.copies, where].detach()
        return Tokens(features, list(self.layout.grids[prompt]), **signals)

    def _signals(self, prompt: int, read: ReadLayer | None) -> dict[str, Any]:
        """Return what the method needs beyond the features, as fields of `Tokens`."""
        row, found = prompt * self.layout.copies, {}
        if self.vision is not None:
            found = self.vision[prompt].fields(self.embeddings.device)
        if self.questions is not None:
            found["text"] = self.embeddings[row, self.questions[prompt].to(self.embeddings.device)].detach()
        if read is not None:
            found["llm"] = read(row)
        return found


def _merge(features: Tensor, selection: Selection) -> Tensor:
    assert selection.owner is not None
    return averaged(features, selection.kept, selection.owner)


def valid_rows(visual: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B, S], False on padding."""
    if mask is None:
        return torch.ones_like(visual)
    valid = mask.to(visual.device).bool()
    if bool((visual & ~valid).any()):
        raise ValueError("the attention mask hides visual tokens, which cannot be pruned: mask padding only")
    return valid
