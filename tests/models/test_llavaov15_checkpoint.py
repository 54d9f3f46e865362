"""LLaVA-OneVision-1.5: sizes, tensor names and checkpoints of the release."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llavaov15 import TEXT, VISION, plain_config, released_folder, tiny_llavaov15
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
)

from harness.models.llavaov15 import register
from harness.models.llavaov15.configuration import LlavaOnevision15Config
from harness.models.llavaov15.modeling import LlavaOnevision15ForConditionalGeneration, LlavaOnevision15Model


class TestSizes:
    def test_parameters_of_the_8b_model(self):
        with torch.device("meta"):
            model = LlavaOnevision15ForConditionalGeneration(LlavaOnevision15Config())

        def count(module):
            return sum(parameter.numel() for parameter in module.parameters())

        visual, text = model.model.visual, model.model.language_model
        assert {count(block) for block in visual.blocks} == {12_596_224}
        assert count(visual.blocks) == 302_309_376
        assert count(visual.patch_embed) == 602_112
        assert (count(visual.merger.mlp), count(visual.merger.ln_q)) == (33_562_624, 2_048)
        assert {count(layer) for layer in text.layers} == {192_946_432}
        assert (count(text.layers[0].mlp), count(text.layers)) == (150_994_944, 6_946_071_552)
        assert count(text.embed_tokens) == count(model.lm_head) == 622_329_856
        rest = 1024 + 32 + 2 * 1024 + 4096  # CLS and its angles, the norms before the blocks and after the layers
        parts = 302_309_376 + 602_112 + 33_562_624 + 2_048 + 6_946_071_552 + 2 * 622_329_856
        assert count(model) == parts + rest
        assert text.config.rope_parameters["rope_theta"] == 1e6


class TestCheckpoint:
    def test_released_names_load_completely(self, tmp_path):
        register()
        folder, tensors = released_folder(tmp_path)
        model, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert type(model) is LlavaOnevision15ForConditionalGeneration
        assert not any(info.values())
        state = model.state_dict()
        assert state.keys() == tensors.keys()
        assert all(torch.equal(state[name], tensor) for name, tensor in tensors.items())
        assert model.config.text_config.rope_parameters == {"rope_theta": 1e6, "rope_type": "default"}

    def test_saved_and_loaded_again(self, llavaov15, tmp_path):
        register()
        llavaov15.save_pretrained(tmp_path)
        assert load_file(tmp_path / "model.safetensors").keys() == llavaov15.state_dict().keys()
        model, info = AutoModelForImageTextToText.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), llavaov15.parameters(), strict=True))
        assert plain_config(AutoConfig.from_pretrained(tmp_path)) == plain_config(llavaov15.config)
        inner, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
        assert type(inner) is LlavaOnevision15Model
        assert not info["missing_keys"]

    def test_a_scorer_among_the_tensors_is_tolerated(self, tmp_path):
        register()
        parts = ("q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias")
        extra = {f"model.visual.importance_scorer.{part}": torch.zeros(4, 4) for part in parts}
        folder, _ = released_folder(tmp_path, extra)
        _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert not info["unexpected_keys"]

    def test_unpack_is_an_argument_of_loading(self, tmp_path):
        register()
        folder, _ = released_folder(tmp_path)
        model = AutoModelForImageTextToText.from_pretrained(folder, unpack="fixed")
        assert model.model.visual.config.unpack == model.config.unpack == "fixed"
        assert AutoModelForImageTextToText.from_pretrained(folder).config.unpack == "released"
        with pytest.raises(Exception, match="other"):
            AutoModelForImageTextToText.from_pretrained(folder, unpack="other")

    def test_a_missing_tensor_is_reported(self, tmp_path):
        register()
        folder, tensors = released_folder(tmp_path)
        del tensors["model.visual.class_pos_emb"]
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        _, info = AutoModelForImageTextToText.from_pretrained(folder, output_loading_info=True)
        assert info["missing_keys"] == {"model.visual.class_pos_emb"}

    def test_widths(self):
        assert LlavaOnevision15Config().vision_config.text_hidden_size == 4096
        assert LlavaOnevision15Config(text_config={"hidden_size": 2560}).vision_config.text_hidden_size == 2560
        with pytest.raises(ValueError, match="text_hidden_size is 2560"):
            LlavaOnevision15Config(vision_config={"text_hidden_size": 2560})

    def test_what_the_port_does_not_compute_is_refused(self):
        with pytest.raises(ValueError, match="full attention"):
            LlavaOnevision15Config(text_config={"use_sliding_window": True, "sliding_window": 8})
        with pytest.raises(Exception, match="temporal_patch_size"):
            LlavaOnevision15Config(vision_config={"temporal_patch_size": 2})

    def test_tied_embeddings(self):
        config = LlavaOnevision15Config(text_config={**TEXT, "tie_word_embeddings": True}, vision_config=VISION)
        model = LlavaOnevision15ForConditionalGeneration(config)
        assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
        assert tiny_llavaov15().lm_head.weight is not tiny_llavaov15().get_input_embeddings().weight
