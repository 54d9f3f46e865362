"""Cuts inside the language model: decoder layers 0..j see all tokens, later layers the kept ones, up to the next cut.

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

from harness.models.adapter import cut_layer
from harness.models.calls import Call, CallSite, HookError
from harness.models.compat import causal_mask
from harness.models.hooks import Handles, submodule
from harness.models.layout import cached_length
from harness.pruning.gather import KeptRows, require_rows
from harness.pruning.kv_cache import Group, PrunedCache
from methods.base import LayerState

if TYPE_CHECKING:
    from harness.models.adapter import Adapter
    from harness.pruning.handle import Pruning
    from harness.pruning.prefill import Prefill


class LayerCutHooks:
    """Hooks and state of one block whose method cuts after decoder layers."""

    def __init__(self, adapter: Adapter, pruning: Pruning) -> None:
        self._adapter = adapter
        self._pruning = pruning
        self._method = pruning.method
        self._config: Any = submodule(adapter.model, adapter.decoder.path).config
        self._layers = list(submodule(adapter.model, adapter.decoder.layers).children())
        only = cut_layer(pruning.method)
        self._possible = range(len(self._layers) - 1) if only is None else [only]  # layers that a cut may follow
        self._attentions: dict[int, CallSite] = {}
        self._reading = Handles()  # hooks of one prefill, on the layers whose q and k are read
        self.forget()

    def forget(self) -> None:
        """Reset the state after a pass, or before the next one."""
        self._reading.remove()
        self._prefill: Prefill | None = None
        self._open: list[int] = []  # layers behind which something is still to be cut, ascending
        self._groups: list[Group] = []  # of layers behind a cut of this prefill
        self._masks: dict[int, Any] = {}  # in a decoding step: mask from this layer on
        self._rows: KeptRows | None = None  # from before an MLP until the next layer
        self._late_arguments: dict[str, Any] | None = None  # changed arguments of later layers, by role
        self._attention: tuple[nn.Module, Call] | None = None  # of the layer that is read, with its arguments
        self._projected: list[Tensor] = []
        self._added: dict[int, Tensor] = {}  # to be added to the rows after this layer: [B, rows now, D]
        self._expected: list[int] | None = None  # [B] rows that the layer behind the latest cut must receive

    def share_of_work(self, layer: int) -> float:
        """Return the share of the decoder's layers in front of a cut; parts of a layer count by their weights."""
        if layer < 0:
            return 0.0
        block = self._layers[layer]
        pruned_part = submodule(block, self._adapter.decoder.mlp) if self._method.before_mlp else nn.Module()
        total, pruned = (sum(weight.numel() for weight in part.parameters()) for part in (block, pruned_part))
        return (layer + 1 - pruned / total) / len(self._layers)

    def attach(self, handles: Handles, verified: Callable[[], None]) -> None:
        """Hook the layers behind possible cuts; `verified` is called when the last one left the right rows."""
        adapter, parts = self._adapter, self._adapter.decoder
        self._on_verified = verified
        for number in range(self._possible[0], len(self._layers)):
            path = f"{parts.layers}.{number}"
            self._attentions[number] = adapter.site("attention", f"{path}.{parts.attention}")
            for projection in parts.projections:
                submodule(self._attentions[number].module, projection)  # which must exist
            if self._method.before_mlp and number in self._possible:
                mlp = f"{path}.{parts.mlp}"
                handles.before(adapter.site("mlp", mlp), partial(self._enter_mlp, number))
                handles.on_output(submodule(adapter.model, mlp), self._leave_mlp)
            if number > self._possible[0]:
                handles.before(adapter.site("layer", path), partial(self._enter_layer, number))
                handles.on_output(self._layers[number], partial(self._leave_layer, number))

    # Called by the hooks of the decoder.

    def fill(self, prefill: Prefill, added: list[Tensor]) -> None:
        """Begin a prefill; `added` [B, S, D] are added to the rows after layers 0, 1, ... here where it was cut."""
        self.forget()
        if torch.is_grad_enabled() and any(vars(layer).get("gradient_checkpointing") for layer in self._layers):
            after = "decoder layers" if cut_layer(self._method) is None else f"decoder layer {self._possible[0]}"
            raise ValueError(
                f"{self._method.name} cuts after {after}, and gradient checkpointing would repeat "
                "layers without the cut: call model.gradient_checkpointing_disable(), or cut before the language model"
            )
        self._prefill = prefill
        self._open = [layer for layer in prefill.layers if layer >= 0]
        self._added = {layer: part for layer, part in enumerate(added) if layer > self._open[0]}
        for layer in self._open if self._method.reads == "this" else []:
            self._read(self._attentions[layer])
        for layer in self._open:
            self._reading.before(self._attentions[layer + 1], partial(self._check_rows, layer + 1))

    def resume(self, record: PrunedCache, cache: Any, states: Tensor) -> None:
        """Begin a decoding step with `states` [B, T, D] on a cache that such a prefill filled."""
        self.forget()
        for group in record.groups[1:]:
            view = record.view_from(group, cache)
            padding = group.mask_up_to(cached_length(view) + states.shape[1])
            self._masks[group.first] = partial(self._mask, padding=padding, view=view)

    @property
    def is_pending(self) -> bool:
        """True while a prefill has cuts to come."""
        return bool(self._open)

    def groups(self) -> list[Group]:
        """Return the groups of layers behind the cuts of a prefill; HookError if a cut was not reached."""
        if self._open:
            layer = self._open[0] + 1
            raise HookError(f"decoder layer {layer} of {self._adapter.name} did not run in a pruned prefill")
        return self._groups

    # Layers that are read, and MLPs that are cut.

    def _read(self, site: CallSite) -> None:
        self._reading.before(site, partial(self._enter_attention, site.module))
        for projection in self._adapter.decoder.projections:
            self._reading.on_output(submodule(site.module, projection), self._project)

    def _enter_attention(self, attention: nn.Module, call: Call) -> None:
        self._attention, self._projected = (attention, call), []

    def _project(self, output: Tensor) -> None:
        self._projected.append(output.detach())

    def _enter_mlp(self, layer: int, call: Call) -> dict[str, Any] | None:
        if layer not in self._open[:1]:
            return None
        states = call.require("states")
        self._choose(layer, states.new_empty(0), states)
        assert self._rows is not None
        return {"states": self._rows.gather(states)}

    def _leave_mlp(self, output: Tensor) -> Tensor | None:
        if self._prefill is None or self._rows is None:
            return None
        batch, length = self._prefill.visual.shape
        index = self._rows.index.to(output.device).unsqueeze(-1).expand_as(output)
        return output.new_zeros(batch, length, output.shape[-1]).scatter(1, index, output)

    # Layers behind a cut.

    def _enter_layer(self, number: int, call: Call) -> dict[str, Any] | None:
        if number in self._masks:
            self._late_arguments = {"mask": self._masks[number](call.require("states"))}
        if number - 1 not in self._open[:1]:
            return self._late_arguments
        assert self._prefill is not None
        layer, states = number - 1, call.require("states")
        if self._rows is None:
            states = self._choose(layer, states, states, call)
        rows, self._rows = self._rows, None
        assert rows is not None
        states, self._added = rows.gather(states), {at: rows.gather(part) for at, part in self._added.items()}
        late = self._late_arguments or {}
        rotation = tuple(rows.gather_rotation(part) for part in late.get("rotation", call.require("rotation")))
        # Position ids would only serve to find packed sequences by jumps, and dropped rows look like such jumps.
        mask = self._mask(states, rows.mask, None)
        self._late_arguments = {"mask": mask, "rotation": rotation, "positions": None, "cache_position": None}
        self._groups.append(Group(number, rows.index.shape[1], rows.mask))
        self._open = self._open[1:]
        if self._open:
            self._prefill.narrow(rows)
        return {"states": states, **self._late_arguments}

    def _leave_layer(self, number: int, output: Any) -> Any:
        added = self._added.pop(number, None)
        if added is None:
            return None
        states, *rest = output if isinstance(output, tuple) else (output,)
        states = states + added.to(states)
        return (states, *rest) if isinstance(output, tuple) else states

    def _check_rows(self, number: int, call: Call) -> None:
        expected, self._expected = self._expected, None
        if expected is None:
            raise HookError(f"decoder layer {number} of {self._adapter.name} ran without the cut in front of it")
        layer = f"decoder layer {number} of {self._adapter.name}"
        require_rows(expected, call, layer, self._pruning.budget.label)
        if not self._open:
            self._on_verified()

    def _mask(self, states: Tensor, padding: Tensor | None, view: Any) -> Any:
        """Return the attention kernel's mask for rows `states` [B, L, D]."""
        padding = None if padding is None else padding.to(states.device)
        return causal_mask(self._config, states, padding, view)

    def _choose(self, layer: int, mergeable: Tensor, output: Tensor, call: Call | None = None) -> Tensor:
        """Ask the method at the cut behind `layer`, and set the rows that stay.

        Return `mergeable` [B, S, D], with merged rows. What is still to be added to the rows is merged with them.

        Args:
            layer: j.
            mergeable: the states after layer j, or empty ones before its MLP.
            output: the states at the place of the cut.
            call: the arguments of layer j+1, if the cut is in front of it.
        """
        prefill = self._prefill
        assert prefill is not None
        q, k, ones, normed = self._queries_and_keys(layer, output, call)
        hidden = output if self._method.hidden_state in ("output", "normed_output") else normed

        def read(row: int) -> LayerState:
            present = prefill.valid[row].nonzero().squeeze(1)
            visual_idx = prefill.visual[row, present].nonzero().squeeze(1)
            index = present.to(hidden.device)
            rows = hidden[row, index].detach()
            if self._method.hidden_state == "normed_output":
                with torch.no_grad():
                    rows = submodule(self._adapter.model, self._adapter.decoder.norm)(rows)
            parts = (q[row][:, index], k[row][:, index], rows, ones[row, 0, index])
            q_rows, k_rows, rows, turned = (part.to(present.device) for part in parts)
            return LayerState(q_rows, k_rows, rows, visual_idx, turned)

        added = {at: part.to(mergeable) for at, part in self._added.items()} if mergeable.numel() else {}
        joint = torch.cat([mergeable, *added.values()], dim=-1) if added else mergeable
        joint, self._rows, self._expected = prefill.cut(layer, joint, read)
        self._attention, self._projected = None, []  # frees the tensors of the layer
        if not added:
            return joint
        mergeable, *parts = joint.split(mergeable.shape[-1], dim=-1)
        self._added |= dict(zip(added, parts, strict=True))
        return mergeable

    @torch.no_grad()
    def _queries_and_keys(self, layer: int, output: Tensor, call: Call | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return of the layer that the method reads q, k, rotated ones [B, 1, S, d], and the normed input states."""
        parts, rotation = self._adapter.decoder, (self._late_arguments or {}).get("rotation")
        if self._method.reads == "next":
            assert call is not None  # `before_mlp` reads the output of no layer
            attention = self._attentions[layer + 1].module
            states = submodule(self._layers[layer + 1], parts.input_norm)(output)
            rotation = rotation or call.require("rotation")
            projected = self._adapter.project(attention, states)
        elif self._attention is not None and len(self._projected) == len(parts.projections):
            (attention, arguments), projected = self._attention, self._projected
            states, rotation = arguments.require("states"), arguments.require("rotation")
        else:
            raise HookError(f"decoder layer {layer} of {self._adapter.name} ran without its projections")
        q, k = self._adapter.decoder_qk(attention, projected, rotation if self._method.rotated else None)
        ones = q.new_ones(q[:, :1].shape)
        return q, k, self._adapter.rotate(ones, ones, *rotation)[0], states
