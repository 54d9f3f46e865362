"""What is peculiar to InternVL under `prune`: tiles, tokens of 2 x 2 patches, and its prompts."""

import copy
from dataclasses import replace

import pytest
import torch
from probes import Watch
from questions import ask, picture
from reference_prune import generate, inputs_of
from tiny_internvl import squares, tiny_internvl, tiny_internvl_processor

import harness
import methods
from harness.core.config import ModelConfig
from harness.models import loading
from harness.models.bad_input import BadInput
from harness.models.internvl import InternVL
from harness.models.limits import FrameLimit, limits_of
from harness.models.preprocessing import to_inputs

MARK = "<|image_pad|>"
# Sizes in pixels: a tile is 112 x 112, and a picture of several has a thumbnail, too.
SAMPLES = {
    "one tile": (f"look {MARK} what?", [(112, 112)], []),
    "two tiles": (f"{MARK}\nand which?", [(112, 224)], []),
    "two images": (f"a {MARK} then {MARK} hm?", [(100, 110), (224, 112)], []),
}
TILES = {"one tile": 1, "two tiles": 3, "two images": 4}


@pytest.fixture(scope="module")
def processor():
    return tiny_internvl_processor()


@pytest.fixture(scope="module")
def model():
    return tiny_internvl()


def of(processor, *names):
    return inputs_of(processor, [SAMPLES[name] if isinstance(name, str) else name for name in names])


@pytest.mark.parametrize("name", SAMPLES)
@torch.no_grad()
def test_a_token_is_a_square_of_patches_and_a_tile_a_grid(processor, model, name):
    inputs, watch = of(processor, name), Watch()
    with harness.prune(model, watch, keep=0.4) as pruning:
        model(**inputs)
    assert pruning.records[0].grids == [(1, 4, 4)] * TILES[name]
    patches = model.model.vision_tower(inputs["pixel_values"]).last_hidden_state[:, 1:]
    features = model.model.multi_modal_projector(squares(patches).flatten(1))
    torch.testing.assert_close(watch.seen[0].features, features, atol=1e-5, rtol=1e-4)


class TestQuestion:
    @torch.no_grad()
    def test_the_break_behind_an_image_is_not_the_question(self, processor, model):
        messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What\nis it?"}]}]
        text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert f"{MARK}\nWhat" in text
        watch = Watch()
        with harness.prune(model, watch, keep=0.5):
            model(**of(processor, (text, [(112, 112)], [])))
        ids = processor.tokenizer("What\nis it?", return_tensors="pt")["input_ids"]
        assert torch.equal(watch.seen[0].text, model.get_input_embeddings()(ids)[0])

    @pytest.mark.parametrize(("text", "known"), [("qwen2", True), ("qwen3", True), ("llama", False)])
    def test_the_question_is_found_in_qwens_format_alone(self, model, text, known):
        config = copy.deepcopy(model.config)
        config.text_config.model_type = text
        if known:
            InternVL.check(methods.load("cdpruner"), config)
        else:
            with pytest.raises(ValueError, match=r"of language models of type llama only InternLM2.5's is known"):
                InternVL.check(methods.load("cdpruner"), config)


@torch.no_grad()
def test_a_checkpoint_loads_and_answers(processor, model, tmp_path):
    for part in (model, processor):
        part.save_pretrained(tmp_path)
    config = ModelConfig(name="tiny", pretrained=str(tmp_path), dtype="float32", device="cpu")
    loaded = loading.load(config)
    assert limits_of(loaded.processor, config) is None
    inputs = to_inputs(loaded.processor, [ask(picture(224, 112))] * 2, None)
    with harness.prune(loaded.model, "divprune", keep=0.25) as pruning:
        assert generate(loaded.model, inputs) != generate(model, inputs)
    assert [(record.n, record.k) for record in pruning.records] == [(48, 12)] * 2


def test_videos_are_shown_where_a_number_of_frames_is_set(processor):
    config = ModelConfig(name="tiny", pretrained="tiny")
    assert limits_of(processor, replace(config, max_frames=8)) == FrameLimit(8)
    assert limits_of(processor, replace(config, max_frames=8, fps=2.0, min_frames=2)) == FrameLimit(8, 2.0, 2)
    with pytest.raises(BadInput, match=r"the question has video, .* images only where model.max_frames is null"):
        to_inputs(processor, [ask([picture(56, 56)] * 4)], limits_of(processor, config))
    text = processor.decode(to_inputs(processor, [ask([picture(56, 56)] * 4)], FrameLimit(3))["input_ids"][0])
    assert [f"Frame{number}: " in text for number in (1, 2, 3, 4)] == [True] * 3 + [False]
