"""What reading a signal allocates, as PyTorch's profiler counts it: four times the tokens, four times the memory."""

import pytest
import torch
from reference_prune import inputs_of
from tiny_families import BUILDERS
from tiny_models import IMAGE
from torch.profiler import ProfilerActivity, profile

import harness
from harness.models import FAMILIES, adapter_for, attention
from harness.models.hooks import Handles
from harness.models.vision_tower import Reading, VisionReader
from harness.pruning.layer_cut import LayerCutHooks
from methods.base import AttentionSpec

TILE = 2**13  # scores; the library's 2**24 are more than the whole map of an image as small as these
SIDE = 16  # patches along a side of the smaller image


def peak(monkeypatch, cls, name, call):
    """Bytes that one call of the method `name` of `cls` held at most, of all that `call` leads to."""
    function, peaks = getattr(cls, name), []

    def counted(*args, **kwargs):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as counts:
            out = function(*args, **kwargs)
        events = [event for event in counts.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
        peaks.append(int(held.cumsum(0).max()) if events else 0)
        return out

    with monkeypatch.context() as patch:
        patch.setattr(cls, name, counted)
        call()
    return max(peaks)


def encode(model, side):
    """Have an image of side x side patches encoded, and read at two layers: all queries, the keys and the states."""
    handles, tower, generator = Handles(), adapter_for(model).tower, torch.Generator().manual_seed(0)
    reader = VisionReader(tower, Reading(AttentionSpec(("last", "middle"), queries="all"), keys=True, features=True))
    reader.attach(model, handles)
    encoder = model.get_submodule(tower.path)
    config, channels = encoder.config, 3
    if hasattr(config, "spatial_merge_size"):  # Qwen's way: patches, and where they stand
        values = channels * getattr(config, "temporal_patch_size", 1) * config.patch_size**2
        encoder(torch.randn(side**2, values, generator=generator), grid_thw=torch.tensor([[1, side, side]]))
    else:
        size = side * torch.as_tensor(config.patch_size).flatten()[0]
        larger = (
            {"interpolate_pos_encoding": True}
            if config.model_type in ("clip_vision_model", "siglip_vision_model")
            else {}
        )
        encoder(torch.randn(1, channels, size, size, generator=generator), **larger)
    handles.remove()
    signals = reader.take()
    tensors = [signals.keys, signals.features, *signals.attention.values()]
    assert {*map(len, tensors)} == {side**2 // tower.patches_per_token()}


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_vision_tower(family, monkeypatch):
    model, growth = BUILDERS[family][0]().float(), {}
    for tile in (TILE, 2**40):
        monkeypatch.setattr(attention.received_by_keys, "__defaults__", (tile,))
        small, large = (
            peak(monkeypatch, VisionReader, "_project", lambda side=side: encode(model, side))
            for side in (SIDE, 2 * SIDE)
        )
        growth[tile] = large / small
    assert growth[TILE] < 5
    assert growth[2**40] > 10  # in one tile, a map [heads, N, N]: this is what the test would see of it


@pytest.mark.parametrize("name", ["fastv", "d2pruner"])
@torch.no_grad()
def test_decoder_layer(name, monkeypatch):
    build, process = BUILDERS["qwen2_5_vl"]
    model, processor, peaks = build().float(), process(), []
    for length in (200, 800):
        inputs = inputs_of(processor, [(IMAGE + "x" * (length - 18), [(112, 112)], [])])
        assert inputs["input_ids"].shape[1] == length
        with harness.prune(model, name, tokens=4, **({"prior": "none"} if name == "d2pruner" else {})):
            peaks.append(peak(monkeypatch, LayerCutHooks, "_choose", lambda inputs=inputs: model(**inputs)))
    assert peaks[1] < 5 * peaks[0]
