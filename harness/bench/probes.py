"""Time marks on sub-modules, before and after the hooks of `prune`, so that its own work is measured.

Hooks of a module run in the order of registration. The work of `prune` at a module therefore lies between a mark that
was registered before its hook and one that was registered after it. No forward pass is patched or copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from harness.bench.setup import Candidate
from harness.bench.timers import ROOT, Trace
from harness.models.adapter import Adapter, cut_layer, cuts_inside
from harness.models.hooks import Handles, submodule
from harness.models.vision_tower import Reading
from harness.pruning.handle import Pruning
from methods.base import Method, Tokens

# The projector of each family.
PROJECTORS = {
    "qwen2_5_vl": "model.visual.merger",
    "llava": "model.multi_modal_projector",
    "llavaonevision1_5": "model.visual.merger",
    "qwen2_vl": "model.visual.merger",
    "qwen3_vl": "model.visual.merger",
    "llava_next": "model.multi_modal_projector",
    "llava_onevision": "model.multi_modal_projector",
    "internvl": "model.multi_modal_projector",
}


@contextmanager
def probed(adapter: Adapter, candidate: Candidate, trace: Trace) -> Iterator[Pruning | None]:
    """Prune the model with the candidate within the block, and record its spans in `trace`."""
    modules, handles = adapter.modules(), Handles()
    model, method = adapter.model, candidate.method
    cuts = [] if method is None or candidate.resizes else _cuts(adapter, method, modules)
    read = [] if method is None or candidate.budget.keep == 1 else _read(adapter, method)
    projector = submodule(model, PROJECTORS[adapter.family])
    try:
        handles.on_enter(modules["root"], partial(trace.enter, ROOT))
        handles.on_leave(modules["root"], partial(trace.leave, ROOT))
        for module, span in ((modules["vision"], "vision"), (projector, "projector")):
            handles.on_enter(module, partial(trace.enter, span))
            handles.on_leave(module, partial(trace.leave, span))
        for module in read:
            handles.on_leave(module, partial(trace.enter, "read"))
        for module in cuts:
            handles.on_enter(module, partial(trace.enter, "cut"))
        handles.on_leave(modules["decoder"], partial(trace.leave, "decoder"))
        with candidate.pruning(model) as pruning, _watched(candidate, trace, handles):
            for module in read:
                handles.on_leave(module, partial(trace.leave, "read"))
            for module in cuts:
                handles.on_enter(module, partial(trace.leave, "cut"))
            handles.on_enter(modules["decoder"], partial(trace.enter, "decoder"))
            yield pruning
    finally:
        handles.remove()


def _cuts(adapter: Adapter, method: Method, modules: dict[str, nn.Module]) -> list[nn.Module]:
    """Return the modules before which `prune` finds, selects or removes visual tokens."""
    before_model = [modules["root"], modules["multimodal"], modules["decoder"]]
    if not cuts_inside(method):
        return before_model
    only, layers = cut_layer(method), list(submodule(adapter.model, adapter.decoder.layers).children())
    cut_behind = range(len(layers) - 1) if only is None else [only]
    early = [submodule(layers[layer], adapter.decoder.mlp) for layer in cut_behind if method.before_mlp]
    return [*before_model, *early, *(layers[layer + 1] for layer in cut_behind)]


def _read(adapter: Adapter, method: Method) -> list[nn.Module]:
    """Return the modules after which attention, keys or states of the tower are read."""
    reading, tower = Reading.of(method), adapter.tower
    if reading is None:
        return []
    paths = [f"{path}" for layer in sorted(reading.layers(tower)) for path in tower.paths(layer)[1]]
    paths += [tower.block(tower.last)] if reading.features else []
    return [submodule(adapter.model, path) for path in paths]


@contextmanager
def _watched(candidate: Candidate, trace: Trace, handles: Handles) -> Iterator[None]:
    """Record when the learned scorer runs and when the method selects."""
    method, scorer = candidate.method, candidate.scorer
    if scorer is not None:
        handles.on_enter(scorer, partial(trace.enter, "score"))
        handles.on_leave(scorer, partial(trace.leave, "score"))
    if method is None:
        yield
        return
    original = method.select_batch

    def outside(samples: Iterable[Tokens]) -> Iterator[Tokens]:
        """Exclude the preparation of samples from the time of the selection."""
        trace.leave("select")
        for tokens in samples:
            trace.enter("select")
            yield tokens
            trace.leave("select")
        trace.enter("select")

    def select_batch(samples: Iterable[Tokens], *args: Any) -> Any:
        trace.enter("select")
        try:
            return original(outside(samples), *args)
        finally:
            trace.leave("select")

    vars(method)["select_batch"] = select_batch  # on this instance only
    try:
        yield
    finally:
        del vars(method)["select_batch"]
