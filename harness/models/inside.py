"""The cut inside the language model: decoder layers 0..j see all tokens, later ones the kept.

A hook in front of layer j+1 lets the method choose and passes on the kept rows; every later layer gets masks and rotary
positions of those rows. A method that cuts before the MLP of layer j chooses in front of that MLP, which then runs on
the kept rows alone; what it gives is laid back into full rows, so that the layer can add it to its residual.

In decoding, layer j+1 and later hold shorter caches than layer 0, from which the model makes its masks: they get their
own, made by the library's own function on a view of the cache. Positions stay those that the model counts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import create_causal_mask

from harness.models.cache import CutInsideLLM, cached_length
from harness.models.hooking import Handles, arguments, submodule
from harness.models.rows import Rows, remaining, require_rows
from methods.base import LayerState

if TYPE_CHECKING:
    from harness.models.base import Adapter
    from harness.models.prefill import Prefill
    from harness.prune import Pruning


class InsideCut:
    """State of one block whose method cuts after decoder layer `layer`."""

    def __init__(self, adapter: Adapter, pruning: Pruning, layer: int) -> None:
        self.layer = layer
        self.first = layer + 1  # the first layer that sees only what was kept
        self._adapter = adapter
        self._pruning = pruning
        self._method = pruning.method
        self._config: Any = submodule(adapter.model, adapter.decoder.path).config
        self._layers = list(submodule(adapter.model, adapter.decoder.layers).children())
        self._full = self._share_of_work()
        self._begin()

    def _begin(self) -> None:
        self._prefill: Prefill | None = None
        self._record: CutInsideLLM | None = None  # while decoding
        self._view: Any = None  # then, the cache as layer j+1 has it
        self._rows: Rows | None = None
        self._late: dict[str, Any] | None = None  # arguments that later layers get instead
        self._attention: tuple[nn.Module, Mapping[str, Any]] | None = None  # layer j's, and its arguments
        self._projected: list[Tensor] = []
        self._added: list[
            Tensor
        ] = []  # to the rows behind layers j+1, j+2, ...: [B, S, D], once they are cut [B, L, D]
        self._expected: list[int] | None = None  # [B] rows that layer j+1 must receive

    def _share_of_work(self) -> float:
        """Return the share of the decoder's layers that see all tokens, counting a layer's parts by their weights."""
        layer = self._layers[self.layer]
        late = submodule(layer, self._adapter.decoder.mlp) if self._method.before_mlp else nn.Module()
        whole, dropped = (sum(weight.numel() for weight in part.parameters()) for part in (layer, late))
        return (self.first - dropped / whole) / len(self._layers)

    def attach(self, handles: Handles, verified: Callable[[], None]) -> None:
        """Hook layer j and later ones; `verified` is called when the right number of rows reached layer j+1."""
        parts, layer = self._adapter.decoder, self._layers[self.layer]
        attention = submodule(layer, parts.attention)
        handles.before(attention, self._enter_attention)
        for path in parts.projections:
            handles.after(submodule(attention, path), self._project)
        if self._method.before_mlp:
            handles.before(submodule(layer, parts.mlp), self._enter_mlp)
            handles.after(submodule(layer, parts.mlp), self._leave_mlp)
        handles.before(self._layers[self.first], self._enter_first)
        for number, late in enumerate(self._layers[self.first :]):
            handles.before(late, self._enter_late)
            handles.after(late, partial(self._leave_late, number))
        self._verified = verified
        handles.before(submodule(self._layers[self.first], parts.attention), self._count)

    # From the decoder's hooks.

    def forget(self) -> None:
        """End a pass, also one that raised."""
        self._begin()

    def fill(self, prefill: Prefill, expected: list[int], added: list[Tensor]) -> None:
        """Begin a prefill in which sample i shall bring `expected[i]` rows to layer j+1.

        The model itself would add `added` [B, S, D] to the rows behind layers j+1, j+2, ...: here this is done for it.
        """
        self._begin()
        self._prefill, self._expected, self._added = prefill, expected, added

    def resume(self, record: CutInsideLLM, cache: Any) -> None:
        """Begin a decoding step on a cache that was filled by such a prefill."""
        if record.first != self.first:
            raise ValueError(
                f"this cache was cut after decoder layer {record.first - 1}, this block cuts after {self.layer}: "
                "go on in a block with the same method"
            )
        self._begin()
        self._record, self._view = record, record.late(cache)

    def filled(self, cache: Any) -> CutInsideLLM | None:
        """Check what a prefill left in `cache`, and describe it; None if this pass was no prefill that cuts."""
        if self._prefill is None or self._rows is None:
            return None
        whole, length = self._prefill.visual.shape[1], self._rows.index.shape[1]
        held = [cached_length(cache, layer) for layer in range(len(self._layers))]
        right = [whole] * self.first + [length] * (len(held) - self.first)
        if held != right:
            raise RuntimeError(f"the key-value cache holds {held} positions a layer after a prefill of {right}")
        return CutInsideLLM(length, self._rows.mask, self.first, whole)

    # Layer j: read, and perhaps cut its MLP.

    def _enter_attention(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._prefill is not None:
            self._attention, self._projected = (module, arguments(module, args, kwargs)), []

    def _project(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if self._prefill is not None:
            self._projected.append(output.detach())

    def _enter_mlp(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]] | None:
        if self._prefill is None:
            return None
        self._choose(args[0].new_empty(0))
        assert self._rows is not None
        return (self._rows.gather(args[0]), *args[1:]), kwargs

    def _leave_mlp(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        if self._prefill is None or self._rows is None:
            return None
        batch, length = self._prefill.visual.shape
        index = self._rows.index.to(output.device).unsqueeze(-1).expand_as(output)
        return output.new_zeros(batch, length, output.shape[-1]).scatter(1, index, output)

    # Layers j+1 and later.

    def _enter_first(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[()], dict[str, Any]] | None:
        if self._prefill is None and self._record is None:
            return None
        call = arguments(module, args, kwargs)
        if self._record is not None:
            states = call["hidden_states"]
            padding = self._record.mask_up_to(cached_length(self._view) + states.shape[1])
            self._late = {"attention_mask": self._mask(states, padding, self._view)}
            return None
        states = call["hidden_states"]
        if self._rows is None:
            states, *self._added = self._choose(states).split(states.shape[-1], dim=-1)
        assert self._rows is not None
        states, *self._added = (self._rows.gather(part) for part in (states, *self._added))
        turns = tuple(self._rows.gather(part.expand(len(states), -1, -1)) for part in call["position_embeddings"])
        # Position ids are there to find packed sequences by their jumps, which dropped rows would be taken for.
        mask = self._mask(states, self._rows.mask, None)
        self._late = {"attention_mask": mask, "position_embeddings": turns, "position_ids": None}
        return (), call | {"hidden_states": states}

    def _enter_late(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return None if self._late is None else (args, kwargs | self._late)

    def _leave_late(
        self, number: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
    ) -> Tensor | None:
        return output + self._added[number].to(output) if number < len(self._added) else None

    def _count(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        expected, self._expected = self._expected, None
        if expected is None:
            return
        call = arguments(module, args, kwargs)
        layer = f"decoder layer {self.first} of {self._adapter.name}"
        require_rows(expected, call, layer, self._pruning.budget.label)
        self._verified()

    def _mask(self, states: Tensor, padding: Tensor | None, view: Any) -> Any:
        """Return the mask that the model's attention kernel takes, for rows `states` [B, L, D]."""
        padding = None if padding is None else padding.to(states.device)
        return create_causal_mask(
            config=self._config, inputs_embeds=states, attention_mask=padding, past_key_values=view
        )

    def _choose(self, states: Tensor) -> Tensor:
        """Let the method choose, with `states` [B, S, D] behind layer j, or empty.

        Return them with merged rows and, beside them, what is still to be added: [B, S, (1 + layers) D].
        """
        prefill, attention = self._prefill, self._attention
        if prefill is None or attention is None or len(self._projected) != len(self._adapter.decoder.projections):
            raise RuntimeError(f"decoder layer {self.layer} of {self._adapter.name} ran without its projections")
        with torch.no_grad():
            q, k = self._adapter.decoder_qk(*attention, self._projected)
        hidden = attention[1]["hidden_states"]
        if self._method.hidden_state in ("output", "normed_output"):
            hidden = states

        def read(row: int) -> LayerState:
            present = prefill.valid[row].nonzero().squeeze(1)
            visual_idx = prefill.visual[row, present].nonzero().squeeze(1)
            here = present.to(hidden.device)
            rows = hidden[row, here].detach()
            if self._method.hidden_state == "normed_output":
                with torch.no_grad():
                    rows = submodule(self._adapter.model, self._adapter.decoder.norm)(rows)
            mine = [part.to(present.device) for part in (q[row][:, here], k[row][:, here], rows)]
            return LayerState(mine[0], mine[1], mine[2], visual_idx)

        whole = torch.cat([states, *(part.to(states) for part in self._added)], dim=-1) if states.numel() else states
        whole, stay = prefill.choose(self._pruning, whole, self._full, read)
        self._rows = remaining(stay & prefill.valid, prefill.valid)
        self._attention, self._projected = None, []  # nothing of the layer outlives the choice
        return whole
