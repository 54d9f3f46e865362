"""Signals of Qwen3-VL's vision tower against its own eager maps."""

import pytest
import torch
from probes import Watch
from reference_prune import SAMPLES, generate, inputs_of
from tiny_qwen3 import DEPTH, tiny_qwen3, tiny_qwen3_processor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen3_vl.modeling_qwen3_vl import eager_attention_forward

import harness
from harness.models import adapter_for

ROLES = {"official": {"last": 3, "middle": 1}, "paper": {"last": 3, "middle": 2}}


@pytest.fixture(scope="module")
def processor():
    return tiny_qwen3_processor()


@pytest.fixture(scope="module")
def tower():
    """A model whose vision layers note their keys and maps."""
    model, notes = tiny_qwen3(), {}

    def spy(module, query, key, value, *args, **kwargs):
        output, weights = eager_attention_forward(module, query, key, value, *args, **kwargs)
        notes.setdefault(id(module), []).append((key[0], weights[0]))
        return output, weights

    ALL_ATTENTION_FUNCTIONS.register("spy3", spy)
    model.model.visual.config._attn_implementation = "spy3"
    return model, notes


def expected(model, notes, processor, name, layer):
    """Attention [N] and keys [N, d] of one sample, in float64 and in the order of its placeholders."""
    inputs, found = inputs_of(processor, [name]), {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels in inputs:
            notes.clear()
            model.model.visual(inputs[pixels], inputs[f"{kind}_grid_thw"])
            chunks = notes[id(model.model.visual.blocks[layer].attn)]
            scores = torch.cat([maps.double().mean(0).sum(0) for _, maps in chunks]).view(-1, 4).sum(1)
            keys = torch.cat([key.double().mean(0) for key, _ in chunks]).view(len(scores), 4, -1).mean(1)
            found[kind] = iter(zip(scores.float(), keys.float(), strict=True))
    ids = {model.config.image_token_id: "image", model.config.video_token_id: "video"}
    rows = [next(found[ids[token]]) for token in inputs["input_ids"][0].tolist() if token in ids]
    scores, keys = zip(*rows, strict=True)
    return torch.stack(scores), torch.stack(keys)


@pytest.mark.parametrize("variant", ["official", "paper"])
@pytest.mark.parametrize("name", SAMPLES)
@torch.no_grad()
def test_attention_and_keys(tower, processor, name, variant):
    model, notes = tower
    watch = Watch(variant=variant)
    with harness.prune(model, watch, keep=0.5):
        model(**inputs_of(processor, [name]))
    (tokens,) = watch.seen
    for role, layer in ROLES[variant].items():
        scores, keys = expected(model, notes, processor, name, layer)
        torch.testing.assert_close(tokens.vit_attention[role], scores, atol=1e-5, rtol=1e-5)
        if role == "last":
            torch.testing.assert_close(tokens.vit_keys, keys, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_in_a_batch_each_sample_gets_its_own(tower, processor, beams):
    model, notes = tower
    names, watch = ["mixed", "one image", "video", "adjacent"], Watch()
    with harness.prune(model, watch, keep=0.5):
        generate(model, inputs_of(processor, names), max_new_tokens=2, num_beams=beams)
    for name, tokens in zip(names, watch.seen, strict=True):
        scores, _ = expected(model, notes, processor, name, 3)
        torch.testing.assert_close(tokens.vit_attention["last"], scores, atol=1e-5, rtol=1e-5)


def test_layers_of_the_released_tower():
    model = tiny_qwen3()
    tower = adapter_for(model).tower
    assert tower.layer("last", "paper") == DEPTH - 1
    model.config.vision_config.depth = 27
    roles = [("last", "official"), ("middle", "official"), ("middle", "paper")]
    assert [tower.layer(*role) for role in roles] == [26, 12, 13]
