"""Marks at named sub-modules: in front of the hooks of `prune` and behind them, so that its own work shows.

Hooks of one module run in the order in which they came. What `prune` does in front of a module lies between a mark
that was hooked before it and one that was hooked after; nothing is patched, no forward pass is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from harness.bench.setup import Candidate
from harness.bench.timers import ROOT, Trace
from harness.models.adapter import Adapter, inside_layer
from harness.models.hooks import Handles, submodule
from harness.pruning.handle import Pruning
from methods.base import Method, Signal, Tokens

# Where the projector of a family is, between the tower's last layer and the language model.
PROJECTORS = {
    "qwen2_5_vl": "model.visual.merger",
    "llava": "model.multi_modal_projector",
    "llavaonevision1_5": "model.visual.merger",
    "qwen3_vl": "model.visual.merger",
    "internvl": "model.multi_modal_projector",
}


@contextmanager
def probed(adapter: Adapter, contestant: Candidate, trace: Trace) -> Iterator[Pruning | None]:
    """Put the contestant on the model within the block, and have `trace` note what it does; then restore the model."""
    modules, handles = adapter.modules(), Handles()
    model, method = adapter.model, contestant.method
    cuts = [] if method is None or contestant.resizes else _cuts(adapter, method, modules)
    read = [] if method is None or contestant.budget.keep == 1 else _read(adapter, method)
    projector = submodule(model, PROJECTORS[adapter.family])
    try:
        handles.entered(modules["root"], _call(trace.enter, ROOT))
        handles.left(modules["root"], _call(trace.leave, ROOT))
        for module, span in ((modules["vision"], "vision"), (projector, "projector")):
            handles.entered(module, _call(trace.enter, span))
            handles.left(module, _call(trace.leave, span))
        for module in read:
            handles.left(module, _call(trace.enter, "read"))
        for module in cuts:
            handles.entered(module, _call(trace.enter, "cut"))
        handles.left(modules["decoder"], _call(trace.leave, "decoder"))
        with contestant.pruning(model) as pruning, _watched(contestant, trace, handles):
            for module in read:
                handles.left(module, _call(trace.leave, "read"))
            for module in cuts:
                handles.entered(module, _call(trace.leave, "cut"))
            handles.entered(modules["decoder"], _call(trace.enter, "decoder"))
            yield pruning
    finally:
        handles.remove()


def _call(note: Callable[[str], None], span: str) -> Callable[[], None]:
    return lambda: note(span)


def _cuts(adapter: Adapter, method: Method, modules: dict[str, nn.Module]) -> list[nn.Module]:
    """Return the modules in front of which `prune` looks for visual tokens, chooses or drops."""
    places, layer, parts = (
        [modules["root"], modules["multimodal"], modules["decoder"]],
        inside_layer(method),
        adapter.decoder,
    )
    if layer is None:
        return places
    late = submodule(adapter.model, f"{parts.layers}.{layer + 1}")
    early = [submodule(adapter.model, f"{parts.layers}.{layer}.{parts.mlp}")] * method.before_mlp
    return [*places, *early, late]


def _read(adapter: Adapter, method: Method) -> list[nn.Module]:
    """Return the modules behind which the tower's attention or keys are read."""
    wanted, tower = method.attention_spec, adapter.tower
    roles = set(wanted.roles) if Signal.VIT_ATTENTION in method.needs else set()
    roles |= {"last"} if Signal.VIT_KEYS in method.needs else set()
    layers = {tower.layer(role, wanted.numbering) for role in roles}
    paths = [f"{path}" for layer in sorted(layers) for path in tower.paths(layer)[1]]
    return [submodule(adapter.model, path) for path in paths]


@contextmanager
def _watched(contestant: Candidate, trace: Trace, handles: Handles) -> Iterator[None]:
    """Note when the learned scorer runs, and when the method chooses."""
    method, scorer = contestant.method, contestant.scorer
    if scorer is not None:
        handles.entered(scorer, _call(trace.enter, "score"))
        handles.left(scorer, _call(trace.leave, "score"))
    if method is None:
        yield
        return
    choose = method.select_batch

    def outside(samples: Iterable[Tokens]) -> Iterator[Tokens]:
        """Making a sample is no part of the choice."""
        trace.leave("select")
        for tokens in samples:
            trace.enter("select")
            yield tokens
            trace.leave("select")
        trace.enter("select")

    def select_batch(samples: Iterable[Tokens], *args: Any) -> Any:
        trace.enter("select")
        try:
            return choose(outside(samples), *args)
        finally:
            trace.leave("select")

    vars(method)["select_batch"] = select_batch  # of this instance, which is the bench's own
    try:
        yield
    finally:
        del vars(method)["select_batch"]
