"""What methods are shown of LLaVA-OneVision-1.5, against what its own eager attention computes."""

import pytest
import torch
from probes import Watch
from reference_prune import SAMPLES, generate, hooks, inputs_of
from test_signals_vision import PROMPTS
from tiny_llavaov15 import llavaov15_processor, tiny_llavaov15
from tiny_models import IMAGE
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

import harness
from harness.models import adapter_for
from methods.base import OFFICIAL, PAPER, AttentionSpec

DEPTH = 6
LAST, MIDDLE = 5, {"official": 3, "paper": 4}
EVERYONE = AttentionSpec(queries="all")


@pytest.fixture(scope="module")
def processor():
    return llavaov15_processor()


@pytest.fixture(scope="module")
def tower():
    """A model whose vision layers note, for each unit, their keys and their maps with and without the key of CLS."""
    model, notes = tiny_llavaov15(depth=DEPTH), {}

    def spy(module, query, key, value, **kwargs):
        output, weights = eager_attention_forward(module, query, key, value, **kwargs)
        _, bare = eager_attention_forward(module, query, key[:, :, 1:], value[:, :, 1:], **kwargs)
        notes.setdefault(id(module), []).append((key[0], weights[0], bare[0]))
        return output, weights

    ALL_ATTENTION_FUNCTIONS.register("spy", spy)
    model.model.visual.config._attn_implementation = "spy"
    return model, notes


def expected(tower, processor, name, layer, wanted):
    """Scores [N] and keys [N, d] of a sample in the order of its placeholders."""
    model, notes = tower
    inputs, rows = inputs_of(processor, [name]), {}
    for kind, pixels in (("image", "pixel_values"), ("video", "pixel_values_videos")):
        if pixels not in inputs:
            continue
        notes.clear()
        model.model.visual(inputs[pixels], inputs[f"{kind}_grid_thw"])
        units = notes[id(model.model.visual.blocks[layer].attn)]
        assert len(units) == int(inputs[f"{kind}_grid_thw"][:, 0].sum())
        scores, keys = [], []
        for key, whole, bare in units:
            maps = whole[:, :, 1:] if wanted.cls_key else bare
            maps = maps[:, :1] if wanted.queries == "cls" else maps
            scores.append(maps.mean(0).sum(0).view(-1, 4).sum(1))
            keys.append(key[:, 1:].mean(0).view(scores[-1].numel(), 4, -1).mean(1))
        rows[kind] = zip(torch.cat(scores), torch.cat(keys), strict=True)
    ids = {model.config.image_token_id: "image", model.config.video_token_id: "video"}
    both = [next(rows[ids[token]]) for token in inputs["input_ids"][0].tolist() if token in ids]
    scores, keys = zip(*both, strict=True)
    return torch.stack(scores), torch.stack(keys)


def close(found, reference):
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=1e-4)


class TestVisionTower:
    @pytest.mark.parametrize("wanted", [OFFICIAL, PAPER, EVERYONE], ids=["official", "paper", "everyone"])
    @pytest.mark.parametrize("name", SAMPLES)
    @torch.no_grad()
    def test_attention_and_keys(self, tower, processor, name, wanted):
        watch = Watch(wanted=wanted)
        with harness.prune(tower[0], watch, keep=0.5):
            tower[0](**inputs_of(processor, [name]))
        (tokens,) = watch.seen
        scores, keys = expected(tower, processor, name, LAST, wanted)
        close(tokens.vit_attention["last"], scores)
        close(tokens.vit_keys, keys)
        if wanted is PAPER:  # every image and every frame shares out 1
            units = sum(t for t, _, _ in tokens.grids)
            assert tokens.vit_attention["last"].sum() == pytest.approx(units, rel=1e-4)

    @pytest.mark.parametrize("variant", ["official", "paper"])
    @torch.no_grad()
    def test_the_layer_in_the_middle(self, tower, processor, variant):
        watch = Watch(variant=variant)
        with harness.prune(tower[0], watch, keep=0.5):
            tower[0](**inputs_of(processor, ["mixed"]))
        close(watch.seen[0].vit_attention["middle"], expected(tower, processor, "mixed", MIDDLE[variant], OFFICIAL)[0])
        close(watch.seen[0].vit_attention["last"], expected(tower, processor, "mixed", LAST, OFFICIAL)[0])

    @pytest.mark.parametrize("how", ["forward", "generate", "beams"])
    @torch.no_grad()
    def test_in_a_batch_each_sample_gets_its_own(self, tower, processor, how):
        names, watch = ["mixed", "one image", "video", "adjacent"], Watch()
        inputs = inputs_of(processor, names)
        with harness.prune(tower[0], watch, keep=0.5):
            if how == "forward":
                tower[0](**inputs)
            else:
                generate(tower[0], inputs, max_new_tokens=2, num_beams=3 if how == "beams" else 1)
        for name, tokens in zip(names, watch.seen, strict=True):
            scores, keys = expected(tower, processor, name, LAST, OFFICIAL)
            close(tokens.vit_attention["last"], scores)
            close(tokens.vit_keys, keys)

    @pytest.mark.parametrize("attn", ["sdpa", "eager"])
    @torch.no_grad()
    def test_the_model_keeps_its_kernel_and_its_answer(self, processor, attn):
        model, inputs = tiny_llavaov15(attn=attn, depth=DEPTH), inputs_of(processor, ["mixed"])
        before, plain = hooks(model), model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        with harness.prune(model, Watch(), keep=0.5):
            again = model.model.visual(inputs["pixel_values"], inputs["image_grid_thw"])
        assert torch.equal(plain.pooler_output, again.pooler_output)
        assert hooks(model) == before

    @pytest.mark.parametrize("unpack", ["released", "fixed"])
    @torch.no_grad()
    def test_features_are_the_models_own(self, processor, unpack):
        model, watch = tiny_llavaov15(), Watch()
        model.config.unpack = unpack
        inputs = inputs_of(processor, ["adjacent"])
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
        features = model.model.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"]).pooler_output
        torch.testing.assert_close(watch.seen[0].features, torch.cat(list(features)))

    def test_layers_of_the_released_models(self):
        model = tiny_llavaov15()
        model.config.vision_config.depth = 24
        layer = adapter_for(model).tower.layer
        assert [layer("last", name) for name in ("official", "paper")] == [23, 23]
        assert [layer("middle", name) for name in ("official", "paper")] == [15, 16]


@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_the_question(processor, side):
    model = tiny_llavaov15()
    longer = ("x" * 200 + IMAGE, [(56, 84)], [])
    for text, question in PROMPTS.values():
        watch = Watch()
        with harness.prune(model, watch, keep=0.5):
            model(**inputs_of(processor, [(text, [(56, 84)] * text.count(IMAGE), []), longer], side))
        ids = processor.tokenizer(question, return_tensors="pt")["input_ids"].long()
        assert torch.equal(watch.seen[0].text, model.get_input_embeddings()(ids)[0])
        assert len(watch.seen[1].text) == 200
