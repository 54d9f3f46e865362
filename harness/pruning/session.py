"""The hooks of one `prune` block: cut where the language model begins, keep decoding right, prove the cut happened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from harness.models.adapter import Adapter, cut_layer
from harness.models.calls import Call, HookError, returned_cache
from harness.models.hooks import Handles
from harness.models.layout import Layout, cached_length
from harness.models.vision_tower import Reading, VisionReader
from harness.pruning.gather import KeptRows, remaining, require_rows
from harness.pruning.kv_cache import RECORD, InputCut, LayerCut, PrunedCache
from harness.pruning.layer_cut import LayerCutHooks
from harness.pruning.prefill import Prefill, valid_rows
from harness.pruning.steps import Cut, Doubts, OutOfOrderError, Step, differs, require_history
from harness.pruning.vision_cache import CachedVisionReader, VisionCache
from methods.base import Signal

if TYPE_CHECKING:
    from harness.pruning.handle import Pruning

_active: WeakSet[nn.Module] = WeakSet()
_active_lock = threading.Lock()
_UNKNOWN = object()  # of a cache that no block has seen


class Session:
    """State of one block. A forward pass goes root -> multimodal -> decoder -> rotary -> first_layer."""

    def __init__(self, adapter: Adapter, pruning: Pruning, shared: VisionCache | None = None) -> None:
        self.adapter = adapter
        self.pruning = pruning
        self._unverified: dict[nn.Module, int] = {}  # passes under way -> `_verified` when they began
        self._seen = 0  # passes with visual tokens that reached the root or, called directly, the multimodal module
        self._verified = 0  # passes whose rows were counted in front of layer 0, or that keep everything
        self._labels = False
        self._layout: Layout | None = None
        self._call: Call | None = None  # arguments of the multimodal module
        self._expected: list[int] | None = None  # [B] rows that layer 0 must receive
        self._cut: Cut | None = None  # what this pass drops
        self._step: Step | None = None  # what this pass adds to a cache
        self._compact: Tensor | None = None  # [B, L] positions of the rows that layer 0 receives, if they are 1-D
        self._angles: Tensor | None = None  # [R, B, L] positions that must reach the rotary embedding
        self._layer_cache: Any = None  # of this pass, as layer 0 has it
        self.doubts = Doubts()
        method, layer = pruning.method, cut_layer(pruning.method)
        self._inside = None if layer is None else LayerCutHooks(adapter, pruning, layer)
        reading = None if pruning.budget.keep == 1 else Reading.of(method)
        self._reads = reading is not None
        self._reader: VisionReader | CachedVisionReader | None
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
        handles = Handles()
        try:
            self._attach(handles)
            yield
            self.doubts.settle()
            self._check_everything_was_pruned(modules)
        finally:
            handles.remove()
            _active.discard(model)

    def _attach(self, handles: Handles) -> None:
        """Resolve every argument that will be read, then hook."""
        adapter = self.adapter
        sites = {part: adapter.site(part) for part in ("root", "multimodal", "vision", "decoder")}
        rotary = adapter.site("rotary", adapter.decoder.rotary)
        first = adapter.site("layer", adapter.targets["first_layer"])
        adapter.hook_generation(handles)
        if self._reader is not None:
            self._reader.attach(adapter.model, handles)
        before: dict[str, Callable[[Call], Mapping[str, Any] | None]] = {
            "root": partial(self._enter_root, sites["root"].module),
            "multimodal": partial(self._enter_multimodal, sites["multimodal"].module),
            "decoder": self._enter_decoder,
        }
        for part, hook in before.items():
            handles.before(sites[part], hook)
        handles.before(first, self._enter_first_layer)
        handles.before(rotary, self._enter_rotary)
        if self._inside is not None:
            self._inside.attach(handles, self._verify)
        for part in ("root", "multimodal"):
            handles.after(sites[part], partial(self._leave, sites[part].module), always=True)
        handles.after(sites["vision"], self._leave_vision)
        handles.after(sites["decoder"], self._leave_decoder)

    # Entering and leaving the whole model: every pass that brings visual tokens owes one verified cut.

    def _enter_root(self, module: nn.Module, call: Call) -> None:
        self._labels = call.get("labels") is not None
        self._owe(module, call)

    def _enter_multimodal(self, module: nn.Module, call: Call) -> None:
        self._call = call
        self._owe(module, call)
        if module in self._unverified:
            self._layout = self.adapter.layout(call)

    def _owe(self, module: nn.Module, call: Call) -> None:
        if self.adapter.has_visuals(call):
            self._seen += not self._unverified
            self._unverified[module] = self._verified

    def _leave(self, module: nn.Module, call: Call, output: Any) -> None:
        """Settle the debt of a pass; one that raised, and so has no output, stays unverified."""
        self._layout = self._expected = self._call = None
        self._labels = False
        self._forget()
        if self._inside is not None:
            self._inside.forget()
        owed = self._unverified.pop(module, None)
        if output is not None and owed == self._verified:
            raise HookError(self._silent("a forward pass with visual tokens went through unpruned"))

    def _check_everything_was_pruned(self, modules: dict[str, nn.Module]) -> None:
        for role, module in self.adapter.modules().items():
            if module is not modules[role]:
                path = self.adapter.targets.get(role, role)
                raise HookError(self._silent(f"'{path}' was replaced inside the prune block"))
        if self._seen != self._verified:
            missed = f"{self._seen - self._verified} of {self._seen} forward passes with visual tokens"
            raise HookError(self._silent(f"{missed} failed or went through unpruned"))

    def _silent(self, what: str) -> str:
        return f"{what} in {self.adapter.name}: results of this block are not those of {self.pruning.method.name}"

    def _leave_vision(self, call: Call, output: Any) -> None:
        signals = None if self._reader is None else self._reader.take()
        self.adapter.record_vision_pass(call, output, signals)

    # The language model: cut in the prefill, mask and positions in the decoding steps.

    def _forget(self) -> None:
        self._cut = self._step = self._compact = self._angles = self._layer_cache = None

    def _enter_decoder(self, call: Call) -> Mapping[str, Any] | None:
        layout, self._layout = self._layout, None
        self._forget()
        cache = call.get("cache")
        if self._inside is not None:
            self._inside.forget()
        if hasattr(cache, RECORD) and not cached_length(cache):
            delattr(cache, RECORD)  # it was emptied since
        return self._prefill(layout, call) if layout is not None else self._continue(call)

    def _prefill(self, layout: Layout, call: Call) -> Mapping[str, Any] | None:
        """Return the arguments that change, or None if every visual token stays."""
        states, mask, cache = call.require("embeddings"), call.get("mask"), call.get("cache")
        self.doubts.settle()
        visual = layout.visual.to(states.device)
        dropped = [n - self.pruning.budget.count(n) for n in visual.sum(1).tolist()]
        if not any(dropped) and not getattr(cache, RECORD, None):  # then the plain model takes whatever came
            Prefill(layout, visual, visual, states, None, None).choose(self.pruning, states, 1.0)
            self._verify()
            return None
        self._refuse_what_cannot_be_cut(layout, call)
        valid, positions = valid_rows(visual, mask), self.adapter.positions(call)
        prefill = Prefill(layout, visual, valid, states, *self._signals(layout))
        expected = [rows - gone for rows, gone in zip(valid.sum(1).tolist(), dropped, strict=True)]
        width, added = states.shape[-1], self.adapter.added(call)
        given = call.get("positions")
        given = self.adapter.position_ids(positions) if given is None else given
        self._cut = Cut(positions, given, valid.to(positions.device))
        if self._inside is not None:
            first = self._inside.first
            self._inside.fill(prefill, expected, added[first:])
            return self.adapter.added_arguments(added[:first], visual)
        # What is added later is a part of its row: it is merged and cut along.
        states, stay = prefill.choose(self.pruning, torch.cat([states, *added], dim=-1) if added else states, 0.0)
        self._expected = expected
        rows = remaining(stay & valid, valid)
        states, *added = rows.gather(states).split(width, dim=-1)
        still_visual = rows.gather((visual & stay).unsqueeze(-1)).squeeze(-1)
        compact = self.pruning.positions == "compact"
        kept = rows.numbered() if compact else rows.gather_positions(positions)
        self._cut.rows, self._cut.compact = rows, compact
        if self.adapter.decoder.one_dimensional:
            self._compact = kept[0]
        else:
            self._angles = kept
        return {
            "embeddings": states,
            "positions": self.adapter.position_ids(kept) if self._compact is None else None,
            "mask": _as_mask(rows, mask),
            "cache_position": None,
            **self.adapter.added_arguments(added, still_visual),
        }

    def _enter_rotary(self, call: Call) -> Mapping[str, Any] | None:
        compact, self._compact = self._compact, None
        if compact is not None:
            return {"positions": compact}
        expected, self._angles = self._angles, None
        if expected is not None:
            came = call.require("positions")
            wrong = differs(came if came.ndim == 3 else came.unsqueeze(0), expected)
            what = f"the rotary embedding of {self.adapter.name} got other positions than the cut implies"
            self.doubts.add(wrong, HookError(what))
        return None

    def _signals(self, layout: Layout) -> tuple[Any, Any]:
        """Return, per prompt, what was read of the vision tower and where the question stands, if it is needed."""
        if self.pruning.replays:
            return None, None
        assert self._call is not None  # there is a layout of it
        vision = self.adapter.vision_signals(self._call, layout) if self._reads else None
        if Signal.TEXT not in self.pruning.method.needs:
            return vision, None
        prompts = zip(self._call.require("ids")[:: layout.copies], layout.kinds, strict=True)
        return vision, [self.adapter.question(ids, kinds) for ids, kinds in prompts]

    def _refuse_what_cannot_be_cut(self, layout: Layout, call: Call) -> None:
        mask, cache = call.get("mask"), call.get("cache")
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
        if any(call.get(role) is not None for role in ("packed_queries", "packed_keys")):
            raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
        call.refuse_unknown_rows(call.require("embeddings").shape[1])

    def _continue(self, call: Call) -> Mapping[str, Any] | None:
        """Return the arguments that change in a pass without visual tokens: those of a step on a pruned cache."""
        cache = call.get("cache")
        record, past = getattr(cache, RECORD, _UNKNOWN), cached_length(cache)
        if not isinstance(record, PrunedCache):
            if record is _UNKNOWN and call.get("embeddings") is not None:
                require_history(call, self._seen > 0, self.adapter.name, self.doubts)
            return None
        steps = call.require("embeddings").shape[1]
        self._step = Step.on(record, cache, steps)
        changed: dict[str, Any] = {"cache_position": None}
        if isinstance(record, LayerCut):
            if self._inside is None:
                raise ValueError(f"this cache was cut after decoder layer {record.first - 1}, this block cuts before 0")
            self._inside.resume(record, cache)
            changed = {}
        else:
            changed["mask"] = record.mask_up_to(past + steps)
        if self._call is None or self._call.get("positions") is None:
            # The model would count from the length of the cache, which may lack what was dropped.
            self._angles = record.positions(past, steps)
            return changed | {"positions": self.adapter.position_ids(self._angles)}
        came, following = call.require("positions"), record.following(past, steps)
        self._angles, wrong = self.adapter.positions(call), differs(came, following)
        if isinstance(record, LayerCut):  # nobody counts wrongly there, so that a new generate() may go on
            wrong = wrong & differs(self._angles, record.positions(past, steps))
        elif isinstance(record, InputCut) and record.shift is not None:
            self._angles = self._angles - record.shift
            changed["positions"] = came - record.shift
        self.doubts.add(wrong, OutOfOrderError())
        return changed

    def _enter_first_layer(self, call: Call) -> None:
        self._layer_cache = call.get("cache")
        expected, self._expected = self._expected, None
        if expected is not None:
            require_rows(expected, call, f"decoder layer 0 of {self.adapter.name}", self.pruning.budget.label)
            self._verify()
        if self._step is not None:
            self._step.check_first_layer(call, self.adapter.name, self.doubts)
        elif self._cut is None:
            self._refuse_step_without_decoder()

    def _refuse_step_without_decoder(self) -> None:
        """HookError if layer 0 got a pruned cache, and no hook of the decoder saw that a step began."""
        if getattr(self._layer_cache, RECORD, None) is not None:
            path = self.adapter.targets["decoder"]
            raise HookError(f"layer 0 of {self.adapter.name} got a pruned key-value cache without a call of '{path}'")

    def _verify(self) -> None:
        self._verified += 1

    def _leave_decoder(self, call: Call, output: Any) -> None:
        cut, step, cache = self._cut, self._step, self._layer_cache
        self._forget_positions()
        if step is not None:
            step.check_lengths()
        elif cut is not None:
            self._record(cut, call, output)
        elif cache is not None and not hasattr(cache, RECORD):
            setattr(cache, RECORD, None)  # nothing was dropped
        if self._inside is not None:
            self._inside.forget()
        self._forget()

    def _forget_positions(self) -> None:
        """HookError if positions were prepared that nobody asked for."""
        if self._compact is not None or self._angles is not None:
            path = self.adapter.decoder.rotary
            raise HookError(f"'{path}' of {self.adapter.name} did not run: the positions of what is kept got lost")

    def _record(self, cut: Cut, call: Call, output: Any) -> None:
        """Write on the cache that a pruned prefill filled what it lacks."""
        cache, returned = self._layer_cache, returned_cache(output)
        if cache is None:
            if call.get("cache") is not None or call.get("use_cache") or returned is not None:
                raise HookError(f"a pruned prefill with caching left no key-value cache in {self.adapter.name}")
            return
        if returned is not None and returned is not cache:
            raise HookError(f"{self.adapter.name} returned another key-value cache than its layer 0 filled")
        if self._inside is not None:
            valid = None if bool(cut.valid.all()) else cut.valid
            setattr(cache, RECORD, self._inside.filled(cache, valid, cut.next_position, cut.last_given))
            return
        setattr(cache, RECORD, cut.before_llm(cache))


def _as_mask(rows: KeptRows, given: Tensor | None) -> Tensor | None:
    """Return the mask [B, L] in the type that came, or none where a kernel can do without."""
    if rows.mask is None:
        return None
    return rows.mask.to(torch.long if given is None else given.dtype)
