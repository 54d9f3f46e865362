"""What is peculiar to LLaVA-1.5 under `prune`: its language models, and configurations that it refuses."""

from functools import partial

import pytest
import torch
from probes import Watch
from reference_prune import hooks, inputs_of
from tiny_models import DINOV2, LLAVA_PATCH, SIGLIP, placeholders, tiny_llava, tiny_llava_processor
from transformers import Dinov2WithRegistersConfig
from uncached_reference import Cut, Prompt

import harness
from harness.models import adapter_for
from harness.models.image_towers import TOWERS


@pytest.fixture(scope="module")
def processor():
    return tiny_llava_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_llava()


@pytest.mark.parametrize("text", ["llama", "qwen2"])
@torch.no_grad()
def test_other_language_models(processor, text):
    model, inputs = tiny_llava(text=text), inputs_of(processor, ["text between"])
    with harness.prune(model, "uniform", keep=0.5) as pruning:
        (logits,) = model(**inputs).logits
    (record,) = pruning.records
    assert record.grids == [(1, 4, 4)] * 2
    expected = Prompt.of(model, inputs).logits(model, Cut(-1, torch.tensor(record.kept)))
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("grid", [(6, 6), (3, 5), (7, 7)])
@torch.no_grad()
def test_images_of_any_number_of_patches_with_dinov2(grid):
    model, watch = tiny_llava(tower=DINOV2), Watch()
    height, width = (patches * LLAVA_PATCH for patches in grid)
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[65, *[placeholders()["image_token_id"]] * (grid[0] * grid[1]), 66]] * 2)
    with harness.prune(model, watch, keep=0.5) as pruning:
        model(input_ids=ids, pixel_values=pixels)
    assert [record.grids for record in pruning.records] == [[(1, *grid)]] * 2
    states = model.model.vision_tower(pixels, output_hidden_states=True).hidden_states[-2][:, 1:]
    for tokens, expected in zip(watch.seen, states, strict=True):
        torch.testing.assert_close(tokens.vit_features, expected)


@torch.no_grad()
def test_a_tower_that_computes_k_before_q(monkeypatch, processor):
    """As DINOv2 does before transformers 5.18."""
    model, inputs, seen = tiny_llava(), inputs_of(processor, ["one image"]), []
    attention = model.get_submodule(adapter_for(model).tower.paths(1)[0])  # of the layer of the features

    def k_first(hidden_states, *args, forward=attention.forward, **kwargs):
        attention.k_proj(hidden_states)
        return forward(hidden_states, *args, **kwargs)

    for _ in range(2):
        watch = Watch()
        with harness.prune(model, watch, keep=0.5):
            model(**inputs)
        seen.append(watch.seen[0])
        monkeypatch.setattr(attention, "forward", k_first)
    assert torch.equal(seen[0].vit_attention["last"], seen[1].vit_attention["last"])
    assert torch.equal(seen[0].vit_keys, seen[1].vit_keys)


class TestRefused:
    def refuses(self, message, model, method="uniform", call=lambda: None, **kwargs):
        before = hooks(model)
        with pytest.raises(ValueError, match=message) as caught, harness.prune(model, method, keep=0.3, **kwargs):
            call()
        assert "\n" not in str(caught.value)
        assert hooks(model) == before

    def test_positions_that_mean_nothing(self, model):
        self.refuses("positions must be one of keep, compact", model, positions="packed")

    @pytest.mark.parametrize(
        ("config", "message"),
        [
            ({"vision_feature_select_strategy": "full"}, "keeps CLS as a token"),
            ({"vision_feature_layer": [-2, -1]}, "joins vision layers"),
        ],
    )
    def test_other_features(self, config, message):
        self.refuses(message, tiny_llava(**config))

    def test_siglip_without_its_first_patch(self):
        model = tiny_llava(tower=SIGLIP, vision_feature_select_strategy="default")
        self.refuses("drops the first patch .*: supported with siglip_vision_model is full$", model)

    def test_a_tower_with_registers(self):
        model = tiny_llava(tower=DINOV2)
        model.config.vision_config = Dinov2WithRegistersConfig(num_hidden_layers=3)
        self.refuses(f"tower of type dinov2_with_registers: supported are {', '.join(TOWERS)}$", model)

    @pytest.mark.parametrize(
        ("how", "change"),
        [
            ("forward", {"vision_feature_layer": -1}),
            ("forward", {"vision_feature_select_strategy": "full"}),
            ("generate", {"vision_feature_layer": -1}),  # which encodes before the model is called
        ],
    )
    @torch.no_grad()
    def test_other_features_in_a_call(self, model, processor, how, change):
        ((name, value),) = change.items()
        run = partial(model.generate, max_new_tokens=2) if how == "generate" else model
        call = partial(run, **inputs_of(processor, ["one image"]))
        self.refuses(f"{name}={value} is not what the .* tower is read for", model, call=lambda: call(**change))
        with harness.prune(model, "uniform", keep=0.3):
            call(**{name: getattr(model.config, name)})

    def test_features_that_no_layer_gave(self):
        model = tiny_llava(vision_feature_layer=0)
        self.refuses("here they are what enters layer 0", model, method="visionzip")
        with harness.prune(model, "uniform", keep=0.3):
            pass

    def test_a_language_model_whose_queries_are_normed(self):
        model = tiny_llava(text="qwen3", layers=4)
        self.refuses("reads a decoder layer of type qwen3", model, method="fastv")

    def test_a_question_in_a_template_that_is_not_known(self):
        model, message = tiny_llava(text="mistral"), "the question, .* prompts of mistral: supported are llama, qwen2"
        self.refuses(message, model, method="cdpruner")
        with harness.prune(model, "divprune", keep=0.3):
            pass

    def test_what_was_encoded_elsewhere(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        outside = model.model.get_image_features(inputs.pop("pixel_values"), return_dict=True)
        call = lambda: model(**inputs, mm_encoder_outputs={"image": outside})  # noqa: E731
        self.refuses("outside the prune block.*pass pixel_values", model, call=call)

    def test_packed_sequences(self, model, processor):
        inputs = inputs_of(processor, ["one image"])
        length = inputs.pop("attention_mask").shape[1]
        positions = torch.cat([torch.arange(length - 4), torch.arange(4)]).view(1, -1)
        self.refuses("packed", model, call=lambda: model(**inputs, position_ids=positions))
