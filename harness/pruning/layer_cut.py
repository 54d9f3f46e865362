"""The cut inside the language model: decoder layers 0..j see all tokens, later layers the kept ones.

A hook before layer j+1 asks the method and passes on the kept rows. Later layers get masks and rotary positions of
those rows. A method that cuts before the MLP of layer j is asked before that MLP, which then runs on the kept rows
only. Its output is scattered into full rows, so that the layer can add it to its residual.

In decoding, layers from j+1 on have shorter caches than layer 0, from which the model makes its masks. They get masks
that transformers' function makes from a view of the cache. Positions stay as the model counts them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.models.calls import Call, HookError
from harness.models.compat import causal_mask
from harness.models.hooks import Handles, submodule
from harness.models.layout import cached_length
from harness.pruning.gather import KeptRows, kept_rows, require_rows
from harness.pruning.kv_cache import LayerCut
from methods.base import LayerState

if TYPE_CHECKING:
    from harness.models.adapter import Adapter
    from harness.pruning.handle import Pruning
    from harness.pruning.prefill import Prefill


class LayerCutHooks:
    """Hooks and state of one block whose method cuts after decoder layer `layer`."""

    def __init__(self, adapter: Adapter, pruning: Pruning, layer: int) -> None:
        self.layer = layer
        self.first = layer + 1  # the first layer that sees only kept tokens
        self._adapter = adapter
        self._pruning = pruning
        self._method = pruning.method
        self._config: Any = submodule(adapter.model, adapter.decoder.path).config
        self._layers = list(submodule(adapter.model, adapter.decoder.layers).children())
        self._full_share = self._share_of_work()
        self.forget()

    def forget(self) -> None:
        """Reset the state after a pass, or before the next one."""
        self._prefill: Prefill | None = None
        self._record: LayerCut | None = None  # in a decoding step
        self._view: Any = None  # in a decoding step: the cache from layer j+1 on
        self._rows: KeptRows | None = None
        self._late_arguments: dict[str, Any] | None = None  # changed arguments of later layers, by role
        self._attention: tuple[nn.Module, Call] | None = None  # of layer j, with its arguments
        self._projected: list[Tensor] = []
        # Added to the rows after layers j+1, j+2, ...: [B, S, D] before the cut, [B, L, D] after it.
        self._added: list[Tensor] = []
        self._expected: list[int] | None = None  # [B] rows that layer j+1 must receive

    def _share_of_work(self) -> float:
        """Return the share of the decoder's layers that see all tokens; parts of a layer count by their weights."""
        layer = self._layers[self.layer]
        pruned_part = submodule(layer, self._adapter.decoder.mlp) if self._method.before_mlp else nn.Module()
        total, pruned = (sum(weight.numel() for weight in part.parameters()) for part in (layer, pruned_part))
        return (self.first - pruned / total) / len(self._layers)

    def attach(self, handles: Handles, verified: Callable[[], None]) -> None:
        """Hook layer j and later ones; `verified` is called once the right number of rows reached layer j+1."""
        adapter, parts = self._adapter, self._adapter.decoder
        path, first = f"{parts.layers}.{self.layer}", f"{parts.layers}.{self.first}"
        attention, mlp = f"{path}.{parts.attention}", f"{path}.{parts.mlp}"
        site = adapter.site("attention", attention)
        handles.before(site, partial(self._enter_attention, site.module))
        for projection in parts.projections:
            handles.on_output(submodule(site.module, projection), self._project)
        if self._method.before_mlp:
            handles.before(adapter.site("mlp", mlp), self._enter_mlp)
            handles.on_output(submodule(adapter.model, mlp), self._leave_mlp)
        handles.before(adapter.site("layer", first), self._enter_first)
        for number, late in enumerate(self._layers[self.first :]):
            handles.before(adapter.site("layer", f"{parts.layers}.{self.first + number}"), self._enter_late)
            handles.on_output(late, partial(self._leave_late, number))
        self._on_verified = verified
        handles.before(adapter.site("attention", f"{first}.{parts.attention}"), self._check_rows)

    # Called by the hooks of the decoder.

    def fill(self, prefill: Prefill, expected: list[int], added: list[Tensor]) -> None:
        """Begin a prefill in which layer j+1 must receive `expected[i]` rows of sample i, and the newlines that stay.

        `added` [B, S, D] are added to the rows after layers j+1, j+2, ... here, instead of by the model.
        """
        self.forget()
        if torch.is_grad_enabled() and any(vars(layer).get("gradient_checkpointing") for layer in self._layers):
            raise ValueError(
                f"{self._method.name} cuts after decoder layer {self.layer}, and gradient checkpointing would repeat "
                "layers without the cut: call model.gradient_checkpointing_disable(), or cut before the language model"
            )
        self._prefill, self._expected, self._added = prefill, expected, added

    def resume(self, record: LayerCut, cache: Any) -> None:
        """Begin a decoding step on a cache that such a prefill filled."""
        if record.first != self.first:
            raise ValueError(
                f"this cache was cut after decoder layer {record.first - 1}, this block cuts after {self.layer}: "
                "go on in a block with the same method"
            )
        self.forget()
        self._record, self._view = record, record.late_view(cache)

    def describe_cache(
        self, cache: Any, valid: Tensor | None, next_position: Tensor, last_input_position: Tensor
    ) -> LayerCut:
        """Return the record of `cache` after a prefill; HookError if a layer holds a wrong number of positions."""
        if self._prefill is None or self._rows is None:
            raise HookError(f"decoder layer {self.first} of {self._adapter.name} did not run in a pruned prefill")
        full_length, length = self._prefill.visual.shape[1], self._rows.index.shape[1]
        held = [cached_length(cache, layer) for layer in range(len(self._layers))]
        expected = [full_length] * self.first + [length] * (len(held) - self.first)
        if held != expected:
            raise HookError(f"the key-value cache holds {held} positions a layer after a prefill of {expected}")
        return LayerCut(length, self._rows.mask, full_length, valid, next_position, last_input_position, self.first)

    # Layer j: read its attention, and cut its MLP if the method asks for it.

    def _enter_attention(self, attention: nn.Module, call: Call) -> None:
        if self._prefill is not None:
            self._attention, self._projected = (attention, call), []

    def _project(self, output: Tensor) -> None:
        if self._prefill is not None:
            self._projected.append(output.detach())

    def _enter_mlp(self, call: Call) -> dict[str, Any] | None:
        if self._prefill is None:
            return None
        states = call.require("states")
        self._choose(states.new_empty(0))
        assert self._rows is not None
        return {"states": self._rows.gather(states)}

    def _leave_mlp(self, output: Tensor) -> Tensor | None:
        if self._prefill is None or self._rows is None:
            return None
        batch, length = self._prefill.visual.shape
        index = self._rows.index.to(output.device).unsqueeze(-1).expand_as(output)
        return output.new_zeros(batch, length, output.shape[-1]).scatter(1, index, output)

    # Layers j+1 and later.

    def _enter_first(self, call: Call) -> dict[str, Any] | None:
        if self._prefill is None and self._record is None:
            return None
        states = call.require("states")
        if self._record is not None:
            padding = self._record.mask_up_to(cached_length(self._view) + states.shape[1])
            self._late_arguments = {"mask": self._mask(states, padding, self._view)}
            return None
        if self._rows is None:
            states, *self._added = self._choose(states).split(states.shape[-1], dim=-1)
        assert self._rows is not None
        states, *self._added = (self._rows.gather(part) for part in (states, *self._added))
        rotation = tuple(self._rows.gather_rotation(part) for part in call.require("rotation"))
        # Position ids would only serve to find packed sequences by jumps, and dropped rows look like such jumps.
        mask = self._mask(states, self._rows.mask, None)
        self._late_arguments = {"mask": mask, "rotation": rotation, "positions": None, "cache_position": None}
        return {"states": states}

    def _enter_late(self, call: Call) -> dict[str, Any] | None:
        return self._late_arguments

    def _leave_late(self, number: int, output: Any) -> Any:
        if number >= len(self._added):
            return None
        states, *rest = output if isinstance(output, tuple) else (output,)
        states = states + self._added[number].to(states)
        return (states, *rest) if isinstance(output, tuple) else states

    def _check_rows(self, call: Call) -> None:
        expected, self._expected = self._expected, None
        if expected is None:
            return
        layer = f"decoder layer {self.first} of {self._adapter.name}"
        require_rows(expected, call, layer, self._pruning.budget.label)
        self._on_verified()

    def _mask(self, states: Tensor, padding: Tensor | None, view: Any) -> Any:
        """Return the attention kernel's mask for rows `states` [B, L, D]."""
        padding = None if padding is None else padding.to(states.device)
        return causal_mask(self._config, states, padding, view)

    def _choose(self, states: Tensor) -> Tensor:
        """Ask the method, with `states` [B, S, D] after layer j, or empty ones.

        Return the states with merged rows, concatenated with what is still to be added: [B, S, (1 + layers) D].
        """
        prefill, attention = self._prefill, self._attention
        if prefill is None or attention is None or len(self._projected) != len(self._adapter.decoder.projections):
            raise HookError(f"decoder layer {self.layer} of {self._adapter.name} ran without its projections")
        with torch.no_grad():
            q, k = self._adapter.decoder_qk(*attention, self._projected)
        hidden = attention[1].require("states")
        if self._method.hidden_state in ("output", "normed_output"):
            hidden = states

        def read(row: int) -> LayerState:
            present = prefill.valid[row].nonzero().squeeze(1)
            visual_idx = prefill.visual[row, present].nonzero().squeeze(1)
            index = present.to(hidden.device)
            rows = hidden[row, index].detach()
            if self._method.hidden_state == "normed_output":
                with torch.no_grad():
                    rows = submodule(self._adapter.model, self._adapter.decoder.norm)(rows)
            parts = [part.to(present.device) for part in (q[row][:, index], k[row][:, index], rows)]
            return LayerState(parts[0], parts[1], parts[2], visual_idx)

        joint = torch.cat([states, *(part.to(states) for part in self._added)], dim=-1) if states.numel() else states
        joint, stay = prefill.choose(self._pruning, joint, self._full_share, read)
        assert self._expected is not None
        self._expected = prefill.expected_rows(self._expected, stay)
        self._rows = kept_rows(stay & prefill.valid, prefill.valid)
        self._attention, self._projected = None, []  # frees the tensors of the layer
        return joint
