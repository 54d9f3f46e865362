"""The hooks of one `prune` block: cut where the language model begins, keep decoding right, prove the cut happened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from harness.models.base import Adapter, inside_layer
from harness.models.cache import RECORD, CutBeforeLLM, CutInsideLLM, PrunedCache, cached_length
from harness.models.hooking import Handles, arguments, submodule
from harness.models.inside import InsideCut
from harness.models.prefill import Layout, Prefill, valid_rows
from harness.models.rows import Rows, remaining, require_rows
from harness.models.shared import SharedReader, SharedVision
from harness.models.vision import Reading, VisionReader
from methods.base import Signal

if TYPE_CHECKING:
    from harness.prune import Pruning

_active: WeakSet[nn.Module] = WeakSet()
_active_lock = threading.Lock()


class Session:
    """State of one block. A forward pass goes root -> multimodal -> decoder -> first_layer."""

    def __init__(self, adapter: Adapter, pruning: Pruning, shared: SharedVision | None = None) -> None:
        self.adapter = adapter
        self.pruning = pruning
        self._owed: dict[nn.Module, int] = {}  # passes with visual tokens under way -> `_verified` when they began
        self._seen = 0  # passes with visual tokens that reached the root or, called directly, the multimodal module
        self._verified = 0  # passes whose rows were counted in front of layer 0, or that keep everything
        self._labels = False
        self._layout: Layout | None = None
        self._call: dict[str, Any] = {}  # arguments of the multimodal module
        self._expected: list[int] | None = None  # [B] rows that layer 0 must receive
        self._filling: PrunedCache | None = None
        self._turned: Tensor | None = None  # [B, L] positions of the rows that layer 0 receives, if they are 1-D
        method, layer = pruning.method, inside_layer(pruning.method)
        self._inside = None if layer is None else InsideCut(adapter, pruning, layer)
        reading = None if pruning.budget.keep == 1 else Reading.of(method)
        self._reads = reading is not None
        self._reader: VisionReader | SharedReader | None
        if shared is not None:
            self._reader = shared.reader(adapter, reading)
        else:
            self._reader = None if reading is None else VisionReader(adapter.tower, reading)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hook the model, and restore it whatever happens."""
        model, modules = self.adapter.model, self.adapter.modules()
        with _active_lock:
            if model in _active:
                raise RuntimeError(f"this {self.adapter.name} is already being pruned: leave the outer block first")
            _active.add(model)
        before: dict[str, Callable[..., Any]] = {
            "root": self._enter_root,
            "multimodal": self._enter_multimodal,
            "decoder": self._enter_decoder,
            "first_layer": self._enter_first_layer,
        }
        handles = Handles()
        try:
            if self._reader is not None:
                self._reader.attach(model, handles)
            for role, hook in before.items():
                handles.before(modules[role], hook)
            if self.adapter.decoder.rotary is not None:
                handles.before(submodule(model, self.adapter.decoder.rotary), self._enter_rotary)
            if self._inside is not None:
                self._inside.attach(handles, self._verify)
            for role in ("root", "multimodal"):
                handles.after(modules[role], self._leave, always=True)
            handles.after(modules["vision"], self._leave_vision)
            handles.after(modules["decoder"], self._leave_decoder)
            yield
            self._check_everything_was_pruned(modules)
        finally:
            handles.remove()
            _active.discard(model)

    # Entering and leaving the whole model: every pass that brings visual tokens owes one verified cut.

    def _enter_root(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = arguments(module, args, kwargs)
        self._labels = call.get("labels") is not None
        self._owe(module, call)

    def _enter_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._call = call = arguments(module, args, kwargs)
        self._owe(module, call)
        if module in self._owed:
            self._layout = self.adapter.layout(call)

    def _owe(self, module: nn.Module, call: dict[str, Any]) -> None:
        if self.adapter.has_visuals(call):
            self._seen += not self._owed
            self._owed[module] = self._verified

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Settle the debt of a pass; one that raised, and so has no output, stays unverified."""
        self._layout = self._expected = self._filling = self._turned = None
        self._labels, self._call = False, {}
        if self._inside is not None:
            self._inside.forget()
        owed = self._owed.pop(module, None)
        if output is not None and owed == self._verified:
            raise RuntimeError(self._silent("a forward pass with visual tokens went through unpruned"))

    def _check_everything_was_pruned(self, modules: dict[str, nn.Module]) -> None:
        for role, module in self.adapter.modules().items():
            if module is not modules[role]:
                path = self.adapter.targets.get(role, role)
                raise RuntimeError(self._silent(f"'{path}' was replaced inside the prune block"))
        if self._seen != self._verified:
            missed = f"{self._seen - self._verified} of {self._seen} forward passes with visual tokens"
            raise RuntimeError(self._silent(f"{missed} failed or went through unpruned"))

    def _silent(self, what: str) -> str:
        return f"{what} in {self.adapter.name}: results of this block are not those of {self.pruning.method.name}"

    def _leave_vision(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        signals = None if self._reader is None else self._reader.take()
        self.adapter.saw_vision(arguments(module, args, kwargs), output, signals)

    # The language model: cut in the prefill, mask in the decoding steps.

    def _enter_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        call = arguments(module, args, kwargs)
        layout, self._layout = self._layout, None
        cache = call.get("past_key_values")
        if self._inside is not None:
            self._inside.forget()
        if hasattr(cache, RECORD) and not cached_length(cache):
            delattr(cache, RECORD)  # it was emptied since
        changed = self._cut(layout, call) if layout is not None else self._continue(call)
        return None if changed is None else ((), call | changed)

    def _cut(self, layout: Layout, call: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments that change, or None if every visual token stays."""
        states, mask, cache = call["inputs_embeds"], call.get("attention_mask"), call.get("past_key_values")
        visual = layout.visual.to(states.device)
        dropped = [n - self.pruning.budget.count(n) for n in visual.sum(1).tolist()]
        if not any(dropped) and not hasattr(cache, RECORD):  # then the plain model takes whatever came
            Prefill(layout, visual, visual, states, None, None).choose(self.pruning, states, 1.0)
            self._verify()
            return None
        self._refuse_what_cannot_be_cut(layout, call)
        valid, positions = valid_rows(visual, mask), self.adapter.positions(call)
        prefill = Prefill(layout, visual, valid, states, *self._signals(layout))
        expected = [rows - gone for rows, gone in zip(valid.sum(1).tolist(), dropped, strict=True)]
        width, added = states.shape[-1], self.adapter.added(call)
        if self._inside is not None:
            first = self._inside.first
            self._inside.fill(prefill, expected, added[first:])
            return self.adapter.adding(added[:first], visual)
        # What is added later is a part of its row: it is merged and cut along.
        states, stay = prefill.choose(self.pruning, torch.cat([states, *added], dim=-1) if added else states, 0.0)
        self._expected = expected
        rows = remaining(stay & valid, valid)
        states, *added = rows.gather(states).split(width, dim=-1)
        still_visual = rows.gather((visual & stay).unsqueeze(-1)).squeeze(-1)
        compact = self.pruning.positions == "compact"
        kept = rows.numbered() if compact else rows.gather_positions(positions)
        self._filling = _filled_by(rows, positions, call.get("position_ids"), valid.to(positions.device), compact)
        if self.adapter.decoder.rotary is not None:
            self._turned = kept[0]
        return {
            "inputs_embeds": states,
            "position_ids": self.adapter.position_ids(kept) if self._turned is None else None,
            "attention_mask": _as_mask(rows, mask),
            **self.adapter.adding(added, still_visual),
        }

    def _enter_rotary(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        positions, self._turned = self._turned, None
        return None if positions is None else ((), arguments(module, args, kwargs) | {"position_ids": positions})

    def _signals(self, layout: Layout) -> tuple[Any, Any]:
        """Return, per prompt, what was read of the vision tower and where the question stands, if it is needed."""
        vision = self.adapter.vision_signals(self._call, layout) if self._reads else None
        if Signal.TEXT not in self.pruning.method.needs:
            return vision, None
        prompts = zip(self._call["input_ids"][:: layout.copies], layout.kinds, strict=True)
        return vision, [self.adapter.question(ids, kinds) for ids, kinds in prompts]

    def _refuse_what_cannot_be_cut(self, layout: Layout, call: dict[str, Any]) -> None:
        mask, cache = call.get("attention_mask"), call.get("past_key_values")
        if self._labels:
            raise ValueError("labels do not fit a pruned sequence: compute the loss outside prune(), or without labels")
        if layout.obstacle is not None:
            raise ValueError(layout.obstacle)
        if mask is not None and not (isinstance(mask, Tensor) and mask.ndim == 2):
            got = f"of shape {list(mask.shape)}" if isinstance(mask, Tensor) else f"as {type(mask).__name__}"
            hint = "leave out cache_implementation"
            raise ValueError(f"pruning needs a padding mask [batch, tokens], it came {got}: {hint}")
        if getattr(cache, "is_compileable", False):
            name = type(cache).__name__
            raise ValueError(f"pruning needs a growing cache, not {name}: leave out cache_implementation")
        if any(call.get(name) is not None for name in ("cu_seq_lens_q", "cu_seq_lens_k")):
            raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")

    def _continue(self, call: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of a decoding step that change, or None if its cache was not pruned."""
        cache, states = call.get("past_key_values"), call.get("inputs_embeds")
        pruned: PrunedCache | None = getattr(cache, RECORD, None)
        if pruned is None or states is None:
            return None
        if isinstance(pruned, CutInsideLLM):
            if self._inside is None:
                raise ValueError(f"this cache was cut after decoder layer {pruned.first - 1}, this block cuts before 0")
            self._inside.resume(pruned, cache)
            return None
        assert isinstance(pruned, CutBeforeLLM)
        past, steps = cached_length(cache), states.shape[1]
        pruned.check_positions |= steps > 1
        changed: dict[str, Any] = {"attention_mask": pruned.mask_up_to(past + steps)}
        if self._call.get("position_ids") is None:
            # The model would count from the length of the cache, which lacks what was dropped.
            changed["position_ids"] = self.adapter.position_ids(pruned.positions(past, steps))
        elif pruned.check_positions and not pruned.precedes(call["position_ids"], past):
            raise ValueError(
                "these tokens do not follow what the pruned cache holds (transformers counts by its length): "
                "pass a further turn as the whole conversation, without past_key_values"
            )
        elif pruned.shift is not None:
            changed["position_ids"] = call["position_ids"] - pruned.shift
        return changed

    def _enter_first_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        expected, self._expected = self._expected, None
        if expected is None:
            return
        call = arguments(module, args, kwargs)
        require_rows(expected, call, f"decoder layer 0 of {self.adapter.name}", self.pruning.budget.label)
        self._verify()

    def _verify(self) -> None:
        self._verified += 1

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        filled, self._filling = self._filling, None
        cache = arguments(module, args, kwargs).get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if self._inside is not None:
            filled = None if cache is None else self._inside.filled(cache)
            self._inside.forget()
        elif filled is not None and cache is not None and cached_length(cache) != filled.length:
            held = f"the key-value cache holds {cached_length(cache)} positions"
            raise RuntimeError(f"{held} after a pruned prefill of {filled.length}")
        if filled is not None and cache is not None:
            setattr(cache, RECORD, filled)


def _as_mask(rows: Rows, given: Tensor | None) -> Tensor | None:
    """Return the mask [B, L] in the type that came, or none where a kernel can do without."""
    if rows.mask is None:
        return None
    return rows.mask.to(torch.long if given is None else given.dtype)


def _filled_by(rows: Rows, positions: Tensor, given: Tensor | None, valid: Tensor, compact: bool) -> CutBeforeLLM:
    """Describe the cache after a prefill of `rows`; `positions` [R, B, S] are those of all rows, from the `given`."""
    behind = positions.amax(0).masked_fill(~valid, -1).amax(1) + 1
    given = positions if given is None else given.expand(*given.shape[:-2], *valid.shape)
    last = (valid * torch.arange(valid.shape[1], device=valid.device)).argmax(1, keepdim=True)
    last_given = given.gather(-1, last.expand(*given.shape[:-1], 1))
    shift = None
    if compact:
        behind = rows.numbered()[0].amax(1).to(behind.device) + 1
        shift = last_given.view(-1, 1) + 1 - behind.view(-1, 1)
    return CutBeforeLLM(rows.index.shape[1], rows.mask, behind, last_given, shift)
