"""One prefill with visual tokens on its way through the cuts: ask the method at each of them, and apply its choice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.models.layout import Layout
from harness.models.vision_tower import VisionSignals
from harness.pruning.gather import KeptRows, average_owned, kept_rows, mixed
from harness.pruning.handle import Kept, Pruning, Stage
from methods.base import Cut, LayerState, Selection, Signal, Tokens
from methods.per_tile import crops_of

ReadLayer = Callable[[int], LayerState]  # row of the batch -> state of a decoder layer, without padding


@dataclass(eq=False)
class Prompt:
    """The visual tokens of one prompt, of which each cut leaves fewer."""

    n: int  # before the first cut
    cuts: tuple[Cut, ...]
    generator: torch.Generator
    origin: Tensor  # [left] indices among the n
    newlines: int  # before, and after the latest cut
    newlines_left: int
    memory: Any = None  # what the method remembers
    stages: list[Stage] = field(default_factory=list)  # what each cut left
    selection: Selection | None = None  # of the latest cut
    importance: Tensor | None = None  # [n] as the method saw it at the first cut

    def at(self, layer: int) -> Cut | None:
        """Return the cut behind `layer`, if there is one."""
        return next((cut for cut in self.cuts if cut.layer == layer), None)

    @property
    def outcome(self) -> Selection:
        """What all cuts left, in picking order if there was one cut."""
        return self.selection if self.selection is not None and len(self.stages) == 1 else Selection(self.origin)


class Prefill:
    """A prefill as it enters the language model, and later as far as it was cut.

    Args:
        pruning: the handle, which asks the method and holds the records.
        layout: where the visual tokens are.
        embeddings: [B, S, D].
        layers: number of decoder layers.
    """

    def __init__(self, pruning: Pruning, layout: Layout, embeddings: Tensor, layers: int) -> None:
        self.visual = layout.visual.to(embeddings.device)  # [B, S], later [B, L]
        self.valid = torch.ones_like(self.visual)  # False on padding
        self._newlines = layout.newlines.to(embeddings.device)
        self._line_ends = None if layout.line_ends is None else layout.line_ends.to(embeddings.device)
        self.embeddings = embeddings
        self._pruning, self._layout = pruning, layout
        counts = torch.stack([self.visual, self._newlines])[:, :: layout.copies].sum(2)
        sizes, newlines = counts.tolist()  # the host waits once
        self._tiled = layout.crops is not None or pruning.budget.per_tile is not None
        tiles = [self._tiles(number) for number in range(len(sizes))] if self._tiled else []
        self._crops = [int(of.max()) + 1 if len(of) else 0 for of in tiles] or [0] * len(sizes)
        self._budgets = [pruning.count(*each) for each in zip(layout.grids, self._crops, strict=True)]
        plans = [pruning.method.cuts(n, k, layers) for n, k in zip(sizes, self._budgets, strict=True)]
        generators = pruning.generators(len(sizes))
        self.prompts = [
            Prompt(n, cuts, generator, torch.arange(n, device=embeddings.device), ends, ends)
            for n, cuts, generator, ends in zip(sizes, plans, generators, newlines, strict=True)
        ]
        self.layers = sorted({cut.layer for cuts in plans for cut in cuts})  # behind which something is cut
        self._vision: list[VisionSignals] | None = None
        self._texts: list[dict[str, Tensor]] = [{} for _ in sizes]

    def begin(self, valid: Tensor, vision: list[VisionSignals] | None, questions: list[Tensor] | None) -> None:
        """Add what cuts need: which rows [B, S] are no padding, the tower's signals, the rows [T] of each question."""
        self.valid, self._vision = valid, vision
        for number, texts in enumerate(self._texts):
            row = number * self._layout.copies
            if questions is not None:
                texts["text"] = self.embeddings[row, questions[number].to(self.embeddings.device)].detach()
            if Signal.TEXT_AFTER in self._pruning.method.needs:
                present = self.valid[row].nonzero().squeeze(1)
                marked = self.visual | self._newlines
                last = marked[row, present].nonzero().max() if self.prompts[number].n else -1
                texts["text_after"] = self.embeddings[row, present[last + 1 :]].detach()

    def cut(self, layer: int, states: Tensor, read: ReadLayer | None = None) -> tuple[Tensor, KeptRows, list[int]]:
        """Ask the method behind `layer` for each prompt with a cut there.

        Return `states` with merged rows, the rows that stay, and how many of them each sample must have.

        Args:
            layer: decoder layer, -1 for the input.
            states: [B, S, D] at the place of the cut, for methods that merge; empty if nothing can be merged there.
            read: returns the state of the decoder layer, for methods that need it.
        """
        asked = [number for number, prompt in enumerate(self.prompts) if prompt.at(layer) is not None]
        places = {number: self.visual[number * self._layout.copies].nonzero().squeeze(1) for number in asked}
        samples = (self._tokens(number, places[number], layer, read) for number in asked)
        sizes = [len(places[number]) for number in asked]
        ks = [cut.k for number in asked if (cut := self.prompts[number].at(layer))]
        generators = [self.prompts[number].generator for number in asked]
        selections = self._pruning.select(layer, samples, list(zip(sizes, ks, strict=True)), generators)
        stay, merged, expected = self.valid.clone(), False, (self.valid & ~self._newlines).sum(1)
        exact = self._pruning.method.exact_k
        for number, k, selection in zip(asked, ks, selections, strict=True):
            prompt, place, copies = self.prompts[number], places[number], self._layout.copies
            rows = slice(number * copies, (number + 1) * copies)
            stay[rows] &= ~(self.visual | self._newlines)[rows]
            stay[rows, place[selection.kept]] = True
            newlines = self._newlines_to_keep(rows.start, place, selection.kept)
            stay[rows, newlines] = True
            expected[rows] -= len(place) - (k if exact else len(selection.kept))
            if selection.owner is not None or selection.mix is not None:
                if not states.numel():
                    raise ValueError(f"{self._pruning.method.name} merges, which needs the cut after the layer's MLP")
                states, merged = (states if merged else states.clone()), True
                index = place.to(states.device)  # a model may be on several devices
                states[rows, index[selection.kept]] = _merge(states[rows.start, index], selection)
            prompt.origin, prompt.newlines_left = prompt.origin[selection.kept], len(newlines)
            prompt.stages.append(Stage(layer, prompt.origin.tolist()))
            prompt.selection, prompt.memory = selection, selection.memory
        expected += (stay & self._newlines).sum(1)
        return states, kept_rows(stay, self.valid), expected.tolist()

    def narrow(self, rows: KeptRows, embeddings: Tensor | None = None) -> None:
        """Go on with the rows that a cut left; `embeddings` [B, L, D] if merging changed what enters the LLM."""
        if self._line_ends is not None:
            place = torch.arange(rows.index.shape[1], device=rows.index.device).expand_as(rows.index)
            place_of = torch.full_like(self._line_ends, -1).scatter(1, rows.index, place)
            ends = self._line_ends.gather(1, rows.index)
            self._line_ends = torch.where(ends < 0, ends, place_of.gather(1, ends.clamp(min=0)))
        self.visual, self._newlines = self.visual.gather(1, rows.index), self._newlines.gather(1, rows.index)
        self.valid = torch.ones_like(self.visual) if rows.mask is None else rows.mask
        self.visual, self._newlines = self.visual & self.valid, self._newlines & self.valid
        self.embeddings = rows.gather(self.embeddings) if embeddings is None else embeddings

    def record(self, shares: Sequence[float]) -> None:
        """Write down what was kept; `shares` are the parts of the decoder's work in front of each cut of `layers`."""
        share_of = dict(zip(self.layers, shares, strict=True))
        records = []
        for number, (prompt, grids) in enumerate(zip(self.prompts, self._layout.grids, strict=True)):
            before, seen, per_layer = 0.0, prompt.n, 0.0
            for stage in prompt.stages:
                per_layer += (share_of[stage.layer] - before) * seen
                before, seen = share_of[stage.layer], len(stage.kept)
            per_layer += (1 - before) * seen
            kept = prompt.stages[-1].kept if prompt.stages else list(range(prompt.n))
            stages = prompt.stages if len(prompt.stages) > 1 else []
            ends = None if self._pruning.newlines is None else (prompt.newlines, prompt.newlines_left)
            budget = min(self._budgets[number], prompt.n)
            asked = None if budget == len(kept) else budget
            record = Kept(prompt.n, len(kept), kept, list(grids), per_layer, asked, stages, newlines=ends)
            if self._tiled:
                tiles = self._tiles(number)[kept]
                counts = torch.bincount(tiles, minlength=self._crops[number]).tolist() if prompt.n else []
                record = replace(record, per_tile=counts)
            records.append(record)
        self._pruning.finish(records, [(prompt.outcome, prompt.importance) for prompt in self.prompts])

    def _tiles(self, number: int) -> Tensor:
        """Return the crop [n] of each visual token of a prompt."""
        crops = self._layout.crops
        return crops_of(self._layout.grids[number], None if crops is None else crops[number])

    def _newlines_to_keep(self, row: int, place: Tensor, kept: Tensor) -> Tensor:
        """Return the positions of the newlines of a row of the batch that stay when `kept` of `place` [N] do."""
        if len(kept) == len(place) or self._pruning.newlines == "keep":
            return self._newlines[row].nonzero().squeeze(1)
        if self._pruning.newlines != "follow" or self._line_ends is None:
            return place[:0]
        ends = self._line_ends[row, place[kept]]
        return ends[ends >= 0].unique()

    def _tokens(self, number: int, place: Tensor, layer: int, read: ReadLayer | None) -> Tokens:
        """Return the method's input for a prompt with visual tokens at the rows `place` [N]."""
        prompt, row = self.prompts[number], number * self._layout.copies
        signals: dict[str, Any] = {**self._texts[number], "at_input": layer < 0}
        vision = None if self._vision is None else self._vision[number]
        if prompt.stages:
            signals |= {"origin": prompt.origin, "cut": len(prompt.stages), "memory": prompt.memory}
            vision = vision and vision.at(prompt.origin)
        if vision is not None:
            signals |= vision.fields(self.embeddings.device)
        if read is not None:
            signals["llm"] = read(row)
        features = self.embeddings[row, place].detach()
        if self._layout.crops is not None:
            signals["tiles"] = self._layout.crops[number].to(features.device)
        tokens = self._pruning.scored(Tokens(features, list(self._layout.grids[number]), **signals))
        if not prompt.stages:
            prompt.importance = tokens.importance
        return tokens


def _merge(features: Tensor, selection: Selection) -> Tensor:
    if selection.mix is not None:
        return mixed(features, selection.kept, selection.mix)
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
