"""The hooks of one `prune` block: cut where the language model begins, keep decoding right, prove the cut happened."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn

from harness.models.base import Adapter, Layout, arguments, cached_length
from harness.models.rows import Rows, averaged, entering, remaining
from harness.prune import Kept

if TYPE_CHECKING:
    from harness.prune import Pruning
    from methods.base import Selection

# On the cache itself, so that a copy of it, or another block, knows what this block knew.
RECORD = "_harness_pruned"
_active: WeakSet[nn.Module] = WeakSet()
_active_lock = threading.Lock()


@dataclass(eq=False)
class PrunedCache:
    """What decoding has to know about a key-value cache that was filled by a pruned prefill."""

    length: int  # L, positions after the prefill
    mask: Tensor | None  # [B, L] as in `Rows`
    next_position: Tensor  # [B] behind the largest of the prompt: from there the model counts on by itself
    last_given: Tensor  # [R, B, 1] position of the last token as it was given: from there generate() counts on
    check_positions: bool = False  # not while tokens come one by one: it would make a GPU wait in every step

    def mask_up_to(self, total: int) -> Tensor | None:
        """Return the padding mask [B, total] once the cache holds `total` positions."""
        if self.mask is None:
            return None
        return nn.functional.pad(self.mask, (0, total - self.length), value=True).long()

    def positions(self, past: int, steps: int) -> Tensor:
        """Return the positions [3, B, steps] of text that follows `past` cached ones."""
        counted = torch.arange(past - self.length, past - self.length + steps, device=self.next_position.device)
        return (self.next_position.view(-1, 1) + counted).expand(3, -1, -1)

    def precedes(self, given: Tensor, past: int) -> bool:
        """Tell whether the positions `given` [R, B, steps] go on from the prompt after `past` cached tokens.

        A new generate() on the cache gives fewer rows, and would count from its length.
        """
        start = past - self.length + 1
        return torch.equal(given, self.last_given + torch.arange(start, start + given.shape[-1], device=given.device))


class Session:
    """State of one block. A forward pass goes root -> multimodal -> decoder -> first_layer."""

    def __init__(self, adapter: Adapter, pruning: Pruning) -> None:
        self.adapter = adapter
        self.pruning = pruning
        self._owed: dict[nn.Module, int] = {}  # passes with visual tokens under way -> `_verified` when they began
        self._seen = 0  # passes with visual tokens that reached the root or, called directly, the multimodal module
        self._verified = 0  # passes whose rows were counted in front of layer 0, or that keep everything
        self._labels = False
        self._layout: Layout | None = None
        self._positions_given = False
        self._expected: list[int] | None = None  # [B] rows that layer 0 must receive
        self._filling: PrunedCache | None = None

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
        after: dict[str, Callable[..., Any]] = {
            "root": self._leave,
            "multimodal": self._leave,
            "vision": self._leave_vision,
            "decoder": self._leave_decoder,
        }
        handles: list[Any] = []
        try:
            for role, hook in before.items():
                handles.append(modules[role].register_forward_pre_hook(hook, with_kwargs=True))
            for role, hook in after.items():
                after_errors = hook == self._leave
                handles.append(modules[role].register_forward_hook(hook, with_kwargs=True, always_call=after_errors))
            yield
            self._check_everything_was_pruned(modules)
        finally:
            for handle in handles:
                handle.remove()
            _active.discard(model)

    # Entering and leaving the whole model: every pass that brings visual tokens owes one verified cut.

    def _enter_root(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = arguments(module, args, kwargs)
        self._labels = call.get("labels") is not None
        self._owe(module, call)

    def _enter_multimodal(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call = arguments(module, args, kwargs)
        self._positions_given = call.get("position_ids") is not None
        self._owe(module, call)
        if module in self._owed:
            self._layout = self.adapter.layout(call)

    def _owe(self, module: nn.Module, call: dict[str, Any]) -> None:
        if self.adapter.has_visuals(call):
            self._seen += not self._owed
            self._owed[module] = self._verified

    def _leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Settle the debt of a pass; one that raised, and so has no output, stays unverified."""
        self._layout = self._expected = self._filling = None
        self._labels = False
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
        self.adapter.saw_vision(arguments(module, args, kwargs), output)

    # The language model: cut in the prefill, mask in the decoding steps.

    def _enter_decoder(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        call = arguments(module, args, kwargs)
        layout, self._layout = self._layout, None
        cache = call.get("past_key_values")
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
            self._choose(layout, states, visual)
            self._verified += 1
            return None
        self._refuse_what_cannot_be_cut(layout, call)
        valid = _valid(visual, mask)
        states, stay = self._choose(layout, states, visual)
        self._expected = [rows - gone for rows, gone in zip(valid.sum(1).tolist(), dropped, strict=True)]
        rows = remaining(stay & valid, valid)
        positions = self.adapter.positions(call)
        self._filling = _filled_by(rows, positions, call.get("position_ids"), valid.to(positions.device))
        return {
            "inputs_embeds": rows.gather(states),
            "position_ids": rows.gather_positions(positions),
            "attention_mask": _as_mask(rows, mask),
        }

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

    def _choose(self, layout: Layout, states: Tensor, visual: Tensor) -> tuple[Tensor, Tensor]:
        """Let the method choose for each sample; return the (merged) embeddings [B, S, D] and who stays [B, S]."""
        stay, merged, records = ~visual, False, []
        for sample, grids in enumerate(layout.grids):
            rows = slice(sample * layout.copies, (sample + 1) * layout.copies)
            where = visual[rows.start].nonzero().squeeze(1)
            selection = self.pruning.select(states[rows.start, where], grids)
            stay[rows, where[selection.kept]] = True
            if selection.owner is not None:
                states, merged = (states if merged else states.clone()), True
                states[rows, where[selection.kept]] = _merge(states[rows.start, where], selection)
            kept = selection.kept.tolist()
            records.append(Kept(len(where), len(kept), kept, list(grids)))
        self.pruning.records.extend(records)
        return states, stay

    def _continue(self, call: dict[str, Any]) -> dict[str, Any] | None:
        """Return the arguments of a decoding step that change, or None if its cache was not pruned."""
        cache, states = call.get("past_key_values"), call.get("inputs_embeds")
        pruned: PrunedCache | None = getattr(cache, RECORD, None)
        if pruned is None or states is None:
            return None
        past, steps = cached_length(cache), states.shape[1]
        pruned.check_positions |= steps > 1
        changed: dict[str, Any] = {"attention_mask": pruned.mask_up_to(past + steps)}
        if not self._positions_given:
            # The model would count from the length of the cache, which lacks what was dropped.
            changed["position_ids"] = pruned.positions(past, steps)
        elif pruned.check_positions and not pruned.precedes(call["position_ids"], past):
            raise ValueError(
                "these tokens do not follow what the pruned cache holds (transformers counts by its length): "
                "pass a further turn as the whole conversation, without past_key_values"
            )
        return changed

    def _enter_first_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        expected, self._expected = self._expected, None
        if expected is None:
            return
        call = arguments(module, args, kwargs)
        realised = entering(call["hidden_states"], call.get("attention_mask"))
        if realised != expected:
            raise RuntimeError(
                f"decoder layer 0 of {self.adapter.name} received {realised} rows per sample, the budget of "
                f"{self.pruning.budget.label} asks for {expected}"
            )
        self._verified += 1

    def _leave_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        filled, self._filling = self._filling, None
        if filled is None:
            return
        cache = arguments(module, args, kwargs).get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is None:
            return
        if cached_length(cache) != filled.length:
            raise RuntimeError(
                f"the key-value cache holds {cached_length(cache)} positions after a pruned prefill of {filled.length}"
            )
        setattr(cache, RECORD, filled)


def _merge(features: Tensor, selection: Selection) -> Tensor:
    assert selection.owner is not None
    return averaged(features, selection.kept, selection.owner)


def _as_mask(rows: Rows, given: Tensor | None) -> Tensor | None:
    """Return the mask [B, L] in the type that came, or none where a kernel can do without."""
    if rows.mask is None:
        return None
    return rows.mask.to(torch.long if given is None else given.dtype)


def _valid(visual: Tensor, mask: Tensor | None) -> Tensor:
    """Return [B, S], False on padding."""
    if mask is None:
        return torch.ones_like(visual)
    valid = mask.to(visual.device).bool()
    if bool((visual & ~valid).any()):
        raise ValueError("the attention mask hides visual tokens, which cannot be pruned: mask padding only")
    return valid


def _filled_by(rows: Rows, positions: Tensor, given: Tensor | None, valid: Tensor) -> PrunedCache:
    """Describe the cache after a prefill of `rows`; `positions` [3, B, S] are those of all rows, from the `given`."""
    behind = positions.amax(0).masked_fill(~valid, -1).amax(1) + 1
    given = positions if given is None else given.expand(*given.shape[:-2], *valid.shape)
    last = (valid * torch.arange(valid.shape[1], device=valid.device)).argmax(1, keepdim=True)
    last_given = given.gather(-1, last.expand(*given.shape[:-1], 1))
    return PrunedCache(rows.index.shape[1], rows.mask, behind, last_given)
