"""The hooks of one `prune` block: cut before the language model, keep decoding right, and check that rows were cut."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.adapter import Adapter, cut_layer, cuts_inside
from harness.models.calls import Call, HookError, NonFiniteError, returned_cache, returned_logits
from harness.models.hooks import Handles, submodule
from harness.models.layout import Layout, cached_length
from harness.models.vision_tower import Reading, VisionReader
from harness.models.wrappers import refuse_compiled
from harness.pruning.gather import KeptRows, require_rows
from harness.pruning.kv_cache import RECORD, PrunedCache, mark
from harness.pruning.layer_cut import LayerCutHooks
from harness.pruning.one_thread import OneThread
from harness.pruning.prefill import Prefill, valid_rows
from harness.pruning.steps import DeferredErrors, OutOfOrderError, PendingCut, Step, positions_differ, require_history
from harness.pruning.vision_cache import CachedVisionReader, VisionCache
from methods.base import Signal

if TYPE_CHECKING:
    from harness.pruning.handle import Pruning

_UNKNOWN = object()  # stands for the record of a cache without one


class Session:
    """State of one block. A forward pass goes root -> multimodal -> decoder -> rotary -> first_layer."""

    def __init__(self, adapter: Adapter, pruning: Pruning, shared: VisionCache | None = None) -> None:
        self.adapter = adapter
        self.pruning = pruning
        self._unverified: dict[nn.Module, int] = {}  # running passes -> `_verified` when they began
        self._visual_passes = (
            0  # passes with visual tokens that reached the root or, called directly, the multimodal module
        )
        self._verified = 0  # passes whose rows were counted before the first pruned layer, or that keep everything
        self._labels = False
        self._layout: Layout | None = None
        self._call: Call | None = None  # arguments of the multimodal module
        self._expected_rows: list[int] | None = None  # [B] rows that layer 0 must receive
        self._cut: PendingCut | None = None  # what this pass drops
        self._step: Step | None = None  # what this pass adds to a cache
        self._compact_positions: Tensor | None = None  # [B, L] 1-D positions to pass to the rotary embedding
        self._rotary_positions: Tensor | None = None  # [R, B, L] positions that the rotary embedding must get
        self._layer_cache: Any = None  # cache that layer 0 got in this pass
        self._past = 0  # length of the cache when this pass began
        self.deferred = DeferredErrors()
        self._thread = OneThread()
        self._handles = Handles()
        self._modules = adapter.modules()
        self._begun: Prefill | None = None  # a prefill that is not yet recorded
        method = pruning.method
        self._layer_cut = LayerCutHooks(adapter, pruning) if cuts_inside(method) else None
        self._num_layers = sum(1 for _ in submodule(adapter.model, adapter.decoder.layers).children())
        reading = None if pruning.budget.keep == 1 else Reading.of(method)
        self._reads_vision = reading is not None
        self._reader: VisionReader | CachedVisionReader | None
        if shared is not None:
            self._reader = shared.reader(adapter, reading)
        else:
            self._reader = None if reading is None else VisionReader(adapter.tower, reading)

    def open(self) -> None:
        """Hook the model, or leave it as it is and raise."""
        refuse_compiled(self.adapter.model)
        try:
            self._attach(self._handles)
        except BaseException:  # whatever went wrong, no hook stays
            self.close()
            raise

    def close(self) -> None:
        """Restore the model."""
        self._handles.remove()
        self._reset_pass()

    def check(self) -> None:
        """Raise what was deferred, and HookError unless every pass was pruned."""
        self.deferred.settle()
        self._handles.check()
        self._check_everything_was_pruned(self._modules)

    def _attach(self, handles: Handles) -> None:
        """Resolve every argument that hooks read, then attach the hooks."""
        adapter = self.adapter
        sites = {part: adapter.site(part) for part in ("root", "multimodal", "vision", "decoder")}
        rotary = adapter.site("rotary", adapter.decoder.rotary)
        first = adapter.site("layer", adapter.targets["first_layer"])
        for site in sites.values():
            handles.before(site, partial(self._enter_pass, site.module))
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
        if self._layer_cut is not None:
            self._layer_cut.attach(handles, self._verify)
        handles.after(sites["root"], self._check_logits)
        for part in ("root", "multimodal"):
            handles.after(sites[part], partial(self._leave, sites[part].module), always=True)
        handles.after(sites["vision"], self._leave_vision)
        handles.after(sites["decoder"], self._leave_decoder)
        for site in sites.values():
            handles.after(site, partial(self._leave_pass, site.module), always=True)

    def _enter_pass(self, module: nn.Module, call: Call) -> None:
        self._thread.enter(module)

    def _leave_pass(self, module: nn.Module, call: Call, output: Any) -> None:
        self._thread.leave(module)

    # Entering and leaving the whole model: every pass with visual tokens must have one verified cut.

    def _enter_root(self, module: nn.Module, call: Call) -> None:
        self._labels = call.get("labels") is not None
        self._expect_cut(module, call)

    def _enter_multimodal(self, module: nn.Module, call: Call) -> None:
        self._call = call
        self._expect_cut(module, call)
        if module in self._unverified:
            self._layout = self.adapter.layout(call)

    def _expect_cut(self, module: nn.Module, call: Call) -> None:
        if self.adapter.has_visuals(call):
            self._visual_passes += not self._unverified
            self._unverified[module] = self._verified

    def _leave(self, module: nn.Module, call: Call, output: Any) -> None:
        """Check that a pass was cut; one that raised has no output, and stays unverified."""
        if not self._thread.admitted:
            return
        self._layout = self._expected_rows = self._call = None
        self._labels = False
        self._reset_pass()
        verified_before = self._unverified.pop(module, None)
        if output is not None and verified_before == self._verified:
            what = "a forward pass with visual tokens went through unpruned (compiled code does: call the plain model)"
            raise HookError(self._invalid_results(what))

    def _check_logits(self, call: Call, output: Any) -> None:
        """Raise NonFiniteError, on a GPU later, if the logits at the last place are not finite.

        Earlier places may be padding, on which some kernels give NaN.
        """
        logits = returned_logits(output)
        if logits is not None:
            wrong = ~logits[:, -1].isfinite().all()
            place, dtype = "a decoding step" if self._past else "a prefill", str(logits.dtype).removeprefix("torch.")
            what = f"the logits of {self.adapter.name} are not finite in {place} ({dtype})"
            remedy = "the weights are damaged or numbers overflow: try float32 or bfloat16, or download them again"
            self.deferred.add(wrong, NonFiniteError(f"{what}; {remedy}"))

    def _check_everything_was_pruned(self, modules: dict[str, nn.Module]) -> None:
        for role, module in self.adapter.modules().items():
            if module is not modules[role]:
                path = self.adapter.targets.get(role, role)
                raise HookError(self._invalid_results(f"'{path}' was replaced inside the prune block"))
        if self._visual_passes != self._verified:
            unpruned = self._visual_passes - self._verified
            what = f"{unpruned} of {self._visual_passes} forward passes with visual tokens"
            raise HookError(self._invalid_results(f"{what} failed or went through unpruned"))

    def _invalid_results(self, what: str) -> str:
        wrong = f"{self.pruning.method.name} was not applied to all of them"
        return f"{what} in {self.adapter.name}: discard the results of this block, {wrong}"

    def _leave_vision(self, call: Call, output: Any) -> None:
        signals = None if self._reader is None else self._reader.take()
        self.adapter.record_vision_pass(call, output, signals)

    # The language model: cut in the prefill, mask and positions in the decoding steps.

    def _reset_pass(self) -> None:
        if self._step is not None:
            self._step.record.in_step = False
        self._cut = self._step = self._compact_positions = self._rotary_positions = self._layer_cache = None
        self._begun = None
        if self._layer_cut is not None:
            self._layer_cut.forget()

    def _enter_decoder(self, call: Call) -> Mapping[str, Any] | None:
        layout, self._layout = self._layout, None
        self._reset_pass()
        cache = call.get("cache")
        self._past = cached_length(cache)
        if hasattr(cache, RECORD) and not cached_length(cache):
            delattr(cache, RECORD)  # the cache was emptied since
        return self._prefill(layout, call) if layout is not None else self._continue(call)

    def _prefill(self, layout: Layout, call: Call) -> Mapping[str, Any] | None:
        """Return the arguments that change, or None if every visual token stays."""
        states, mask, cache = call.require("embeddings"), call.get("mask"), call.get("cache")
        self.deferred.settle()
        prefill = Prefill(self.pruning, layout, states, self._num_layers)
        if not prefill.layers and not getattr(cache, RECORD, None):  # the pass runs unchanged
            prefill.record([])
            self._verify()
            return None
        self._refuse_what_cannot_be_cut(layout, call)
        valid = valid_rows(prefill.visual, mask)
        prefill.begin(valid, *self._signals(layout))
        positions, added, visual = self.adapter.positions(call), self.adapter.added(call), prefill.visual
        input_positions = call.get("positions")
        if input_positions is None:
            input_positions = self.adapter.position_ids(positions)
        self._begun, self._cut = prefill, PendingCut(positions, input_positions, valid.to(positions.device))
        changed: dict[str, Any] = {}
        if not prefill.layers or prefill.layers[0] < 0:
            changed, added, visual = self._cut_input(prefill, states, positions, added, mask)
        later = [layer for layer in prefill.layers if layer >= 0]
        if not later:
            return changed | self.adapter.added_arguments(added, visual)
        assert self._layer_cut is not None  # only a method that cuts inside has such layers
        self._layer_cut.fill(prefill, added)
        return changed | self.adapter.added_arguments(added[: later[0] + 1], visual)

    def _cut_input(
        self, prefill: Prefill, states: Tensor, positions: Tensor, added: list[Tensor], mask: Tensor | None
    ) -> tuple[dict[str, Any], list[Tensor], Tensor]:
        """Cut before layer 0: return the arguments that change, and what is added to rows; those that are visual."""
        assert self._cut is not None
        width = states.shape[-1]
        # What later layers add to a row is merged and dropped together with it.
        joint = torch.cat([states, *added], dim=-1) if added else states
        joint, rows, self._expected_rows = prefill.cut(-1, joint)
        states, *added = rows.gather(joint).split(width, dim=-1)
        prefill.narrow(rows, states)
        compact = self.pruning.positions == "compact"
        kept_positions = rows.compact_positions() if compact else rows.gather_positions(positions)
        self._cut.rows, self._cut.compact = rows, compact
        if self.adapter.decoder.one_dimensional:
            self._compact_positions = kept_positions[0]
        else:
            self._rotary_positions = kept_positions
        arguments = {
            "embeddings": states,
            "positions": self.adapter.position_ids(kept_positions) if self._compact_positions is None else None,
            "mask": _as_mask(rows, mask),
            "cache_position": None,
        }
        return arguments, added, prefill.visual

    def _enter_rotary(self, call: Call) -> Mapping[str, Any] | None:
        compact, self._compact_positions = self._compact_positions, None
        if compact is not None:
            return {"positions": compact}
        expected, self._rotary_positions = self._rotary_positions, None
        if expected is not None:
            actual = call.require("positions")
            wrong = positions_differ(actual if actual.ndim == 3 else actual.unsqueeze(0), expected)
            what = f"the rotary embedding of {self.adapter.name} got other positions than the cut implies"
            self.deferred.add(wrong, HookError(what))
        return None

    def _signals(self, layout: Layout) -> tuple[Any, Any]:
        """Return, per prompt, the signals of the vision tower and the rows of the question, each None if not needed."""
        if self.pruning.replays:
            return None, None
        assert self._call is not None  # a layout exists, so the multimodal module was entered
        vision = self.adapter.vision_signals(self._call, layout) if self._reads_vision else None
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
            raise ValueError(f"pruning needs a padding mask [batch, tokens], got one {got}: {hint}")
        if getattr(cache, "is_compileable", False):
            name = type(cache).__name__
            raise ValueError(f"pruning needs a growing cache, not {name}: leave out cache_implementation")
        if any(call.get(role) is not None for role in ("packed_queries", "packed_keys")):
            raise ValueError("packed sequences cannot be pruned: give each sample its own row of the batch")
        call.refuse_unknown_rows(call.require("embeddings").shape[1])

    def _continue(self, call: Call) -> Mapping[str, Any] | None:
        """Return the arguments that change in a pass without visual tokens, if it is a step on a pruned cache."""
        cache = call.get("cache")
        record, past = getattr(cache, RECORD, _UNKNOWN), cached_length(cache)
        if not isinstance(record, PrunedCache):
            if record is _UNKNOWN and call.get("embeddings") is not None:
                require_history(call, self._visual_passes > 0, self.adapter.name, self.deferred)
            if record is _UNKNOWN and past and self.pruning.budget.keep != 1:
                raise ValueError(
                    f"the key-value cache of {past} tokens was filled outside prune blocks, so its images may be "
                    "unpruned: fill it within the block"
                )
            return None
        steps = call.require("embeddings").shape[1]
        self._step = Step.on(record, cache, steps)
        record.in_step = True
        changed: dict[str, Any] = {"cache_position": None}
        if len(record.groups) > 1:
            self._refuse_other_cut(record)
            assert self._layer_cut is not None
            self._layer_cut.resume(record, cache, call.require("embeddings"))
        if record.at_input:
            changed["mask"] = record.groups[0].mask_up_to(past + steps)
        else:
            changed = {}
        if self._call is None or self._call.get("positions") is None:
            # The model would count from the length of the cache, which may lack dropped tokens.
            self._rotary_positions = record.positions(past, steps)
            return changed | {"positions": self.adapter.position_ids(self._rotary_positions)}
        actual, expected = call.require("positions"), record.next_input_positions(past, steps)
        self._rotary_positions, wrong = self.adapter.positions(call), positions_differ(actual, expected)
        if not record.at_input:  # layer 0 has all tokens, so a new generate() also counts correctly
            wrong = wrong & positions_differ(self._rotary_positions, record.positions(past, steps))
        elif record.shift is not None:
            self._rotary_positions = self._rotary_positions - record.shift
            changed["positions"] = actual - record.shift
        self.deferred.add(wrong, OutOfOrderError())
        return changed

    def _refuse_other_cut(self, record: PrunedCache) -> None:
        """Refuse a cache that was cut inside the language model elsewhere than this block cuts."""
        layers, only = [group.first - 1 for group in record.groups[1:]], cut_layer(self.pruning.method)
        after = f"this cache was cut after decoder layer {', '.join(map(str, layers))}, this block cuts"
        if self._layer_cut is None:
            raise ValueError(f"{after} before 0")
        if only is not None and layers != [only]:
            raise ValueError(f"{after} after {only}: go on in a block with the same method")

    def _enter_first_layer(self, call: Call) -> None:
        self._layer_cache = call.get("cache")
        expected, self._expected_rows = self._expected_rows, None
        if expected is not None:
            require_rows(expected, call, f"decoder layer 0 of {self.adapter.name}", self.pruning.budget.label)
            if self._layer_cut is None or not self._layer_cut.is_pending:
                self._verify()
        if self._step is not None:
            self._step.check_first_layer(call, self.adapter.name, self.deferred)
        elif self._cut is None:
            self._refuse_step_without_decoder()

    def _refuse_step_without_decoder(self) -> None:
        """Raise HookError if layer 0 got a pruned cache, but the hook of the decoder did not run."""
        if getattr(self._layer_cache, RECORD, None) is not None:
            path = self.adapter.targets["decoder"]
            raise HookError(f"layer 0 of {self.adapter.name} got a pruned key-value cache without a call of '{path}'")

    def _verify(self) -> None:
        self._verified += 1

    def _leave_decoder(self, call: Call, output: Any) -> None:
        cut, step, cache = self._cut, self._step, self._layer_cache
        self._check_positions_were_used()
        if step is not None:
            step.check_lengths()
        elif cut is not None:
            self._record(cut, call, output)
        elif cache is not None and not hasattr(cache, RECORD):
            setattr(cache, RECORD, None)  # nothing was dropped
        self._reset_pass()

    def _check_positions_were_used(self) -> None:
        """Raise HookError if positions were prepared, but the rotary embedding did not run."""
        if self._compact_positions is not None or self._rotary_positions is not None:
            path = self.adapter.decoder.rotary
            raise HookError(f"'{path}' of {self.adapter.name} did not run: the positions of what is kept got lost")

    def _record(self, cut: PendingCut, call: Call, output: Any) -> None:
        """Write down what was kept, also on the cache that the prefill filled."""
        assert self._begun is not None
        shares = self._layer_cut.share_of_work if self._layer_cut is not None else lambda layer: 0.0
        groups = self._layer_cut.groups() if self._layer_cut is not None else []
        self._begun.record([shares(layer) for layer in self._begun.layers])
        cache, returned = self._layer_cache, returned_cache(output)
        if cache is None:
            if call.get("cache") is not None or call.get("use_cache") or returned is not None:
                raise HookError(f"a pruned prefill with caching left no key-value cache in {self.adapter.name}")
            return
        if returned is not None and returned is not cache:
            raise HookError(f"{self.adapter.name} returned another key-value cache than its layer 0 filled")
        mark(cache, cut.record(cache, groups))


def _as_mask(rows: KeptRows, original: Tensor | None) -> Tensor | None:
    """Return the mask [B, L] in the type of the original one, or None if there is no padding."""
    if rows.mask is None:
        return None
    return rows.mask.to(torch.long if original is None else original.dtype)
